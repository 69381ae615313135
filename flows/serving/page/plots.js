// Live plots by plotly, each with its latest figures as text above it; and the halves as a table.

const plain = value => value === null ? "–" : value.toLocaleString("en", {maximumFractionDigits: value < 10 ? 1 : 0});
const bytes = value => value === null ? "–" : size(value);
const seconds = value => value === null ? "–" : brief(value);
const answered = ({requests, refused, failed}) => requests - refused - failed;
const batch = ({batches, pictures}) => batches ? pictures / batches : null;

// A second between two without figures, which a line alone would not show.
const unknown = value => value === null || value === undefined;
const lone = (values, at) => unknown(values[at - 1]) && unknown(values[at + 1]);

// A budget far above would press the curve flat; it is named instead.
const FAR = 4;
const isFar = points => FAR * points.reduce((most, point) => Math.max(most, point.memory_bytes), 0) < latest(points, "budget_bytes");

// Each line: its name, its colour, its value of a point, its value now, and its text.
const PLOTS = [
  {id: "latency", title: "Latency", suffix: "s", lines: [
    {name: "p50", colour: "--frames", of: point => point.p50, now: points => latest(points, "p50"), tell: seconds},
    {name: "p99", colour: "--encode", of: point => point.p99, now: points => latest(points, "p99"), tell: seconds}]},
  {id: "throughput", title: "Requests a second", suffix: "", lines: [
    {name: "answered", colour: "--frames", of: answered, now: points => mean(points.map(point => ({answered: answered(point)})), "answered"), tell: plain},
    {name: "refused", colour: "--encode", of: point => point.refused, now: points => mean(points, "refused"), tell: plain},
    {name: "failed", colour: "--violet", of: point => point.failed, now: points => mean(points, "failed"), tell: plain}]},
  {id: "batch", title: "Pictures in a batch, and waiting", suffix: "", lines: [
    {name: "in a batch", colour: "--decode", of: batch, now: points => batch(points.findLast(point => point.batches) || {}), tell: plain},
    {name: "waiting", colour: "--encode", of: point => point.queued, now: points => latest(points, "queued"), tell: plain}]},
  {id: "memory", title: "Memory and budget", suffix: "B", lines: [
    {name: "taken", colour: "--frames", of: point => point.memory_bytes, now: points => latest(points, "memory_bytes"), tell: bytes},
    {name: "budget", colour: "--quiet", dash: "dash", of: point => isFar(stats.points) ? null : point.budget_bytes,
      now: points => latest(points, "budget_bytes"), tell: value => bytes(value) + (isFar(stats.points) ? ", far above" : "")}]},
];

// How far back is drawn, seconds, and how far apart the marks are: no further than something is known.
const REACHES = [[60, 15], [120, 30], [300, 60], [KEPT_SECONDS, 120]];
const ago = seconds => !seconds ? "now" : seconds % 60 ? `${seconds} s` : `${seconds / 60} min`;

