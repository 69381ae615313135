// Training: losses and memory step by step, and what the model said before and says now.

function curve({title, series}) {
  const all = series.flatMap(one => one.points);
  if (!all.length) return null;
  const values = all.map(point => point[1]), steps = all.map(point => point[0]);
  const least = values.reduce((a, b) => Math.min(a, b)), most = values.reduce((a, b) => Math.max(a, b));
  const first = steps.reduce((a, b) => Math.min(a, b)), last = steps.reduce((a, b) => Math.max(a, b));
  const room = (most - least || Math.abs(most) || 1) * 0.08, from = Math.max(0, least - room), to = most + room;
  const right = WIDE - INSET.right, bottom = TALL - INSET.bottom;
  const x = step => INSET.left + (step - first) / (last - first || 1) * (right - INSET.left);
  const y = value => bottom - (value - from) / (to - from || 1) * (bottom - INSET.top);
  const told = number => String(Number(number.toPrecision(4)));
  const ends = series.filter(one => one.points.length).map(one =>
    `${one.name} ${told(one.points[0][1])} to ${told(one.points[one.points.length - 1][1])}`);
  const svg = draw("svg", {viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", "aria-label": `${title}: ${ends.join("; ")}`},
    draw("text", {class: "title", x: 12, y: 20}, title),
    evenTicks(from, to).map(tick => [draw("line", {class: "grid", x1: INSET.left, x2: right, y1: y(tick), y2: y(tick)}),
      draw("text", {x: INSET.left - 8, y: y(tick) + 4, "text-anchor": "end"}, told(tick))]),
    draw("text", {x: INSET.left, y: TALL - 8}, String(first)),
    draw("text", {x: right, y: TALL - 8, "text-anchor": "end"}, `step ${last}`),
    series.map(({kind, points}) => draw("path", {class: `curve ${kind}`, fill: "none",
      d: points.map(([step, value], n) => `${n ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("")})));
  const keys = el("div", {class: "keys"}, ends.map((name, n) => el("span", {class: "key"},
    draw("svg", {width: 22, height: 10, "aria-hidden": "true"},
      draw("line", {x1: 1, x2: 21, y1: 5, y2: 5, class: `curve ${series[n].kind}`})), name)));
  return el("div", {class: "rank"}, el("div", {class: "plot"}, svg), keys);
}

function training({line, curves, columns, rows}) {
  section("training", "Training", el("p", {}, line),
    el("div", {class: "ranks"}, curves.map(curve)),
    rows.length ? table(columns, rows, "samples") : null);
}
