// A clip in time: when each label is seen, as bars on lines that can be gone to, and which labels
// the frame has that is shown now.

class Clip {
  // `video` plays it, or is a picture that moves; `show` is given the frame that is shown now.
  constructor(video, show) {
    Object.assign(this, {video, show, frames: [], total: 0, now: null});
    this.lines = el("div", {class: "lines", role: "group", "aria-label": "When each label is seen"});
    this.box = el("div", {class: "times", hidden: true}, this.lines);
    roving(this.lines, "button");
    for (const name of ["timeupdate", "seeked", "loadedmetadata"]) video.addEventListener(name, () => this.mark());
  }

  put({frames = [], spans = []}) {
    this.frames = frames;
    this.box.hidden = !spans.length;
    const ends = [...spans.map(span => span.end), ...frames.map(frame => frame.time)];
    this.total = Math.max(Number.isFinite(this.video.duration) ? this.video.duration : 0, ...ends) || 1;
    const names = [...new Set(spans.map(span => span.label))];
    this.lines.replaceChildren(...names.map((name, at) => this.line(name, spans.filter(span => span.label === name), at % TINTS)));
    const first = this.lines.querySelector("button");
    if (first) first.tabIndex = 0;
    this.now = null;
    this.mark();
  }

  line(name, spans, tint) {
    return el("div", {class: `line-of tint-${tint}`}, el("span", {class: "called", dir: "auto"}, name),
      el("div", {class: "track"}, spans.map(span => {
        const times = `${clock(span.start, 1)} to ${clock(span.end, 1)}`;
        const made = el("button", {type: "button", tabindex: "-1", title: `${name}, ${times}: ${score(span.score)}`,
          "aria-label": `${name}, ${times}`, click: () => this.go(span.start)});
        made.style.left = `${100 * span.start / this.total}%`;
        made.style.width = `${100 * (span.end - span.start) / this.total}%`;
        return made;
      }), el("i", {class: "position"})));
  }

  go(seconds) {
    if (this.video.readyState) this.video.currentTime = seconds;
    else this.mark(seconds);
  }

  // A browser that cannot play the clip still shows the frame that was gone to.
  mark(seconds = this.video.currentTime || 0) {
    const at = `${100 * Math.min(1, seconds / this.total)}%`;
    for (const position of this.lines.querySelectorAll(".position")) position.style.left = at;
    const frame = this.frames.filter(one => one.time <= seconds + 0.02).pop() || this.frames[0];
    if (!frame || frame === this.now) return;
    this.now = frame;
    this.show(frame);
  }
}
