// Labels: counts and score histogram of each, and boxes in images.

const TINTS = 4;

// Draws a histogram in a box of 100 by 24, scaled to its highest bin.
function steps(bins) {
  const most = bins.reduce((a, b) => Math.max(a, b), 1), wide = 100 / bins.length;
  const tops = bins.map((count, at) => {
    const y = (24 - 23 * count / most).toFixed(2);
    return `L${(at * wide).toFixed(2)} ${y}L${((at + 1) * wide).toFixed(2)} ${y}`;
  });
  return `M0 24${tops.join("")}L100 24Z`;
}

function histogram({bins, median, threshold}, {low, high}) {
  if (!bins?.length) return null;
  const x = score => 100 * (score - low) / (high - low || 1);
  const at = (score, kind) => score === null || score < low || score > high ? null
    : draw("line", {class: kind, x1: x(score), x2: x(score), y1: 0, y2: 24});
  return draw("svg", {class: "scores", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img",
    "aria-label": `scores from ${low.toFixed(3)} to ${high.toFixed(3)}`},
    draw("path", {class: "bins", d: steps(bins)}), at(median, "median"), at(threshold, "cut"));
}

const RULES = {given: "at least", bias: "more likely than not,", gap: "above the largest gap", group: "first of its group"};

function labelRow(label, all, most) {
  const {passed, median, threshold} = label;
  const status = [median === null ? "" : `median ${median.toFixed(3)}`,
    `${RULES[label.from] || label.from}${threshold === null ? "" : ` ${threshold}`}`].filter(Boolean).join(", ");
  return el("div", {class: "label"},
    el("span", {class: "called", dir: "auto"}, label.label),
    draw("svg", {class: "given", "aria-hidden": "true"},
      draw("rect", {height: "100%", width: `${100 * passed / (most || 1)}%`, rx: 2})),
    el("span", {class: "number"}, passed.toLocaleString("en")),
    el("div", {class: "lies"}, histogram(label, all), el("span", {class: "quiet"}, status)));
}

function labels(all, shown, files) {
  const list = el("div", {class: "labels"}), most = all.labels.reduce((sum, one) => Math.max(sum, one.passed), 0);
  const range = typeof all.low === "number" ? ` Scores from ${all.low.toFixed(3)} to ${all.high.toFixed(3)}; dashed: median; solid: threshold.` : "";
  section("labels", "Labels",
    el("p", {class: "quiet"}, `${all.labelled.toLocaleString("en")} of ${counted(all.pictures, "picture")} given a label.${range}`
      + (shown < files ? ` The first ${shown} of ${counted(files, "file")} are shown below.` : "")), list);
  windowed(list, all.labels, {group: 50, height: 55, build: label => labelRow(label, all, most)});
}

// The labels below an image; those with a box have its colour.
function chips(medium, words) {
  if (!medium.labels.length) return el("em", {class: "quiet"}, "no label");
  return medium.labels.map(([name, score, box], at) => el("span", {class: `chip${box ? ` tint-${at % TINTS}` : ""}`, title: `${name}: ${score}`},
    marked(name, words), el("small", {}, ` ${score.toFixed(2)}`)));
}

// Boxes over an image, with names if there is room.
function boxes(image, medium, named) {
  const found = (medium.labels || []).map((label, at) => [...label, at]).filter(([, , box]) => box);
  if (!found.length) return null;
  const svg = draw("svg", {class: "boxes", "aria-hidden": "true"});
  image.addEventListener("load", () => {
    const {naturalWidth: width, naturalHeight: height} = image, size = Math.max(width, height) / 45, used = new Map();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(...found.map(([name, , box, at]) => {
      const [x, y, right, bottom] = box, line = used.get(`${box}`) || 0;
      used.set(`${box}`, line + 1);
      return draw("g", {class: `box tint-${at % TINTS}`}, draw("rect", {x, y, width: right - x, height: bottom - y}, draw("title", {}, name)),
        named ? draw("text", {x: x + size / 3, y: y + size * (1.1 + 1.2 * line), "font-size": size}, name) : null);
    }));
  });
  return svg;
}
