// Which captions are shown, and in which order.

const edits = new Map(); // key of a caption → what people said of it
const NOTHING = {caption: null, review: ""};
const edit = row => edits.get(row.key) || NOTHING;
const words = row => edit(row).caption ?? row.said;

const FILTERS = {
  all: ["all", () => true],
  open: ["not decided", row => !edit(row).review],
  accepted: ["accepted", row => edit(row).review === "accepted"],
  rejected: ["rejected", row => edit(row).review === "rejected"],
  corrected: ["corrected", row => edit(row).caption !== null],
  cut: ["cut for their length", row => row.cut],
  warned: ["with a warning", row => row.warnings.length > 0],
  failed: ["files that failed", () => false],
};

const longest = rows => Math.max(0, ...rows.map(row => words(row).length));
const shortest = rows => Math.min(...rows.map(row => words(row).length));
const SORTS = {
  source: ["of the sources", null],
  name: ["by name", (one, other) => one.medium.name.localeCompare(other.medium.name, "en", {numeric: true})],
  longest: ["longest caption first", (one, other) => longest(other.rows) - longest(one.rows)],
  shortest: ["shortest caption first", (one, other) => shortest(one.rows) - shortest(other.rows)],
};

// Media with those of their captions that are asked for.
function chosen(media, {filter, sort, sought}) {
  const has = text => sought.every(word => text.toLowerCase().includes(word));
  const passes = FILTERS[filter][1], order = SORTS[sort][1];
  const found = media.map(medium => {
    const named = sought.length > 0 && has(medium.name);
    return {medium, rows: medium.captions.filter(row => passes(row) && (named || has(words(row))))};
  }).filter(({rows}) => rows.length);
  return order ? found.sort(order) : found;
}
