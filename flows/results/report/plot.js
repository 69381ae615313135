// The timeline: when each stage ran, and its memory compared with the plan and the limit.

const LEFT = 98, RIGHT = 14, LANE = 22, HIGH = 190, GAP = 30;
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 604800];

// Reduces a curve to this width: [seconds, lowest, highest] of the points in each pixel column, so
// that no peak is lost.
function thin(points, column, from, to, columns) {
  const kept = [];
  let last = null;
  for (const point of points) {
    const at = Math.floor((point[0] - from) / (to - from) * columns), bytes = point[column];
    const group = kept[kept.length - 1];
    if (at !== last || !group) kept.push([point[0], bytes, bytes]);
    else { group[1] = Math.min(group[1], bytes); group[2] = Math.max(group[2], bytes); }
    last = at;
  }
  return kept;
}

function bytesTicks(most, least, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(least)); power <= Math.log10(most); power++)
      for (const step of most / least > 1000 ? [1] : [1, 2, 5]) found.push(step * 10 ** power);
    return found.filter(value => value >= least && value <= most);
  }
  return evenTicks(0, most);
}

class Plot {
  constructor(box, line) {
    this.line = line;
    this.all = [0, Math.max(line.seconds, 1)];
    this.view = [...this.all];
    this.log = false;
    this.at = null;
    const points = line.stages.flatMap(stage => stage.curves.flat());
    this.series = [{key: "host", column: 1, title: "Host memory (anonymous)"}];
    if (points.some(point => point[2] > 0)) this.series.push({key: "device", column: 2, title: "GPU memory"});
    this.tip = el("div", {class: "tip", hidden: true});
    this.status = el("p", {class: "unseen", "aria-live": "polite"});
    this.svg = draw("svg", {tabindex: "0", role: "img", "aria-label": "Stages and their memory over time. Arrow keys move through time, plus and minus zoom, 0 shows all."});
    this.box = el("div", {class: "plot"}, this.svg, this.tip, this.status);
    const button = (label, title, click) => el("button", {type: "button", title, "aria-label": title, click}, label);
    this.scale = button("log", "Logarithmic or linear", () => { this.log = !this.log; this.render(); });
    box.append(el("div", {class: "tools"}, this.legend(), el("span", {class: "buttons"},
      button("+", "Zoom in", () => this.zoom(0.5)), button("−", "Zoom out", () => this.zoom(2)),
      button("all", "Show all of the time", () => this.show(...this.all)), this.scale)), this.box);
    this.listen();
    // Deferred: drawing changes the height, which would trigger the observer in the same frame.
    new ResizeObserver(() => requestAnimationFrame(() => { if (this.box.clientWidth !== this.width) this.render(); })).observe(this.box);
  }

  legend() {
    const some = kind => this.line.stages.some(stage => stage[kind].host || stage[kind].device);
    return el("span", {class: "keys"}, this.line.stages.map(stage => legendKey(stage.name, `curve ${stage.name}`)),
      some("planned") ? legendKey("planned", "planned") : null, some("budget") ? legendKey("budget", "budget") : null,
      this.line.rungs.length ? legendKey("change of rung", "rung") : null);
  }

  x(seconds) { return LEFT + (seconds - this.view[0]) / (this.view[1] - this.view[0]) * (this.width - LEFT - RIGHT); }
  seconds(x) { return this.view[0] + (x - LEFT) / (this.width - LEFT - RIGHT) * (this.view[1] - this.view[0]); }

  render() {
    const width = this.box.clientWidth;
    if (!width) return;
    this.width = width;
    this.scale.setAttribute("aria-pressed", String(this.log));
    const lanes = this.line.stages.length * LANE;
    this.height = 8 + lanes + this.series.length * (HIGH + GAP) + 26;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.style.height = `${this.height}px`;
    const clip = draw("clipPath", {id: "inside"}, draw("rect", {x: LEFT, y: 0, width: Math.max(1, width - LEFT - RIGHT), height: this.height}));
    this.cursor = draw("line", {class: "cursor", y1: 0, y2: this.height - 24, visibility: "hidden"});
    this.band = draw("rect", {class: "band", y: 0, height: this.height - 24, visibility: "hidden"});
    this.svg.replaceChildren(draw("defs", {}, clip), ...this.timeAxis(), ...this.lanes(),
      ...this.series.flatMap((series, n) => this.panel(series, 8 + lanes + GAP + n * (HIGH + GAP))),
      ...this.rungs(), this.band, this.cursor);
    if (this.at !== null) this.point(this.at);
  }

