// Live plots of the last ten minutes, a point a second, asked for while somebody looks at them; and the halves as a table.

const KEPT_SECONDS = 600, FAR = 4;
// How far back is drawn, seconds, and how far apart the marks are: no further than something is known.
const REACHES = [[60, 15], [120, 30], [300, 60], [KEPT_SECONDS, 120]];
const ago = seconds => !seconds ? "now" : seconds % 60 ? `${seconds} s` : `${seconds / 60} min`;

const or = text => value => value === null || value === undefined ? "–" : text(value);
const plain = or(value => value.toLocaleString("en", {maximumFractionDigits: value < 10 ? 1 : 0}));
const bytes = or(size);
const seconds = or(brief);
const answered = ({requests, refused, failed}) => requests - refused - failed;
const batch = ({batches, pictures}) => batches ? pictures / batches : null;
const known = values => values.filter(value => value !== null && value !== undefined);
// Now is the last second in which something is known, or a mean over the last ten, so that it can be read.
const latest = values => known(values).at(-1) ?? null;
const mean = values => known(values.slice(-10)).reduce((sum, value, _, {length}) => (sum ?? 0) + value / length, null);
// A budget far above would press the curve flat; it is named instead.
const isFar = points => FAR * most([0, ...points.map(point => point.memory_bytes)]) < latest(points.map(point => point.budget_bytes));

// Each line: its name, its colour, its value of a point, and its value now of all of those.
const PLOTS = [
  {id: "latency", title: "Latency", tell: seconds, lines: [
    {name: "p50", colour: "frames", of: point => point.p50, now: latest},
    {name: "p99", colour: "encode", of: point => point.p99, now: latest}]},
  {id: "throughput", title: "Requests a second", tell: plain, lines: [
    {name: "answered", colour: "frames", of: answered, now: mean},
    {name: "refused", colour: "encode", of: point => point.refused, now: mean},
    {name: "failed", colour: "violet", of: point => point.failed, now: mean}]},
  {id: "batch", title: "Pictures in a batch, and waiting", tell: plain, lines: [
    {name: "in a batch", colour: "decode", of: batch, now: latest},
    {name: "waiting", colour: "encode", of: point => point.queued, now: latest}]},
  {id: "memory", title: "Memory and budget", tell: bytes, lines: [
    {name: "taken", colour: "frames", of: point => point.memory_bytes, now: latest},
    {name: "budget", colour: "quiet", of: point => point.budget_bytes, now: latest, isFar}]},
];

const plots = {
  points: [], halves: [], now: 0, timer: 0, asking: false,

  start() {
    $("plots").replaceChildren(...PLOTS.map(plot => this.figure(plot)));
    new IntersectionObserver(([entry]) => { this.shown = entry.isIntersecting; this.turn(); }, {rootMargin: "200px"}).observe($("plots"));
    document.addEventListener("visibilitychange", () => this.turn());
    new ResizeObserver(() => requestAnimationFrame(() => this.draw())).observe($("plots"));
  },

  turn() {
    clearInterval(this.timer);
    if (!this.shown || document.hidden) return;
    this.timer = setInterval(() => this.read(), 1000);
    this.read();
  },

  async read() {
    if (this.asking) return;
    this.asking = true;
    try {
      const last = this.points.at(-1)?.time ?? null, answer = await asked("GET", address("/v1/stats", {since: last}));
      if (answer.now < this.now) this.points = []; // another server than before
      const fresh = answer.points.filter(point => last === null || point.time > last || answer.now < this.now);
      this.points = [...this.points, ...fresh].filter(point => point.time > answer.now - KEPT_SECONDS - 1);
      Object.assign(this, {now: answer.now, halves: answer.halves});
      complain($("stats-error"), null);
      this.show();
    } catch (error) {
      complain($("stats-error"), error);
    } finally {
      this.asking = false;
    }
  },

  figure(plot) {
    Object.assign(plot, {at: null, tip: el("div", {class: "tip", hidden: true}), values: plot.lines.map(() => el("dd", {}, "–"))});
    const point = at => () => { plot.at = at; this.drawOne(plot); };
    plot.place = el("div", {class: "drawn", pointerleave: point(null), pointermove: event => {
      const {left} = plot.place.getBoundingClientRect();
      point(event.clientX - left)();
    }});
    const value = ({colour, name}, at) => el("div", {class: `of-${colour}`}, el("dt", {}, name), plot.values[at]);
    return el("figure", {class: "card", id: `plot-${plot.id}`}, el("figcaption", {class: "head"}, el("h3", {}, plot.title),
      el("dl", {class: "values"}, plot.lines.map(value))), el("div", {class: "plot"}, plot.place, plot.tip));
  },

  show() {
    for (const {lines, values, tell} of PLOTS) lines.forEach((line, at) => {
      values[at].textContent = tell(line.now(this.points.map(line.of))) + (line.isFar?.(this.points) ? ", far above" : "");
    });
    const rows = this.halves.map(half => [half.name, half.state, bytes(half.memory_bytes), bytes(half.budget_bytes), plain(half.batch)]);
    const made = table(["half", "state", "memory", "budget", "batch"], rows);
    if (made.textContent !== $("halves").textContent) $("halves").replaceChildren(made);
    this.draw();
  },

  draw() { if (this.points.length && !document.hidden) PLOTS.forEach(plot => this.drawOne(plot)); },

  drawOne(plot) {
    const wide = plot.place.clientWidth, ages = this.points.map(point => this.now - point.time);
    if (!wide || !ages.length) return;
    const lines = plot.lines.filter(line => !line.isFar?.(this.points)).map(line => ({...line, values: this.points.map(line.of)}));
    const [reach, step] = REACHES.find(([far]) => ages[0] <= far) || REACHES.at(-1), values = known(lines.flatMap(line => line.values));
    const says = `${plot.title}, of the last ten minutes`, format = value => value ? plot.tell(value) : "0";
    plot.place.replaceChildren(chart({says, values: [0, ...values], low: 0, format, wide, tall: 190}, ({x, y, foot, top, bottom}) => {
      const place = age => x(1 - age / reach), far = ages.map(age => Math.abs(place(age) - plot.at));
      const at = plot.at === null ? -1 : far.indexOf(least(far));
      this.tell(plot, at, place(ages[at]), ages, lines, wide);
      return [Array.from({length: reach / step + 1}, (_, n) => note(place(n * step), foot, n ? "middle" : "end", ago(n * step))),
        at < 0 ? null : upright("cursor", place(ages[at]), top, bottom), lines.map(line => this.line(line, place, y, ages))];
    }));
  },

  // What is known on both sides of a second without figures is not joined; a second alone is a point.
  line({colour, values}, x, y, ages) {
    const runs = [[]];
    values.forEach((value, at) => { if (known([value]).length) runs.at(-1).push([x(ages[at]), y(value)]); else runs.push([]); });
    return runs.filter(run => run.length).map(run => run.length > 1 ? draw("path", {class: `curve of-${colour}`, d: path(run)})
      : draw("circle", {class: `dot of-${colour}`, cx: run[0][0], cy: run[0][1], r: 2}));
  },

  tell({tip, tell}, at, x, ages, lines, wide) {
    tip.hidden = at < 0;
    if (tip.hidden) return;
    tip.replaceChildren(el("b", {}, `${ages[at].toFixed(0)} s ago`), ...lines.map(({name, colour, values}) =>
      el("div", {class: `row of-${colour}`}, `${name} ${tell(values[at])}`)));
    placeTip(tip, x, wide);
  },
};
