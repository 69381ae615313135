// The timeline: when each stage ran, and its memory compared with the plan and the limit.

const LEFT = 98, RIGHT = 14, LANE = 22, TALL = 190, GAP = 30;
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 604800];
const SAYS = "Stages and their memory over time. Arrow keys move through time, plus and minus zoom, 0 shows all.";

// Reduces a curve to this width: [seconds, lowest, highest] of the points in each pixel column, so
// that no peak is lost.
function thin(points, column, [from, to], columns) {
  const kept = [];
  let last = null;
  for (const point of points) {
    const at = Math.floor((point[0] - from) / (to - from) * columns), bytes = point[column], group = kept.at(-1);
    if (at !== last || !group) kept.push([point[0], bytes, bytes]);
    else { group[1] = Math.min(group[1], bytes); group[2] = Math.max(group[2], bytes); }
    last = at;
  }
  return kept;
}

function bytesTicks(high, low, log) {
  if (!log) return evenTicks(0, high);
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const step of high / low > 1000 ? [1] : [1, 2, 5]) found.push(step * 10 ** power);
  return found.filter(value => value >= low && value <= high);
}

class Timeline {
  constructor(box, line) {
    const all = [0, Math.max(line.seconds, 1)], points = line.stages.flatMap(stage => stage.curves.flat());
    Object.assign(this, {line, all, view: all, log: false, at: null, tip: el("div", {class: "tip", hidden: true}),
      status: el("p", {class: "unseen", "aria-live": "polite"}), svg: draw("svg", {tabindex: "0", role: "img", "aria-label": SAYS}),
      series: [{key: "host", name: "host", column: 1, title: "Host memory (anonymous)"}]});
    if (points.some(point => point[2] > 0)) this.series.push({key: "device", name: "GPU", column: 2, title: "GPU memory"});
    this.box = el("div", {class: "plot timeline"}, this.svg, this.tip, this.status);
    this.scale = sign("log", "Logarithmic or linear", () => { this.log = !this.log; this.render(); });
    box.append(el("div", {class: "tools"}, this.legend(), el("span", {class: "buttons"},
      sign("+", "Zoom in", () => this.zoom(0.5)), sign("−", "Zoom out", () => this.zoom(2)),
      sign("all", "Show all of the time", () => this.show(...this.all)), this.scale)), this.box);
    this.listen();
    // Deferred: drawing changes the height, which would trigger the observer in the same frame.
    new ResizeObserver(() => requestAnimationFrame(() => { if (this.box.clientWidth !== this.width) this.render(); })).observe(this.box);
  }

  legend() {
    const {stages, rungs} = this.line, some = kind => stages.some(stage => stage[kind].host || stage[kind].device);
    return el("span", {class: "keys"}, stages.map(({name}) => legendKey(name, `curve ${name}`)),
      ["planned", "budget"].filter(some).map(kind => legendKey(kind, kind)), rungs.length ? legendKey("change of rung", "rung") : null);
  }

  x(seconds) { return LEFT + (seconds - this.view[0]) / (this.view[1] - this.view[0]) * this.inner; }
  seconds(x) { return this.view[0] + (x - LEFT) / this.inner * (this.view[1] - this.view[0]); }

  render() {
    const width = this.box.clientWidth;
    if (!width) return;
    const lanes = this.line.stages.length * LANE, height = 8 + lanes + this.series.length * (TALL + GAP) + 26;
    Object.assign(this, {width, inner: width - LEFT - RIGHT, end: width - RIGHT, foot: height - 24});
    this.scale.setAttribute("aria-pressed", this.log);
    set(this.svg, {viewBox: `0 0 ${width} ${height}`, style: {height: `${height}px`}});
    const clip = draw("clipPath", {id: "inside"}, draw("rect", {x: LEFT, y: 0, width: Math.max(1, this.inner), height}));
    this.cursor = draw("line", {class: "cursor", y1: 0, y2: this.foot, visibility: "hidden"});
    this.band = draw("rect", {class: "band", y: 0, height: this.foot, visibility: "hidden"});
    this.svg.replaceChildren(draw("defs", {}, clip), ...this.timeAxis(), ...this.lanes(),
      ...this.series.flatMap((series, n) => this.panel(series, 8 + lanes + GAP + n * (TALL + GAP))), this.rungs(), this.band, this.cursor);
    if (this.at !== null) this.point(this.at);
  }

