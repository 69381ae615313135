// Videos with their captions, and images on a contact sheet.

// A file is addressed by its path relative to the page, or by its absolute path.
const beside = medium => new URL(medium.url, document.baseURI).href;
const whole = (medium, data) => new URL(medium.url, data.folder).href;

function gone(medium, why) {
  return el("p", {class: "gone"}, el("strong", {}, why), " ", el("code", {}, medium.path));
}

// A page that was moved without its media still finds them by their absolute paths.
function withFallback(node, medium, data, fail) {
  let tries = 0;
  node.addEventListener("error", () => {
    if (!node.getAttribute("src")) return; // it was released
    if (tries++ === 0 && whole(medium, data) !== node.src) node.src = whole(medium, data);
    else fail();
  });
  node.src = beside(medium);
  return node;
}

// One video and its captions; `shown`: the captions that match the search, or all.
class VideoCard {
  constructor(medium, shown, words, data) {
    Object.assign(this, {medium, shown, words, data, video: null, now: -1});
    const {captions} = medium;
    this.length = this.total = captions.length ? captions[captions.length - 1][1] : 0;
    this.list = el("div", {class: "captions", tabindex: "-1", keydown: event => this.key(event)});
    this.player = el("div", {class: "player"});
    this.position = el("i", {class: "position"});
    this.current = el("i", {class: "current"});
    this.strip = el("div", {class: "strip", "aria-hidden": "true"}, this.current, this.position);
    if (medium.gone) this.player.append(gone(medium, `${medium.gone}:`));
    else this.load();
    this.rule();
    windowed(this.list, shown, {group: 40, height: 44, build: caption => this.row(caption), root: this.list, all: data.all});
    this.box = el("article", {class: "card"},
      el("h3", {dir: "auto"}, marked(medium.name, words)),
      el("p", {class: "quiet"}, this.summary()),
      medium.prompt ? el("p", {class: "quiet", dir: "auto"}, `Asked: ${medium.prompt}`) : null,
      medium.warnings.map(text => el("p", {class: "warning", dir: "auto"}, text)),
      el("div", {class: "pair"}, el("div", {}, this.player, this.strip), this.list));
  }

  summary() {
    const {captions} = this.medium, all = this.data.labels ? counted(captions.length, "stretch", "stretches") : counted(captions.length, "caption");
    const tokens = captions.reduce((sum, caption) => sum + caption[3], 0);
    const some = this.shown.length < captions.length ? `${this.shown.length} of ${all}` : all;
    return [some, this.length ? clock(this.length) : "", tokens ? counted(tokens, "token") : ""].filter(Boolean).join(" · ");
  }

  load() {
    const mark = () => this.mark(), {medium} = this;
    this.video = el("video", {controls: true, preload: "none", playsinline: true, "aria-label": medium.name,
      timeupdate: mark, seeking: mark, seeked: mark, loadedmetadata: () => this.measure()});
    this.player.append(withFallback(this.video, medium, this.data, () => this.fail()));
    nearby.observe(this.video);
    this.strip.addEventListener("click", event => {
      const box = this.strip.getBoundingClientRect();
      this.go(this.total * (event.clientX - box.left) / box.width);
    });
  }

  fail() {
    const {medium, player} = this, status = gone(medium, "This browser cannot play it, or it was moved since:");
    this.video = null;
    // An animated image is a video for the run, but browsers cannot play it as one.
    player.replaceChildren(/\.gif$/i.test(medium.name)
      ? withFallback(el("img", {alt: medium.name}), medium, this.data, () => player.replaceChildren(status)) : status);
  }

  measure() {
    const {captions} = this.medium, last = captions.length ? captions[captions.length - 1][0] : 0;
    if (Number.isFinite(this.video.duration)) this.total = Math.max(this.video.duration, last);
    this.rule();
    this.place();
  }

  // A mark on the strip at the start of a caption.
  rule() {
    this.strip.querySelectorAll("b").forEach(tick => tick.remove());
    for (const [start] of this.medium.captions.slice(1, 400)) {
      const tick = el("b");
      tick.style.left = `${100 * start / (this.total || 1)}%`;
      this.strip.prepend(tick);
    }
  }

