// Videos with their captions, and images on a contact sheet.

const SPANS = 40; // labels of a video that are shown beside its captions
const SHORT = 300; // letters of a summary and its chapters that are not folded
const PLAYED = /\.(mp4|m4v|mov|mkv|webm|ogv|gif)$/i; // videos that some browser plays, animated images included
const SHOWN_BY_ALL = /\.(jpe?g|png|gif|webp|bmp)$/i;

// In the place of a medium: its thumbnail, if it is in the page, and the reason. A browser gives none for what it does not show.
const instead = (medium, why = SHOWN_BY_ALL.test(medium.name) ? "Not here, or damaged:" : "Not here, or not for this browser:") =>
  [medium.small ? el("img", {src: medium.small, alt: ""}) : "", gone(medium, why)];

// A page that was moved without its media still finds them by their absolute paths.
function withFallback(node, medium, fail) {
  const whole = new URL(medium.url, data.folder).href;
  let tries = 0;
  node.addEventListener("error", () => {
    if (!node.getAttribute("src")) return; // it was released
    if (tries++ === 0 && whole !== node.src) node.src = whole;
    else fail();
  });
  node.src = new URL(medium.url, document.baseURI).href;
  return node;
}

// The first frame of a video is loaded only when the video is visible.
const nearby = new IntersectionObserver(seen => {
  for (const {target, isIntersecting} of seen)
    if (isIntersecting && target.preload === "none") { target.preload = "metadata"; nearby.unobserve(target); }
});

// One video and its captions; `rows`: the captions that are shown.
class VideoCard {
  constructor({medium, rows}, sought) {
    const {captions} = medium;
    Object.assign(this, {medium, rows, video: null, now: -1, length: captions.at(-1)?.end || 0,
      list: el("div", {class: "captions", tabindex: "-1", keydown: event => this.key(event)}), player: el("div", {class: "player"}),
      position: el("i", {class: "position"}), current: el("i", {class: "current"})});
    this.total = this.length;
    this.track = el("div", {class: "track", "aria-hidden": "true"}, this.current, this.position);
    const failure = captions.length ? null : data.failures.find(each => each.media_path === medium.name);
    if (failure) this.player.append(el("p", {class: "gone"}, el("strong", {}, `Failed: ${failure.message}`), " ", failure.hint));
    else if (medium.gone) this.player.append(gone(medium, `${medium.gone}:`));
    else if (!PLAYED.test(medium.name)) this.player.append(...instead(medium, "Browsers cannot play this format:"));
    else this.load();
    this.rule();
    windowed(this.list, rows, {group: 40, height: 44, build: row => this.row(row, sought), root: this.list, all: data.all});
    const tokens = captions.reduce((sum, row) => sum + row.tokens, 0);
    const every = data.captioned ? counted(captions.length, "caption") : counted(captions.length, "stretch", "stretches");
    this.box = el("article", {class: "card"},
      el("h3", {dir: "auto"}, titleOf(medium.name, sought)),
      el("p", {class: "quiet"}, failure ? "failed" : joined([rows.length < captions.length ? `${rows.length} of ${every}` : every,
        this.length && clock(this.length), tokens && counted(tokens, "token")])),
      medium.prompt ? el("p", {class: "quiet", dir: "auto"}, `Asked: ${medium.prompt}`) : null,
      medium.warnings.map(text => el("p", {class: "warning", dir: "auto"}, text)),
      medium.summary ? summaryOf(medium.summary, sought, start => this.go(start)) : null,
      medium.spans ? el("p", {class: "spans"}, medium.spans.slice(0, SPANS).map(([start, text]) =>
        button(`${clock(start)} ${text}`, () => this.go(start), {class: "chip"}))) : null,
      el("div", {class: "pair"}, el("div", {}, this.player, this.track), this.list));
  }

  load() {
    const mark = () => this.mark(), {medium} = this;
    this.video = el("video", {controls: true, preload: "none", playsinline: true, "aria-label": medium.name,
      timeupdate: mark, seeking: mark, seeked: mark, loadedmetadata: () => this.measure()});
    this.player.append(withFallback(this.video, medium, () => this.fail()));
    nearby.observe(this.video);
    this.track.addEventListener("click", event => {
      const box = this.track.getBoundingClientRect();
      this.go(this.total * (event.clientX - box.left) / box.width);
    });
  }

  fail() {
    const {medium, player} = this;
    this.video = null;
    // An animated image is a video for the run, but browsers cannot play it as one.
    const status = instead(medium), gif = /\.gif$/i.test(medium.name) && el("img", {alt: medium.name});
    player.replaceChildren(...gif ? [withFallback(gif, medium, () => player.replaceChildren(...status))] : status);
  }

  measure() {
    if (Number.isFinite(this.video.duration)) this.total = Math.max(this.video.duration, this.medium.captions.at(-1)?.start || 0);
    this.rule();
    this.place();
  }

  // A mark on the track at the start of a caption.
  rule() {
    this.track.querySelectorAll("b").forEach(tick => tick.remove());
    const at = seconds => percent(seconds / (this.total || 1));
    this.track.prepend(...this.medium.captions.slice(1, 400).map(({start}) => el("b", {style: {left: at(start)}})));
  }

  place() {
    const {start, end} = this.medium.captions[this.now] || {start: 0, end: 0}, all = this.total || 1;
    set(this.current, {style: {left: percent(start / all), width: percent(Math.max(0, Math.min(end, all) - start) / all)}});
  }

