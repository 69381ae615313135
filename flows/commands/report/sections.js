// Labels with their scores; parity with the original of an export; training and rounds of learning.

const RULES = {given: "at least", bias: "more likely than not,", gap: "above the largest gap", group: "first of its group"};

function histogram({bins, median, threshold}, {low, high}) {
  if (!bins?.length) return null;
  const x = score => bins.length * (score - low) / (high - low || 1);
  const at = (score, kind) => score === null || score < low || score > high ? null : upright(kind, x(score), 0, 24);
  return draw("svg", {class: "scores", viewBox: `0 0 ${bins.length} 24`, preserveAspectRatio: "none", role: "img",
    "aria-label": `scores from ${low.toFixed(3)} to ${high.toFixed(3)}`},
    draw("g", {class: "bins"}, bars(bins, 24, share => share * 23 / 24)), at(median, "median"), at(threshold, "cut"));
}

function labelRow(label, all, top) {
  const {passed, median, threshold} = label, rule = `${RULES[label.from] || label.from}${threshold === null ? "" : ` ${threshold}`}`;
  return el("div", {class: "label"},
    el("span", {class: "called", dir: "auto"}, label.label),
    draw("svg", {class: "given", "aria-hidden": "true"}, draw("rect", {height: "100%", width: percent(passed / (top || 1)), rx: 2})),
    el("span", {class: "number"}, grouped(passed)),
    el("div", {class: "lies"}, histogram(label, all),
      el("span", {class: "quiet"}, joined([median === null ? "" : `median ${median.toFixed(3)}`, rule], ", "))));
}

function labels(all, shown, files) {
  const list = el("div", {class: "labels"}), top = most([0, ...all.labels.map(one => one.passed)]);
  section("labels", "Labels", el("p", {class: "quiet"}, joined([
    `${grouped(all.labelled)} of ${counted(all.pictures, "picture")} given a label.`,
    typeof all.low === "number" && `Scores from ${all.low.toFixed(3)} to ${all.high.toFixed(3)}; dashed: median; solid: threshold.`,
    shown < files && `The first ${shown} of ${counted(files, "file")} are shown below.`], " ")), list);
  windowed(list, all.labels, {group: 50, height: 55, build: label => labelRow(label, all, top)});
}

// Values in ascending order, with their thresholds.
function ranked({title, values, lines, low, high, of}) {
  const some = values.length, [first, last] = [values[0][1], values.at(-1)[1]].map(rounded);
  const whole = of.startsWith(`${grouped(some)} `) ? of : `${some} of ${of}, evenly chosen`;
  const figures = [...values.map(one => one[1]), ...lines.map(one => one[1])];
  return withKeys(chart({title, says: `${whole}, from ${first} to ${last}`, values: figures, low, high}, ({x, y, foot}) => [
    note(x(1), foot, "end", `${whole}, ranked`), lines.map(([, value, kind]) => level(kind, y(value), x(0), x(1))),
    values.map(([key, value], rank) => draw("circle",
      {class: "dot", cx: x((rank + 0.5) / some).toFixed(1), cy: y(value).toFixed(1), r: 2.6},
      draw("title", {}, `${key.slice(0, 16)}: ${rounded(value)}`)))]), lines.map(([name, , kind]) => [name, kind]));
}

function parity({passed, verdict, columns, rows, plots}) {
  section("parity", "Parity", el("p", {class: passed ? "" : "warning"}, verdict),
    plots.length ? el("div", {class: "ranks"}, plots.map(ranked)) : null, table(columns, rows, "stages"));
}

function curves({title, series, unit = "step"}) {
  const drawn = series.filter(one => one.points.length), all = drawn.flatMap(one => one.points), steps = all.map(point => point[0]);
  if (!all.length) return null;
  const first = least(steps), last = most(steps);
  const keys = drawn.map(({name, kind, points}) => [`${name} ${rounded(points[0][1])} to ${rounded(points.at(-1)[1])}`, `curve ${kind}`]);
  const says = joined(keys.map(([name]) => name), "; ");
  return withKeys(chart({title, says, values: all.map(point => point[1]), floor: 0}, ({x, y, foot}) => [
    note(x(0), foot, "start", String(first)), note(x(1), foot, "end", `${unit} ${last}`), drawn.map(({kind, points}) => draw("path",
      {class: `curve ${kind}`, d: path(points.map(([step, value]) => [x((step - first) / (last - first || 1)), y(value)]))}))]), keys);
}

function training({line, curves: drawn, columns, rows}, id = "training", title = "Training") {
  section(id, title, el("p", {}, line), el("div", {class: "ranks"}, drawn.map(curves)),
    rows.length ? table(columns, rows, "samples") : null);
}