  place() {
    const [start, end] = this.medium.captions[this.now] || [0, 0], all = this.total || 1;
    this.current.style.left = `${100 * start / all}%`;
    this.current.style.width = `${100 * Math.max(0, Math.min(end, all) - start) / all}%`;
  }

  row(caption) {
    return el("button", {type: "button", "aria-current": this.medium.captions[this.now] === caption ? "true" : null, click: () => this.go(caption[0])},
      el("time", {}, clock(caption[0], 1)),
      el("span", {dir: "auto"}, caption[2].trim() ? marked(caption[2], this.words) : el("em", {}, "no text"),
        caption[4] ? el("span", {class: "chip"}, "cut") : null));
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
    this.position.style.left = `${this.total ? 100 * Math.min(1, time / this.total) : 0}%`;
    let at = captions.findIndex(([start, end]) => start <= time && time < end);
    if (at < 0 && last >= 0 && time >= this.length) at = last;
    if (at === this.now) return;
    this.list.querySelectorAll("[aria-current]").forEach(old => old.removeAttribute("aria-current"));
    this.now = at;
    this.place();
    const button = this.list.reach(this.shown.indexOf(captions[at]));
    if (!button) return;
    button.setAttribute("aria-current", "true");
    this.bring(button, 10);
  }

  // The position of an element without layout is an estimate: correct it once it is visible.
  bring(button, tries) {
    const inside = button.getBoundingClientRect(), around = this.list.getBoundingClientRect();
    if (inside.top >= around.top && inside.bottom <= around.bottom && inside.height) return;
    this.list.scrollTop += inside.top - around.top - around.height / 3;
    if (tries) requestAnimationFrame(() => this.bring(button, tries - 1));
  }

  key(event) {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    const buttons = [...this.list.querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    event.preventDefault();
  }
}

// The first frame of a video is loaded only when the video is visible.
const nearby = new IntersectionObserver(seen => {
  for (const {target, isIntersecting} of seen) {
    if (isIntersecting && target.preload === "none") { target.preload = "metadata"; nearby.unobserve(target); }
  }
});

function imageTile(medium, words, data, open) {
  const frame = el("button", {type: "button", class: "frame", click: () => open(medium), "aria-label": `Open ${medium.name}`});
  if (medium.gone) frame.replaceChildren(el("span", {class: "gone"}, medium.gone));
  else {
    const image = el("img", {loading: "lazy", decoding: "async", alt: ""});
    frame.append(...[image, boxes(image, medium, false)].filter(Boolean));
    withFallback(image, medium, data, () => frame.replaceChildren(el("span", {class: "gone"}, "this browser cannot show it")));
  }
  const text = medium.captions.map(caption => caption[2]).join("\n");
  return el("figure", {}, frame, el("figcaption", {},
    el("span", {class: "said", dir: "auto"}, medium.labels ? chips(medium, words) : marked(text, words)),
    el("span", {class: "quiet name", dir: "auto", title: medium.name}, marked(medium.name, words))));
}

// One image as large as the window allows, with its caption; arrow keys move to its neighbours.
function viewer(dialog, data) {
  let among = [], at = 0;
  const show = () => {
    const medium = among[at];
    const image = el("img", {alt: medium.captions.map(c => c[2]).join("\n")}), seen = el("div", {class: "seen"}, image, boxes(image, medium, true));
    if (!medium.gone) withFallback(image, medium, data, () => seen.replaceWith(gone(medium, "This browser cannot show it, or it was moved since:")));
    dialog.replaceChildren(
      el("form", {method: "dialog"}, el("span", {class: "quiet"}, `${at + 1} of ${among.length}`), el("button", {"aria-label": "Close"}, "✕")),
      medium.gone ? gone(medium, `${medium.gone}:`) : seen,
      el("p", {dir: "auto"}, medium.labels ? chips(medium, []) : medium.captions.map(c => c[2]).join("\n")),
      el("p", {class: "quiet", dir: "auto"}, medium.name, medium.prompt ? ` · ${medium.prompt}` : ""),
      medium.warnings.map(text => el("p", {class: "warning"}, text)));
  };
  const step = by => { if (among[at + by]) { at += by; show(); } };
  dialog.addEventListener("keydown", event => {
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  });
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  return (medium, all) => {
    among = all;
    at = all.indexOf(medium);
    show();
    dialog.showModal();
  };
}