const plots = {
  ready: false, width: 0,

  start() {
    const {plotly} = $("load").dataset;
    $("plots").replaceChildren(...PLOTS.map(plot => this.figure(plot, plotly)));
    if (!plotly) $("plots").after(el("p", {class: "quiet", id: "no-plotly"},
      "The plots are drawn by plotly, which is not installed: ", el("code", {}, "pip install 'penstock[serve]'"), ", then start the server again."));
    stats.listeners.push(() => this.show());
    stats.watch($("load"));
    new ResizeObserver(([{contentRect}]) => { if (contentRect.width !== this.width) { this.width = contentRect.width; this.draw(); } }).observe($("plots"));
  },

  figure(plot, plotly) {
    plot.values = plot.lines.map(line => el("dd", {}, "–"));
    plot.place = el("div", {class: "drawn", role: "img", "aria-label": `${plot.title}, of the last ten minutes`, hidden: !plotly});
    return el("figure", {class: "card", id: `plot-${plot.id}`}, el("figcaption", {class: "head"}, el("h3", {}, plot.title),
      el("dl", {class: "values"}, plot.lines.map((line, at) => el("div", {class: `of${line.colour}`}, el("dt", {}, line.name), plot.values[at])))), plot.place);
  },

  // Five megabytes, and so only once somebody looks. The policy lets this script run and no other.
  load() {
    const {plotly, styled} = $("load").dataset;
    if (!plotly || this.asked) return;
    this.asked = true;
    // Styles of maps, which plotly leaves out where something of their name is.
    document.head.append(...styled.split(" ").filter(Boolean).map(id => el("template", {id})));
    document.head.append(el("script", {src: "/static/plotly.min.js", integrity: plotly, load: () => { this.ready = true; this.draw(); },
      error: () => complain($("stats-error"), new Refusal("The plots could not be loaded.", "Reload the page; the figures are live all the same."))}));
  },

  show() {
    this.load();
    for (const {lines, values} of PLOTS) lines.forEach((line, at) => { values[at].textContent = line.tell(line.now(stats.points)); });
    const rows = stats.halves.map(half => [half.name, half.state, bytes(half.memory_bytes), bytes(half.budget_bytes), plain(half.batch)]);
    const made = table(["half", "state", "memory", "budget", "batch"], rows);
    if (made.textContent !== $("halves").textContent) $("halves").replaceChildren(made);
    this.draw();
  },

  draw() {
    if (!this.ready || document.hidden || !stats.points.length) return;
    const probe = $("about"), {fontFamily: family} = getComputedStyle(probe), colour = name => this.colour(probe, name);
    for (const plot of PLOTS) {
      const lines = plot.lines.map(line => this.line(line, colour));
      Plotly.react(plot.place, lines, this.layout(plot, colour, family), {displayModeBar: false, showTips: false});
    }
  },

  // Plotly reads no light-dark(): it gets the colours that the browser computed.
  colour(probe, name) {
    probe.style.color = `var(${name})`;
    const found = getComputedStyle(probe).color;
    probe.style.color = "";
    return found;
  },

  line({name, colour, dash, of, tell}, found) {
    const values = stats.points.map(of), color = found(colour);
    return {
      name, type: "scatter", mode: "lines+markers", x: stats.points.map(point => stats.now - point.time), y: values, connectgaps: false,
      line: {color, width: 1.4, dash}, marker: {size: values.map((value, at) => lone(values, at) ? 4 : 0), color, line: {width: 0}},
      text: values.map(value => tell(value ?? null)), hovertemplate: "%{text}",
    };
  },

  layout({suffix}, colour, family) {
    const none = "rgba(0,0,0,0)", quiet = colour("--quiet"), known = stats.now - stats.points[0].time;
    const [reach, step] = REACHES.find(([most]) => known <= most) || REACHES[REACHES.length - 1];
    const marks = Array.from({length: reach / step + 1}, (_, at) => at * step);
    const axis = {color: quiet, gridcolor: colour("--faint"), linecolor: colour("--line"), zeroline: false, fixedrange: true,
      ticks: "outside", tickcolor: none};
    return {
      height: 190, width: $("plots").querySelector(".drawn").clientWidth, margin: {l: 52, r: 20, t: 8, b: 28},
      showlegend: false, dragmode: false, hovermode: "x unified", paper_bgcolor: none, plot_bgcolor: none,
      font: {family, size: 12, color: quiet},
      hoverlabel: {bgcolor: colour("--card"), bordercolor: colour("--line"), font: {color: colour("--ink"), size: 12}},
      xaxis: {...axis, ticklen: 5, range: [reach, 0], tickvals: marks, ticktext: marks.map(ago), unifiedhovertitle: {text: "%{x:.0f} s ago"}},
      yaxis: {...axis, ticklen: 3, rangemode: "tozero", nticks: 5, ticksuffix: suffix, tickformat: suffix ? "~s" : "", exponentformat: "SI"},
    };
  },
};