  inside(...drawn) { return draw("g", {"clip-path": "url(#inside)"}, drawn); }

  timeAxis() {
    const [from, to] = this.view, room = Math.max(2, this.inner / 80);
    const step = STEPS.find(value => (to - from) / value <= room) || STEPS.at(-1), first = Math.ceil(from / step);
    return Array.from({length: Math.max(0, Math.floor((to + 1e-9) / step) - first + 1)}, (_, n) => (first + n) * step).flatMap(at =>
      [upright("gridline", this.x(at), 4, this.foot), note(this.x(at), this.foot + 16, "middle", clock(at, step < 1 ? 1 : 0))]);
  }

  lanes() {
    return this.line.stages.flatMap(({name, spans}, n) => [note(LEFT - 10, 9 + (n + 0.5) * LANE, "end", name, "name"),
      this.inside(spans.map(([start, end]) => draw("rect", {class: `bar ${name}`, y: 9 + n * LANE, height: LANE - 8, rx: 2,
        x: this.x(start), width: Math.max(2, this.x(end) - this.x(start))})))]);
  }

  panel({key, column, title}, top) {
    const {stages} = this.line, bottom = top + TALL;
    const points = stages.flatMap(stage => stage.curves.flat()).map(point => point[column]).filter(value => value > 0);
    const levels = stages.flatMap(stage => [stage.planned[key], stage.budget[key]]).filter(Boolean);
    const seen = most([0, ...(points.length ? [most(points)] : levels)]) || 1e6;
    // A limit far above the curves would flatten them, so it is only named.
    const far = value => !this.log && value > 4 * seen;
    const high = 1.12 * most([seen, ...levels.filter(value => !far(value))]);
    const low = this.log ? Math.max(1e6, least([high, least(points), ...levels]) / 1.3) : 0;
    const y = bytes => bottom - (this.log ? Math.max(0, Math.log(bytes / low) / Math.log(high / low)) : bytes / high) * TALL;
    const limits = ({spans, ...stage}) => ["planned", "budget"].filter(kind => stage[kind][key] && !far(stage[kind][key])).map(kind =>
      spans.map(([start, end]) => level(kind, y(stage[kind][key]), this.x(start), Math.max(this.x(end), this.x(start) + 2))));
    const above = stages.map(stage => stage.budget[key]).filter(value => value && far(value));
    return [note(LEFT, top - 9, "start", title, "title"),
      ...bytesTicks(high, low, this.log).flatMap(tick =>
        [level("gridline", y(tick), LEFT, this.end), note(LEFT - 8, y(tick) + 4, "end", size(tick))]),
      // Next to the title, if there is room.
      above.length ? note(this.end, this.width < 560 ? top + 5 : top - 9, "end",
        `budget ${size(most(above))} with imports, far above`, "note") : "",
      this.inside(stages.map(stage => [limits(stage), stage.curves.map(curve => this.curve(curve, stage.name, column, y, bottom))]))];
  }

  curve(points, name, column, y, bottom) {
    const known = column === 1 ? points : points.filter(point => point[column] > 0), kept = thin(known, column, this.view, this.inner);
    if (!kept.length) return null;
    const place = (seconds, bytes) => [this.x(seconds), y(Math.max(1, bytes))];
    const top = path(kept.map(([seconds, , high]) => place(seconds, high))), under = kept.map(([seconds, low]) => place(seconds, low));
    const first = this.x(kept[0][0]).toFixed(1), last = this.x(kept.at(-1)[0]).toFixed(1);
    return [draw("path", {class: `area ${name}`, d: `${top}L${last} ${bottom}L${first} ${bottom}Z`}),
      draw("path", {class: `range ${name}`, d: `${top}L${path(under.reverse()).slice(1)}Z`}),
      draw("path", {class: `curve ${name}`, d: top})];
  }

  rungs() {
    return this.inside(this.line.rungs.map(({at, stage, name, reason}) => [upright("rung", this.x(at), 0, this.foot),
      draw("path", {class: "rung-head", d: `M${this.x(at) - 5} 0h10l-5 8z`}, draw("title", {}, `${stage}: ${name} (${reason})`))]));
  }

