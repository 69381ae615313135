// What the server says of a picture or a clip: labels as bars, when each is seen, and captions as they are made.

const score = value => value.toFixed(3).replace("-", "−");

function reason({label, score: value, threshold, passed, box, whole, why}) {
  const bound = threshold === null ? "" : passed ? `, at least ${score(threshold)}` : `, below ${score(threshold)}`;
  return joined([`${label}: ${score(value)}${bound}`, box && typeof whole === "number" && `${score(whole)} in the picture as a whole`,
    why && `the rule: ${why}`], "; ");
}

// All bars of the page have one scale, so that a threshold stands at the same place on every card: that
// of probabilities, unless all scores so far are far below: then their own.
const scale = {most: 0, bars: [], all: () => scale.most > 0.6 || scale.most <= 0 ? 1 : 1.15 * scale.most};

class Bars {
  // `light` is called with the label under the pointer, or null.
  constructor(light) {
    this.list = el("ul", {class: "bars", "aria-label": "Labels"});
    this.why = el("p", {class: "why quiet", dir: "auto"});
    Object.assign(this, {light, box: el("div", {}, this.list, this.why), rove: roving(this.list, "button"), labels: []});
    scale.bars.push(new WeakRef(this));
  }

  put(labels, tint) {
    const before = scale.all();
    scale.most = most([scale.most, ...labels.flatMap(label => [label.score, label.threshold ?? 0])]);
    Object.assign(this, {labels, tint, first: labels[0]});
    this.draw(scale.all());
    this.tell(null);
    if (scale.all() === before) return;
    scale.bars = scale.bars.filter(one => one.deref());
    for (const one of scale.bars) if (one.deref() !== this) one.deref()?.draw(scale.all());
  }

  draw(all) {
    const held = this.list.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    this.list.replaceChildren(...this.labels.map(label => el("li", {}, this.row(label, all, this.tint.get(label.label)))));
    this.rove.first();
    if (held !== null) [...this.list.querySelectorAll("button")].find(row => row.dataset.name === held)?.focus();
  }

  row(label, all, tint) {
    const x = value => percent(Math.max(0, Math.min(1, value / all))), point = to => () => this.tell(to);
    const bar = draw("svg", {class: "bar", "aria-hidden": "true"},
      draw("rect", {class: "ground", width: "100%", height: "100%", rx: 2}),
      draw("rect", {class: "length", width: x(label.score), height: "100%", rx: 2}),
      label.threshold === null ? null : upright("least", x(label.threshold), 0, "100%"));
    return button([el("span", {class: "called", dir: "auto"}, label.label), bar, el("span", {class: "number"}, score(label.score)),
      el("span", {class: "unseen"}, label.passed ? ", given" : ", not given")], null, {
      class: `${label.passed ? "passed" : ""}${tint === undefined ? "" : ` tint-${tint}`}`, "data-name": label.label, title: reason(label),
      "aria-description": reason(label), pointerenter: point(label), focus: point(label), pointerleave: point(null), blur: point(null)});
  }

  tell(label) {
    this.why.textContent = label || this.first ? reason(label || this.first) : "No label to show.";
    this.light(label?.label ?? null);
  }
}

// Stretches of frames that follow one another and were given the same label, with its best score. A
// frame lasts until the next one; the last as long as the one before it.
function stretches(frames) {
  const found = [], open = new Map(), times = frames.map(frame => frame.time);
  const step = times.length > 1 ? times.at(-1) - times.at(-2) : 1;
  frames.forEach(({time, labels}, at) => {
    const end = times[at + 1] ?? time + step, given = labels.filter(label => label.passed);
    for (const {label: name, score: value} of given) {
      const span = open.get(name);
      if (span) Object.assign(span, {end, score: Math.max(span.score, value)});
      else { open.set(name, {label: name, start: time, end, score: value}); found.push(open.get(name)); }
    }
    for (const name of open.keys()) if (!given.some(({label}) => label === name)) open.delete(name);
  });
  return found;
}

// When each label is seen, as bars on lines that can be gone to, and which labels the frame has that is shown now.
class Clip {
  // `video` plays it, or is a picture that moves; `show` is given the frame that is shown now.
  constructor(video, show) {
    const lines = el("div", {class: "lines", role: "group", "aria-label": "When each label is seen"});
    Object.assign(this, {video, show, lines, frames: [], total: 0, now: null, tint: new Map(), rove: roving(lines, "button"),
      box: el("div", {class: "times", hidden: true}, lines)});
    for (const name of ["timeupdate", "seeked", "loadedmetadata"]) video.addEventListener(name, () => this.mark());
  }

  // Returns the names of the labels that it was given at any time.
  put(frames) {
    const spans = stretches(frames), {duration} = this.video;
    const total = Number.isFinite(duration) ? duration : Math.max(1, ...spans.map(span => span.end));
    for (const span of spans) span.end = Math.min(span.end, total);
    Object.assign(this, {frames, total, now: null, tint: tints(spans.map(span => span.label))});
    this.box.hidden = !spans.length;
    const names = [...this.tint.keys()];
    this.lines.replaceChildren(...names.map(name => this.line(name, spans.filter(span => span.label === name), this.tint.get(name))));
    this.rove.first();
    this.mark();
    return names;
  }

  line(name, spans, tint) {
    const bar = ({start, end, score: value}) => {
      const named = `${name}, ${clock(start, 1)} to ${clock(end, 1)}`;
      const style = {left: percent(start / this.total), width: percent((end - start) / this.total)};
      return button("", () => this.go(start), {style, title: `${named}: ${score(value)}`, "aria-label": named});
    };
    return el("div", {class: `line-of tint-${tint}`}, el("span", {class: "called", dir: "auto"}, name),
      el("div", {class: "track"}, spans.map(bar), el("i", {class: "position"})));
  }

  go(seconds) {
    if (this.video.readyState) this.video.currentTime = seconds;
    else this.mark(seconds);
  }

  // A browser that cannot play the clip still shows the frame that was gone to.
  mark(seconds = this.video.currentTime || 0) {
    for (const position of this.lines.querySelectorAll(".position")) position.style.left = percent(Math.min(1, seconds / this.total));
    const frame = this.frames.filter(one => one.time <= seconds + 0.02).pop() || this.frames[0];
    if (!frame || frame === this.now) return;
    this.now = frame;
    this.show(frame);
  }
}

// Captions: a piece of text at a time, each under the stretch that it is of.
class Captions {
  // `go` is given the seconds at which a caption begins.
  constructor(go) {
    this.list = el("ol", {class: "captions", "aria-label": "Captions"});
    Object.assign(this, {go, box: el("div", {}, this.list), chunks: new Map()});
  }

  begin() {
    this.chunks.clear();
    this.list.replaceChildren(el("li", {class: "writing"}, el("p", {class: "quiet"}, "waiting for its first word")));
  }

  // A piece of chunk n. Those that are made at the same time grow beside each other, in order.
  add({chunk = 0, start = null, end = null, text = ""}) {
    if (!this.chunks.size) this.list.replaceChildren();
    if (!this.chunks.has(chunk)) {
      const made = this.row(start, end, "", "writing"), after = [...this.chunks.keys()].filter(other => other < chunk).length;
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

  row(start, end, text, kind = "") {
    const timed = start !== null && start !== undefined && end > start, time = clock(start ?? 0, 1);
    const go = timed ? button(el("time", {}, time), () => this.go(start), {class: "link", "aria-label": `Go to ${time}`}) : null;
    return el("li", {class: kind}, go, el("p", {dir: "auto"}, text));
  }
}