  row(row, sought) {
    return button([el("time", {}, clock(row.start, 1)),
      el("span", {dir: "auto"}, row.said.trim() ? marked(row.said, sought) : el("em", {}, "no text"),
        row.cut ? el("span", {class: "chip"}, "cut") : null, decidedOn(row))],
    () => this.go(row.start), {"aria-current": this.medium.captions[this.now] === row ? "true" : null});
  }

  go(seconds) {
    if (!this.video) return;
    if (this.video.preload === "none") this.video.preload = "metadata";
    this.video.currentTime = seconds;
    this.mark();
  }

  // Marks the current caption, and scrolls it into view.
  mark() {
    if (!this.video) return;
    const time = this.video.currentTime + 0.002, {captions} = this.medium, last = captions.length - 1;
    this.position.style.left = percent(this.total ? Math.min(1, time / this.total) : 0);
    let at = captions.findIndex(({start, end}) => start <= time && time < end);
    if (at < 0 && last >= 0 && time >= this.length) at = last;
    if (at === this.now) return;
    this.list.querySelectorAll("[aria-current]").forEach(old => old.removeAttribute("aria-current"));
    this.now = at;
    this.place();
    const now = this.list.reach(this.rows.indexOf(captions[at]));
    if (!now) return;
    now.setAttribute("aria-current", "true");
    this.bring(now, 10);
  }

  // The position of an element without layout is an estimate: correct it once it is visible.
  bring(row, tries) {
    const inside = row.getBoundingClientRect(), around = this.list.getBoundingClientRect();
    if (inside.top >= around.top && inside.bottom <= around.bottom && inside.height) return;
    this.list.scrollTop += inside.top - around.top - around.height / 3;
    if (tries) requestAnimationFrame(() => this.bring(row, tries - 1));
  }

  key(event) {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    const rows = [...this.list.querySelectorAll("button")];
    rows[rows.indexOf(document.activeElement) + step]?.focus();
    event.preventDefault();
  }
}

// A summary and its chapters, folded where they are long and nothing is sought in them.
function summaryOf(summary, sought, go) {
  const {text: whole, chapters, warnings} = summary, all = allOf(summary), low = folded(all);
  const text = one => one.trim() ? marked(one, sought) : el("em", {}, "no text");
  return el("details", {class: "summary", open: all.length <= SHORT || sought.some(word => low.includes(word))},
    el("summary", {}, joined(["Summary", counted(chapters.length, "chapter")])),
    el("p", {dir: "auto"}, text(whole)), warnings.map(one => el("p", {class: "warning", dir: "auto"}, one)),
    el("div", {class: "chapters"}, chapters.map(([start, one]) => button([el("time", {}, clock(start)),
      el("span", {dir: "auto"}, text(one))], () => go(start)))));
}

// The labels of an image; those with a box have its colour.
function chips(medium, sought) {
  if (!medium.labels.length) return el("em", {class: "quiet"}, "no label");
  const tint = tints(boxed(medium.labels).map(({label}) => label));
  return medium.labels.map(({label, score, box}) => el("span", {class: `chip label-of${box ? ` tint-${tint.get(label)}` : ""}`,
    title: `${label}: ${score}`}, marked(label, sought), el("small", {}, ` ${score.toFixed(2)}`)));
}

// What a person did with a caption.
const decidedOn = row => row.decided.map(word => [" ", el("span", {class: `chip ${word}`}, word)]);

// The captions of an image, and its labels.
const textsOf = (medium, sought) => [
  data.captioned ? medium.captions.map((row, at) => [at ? "\n" : null, marked(row.said, sought), decidedOn(row)]) : null,
  data.captioned && medium.labels ? " " : null,
  medium.labels ? chips(medium, sought) : null];

const saidOf = medium => joined(medium.captions.map(row => row.said), "\n");

// An image with the boxes of its labels.
function imageOf(medium, attributes, fail) {
  const image = el("img", attributes), scene = medium.labels ? new Scene(image) : null;
  scene?.putLater(medium.labels);
  withFallback(image, medium, fail);
  return scene ? scene.box : image;
}

function imageTile(medium, sought, open) {
  const fail = why => { frame.replaceChildren(...instead(medium, why)); frame.title = medium.path; };
  const frame = button("", () => open(medium), {class: "frame", "aria-label": `Open ${medium.name}`});
  if (medium.gone) fail(`${medium.gone}:`);
  else frame.append(imageOf(medium, {loading: "lazy", decoding: "async", alt: ""}, () => fail()));
  return el("figure", {}, frame, el("figcaption", {},
    el("span", {class: "said", dir: "auto"}, textsOf(medium, sought)),
    el("span", {class: "quiet name", dir: "auto", title: medium.name}, titleOf(medium.name, sought))));
}

// One image as large as the window allows, with its caption.
function shownImage(medium) {
  const image = el("div", {class: "seen"}), fail = why => image.replaceChildren(...instead(medium, why));
  if (medium.gone) fail(`${medium.gone}:`);
  else image.append(imageOf(medium, {alt: saidOf(medium)}, () => fail()));
  return {title: medium.name, content: el("div", {}, image, el("p", {dir: "auto"}, textsOf(medium, [])),
    medium.prompt ? el("p", {class: "quiet", dir: "auto"}, medium.prompt) : null,
    medium.warnings.map(text => el("p", {class: "warning"}, text)))};
}
