// Captions as they are made: a piece of text at a time, each under the stretch that it is of.

class Captions {
  // `go` is given the seconds at which a caption begins.
  constructor(go) {
    this.go = go;
    this.list = el("ol", {class: "captions", "aria-label": "Captions"});
    this.box = el("div", {}, this.list);
    this.chunks = new Map();
  }

  begin() {
    this.chunks.clear();
    this.list.replaceChildren(el("li", {class: "writing"}, el("p", {class: "quiet"}, "waiting for its first word")));
  }

  // A piece of chunk n. Those that are made at the same time grow beside each other, in order.
  add({chunk = 0, start = null, end = null, text = ""}) {
    if (!this.chunks.size) this.list.replaceChildren();
    if (!this.chunks.has(chunk)) {
      const made = this.row(start, end, "");
      made.classList.add("writing");
      const after = [...this.chunks.keys()].filter(other => other < chunk).length;
      this.list.insertBefore(made, this.list.children[after] || null);
      this.chunks.set(chunk, made);
    }
    this.chunks.get(chunk).querySelector("p").append(text);
  }

  done(captions) {
    this.chunks.clear();
    this.list.replaceChildren(...captions.map(one => this.row(one.start, one.end, one.caption)));
    if (!captions.length) this.list.append(el("li", {}, el("p", {class: "quiet"}, "Nothing was said of it.")));
  }

  stop() {
    for (const row of this.list.querySelectorAll(".writing")) row.classList.remove("writing");
    if (!this.chunks.size) this.list.replaceChildren();
  }

  row(start, end, text) {
    const timed = start !== null && start !== undefined && end > start;
    return el("li", {}, timed ? el("button", {type: "button", class: "time", "aria-label": `Go to ${clock(start, 1)}`, click: () => this.go(start)},
      el("time", {}, clock(start, 1))) : null, el("p", {dir: "auto"}, text));
  }
}
