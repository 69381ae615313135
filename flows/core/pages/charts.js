// Charts: a frame with even ticks, the drawing, and a legend.

const INSET = {left: 62, right: 12, top: 34, bottom: 26};
const rounded = number => String(Number(number.toPrecision(4)));
const path = points => `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;
const level = (kind, y, x1, x2) => draw("line", {class: kind, x1, x2, y1: y, y2: y});
const upright = (kind, x, y1, y2) => draw("line", {class: kind, x1: x, x2: x, y1, y2});
const note = (x, y, anchor, text, kind = null) => draw("text", {class: kind, x, y, "text-anchor": anchor}, text);

function evenTicks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(n => n * power).find(value => value >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({length: Math.floor(high / step + 1e-9) - first + 1}, (_, n) => (first + n) * step);
}

const legendKey = (name, kind) => el("span", {class: "key"},
  draw("svg", {width: 22, height: 10, "aria-hidden": "true"}, level(kind, 5, 1, 21)), name);

// The axis covers `low` to `high`, or slightly more than the values, but does not go below `floor`. `inside` returns the drawing; it gets
// functions from a share of the width to x and from a value to y, and the height at which the other axis is written.
function chart({title = "", says, values, low, high, floor = -Infinity, format = rounded, wide = 560, tall = 230}, inside) {
  const top = title ? INSET.top : 8, bottom = tall - INSET.bottom, edge = wide - INSET.right;
  const room = (most(values) - least(values) || Math.abs(most(values)) || 1) * 0.08;
  const from = Math.min(low ?? Math.max(floor, least(values) - room), least(values));
  const to = Math.max(high ?? most(values) + room, most(values));
  const x = share => INSET.left + share * (edge - INSET.left), y = value => bottom - (value - from) / (to - from || 1) * (bottom - top);
  return draw("svg", {viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": joined([title, says], ": ")},
    title ? note(12, 20, "start", title, "title") : null,
    evenTicks(from, to).map(tick => [level("gridline", y(tick), x(0), edge), note(x(0) - 8, y(tick) + 4, "end", format(tick))]),
    inside({x, y, foot: tall - 8, top, bottom}));
}

const withKeys = (svg, keys) => el("div", {class: "rank"}, el("div", {class: "plot"}, svg),
  el("div", {class: "keys"}, keys.map(([name, kind]) => legendKey(name, kind))));

// Puts a tip beside a place of a plot that is so wide.
function placeTip(tip, x, width) {
  const wide = tip.offsetWidth;
  tip.style.left = `${Math.max(0, x + wide + 24 > width ? x - wide - 12 : x + 12)}px`;
}
