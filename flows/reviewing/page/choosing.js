// Which captions are shown, and in which order.

const edits = new Map(); // key of a caption → what people said of it
const NOTHING = {caption: null, review: ""};
const edit = row => edits.get(row.key) || NOTHING;
const words = row => edit(row).caption ?? row.said;
const same = (one, other) => one.caption === other.caption && one.review === other.review;

const FILTERS = {
  all: ["all", () => true],
  open: ["not decided", row => !edit(row).review],
  accepted: ["accepted", row => edit(row).review === "accepted"],
  rejected: ["rejected", row => edit(row).review === "rejected"],
  corrected: ["corrected", row => edit(row).caption !== null],
  cut: ["cut for their length", row => row.cut],
  warned: ["with a warning", row => row.warnings.length > 0],
  learned: ["changed by learning", row => row.before !== undefined],
  copies: ["copies of each other", row => row.group !== undefined],
  failed: ["files that failed", () => false],
};

const longest = rows => Math.max(0, ...rows.map(row => words(row).length));
const shortest = rows => Math.min(...rows.map(row => words(row).length));
const ranks = new Map(); // key of a caption → its place in the order in which captions teach most
const SORTS = {
  source: ["of the sources", null],
  name: ["by name", (one, other) => one.medium.name.localeCompare(other.medium.name, "en", {numeric: true})],
  longest: ["longest caption first", (one, other) => longest(other.rows) - longest(one.rows)],
  shortest: ["shortest caption first", (one, other) => shortest(one.rows) - shortest(other.rows)],
  copies: ["copies side by side", (one, other) => (one.rows[0].group ?? Infinity) - (other.rows[0].group ?? Infinity) || 0],
  doubt: ["most doubtful first", null, row => row.margin ?? Infinity],
  teach: ["what teaches most first", null, row => ranks.get(row.key) ?? Infinity],
};

// A text as it is searched, kept with what it is of: making 50,000 takes most of a search.
function low(of, text) {
  if (of.lowOf !== text) Object.assign(of, {lowOf: text, low: text.toLowerCase()});
  return of.low;
}

// Media with those of their captions that are asked for.
function chosen(media, {filter, sort, sought}) {
  const has = (of, text) => { const found = low(of, text); return sought.every(word => found.includes(word)); };
  const passes = FILTERS[filter][1], [, order, place] = SORTS[sort];
  const found = media.map(medium => {
    const named = sought.length > 0 && has(medium, medium.name);
    return {medium, rows: medium.captions.filter(row => passes(row) && (named || !sought.length || has(row, words(row))))};
  }).filter(({rows}) => rows.length);
  if (!place) return order ? found.sort(order) : found;
  // Each caption has a place of its own, so it gets a card of its own.
  const apart = found.flatMap(({medium, rows}) => rows.map(row => ({medium, rows: [row], place: place(row)})));
  return apart.sort((one, other) => one.place === other.place ? 0 : one.place - other.place);
}

const DOUBTFUL = 1; // largest margin, in logits, at which a word is marked: the next likely token is at most e times less likely

// Where the word is at which the model hesitated most; null where it did not, or a person wrote the words.
function doubtfulWord({said, margin, margin_at: at}) {
  if (margin === null || margin === undefined || margin > DOUBTFUL) return null;
  if (at === null) return {start: 0, end: 0, word: ""}; // in what is left out of the text
  let start = [...said].slice(0, at).join("").length; // the server counts code points
  while (/\s/.test(said[start] || "")) start += 1;
  const found = new Intl.Segmenter("en", {granularity: "word"}).segment(said).containing(start);
  return found ? {start: found.index, end: found.index + found.segment.length, word: found.segment} : {start: 0, end: 0, word: ""};
}
