// Small charts of one size: a frame with even ticks, the drawing, and a legend.

const WIDE = 560, TALL = 230, INSET = {left: 62, right: 12, top: 34, bottom: 26};
const EDGE = WIDE - INSET.right;

const brief = number => String(Number(number.toPrecision(4)));
const along = share => INSET.left + share * (EDGE - INSET.left);

function evenTicks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(n => n * power).find(value => value >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({length: Math.floor(high / step + 1e-9) - first + 1}, (_, n) => (first + n) * step);
}

const legendKey = (name, kind) => el("span", {class: "key"}, draw("svg", {width: 22, height: 10, "aria-hidden": "true"},
  draw("line", {x1: 1, x2: 21, y1: 5, y2: 5, class: kind})), name);

// `inside` gets a function from value to height, and returns the drawing. The axis covers `low` to
// `high`, or slightly more than the values, but does not go below `floor`.
function chart({title, says, values, low, high, floor = -Infinity, keys}, inside) {
  const least = values.reduce((a, b) => Math.min(a, b)), most = values.reduce((a, b) => Math.max(a, b));
  const room = (most - least || Math.abs(most) || 1) * 0.08;
  const from = Math.min(low ?? Math.max(floor, least - room), least), to = Math.max(high ?? most + room, most);
  const bottom = TALL - INSET.bottom;
  const y = value => bottom - (value - from) / (to - from || 1) * (bottom - INSET.top);
  const svg = draw("svg", {viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", "aria-label": `${title}: ${says}`},
    draw("text", {class: "title", x: 12, y: 20}, title),
    evenTicks(from, to).map(tick => [draw("line", {class: "grid", x1: INSET.left, x2: EDGE, y1: y(tick), y2: y(tick)}),
      draw("text", {x: INSET.left - 8, y: y(tick) + 4, "text-anchor": "end"}, brief(tick))]),
    inside(y));
  return el("div", {class: "rank"}, el("div", {class: "plot"}, svg),
    el("div", {class: "keys"}, keys.map(([name, kind]) => legendKey(name, kind))));
}
