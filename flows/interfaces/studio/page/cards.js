// A picture or a video with its captions: the words of each, and what is decided on them.

const same = (one, other) => one.caption === other.caption && one.review === other.review;
const rowsOf = new Map(); // key of a caption → its rows in the page; two files may be one content
const DOUBTFUL = 1; // largest margin, in logits, at which a word is marked: the next likely token is at most e times less likely

// Where the word is at which the model hesitated most; null where it did not, or a person wrote the words.
function doubtfulWord({said, margin, margin_at: at}) {
  if (margin === null || margin === undefined || margin > DOUBTFUL) return null;
  let start = [...said].slice(0, at ?? said.length).join("").length; // the server counts code points
  while (/\s/.test(said[start] || "")) start += 1;
  const found = new Intl.Segmenter("en", {granularity: "word"}).segment(said).containing(start);
  // It may be in what is left out of the text.
  return found ? {start: found.index, end: found.index + found.segment.length, word: found.segment} : {start: 0, end: 0, word: ""};
}

class Row {
  constructor(row, {media, frame, save}) {
    Object.assign(this, {row, save, media, frame,
      edit: sign("✎", "Edit", () => this.write()), accept: sign("✓", "Accept", () => this.decide("accepted")),
      reject: sign("✕", "Reject", () => this.decide("rejected")),
      words: el("div", {class: "words", dir: "auto", dblclick: () => this.write()}),
      before: el("p", {class: "quiet before", dir: "auto"}), doubt: el("p", {class: "quiet tiny doubt"})});
    const time = () => button(clock(row.start, 1), () => frame(row.start), {class: "time link", title: "Show it there"});
    this.box = el("div", {class: "row", role: "group", tabindex: "-1", "aria-label": `Caption of ${media.name}`},
      media.kind === "video" ? time() : null,
      el("div", {class: "said"}, row.name ? el("b", {class: "of"}, `${row.name} `) : null, this.words, this.doubt, this.before,
        row.warnings.map(text => el("p", {class: "warning"}, text))),
      el("div", {class: "acts"}, this.edit, this.accept, this.reject));
    this.box.row = this;
    if (!rowsOf.has(row.key)) rowsOf.set(row.key, new Set());
    rowsOf.get(row.key).add(this);
    this.draw();
  }

  draw() {
    const {caption, review} = edit(this.row), {said, before, cut, margin} = this.row;
    const {prefix, suffix, sought, texts} = this.frame.around;
    const doubtful = caption === null ? doubtfulWord(this.row) : null;
    this.box.className = `row ${review} ${caption === null ? "" : "corrected"}`;
    this.words.replaceChildren(...[prefix && el("span", {class: "quiet"}, marked(prefix, sought)),
      ...(doubtful ? this.doubted(doubtful, sought) : marked(words(this.row), sought)),
      suffix && el("span", {class: "quiet"}, suffix),
      cut && caption === null && el("span", {class: "chip cut"}, "cut")].filter(Boolean));
    const about = caption !== null ? [texts ? "the text was: " : "the model said: ", said]
      : before !== undefined ? ["before learning: ", before] : null;
    this.before.replaceChildren(...(about ? [about[0], el("span", {}, about[1])] : []));
    this.before.hidden = !about;
    this.doubt.textContent = doubtful ? `in doubt${doubtful.word && `: “${doubtful.word}”`}, margin ${margin.toFixed(2)}` : "";
    this.accept.setAttribute("aria-pressed", review === "accepted");
    this.reject.setAttribute("aria-pressed", review === "rejected");
  }

  // The words, with the doubtful one underlined.
  doubted({start, end}, sought) {
    const text = words(this.row), part = (from, to) => from < to ? marked(text.slice(from, to), sought) : [];
    return [...part(0, start), start < end ? el("u", {class: "doubtful"}, part(start, end)) : "", ...part(end, text.length)];
  }

  // A second time takes it back.
  decide(review) {
    const now = edit(this.row), next = now.review === review ? "" : review;
    this.save(next ? (review === "accepted" ? "accept" : "reject") : `not ${review}`, [[this.row, {...now, review: next}]]);
  }

  write() {
    if (this.field) return this.field.focus();
    const {prefix, suffix} = this.frame.around, fixed = text => text && el("span", {class: "quiet fixed"}, text);
    this.field = el("textarea", {"aria-label": "The caption's words", dir: "auto", rows: 1, keydown: event => this.key(event),
      blur: () => this.end(true), input: () => this.fit()});
    this.from = edit(this.row); // what it is based on, whatever another tab saves meanwhile
    this.field.value = words(this.row);
    this.words.replaceChildren(...[fixed(prefix), this.field, fixed(suffix)].filter(Boolean));
    this.fit();
    this.field.focus();
  }

