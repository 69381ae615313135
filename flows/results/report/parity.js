// Parity: how near a checkpoint in few bits is to its original, in figures and caption by caption.

const WIDE = 560, TALL = 230, INSET = {left: 62, right: 12, top: 34, bottom: 26};

function evenTicks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(n => n * power).find(value => value >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({length: Math.floor(high / step + 1e-9) - first + 1}, (_, n) => (first + n) * step);
}

// Values in their order from the least to the greatest, with the levels that they are held to.
function ranked({title, values, lines, low, high, of}) {
  const all = [...values.map(one => one[1]), ...lines.map(line => line[1])];
  const least = all.reduce((a, b) => Math.min(a, b)), most = all.reduce((a, b) => Math.max(a, b));
  const room = (most - least || Math.abs(most) || 1) * 0.08;
  const from = Math.min(low ?? least - room, least), to = Math.max(high ?? most + room, most);
  const right = WIDE - INSET.right, bottom = TALL - INSET.bottom;
  const x = rank => INSET.left + (rank + 0.5) / values.length * (right - INSET.left);
  const y = value => bottom - (value - from) / (to - from || 1) * (bottom - INSET.top);
  const told = number => String(Number(number.toPrecision(4)));
  const some = values.length;
  const whole = of.startsWith(`${some.toLocaleString("en")} `) ? of : `${some} of ${of}, evenly chosen`;
  const svg = draw("svg", {viewBox: `0 0 ${WIDE} ${TALL}`, role: "img",
    "aria-label": `${title}: ${whole}, from ${told(values[0][1])} to ${told(values[some - 1][1])}`},
    draw("text", {class: "title", x: 12, y: 20}, title),
    evenTicks(from, to).map(tick => [draw("line", {class: "grid", x1: INSET.left, x2: right, y1: y(tick), y2: y(tick)}),
      draw("text", {x: INSET.left - 8, y: y(tick) + 4, "text-anchor": "end"}, told(tick))]),
    draw("text", {x: right, y: TALL - 8, "text-anchor": "end"}, `${whole}, ranked`),
    lines.map(([, level, kind]) => draw("line", {class: kind, x1: INSET.left, x2: right, y1: y(level), y2: y(level)})),
    values.map(([key, value], rank) => draw("circle", {class: "dot", cx: x(rank).toFixed(1), cy: y(value).toFixed(1), r: 2.6},
      draw("title", {}, `${key.slice(0, 16)}: ${told(value)}`))));
  const keys = el("div", {class: "keys"}, lines.map(([name, , kind]) => el("span", {class: "key"},
    draw("svg", {width: 22, height: 10, "aria-hidden": "true"}, draw("line", {x1: 1, x2: 21, y1: 5, y2: 5, class: kind})), name)));
  return el("div", {class: "rank"}, el("div", {class: "plot"}, svg), keys);
}

function parity({passed, verdict, columns, rows, plots}) {
  section("parity", "Parity",
    el("p", {class: passed ? "" : "warning"}, verdict),
    plots.length ? el("div", {class: "ranks"}, plots.map(ranked)) : null,
    table(columns, rows, "stages"));
}
