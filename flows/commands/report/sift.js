// Draws the report of a sift run: histograms with movable thresholds, groups of copies, extremes.

const BINS = 60, HIGH = 90, ENDS = 6;
const thresholds = {}; // name of a mark → its moved threshold
$("find").remove();

const shown = number => Number(number.toPrecision(3));
const picture = (at, text) => el("figure", {class: "small"},
  data.thumbs[at] ? el("img", {src: data.thumbs[at], alt: "", loading: "lazy"}) : el("div", {class: "none"}),
  el("figcaption", {dir: "auto"}, data.files[at], " ", el("span", {class: "quiet"}, text)));
const strip = pairs => pairs.map(([value, file]) => picture(file, String(value)));

// What falls out by one threshold: an unknown value does, as it meets no comparison.
const falls = (mark, value, at) => value === null || (mark.high ? value > at : value < at);

const expression = el("code", {});
const summary = el("p", {"aria-live": "polite"});

// Counts the files that fall out by any of the moved thresholds.
function tell() {
  const moved = data.marks.filter(mark => mark.name in thresholds);
  const out = data.files.filter((_, file) => moved.some(mark => falls(mark, mark.values[file], thresholds[mark.name])));
  expression.textContent = moved.map(mark => `${mark.name} ${mark.high ? "<=" : ">="} ${thresholds[mark.name]}`).join(" and ");
  const share = data.files.length ? (100 * out.length / data.files.length).toFixed(1) : "0";
  summary.replaceChildren(`${counted(out.length, "file")} of ${grouped(data.files.length)} (${share} %) fall out`,
    moved.length ? " with --keep " : ": move a threshold below", expression);
}

function markCard(mark) {
  const order = mark.values.map((value, at) => [value, at]).filter(([value]) => value !== null).sort((a, b) => a[0] - b[0]);
  // The slider goes from one value to the next, so that skewed marks use all of its length.
  const values = order.map(([value]) => value), low = values[0], high = values.at(-1), span = high - low || 1;
  const steps = [...new Set([...values, ...mark.limit === null ? [] : [mark.limit]])].sort((a, b) => a - b);
  const bins = Array(BINS).fill(0);
  for (const [value] of order) bins[Math.min(BINS - 1, Math.floor((value - low) / span * BINS))] += 1;
  const drawn = bars(bins, HIGH, Math.sqrt), line = draw("line", {class: "cut", y1: 0, y2: HIGH}), start = mark.high ? steps.length - 1 : 0;
  const begin = mark.limit === null ? start : steps.indexOf(mark.limit);
  const slider = el("input", {type: "range", min: 0, max: steps.length - 1, value: begin, "aria-label": `threshold of ${mark.name}`});
  const text = el("p", {class: "quiet"}), near = el("div", {class: "strip"});
  function moved() {
    const at = steps[slider.value], place = (at - low) / span * BINS;
    set(line, {x1: place, x2: place});
    drawn.forEach((bar, number) => bar.classList.toggle("out", mark.high ? number >= place : number + 1 <= place));
    const out = order.filter(([value]) => falls(mark, value, at));
    slider.setAttribute("aria-valuetext", at);
    if (Number(slider.value) === start && mark.limit === null) delete thresholds[mark.name];
    else thresholds[mark.name] = at;
    const unknown = mark.values.length - order.length;
    const nulls = unknown ? `; null: ${grouped(unknown)}` : "";
    text.textContent = `${mark.high ? "above" : "below"} ${at}: ${counted(out.length, "file")}${nulls}`;
    // The last ones to fall out are the ones to look at.
    near.replaceChildren(...strip(mark.high ? out.slice(0, ENDS) : out.slice(-ENDS)));
    tell();
  }
  slider.addEventListener("input", moved);
  if (steps.length > 1 || mark.limit !== null) moved();
  const ends = [...order.slice(0, ENDS), ...order.slice(Math.max(ENDS, order.length - ENDS))];
  return el("article", {class: "card mark", id: `mark-${mark.name}`},
    el("h3", {}, mark.name, el("span", {class: "quiet"}, ` ${mark.text}`)),
    draw("svg", {viewBox: `0 0 ${BINS} ${HIGH}`, preserveAspectRatio: "none", role: "img", "aria-label": `histogram of ${mark.name}`},
      drawn, line),
    steps.length > 1 ? slider : null,
    el("p", {class: "ends quiet"}, [...new Set([low, high])].map(end => el("span", {}, shown(end)))), text, near,
    el("details", {}, el("summary", {}, mark.high ? "best and worst" : "worst and best"), el("div", {class: "strip"}, strip(ends))));
}

section("run", "Sift", el("p", {class: "quiet"}, `${data.name} · ${data.state}`), definitions(data.totals, {class: "totals"}),
  data.keep ? el("p", {}, "Run with --keep ", el("code", {}, data.keep)) : null,
  data.marked > data.files.length ? el("p", {class: "quiet"}, `shown: a sample of ${grouped(data.files.length)} files`) : null, summary);
if (data.groups.length) section("copies", "Copies", data.groups.map(({kind, members}) => {
  const drawn = members.slice(0, data.most), more = members.slice(data.most);
  const words = {similar: "by vectors", duplicate: "in their pictures", kept_duplicate: "that meet the rest of --keep"};
  const alike = ` alike ${words[kind]}`;
  return el("article", {class: "card"},
    el("h3", {}, counted(members.length, "file"), el("span", {class: "quiet"}, alike)),
    el("div", {class: "strip"}, drawn.map(at => picture(at, at === members[0] ? "best" : ""))),
    more.length ? el("details", {}, el("summary", {}, `and ${grouped(more.length)} more`),
      el("p", {class: "quiet"}, more.map(at => data.files[at]).join(", "))) : null);
}));
section("marks", "Marks", data.marks.filter(({values}) => values.some(value => value !== null)).map(markCard));
tell();
if (data.left.length) section("left", "Left out",
  el("div", {class: "strip"}, data.pictures.map(([file, why]) => picture(file, why))), table(["file", "why"], data.left.slice(0, 1000)));
if (data.failures.length) section("failures", "Failures", table(["file", "why"], data.failures));
