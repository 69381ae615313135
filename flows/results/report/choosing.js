// Selects which media are shown, in which order, and how.

const CUT = 4; // index of a caption's flag for being cut at the token limit
const words = medium => medium.captions.map(caption => caption[2].length);
const span = medium => medium.captions.reduce((end, caption) => Math.max(end, caption[1]), 0);

const FILTERS = {
  all: ["all", () => true],
  cut: ["cut for their length", ({captions}) => captions.some(caption => caption[CUT])],
  warned: ["with a warning", ({warnings}) => warnings.length > 0],
  gone: ["not where they were", ({gone}) => gone],
  failed: ["files that failed", () => false],
};
const SORTS = {
  source: ["of the sources", null],
  name: ["by name", (one, other) => one.name.localeCompare(other.name, "en", {numeric: true})],
  longest: ["longest caption first", (one, other) => Math.max(0, ...words(other)) - Math.max(0, ...words(one))],
  shortest: ["shortest caption first", (one, other) => Math.min(...words(one)) - Math.min(...words(other))],
  most: ["most captions first", (one, other) => other.captions.length - one.captions.length],
  long: ["longest video first", (one, other) => span(other) - span(one)],
};
const VIEWS = {grid: ["grid"], list: ["list"]};

// The select boxes; `changed` is called on a new selection. A list wastes space for few captions.
function choosing(media, failures, labels, changed) {
  const videos = media.filter(medium => medium.kind === "video");
  const many = videos.filter(medium => medium.captions.length > 3).length * 2 > videos.length;
  const left = {FILTERS: labels ? ["cut"] : [], SORTS: labels ? ["longest", "shortest"] : []};
  const select = (id, title, names, out = []) => el("label", {}, `${title} `, el("select", {id, change: changed},
    Object.entries(names).filter(([value]) => !out.includes(value)).map(([value, [name]]) => el("option", {value}, name))));
  const box = el("form", {class: "choosing", submit: event => event.preventDefault()},
    select("filter", "Show", FILTERS, [...left.FILTERS, failures.length ? "" : "failed"]), select("sort", "Order", SORTS, left.SORTS),
    videos.length ? select("view", "Videos as", VIEWS) : null);
  const chosen = id => box.querySelector(`#${id}`)?.value;
  if (many) box.querySelector("#view").value = "list";
  return {box, grid: () => chosen("view") === "grid", pick: all => {
    const found = all.filter(FILTERS[chosen("filter")][1]), order = SORTS[chosen("sort")][1];
    if (chosen("filter") === "failed") document.getElementById("failures")?.scrollIntoView();
    return order ? found.sort(order) : found;
  }};
}
