// Parity: how close a quantized checkpoint is to its original, in figures and by caption.

// Values in ascending order, with their thresholds.
function ranked({title, values, lines, low, high, of}) {
  const some = values.length;
  const whole = of.startsWith(`${some.toLocaleString("en")} `) ? of : `${some} of ${of}, evenly chosen`;
  const says = `${whole}, from ${brief(values[0][1])} to ${brief(values[some - 1][1])}`;
  const levels = lines.map(([, level]) => level), keys = lines.map(([name, , kind]) => [name, kind]);
  return chart({title, says, values: [...values.map(one => one[1]), ...levels], low, high, keys}, y => [
    draw("text", {x: EDGE, y: TALL - 8, "text-anchor": "end"}, `${whole}, ranked`),
    lines.map(([, level, kind]) => draw("line", {class: kind, x1: INSET.left, x2: EDGE, y1: y(level), y2: y(level)})),
    values.map(([key, value], rank) => draw("circle",
      {class: "dot", cx: along((rank + 0.5) / some).toFixed(1), cy: y(value).toFixed(1), r: 2.6},
      draw("title", {}, `${key.slice(0, 16)}: ${brief(value)}`)))]);
}

function parity({passed, verdict, columns, rows, plots}) {
  section("parity", "Parity",
    el("p", {class: passed ? "" : "warning"}, verdict),
    plots.length ? el("div", {class: "ranks"}, plots.map(ranked)) : null,
    table(columns, rows, "stages"));
}
