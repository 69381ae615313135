// One caption: its words, and what is decided on them.

const rowsOf = new Map(); // key of a caption → its rows in the page; two files may be one content

class Row {
  constructor(row, {media, frame, save}) {
    Object.assign(this, {row, save, media, frame});
    const button = (name, sign, run) => el("button", {type: "button", "aria-label": name, title: name, click: run}, sign);
    this.edit = button("Edit", "✎", () => this.write());
    this.accept = button("Accept", "✓", () => this.decide("accepted"));
    this.reject = button("Reject", "✕", () => this.decide("rejected"));
    this.words = el("div", {class: "words", dir: "auto", dblclick: () => this.write()});
    this.before = el("p", {class: "quiet before", dir: "auto"});
    this.doubt = el("p", {class: "quiet small doubt"});
    this.time = media.kind === "video" ? el("button", {type: "button", class: "time", title: "Show it there",
      click: () => frame(row.start)}, clock(row.start, 1)) : null;
    this.box = el("div", {class: "row", role: "group", tabindex: "-1", "aria-label": `Caption of ${media.name}`},
      this.time, el("div", {class: "said"}, row.name ? el("b", {class: "of"}, `${row.name} `) : null, this.words, this.doubt, this.before,
        row.warnings.map(text => el("p", {class: "warning"}, text))),
      el("div", {class: "acts"}, this.edit, this.accept, this.reject));
    this.box.row = this;
    if (!rowsOf.has(row.key)) rowsOf.set(row.key, new Set());
    rowsOf.get(row.key).add(this);
    this.draw();
  }

  draw() {
    const {caption, review} = edit(this.row);
    this.box.className = `row ${review} ${caption === null ? "" : "corrected"}`;
    const {sought} = this.frame.around, doubtful = caption === null ? doubtfulWord(this.row) : null;
    this.words.replaceChildren(...[this.frame.around.prefix && el("span", {class: "quiet"}, this.frame.around.prefix),
      ...(doubtful ? this.doubted(doubtful, sought) : marked(words(this.row), sought)),
      this.frame.around.suffix && el("span", {class: "quiet"}, this.frame.around.suffix),
      this.row.cut && caption === null ? el("span", {class: "chip cut"}, "cut") : null].filter(Boolean));
    const {said, before} = this.row, about = caption !== null ? ["the model said: ", said] : before !== undefined ? ["before learning: ", before] : null;
    this.before.replaceChildren(...(about ? [about[0], el("span", {}, about[1])] : []));
    this.before.hidden = !about;
    this.doubt.textContent = doubtful ? `in doubt${doubtful.word && `: “${doubtful.word}”`}, margin ${this.row.margin.toFixed(2)}` : "";
    this.accept.setAttribute("aria-pressed", review === "accepted");
    this.reject.setAttribute("aria-pressed", review === "rejected");
  }

  // The words, with the doubtful one underlined.
  doubted({start, end}, sought) {
    const text = words(this.row), part = (from, to) => from < to ? marked(text.slice(from, to), sought) : [];
    return [...part(0, start), start < end ? el("u", {class: "doubtful"}, part(start, end)) : "", ...part(end, text.length)].filter(Boolean);
  }

  // A second time takes it back.
  decide(review) {
    const now = edit(this.row);
    const next = now.review === review ? "" : review;
    this.save(next ? (review === "accepted" ? "accept" : "reject") : `not ${review}`, [[this.row, {...now, review: next}]]);
  }

  write() {
    if (this.field) return this.field.focus();
    this.field = el("textarea", {"aria-label": "The caption's words", dir: "auto", rows: Math.max(2, Math.ceil(words(this.row).length / 48)),
      keydown: event => this.key(event), blur: () => this.end(true)});
    this.from = edit(this.row); // what it is based on, whatever another tab saves meanwhile
    this.field.value = words(this.row);
    this.words.replaceChildren(this.field);
    this.field.focus();
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
