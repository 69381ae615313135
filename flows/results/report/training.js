// Training: losses and memory by step, and captions before and after. Rounds of learning: scores.

function curve({title, series, unit = "step"}) {
  const all = series.flatMap(one => one.points);
  if (!all.length) return null;
  const steps = all.map(point => point[0]);
  const first = steps.reduce((a, b) => Math.min(a, b)), last = steps.reduce((a, b) => Math.max(a, b));
  const x = step => along((step - first) / (last - first || 1));
  const drawn = series.filter(one => one.points.length);
  const keys = drawn.map(({name, kind, points}) =>
    [`${name} ${brief(points[0][1])} to ${brief(points[points.length - 1][1])}`, `curve ${kind}`]);
  const says = keys.map(([name]) => name).join("; ");
  return chart({title, says, values: all.map(point => point[1]), floor: 0, keys}, y => [
    draw("text", {x: INSET.left, y: TALL - 8}, String(first)),
    draw("text", {x: EDGE, y: TALL - 8, "text-anchor": "end"}, `${unit} ${last}`),
    drawn.map(({kind, points}) => draw("path", {class: `curve ${kind}`, fill: "none",
      d: points.map(([step, value], n) => `${n ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("")}))]);
}

function training({line, curves, columns, rows}, id = "training", title = "Training") {
  section(id, title, el("p", {}, line),
    el("div", {class: "ranks"}, curves.map(curve)),
    rows.length ? table(columns, rows, "samples") : null);
}