  // The box is as high as its text.
  fit() {
    this.field.style.height = "0";
    this.field.style.height = `${this.field.scrollHeight + this.field.offsetHeight - this.field.clientHeight}px`;
  }

  // Tells who writes what another tab saved meanwhile.
  warn() {
    if (same(edit(this.row), this.from)) return;
    this.before.hidden = false;
    this.before.replaceChildren(el("span", {class: "warning", role: "status"}, "changed in another tab: ", words(this.row)));
  }

  key(event) {
    event.stopPropagation();
    if (event.key === "Escape") this.end(false);
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) this.end(true);
    else return;
    event.preventDefault();
  }

  end(keep) {
    if (!this.field) return;
    const value = this.field.value.trim(), inside = document.activeElement === this.field;
    this.field = null;
    if (keep && value && value !== (this.from.caption ?? this.row.said))
      this.save("correct", [[this.row, {caption: value === this.row.said ? null : value, review: "accepted"}, this.from]]);
    this.draw();
    if (inside) this.box.focus({preventScroll: true});
  }
}

class Card {
  constructor({medium, rows}, around, save, open) {
    const frame = Object.assign(seconds => this.play(seconds), {around}), prompts = [...new Set(rows.map(row => row.prompt))];
    Object.assign(this, {medium, open, player: el("div", {class: "player"})});
    const some = rows.length < medium.captions.length ? `${rows.length} of ${counted(medium.captions.length, "caption")}` : "";
    this.box = el("article", {class: "card", "aria-label": medium.name}, this.player,
      el("div", {class: "about"}, el("h2", {dir: "auto"}, titleOf(medium.name, around.sought)),
        el("p", {class: "quiet tiny"}, joined([some, ...(prompts.every(one => one === around.asked.get(medium.kind)) ? [] : prompts)])),
        rows.map(row => new Row(row, {media: medium, frame, save}).box),
        medium.text ? el("p", {class: "quiet by-hand", dir: "auto"}, el("b", {}, medium.text[0]),
          " goes before the caption in data sets: ", medium.text[1]) : null));
    this.still(rows[0]);
  }

  still(row) {
    const {medium, player} = this, isVideo = medium.kind === "video";
    if (medium.gone) return player.replaceChildren(gone(medium, `${medium.gone}:`));
    const at = isVideo ? `?at=${Math.max(0, (row.start + Math.max(row.start, row.end)) / 2).toFixed(2)}` : "";
    const shown = button([el("img", {loading: "lazy", decoding: "async", alt: "", src: `small/${medium.number}${at}`,
      error: () => shown.replaceChildren(el("span", {class: "gone"}, "no picture can be made of it"))}),
    isVideo ? el("span", {class: "sign", "aria-hidden": "true"}, "▶") : null],
    () => isVideo ? this.play(row.start) : this.open(medium), {"aria-label": `${isVideo ? "Play" : "Open"} ${medium.name}`});
    player.replaceChildren(shown);
  }

  play(seconds) {
    const {medium, player} = this;
    if (medium.kind !== "video" || medium.gone) return;
    let video = player.querySelector("video");
    if (!video) {
      video = el("video", {controls: true, playsinline: true, "aria-label": medium.name, src: `media/${medium.number}`,
        error: () => { if (video.getAttribute("src")) player.replaceChildren(gone(medium, "This browser cannot play it:")); }});
      player.replaceChildren(video);
    }
    video.currentTime = seconds;
    video.play().catch(() => {});
    if (!video.readyState) video.addEventListener("loadedmetadata", () => this.whole(video, seconds), {once: true});
  }

  // A proxy may pass on no ranges of bytes. The browser goes to a time only if it has the whole file then.
  async whole(video, seconds) {
    if (!seconds || video.seekable.length && video.seekable.end(0) > seconds) return;
    video.src = URL.createObjectURL(await (await fetch(video.src)).blob());
    video.currentTime = seconds;
    video.play().catch(() => {});
  }
}

const failureCard = failure => el("article", {class: "card failure"}, el("h2", {dir: "auto"}, titleOf(failure.media_path)),
  el("p", {class: "quiet tiny"}, failure.stage), el("p", {dir: "auto"}, `${failure.message}. `, el("b", {}, failure.hint)));

// A picture as large as the window allows.
const shownPicture = (medium, over) => ({title: medium.name, content: el("div", {class: "large"}, el("img", {alt: medium.name,
  src: `media/${medium.number}`, error: event => { event.target.src = `small/${medium.number}`; }}), over)});