  timeAxis() {
    const [from, to] = this.view, room = Math.max(2, (this.width - LEFT - RIGHT) / 80);
    const step = STEPS.find(value => (to - from) / value <= room) || STEPS[STEPS.length - 1];
    const found = [];
    for (let at = Math.ceil(from / step) * step; at <= to + 1e-9; at += step) {
      const x = this.x(at);
      found.push(draw("line", {class: "grid", x1: x, x2: x, y1: 4, y2: this.height - 24}),
        draw("text", {x, y: this.height - 8, "text-anchor": "middle"}, clock(at, step < 1 ? 1 : 0)));
    }
    return found;
  }

  lanes() {
    return this.line.stages.flatMap((stage, n) => {
      const y = 6 + n * LANE;
      const bars = stage.spans.map(([start, end]) => draw("rect", {class: `bar ${stage.name}`, y: y + 3, height: LANE - 8,
        x: this.x(start), width: Math.max(2, this.x(end) - this.x(start)), rx: 2}));
      return [draw("text", {x: LEFT - 10, y: y + LANE / 2 + 3, "text-anchor": "end", class: "name"}, stage.name),
        draw("g", {"clip-path": "url(#inside)"}, ...bars)];
    });
  }

  panel({key, column, title}, top) {
    const {stages} = this.line, [from, to] = this.view, bottom = top + HIGH;
    const points = stages.flatMap(stage => stage.curves.flat()).map(point => point[column]).filter(value => value > 0);
    const levels = stages.flatMap(stage => [stage.planned[key], stage.budget[key]]).filter(Boolean);
    const seen = points.reduce((a, b) => Math.max(a, b), 0) || levels.reduce((a, b) => Math.max(a, b), 0) || 1e6;
    // A limit far above the curves would flatten them, so it is only named.
    const far = level => !this.log && level > 4 * seen;
    const most = 1.12 * Math.max(seen, ...levels.filter(level => !far(level)));
    const least = this.log ? Math.max(1e6, Math.min(points.reduce((a, b) => Math.min(a, b), most), ...levels) / 1.3) : 0;
    const y = bytes => this.log
      ? bottom - Math.max(0, Math.log(bytes / least) / Math.log(most / least)) * HIGH
      : bottom - bytes / most * HIGH;
    const found = [draw("text", {x: LEFT, y: top - 9, class: "title"}, title)];
    for (const tick of bytesTicks(most, least, this.log)) found.push(
      draw("line", {class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y(tick), y2: y(tick)}),
      draw("text", {x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end"}, size(tick)));
    const inside = draw("g", {"clip-path": "url(#inside)"});
    for (const stage of stages) {
      for (const kind of ["planned", "budget"]) {
        const level = stage[kind][key];
        if (!level || far(level) || !stage.spans.length) continue;
        for (const [start, end] of stage.spans) inside.append(draw("line", {class: kind, y1: y(level), y2: y(level),
          x1: this.x(start), x2: Math.max(this.x(end), this.x(start) + 2)}));
      }
      for (const curve of stage.curves) inside.append(...this.curve(curve, stage.name, column, y, bottom, from, to));
    }
    const above = [...new Set(stages.map(stage => stage.budget[key]).filter(level => level && far(level)))];
    // Next to the title, if there is room.
    if (above.length) found.push(draw("text", {class: "note", x: this.width - RIGHT, y: this.width < 560 ? top + 5 : top - 9, "text-anchor": "end"},
      `budget ${size(Math.max(...above))} with imports, far above`));
    return [...found, inside];
  }

  curve(points, name, column, y, bottom, from, to) {
    const known = column === 1 ? points : points.filter(point => point[column] > 0);
    const kept = thin(known, column, from, to, this.width - LEFT - RIGHT);
    if (!kept.length) return [];
    const at = (seconds, bytes) => `${this.x(seconds).toFixed(1)} ${y(Math.max(1, bytes)).toFixed(1)}`;
    const top = `M${kept.map(([seconds, , most]) => at(seconds, most)).join("L")}`;
    const low = kept.map(([seconds, least]) => at(seconds, least)).reverse().join("L");
    const first = this.x(kept[0][0]).toFixed(1), last = this.x(kept[kept.length - 1][0]).toFixed(1);
    return [draw("path", {class: `area ${name}`, d: `${top}L${last} ${bottom}L${first} ${bottom}Z`}),
      draw("path", {class: `range ${name}`, d: `${top}L${low}Z`}), draw("path", {class: `curve ${name}`, d: top})];
  }

  rungs() {
    return this.line.rungs.map(rung => {
      const x = this.x(rung.at);
      return draw("g", {"clip-path": "url(#inside)"}, draw("line", {class: "rung", x1: x, x2: x, y1: 0, y2: this.height - 24}),
        draw("path", {class: "rung-head", d: `M${x - 5} 0h10l-5 8z`}, draw("title", {}, `${rung.stage}: ${rung.name} (${rung.reason})`)));
    });
  }

  listen() {
    let from = null;
    const x = event => event.clientX - this.svg.getBoundingClientRect().left;
    this.svg.addEventListener("pointerdown", event => { if (event.button === 0 && event.pointerType === "mouse") { from = x(event); this.svg.setPointerCapture(event.pointerId); } });
    this.svg.addEventListener("pointermove", event => {
      if (!this.width) this.render(); // drawn shortly after it becomes visible
      if (!this.width) return;
      this.point(this.seconds(x(event)));
      if (from === null || Math.abs(x(event) - from) < 4) return;
      this.band.setAttribute("visibility", "visible");
      this.band.setAttribute("x", Math.min(from, x(event)));
      this.band.setAttribute("width", Math.abs(x(event) - from));
    });
    this.svg.addEventListener("pointerup", event => {
      if (from !== null && Math.abs(x(event) - from) > 8) this.show(...[this.seconds(from), this.seconds(x(event))].sort((a, b) => a - b));
      from = null;
      this.band.setAttribute("visibility", "hidden");
    });
    this.svg.addEventListener("pointerleave", () => { if (from === null) this.point(null); });
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("dblclick", () => this.show(...this.all));
    this.svg.addEventListener("wheel", event => {
      if (!event.ctrlKey && !event.metaKey) return; // let the page scroll
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.seconds(x(event)));
    }, {passive: false});
    this.svg.addEventListener("keydown", event => this.key(event));
  }

  key(event) {
    const step = (this.view[1] - this.view[0]) / 100, at = this.at ?? this.view[0];
    const acts = {ArrowRight: () => this.point(Math.min(this.view[1], at + step)), ArrowLeft: () => this.point(Math.max(this.view[0], at - step)),
      Home: () => this.point(this.view[0]), End: () => this.point(this.view[1]),
      "+": () => this.zoom(0.5, at), "=": () => this.zoom(0.5, at), "-": () => this.zoom(2, at), 0: () => this.show(...this.all), Escape: () => this.show(...this.all)};
    if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    acts[event.key]();
  }

  zoom(by, around = this.at ?? (this.view[0] + this.view[1]) / 2) {
    this.show(around - (around - this.view[0]) * by, around + (this.view[1] - around) * by);
  }

  show(from, to) {
    const least = Math.min(1, this.all[1] / 10), length = Math.min(Math.max(to - from, least), this.all[1]);
    const start = Math.min(Math.max(0, from), this.all[1] - length);
    this.view = [start, start + length];
    this.render();
  }

  point(seconds) {
    if (!this.width) return;
    this.at = seconds === null || seconds < this.view[0] || seconds > this.view[1] ? null : seconds;
    this.cursor.setAttribute("visibility", this.at === null ? "hidden" : "visible");
    this.tip.hidden = this.at === null;
    if (this.at === null) return;
    const x = this.x(this.at);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    const rows = this.line.stages.map(stage => this.stageAt(stage, this.at)).filter(Boolean);
    this.tip.replaceChildren(el("b", {}, clock(this.at, 1)), ...(rows.length ? rows : [el("div", {class: "quiet"}, "no stage at work")]));
    this.status.textContent = document.activeElement === this.svg ? this.tip.innerText : "";
    const wide = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, x + wide + 24 > this.width ? x - wide - 12 : x + 12)}px`;
  }

  stageAt(stage, seconds) {
    if (!stage.spans.some(([start, end]) => start <= seconds && seconds <= end)) return null;
    let point = null;
    for (const curve of stage.curves) for (const next of curve)
      if (!point || Math.abs(next[0] - seconds) < Math.abs(point[0] - seconds)) point = next;
    const rung = this.line.rungs.filter(one => one.stage === stage.name && one.at !== null && one.at <= seconds).pop();
    const cells = this.series.map(({key, column}) => {
      const planned = stage.planned[key];
      return el("div", {}, `${key === "host" ? "host" : "GPU"} ${point ? size(point[column]) : "not sampled"}`,
        planned ? el("span", {class: "quiet"}, `${point?.[column] > planned ? ", over the" : " of"} ${size(planned)} planned`) : null);
    });
    return el("div", {class: `row ${stage.name}`}, el("i", {}, stage.name), cells,
      rung || stage.rung ? el("div", {class: "quiet"}, rung ? rung.name : stage.rung) : null);
  }
}
