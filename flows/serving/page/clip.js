// A clip in time: when each label is seen, as bars on lines that can be gone to, and which labels
// the frame has that is shown now.

// Stretches of frames that follow one another and were given the same label, with its best score. A
// frame lasts until the next one; the last as long as the one before it.
function stretches(frames) {
  const open = new Map(), found = [], times = frames.map(frame => frame.time);
  const step = times.length > 1 ? times[times.length - 1] - times[times.length - 2] : 1;
  frames.forEach(({time, labels}, at) => {
    const end = times[at + 1] ?? time + step, given = new Map(labels.filter(label => label.passed).map(label => [label.label, label.score]));
    for (const [name, value] of given) {
      const span = open.get(name);
      if (span) Object.assign(span, {end, score: Math.max(span.score, value)});
      else { open.set(name, {label: name, start: time, end, score: value}); found.push(open.get(name)); }
    }
    for (const name of open.keys()) if (!given.has(name)) open.delete(name);
  });
  return found;
}

class Clip {
  // `video` plays it, or is a picture that moves; `show` is given the frame that is shown now.
  constructor(video, show) {
    Object.assign(this, {video, show, frames: [], total: 0, now: null, tint: new Map()});
    this.lines = el("div", {class: "lines", role: "group", "aria-label": "When each label is seen"});
    this.box = el("div", {class: "times", hidden: true}, this.lines);
    roving(this.lines, "button");
    for (const name of ["timeupdate", "seeked", "loadedmetadata"]) video.addEventListener(name, () => this.mark());
  }

  // Returns the names of the labels that it was given at any time.
  put(frames) {
    const spans = stretches(frames), {duration} = this.video;
    this.frames = frames;
    this.box.hidden = !spans.length;
    this.total = Number.isFinite(duration) ? duration : Math.max(1, ...spans.map(span => span.end));
    for (const span of spans) span.end = Math.min(span.end, this.total);
    this.tint = tints(spans.map(span => span.label));
    this.lines.replaceChildren(...[...this.tint].map(([name, tint]) => this.line(name, spans.filter(span => span.label === name), tint)));
    const first = this.lines.querySelector("button");
    if (first) first.tabIndex = 0;
    this.now = null;
    this.mark();
    return [...this.tint.keys()];
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
