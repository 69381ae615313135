// Which captions are shown, and in which order. A page says by `words` what a caption's text is now.

const edits = new Map(); // key of a caption → what people said of it
const NOTHING = {caption: null, review: ""};
const edit = row => edits.get(row.key) || NOTHING;
const words = row => edit(row).caption ?? row.said;
// A change of many captions at once, which nobody has read on this one, is no decision.
const isUnread = row => edit(row).caption !== null && edit(row).unread && !edit(row).review;
const isDecided = row => edit(row).review || (edit(row).caption !== null && !isUnread(row));

const FILTERS = {
  all: ["all", () => true],
  open: ["not decided", row => !isDecided(row)],
  accepted: ["accepted", row => edit(row).review === "accepted"],
  rejected: ["rejected", row => edit(row).review === "rejected"],
  corrected: ["corrected", row => edit(row).caption !== null && !isUnread(row)],
  unread: ["changed in bulk, not read", isUnread],
  cut: ["cut for their length", row => row.cut],
  warned: ["with a warning", (row, medium) => (row.warnings || medium.warnings).length > 0],
  gone: ["not where they were", (row, medium) => medium.gone],
  learned: ["changed by learning", row => row.before !== undefined],
  copies: ["copies of each other", row => row.group !== undefined],
  failed: ["files that failed", () => false],
};

const lengths = ({rows}) => rows.map(row => words(row).length);
const span = ({medium}) => medium.captions.reduce((end, row) => Math.max(end, row.end), 0);
const SORTS = {
  source: ["of the sources", null],
  name: ["by name", (one, other) => one.medium.name.localeCompare(other.medium.name, "en", {numeric: true})],
  longest: ["longest caption first", (one, other) => Math.max(0, ...lengths(other)) - Math.max(0, ...lengths(one))],
  shortest: ["shortest caption first", (one, other) => Math.min(...lengths(one)) - Math.min(...lengths(other))],
  most: ["most captions first", (one, other) => other.medium.captions.length - one.medium.captions.length],
  long: ["longest video first", (one, other) => span(other) - span(one)],
  copies: ["copies side by side", (one, other) => (one.rows[0].group ?? Infinity) - (other.rows[0].group ?? Infinity) || 0],
  doubt: ["most doubtful first", null, row => row.margin ?? Infinity],
};
const chosenOf = (table, names) => options(names.map(name => [name, table[name][0]]));

// Of media with many captions a grid shows little.
const areLong = media => media.filter(medium => medium.captions.length > 3).length * 2 >= Math.max(1, media.length);

// A text as it is searched, kept with what it is of: making 50,000 takes most of a search.
function low(of, text) {
  if (of.lowOf !== text) Object.assign(of, {lowOf: text, low: folded(text)});
  return of.low;
}

// All texts of a summary.
const allOf = ({text: whole, chapters}) => [whole, ...chapters.map(([, text]) => text)].join("\n");

// Media with those of their captions that are asked for: each word sought is in the name, the caption, or what the run adds to all
// captions (`around`). `bare`: also media without a caption, and those of whose summary it is true.
function chosen(media, {filter, sort, sought, around = "", bare = false}) {
  const all = folded(around), rest = sought.filter(word => !all.includes(word));
  const has = (...texts) => rest.every(word => texts.some(text => text.includes(word)));
  const passes = FILTERS[filter][1], [, order, place] = SORTS[sort];
  const found = media.map(medium => {
    const name = rest.length ? low(medium, medium.name) : "", passed = medium.captions.filter(row => passes(row, medium));
    return {medium, name, rows: rest.length ? passed.filter(row => has(name, low(row, words(row)))) : passed};
  }).filter(({medium, name, rows}) => rows.length || (bare && filter === "all" && (medium.summary
    ? has(name, low(medium.summary, allOf(medium.summary))) : !medium.captions.length && has(name))));
  if (!place) return order ? found.sort(order) : found;
  // Each caption has a place of its own, so it gets a card of its own.
  const apart = found.flatMap(({medium, rows}) => rows.map(row => ({medium, rows: [row], place: place(row)})));
  return apart.sort((one, other) => one.place === other.place ? 0 : one.place - other.place);
}