  listen() {
    let from = null;
    const x = event => event.clientX - this.svg.getBoundingClientRect().left;
    set(this.svg, {
      pointerdown: event => {
        if (event.button !== 0 || event.pointerType !== "mouse") return;
        from = x(event);
        this.svg.setPointerCapture(event.pointerId);
      },
      pointermove: event => {
        if (!this.width) this.render(); // drawn shortly after it becomes visible
        if (!this.width) return;
        this.point(this.seconds(x(event)));
        if (from === null || Math.abs(x(event) - from) < 4) return;
        set(this.band, {visibility: "visible", x: Math.min(from, x(event)), width: Math.abs(x(event) - from)});
      },
      pointerup: event => {
        const ends = [from, x(event)].map(one => this.seconds(one)).sort((a, b) => a - b);
        if (from !== null && Math.abs(x(event) - from) > 8) this.show(...ends);
        from = null;
        this.band.setAttribute("visibility", "hidden");
      },
      pointerleave: () => { if (from === null) this.point(null); },
      blur: () => this.point(null),
      dblclick: () => this.show(...this.all),
      keydown: event => this.key(event),
    });
    this.svg.addEventListener("wheel", event => {
      if (!event.ctrlKey && !event.metaKey) return; // let the page scroll
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.seconds(x(event)));
    }, {passive: false});
  }

  key(event) {
    const [from, to] = this.view, step = (to - from) / 100, at = this.at ?? from, all = () => this.show(...this.all);
    const acts = {ArrowRight: () => this.point(Math.min(to, at + step)), ArrowLeft: () => this.point(Math.max(from, at - step)),
      Home: () => this.point(from), End: () => this.point(to), "+": () => this.zoom(0.5, at), "=": () => this.zoom(0.5, at),
      "-": () => this.zoom(2, at), 0: all, Escape: all};
    if (!acts[event.key] || isModified(event)) return;
    event.preventDefault();
    acts[event.key]();
  }

  zoom(by, around = this.at ?? (this.view[0] + this.view[1]) / 2) {
    this.show(around - (around - this.view[0]) * by, around + (this.view[1] - around) * by);
  }

  show(from, to) {
    const length = Math.min(Math.max(to - from, Math.min(1, this.all[1] / 10)), this.all[1]);
    const start = Math.min(Math.max(0, from), this.all[1] - length);
    this.view = [start, start + length];
    this.render();
  }

  point(seconds) {
    if (!this.width) return;
    this.at = seconds === null || seconds < this.view[0] || seconds > this.view[1] ? null : seconds;
    this.tip.hidden = this.at === null;
    this.cursor.setAttribute("visibility", this.tip.hidden ? "hidden" : "visible");
    if (this.tip.hidden) return;
    const x = this.x(this.at), rows = this.line.stages.map(stage => this.stageAt(stage, this.at)).filter(Boolean);
    set(this.cursor, {x1: x, x2: x});
    this.tip.replaceChildren(el("b", {}, clock(this.at, 1)), ...(rows.length ? rows : [el("div", {class: "quiet"}, "no stage at work")]));
    this.status.textContent = document.activeElement === this.svg ? this.tip.innerText : "";
    placeTip(this.tip, x, this.width);
  }

  stageAt({name, spans, curves, planned, rung}, seconds) {
    if (!spans.some(([start, end]) => start <= seconds && seconds <= end)) return null;
    const far = point => Math.abs(point[0] - seconds), nearest = curves.flat().reduce((a, b) => !a || far(b) < far(a) ? b : a, null);
    const last = this.line.rungs.filter(one => one.stage === name && one.at !== null && one.at <= seconds).pop();
    return el("div", {class: `row ${name}`}, el("i", {}, name), this.series.map(({key, name: memory, column}) =>
      el("div", {}, `${memory} ${nearest ? size(nearest[column]) : "not sampled"}`, planned[key]
        ? el("span", {class: "quiet"}, `${nearest?.[column] > planned[key] ? ", over the" : " of"} ${size(planned[key])} planned`) : null)),
      last || rung ? el("div", {class: "quiet"}, last ? last.name : rung) : null);
  }
}
