// What is done to the captions that are shown, or to what is chosen of them, each in a part of its own.

const SHOWN_CHANGES = 20, REPLACE_SECONDS = 2, MOST_TAGS = 200;
const ENDED = ["done", "failed", "interrupted", "died"];
const tagsOf = text => text.split(",").map(tag => tag.trim()).filter(Boolean);
// How many of some captions have each tag.
function tagCounts(rows) {
  const counts = new Map();
  for (const row of rows) for (const tag of new Set(tagsOf(words(row)))) counts.set(tag, (counts.get(tag) || 0) + 1);
  return counts;
}
const orNull = (text, row) => text === row.said ? null : text;

// Some regular expressions take years: a worker tries them, which can be ended.
function replaceIn({data: {texts, find, flags, by}}) {
  try {
    const pattern = new RegExp(find, flags);
    postMessage({texts: texts.map(text => text.replace(pattern, by).trim())});
  } catch (error) { postMessage({error: "not a regular expression: " + error.message.split(": ").pop()}); }
}
const REPLACER = URL.createObjectURL(new Blob([`onmessage = ${replaceIn}`], {type: "text/javascript"}));

// What becomes of captions that are tags with commas between them: a name, the fields that it reads, and the change of `rest`, the tags
// behind those that stay first. `sought` has the named tags, `counts` how many captions of the run have each.
const TEXT = "text", SORT = ["fixed-tags"];
const CHANGES = {
  [TEXT]: ["text", ["find", "by", "regex", "case"]],
  common: ["sort tags, the most common first", SORT, (rest, {counts}) => rest.toSorted((a, b) => counts.get(b) - counts.get(a))],
  names: ["sort tags from A to Z", SORT, rest => rest.toSorted((a, b) => a.localeCompare(b, "en", {numeric: true}))],
  front: ["put tags first", ["find", ...SORT], (rest, {sought}) =>
    [...sought.flatMap(tag => rest.filter(one => folded(one) === tag)), ...rest.filter(one => !sought.includes(folded(one)))]],
  merge: ["merge tags", ["find", "by"], (rest, {sought, by}) => !rest.some(tag => sought.includes(folded(tag))) ? rest
    : [...new Set(rest.map(tag => sought.includes(folded(tag)) ? by : tag))]],
  remove: ["take tags away", ["find"], (rest, {sought}) => rest.filter(tag => !sought.includes(folded(tag)))],
};

// Changes of all captions that are shown, at once: a text is found and replaced, or tags are.
class Replacing extends Panel {
  constructor(page) {
    super(page, "replacing", "replace");
    for (const name of ["find", "by", "regex", "case", "found", "preview", "how"]) this[name] = $(name);
    this.how.append(...chosenOf(CHANGES, Object.keys(CHANGES)));
    this.button = $("replace-all");
    this.box.addEventListener("input", () => this.look());
  }

  opened() { this.find.focus(); this.look(); }

  // Which fields are read, and whether those that must be given are.
  fields() {
    const [, read] = CHANGES[this.how.value], isText = this.how.value === TEXT;
    for (const name of [...CHANGES[TEXT][1], ...SORT]) $(name).parentElement.hidden = !read.includes(name);
    $("find-name").textContent = isText ? "Find" : "Tags, with commas between them";
    return !read.includes("find") || (isText ? this.find.value : tagsOf(this.find.value).length);
  }

  // The captions, their tags changed.
  retagged(texts) {
    const [, read, change] = CHANGES[this.how.value], by = this.by.value.trim();
    const counts = tagCounts(this.page.data.media.flatMap(one => one.captions));
    const sought = [...new Set(tagsOf(folded(this.find.value)))];
    if (read.includes("by") && (!by || by.includes(","))) throw Error("give one tag that stands for them");
    const first = read.includes(SORT[0]) ? Math.max(0, Math.floor(Number($(SORT[0]).value))) : 0;
    return texts.map(text => {
      const tags = tagsOf(text), after = [...tags.slice(0, first), ...change(tags.slice(first), {sought, by, counts})];
      return after.join() === tags.join() ? text : after.join(", ");
    });
  }

  // What would change. Throws where that cannot be told.
  async changes() {
    this.worker?.terminate();
    if (!this.fields()) return [];
    const rows = this.page.rows(), texts = rows.map(words);
    const after = this.how.value === TEXT ? await this.replaced(texts) : this.retagged(texts);
    this.emptied = after.filter(text => !text).length;
    // A caption that was changed meanwhile stays as it is.
    return rows.map((row, place) => [row, after[place]])
      .filter(([row, text], place) => text && text !== words(row) && words(row) === texts[place]);
  }

  async replaced(texts) {
    const find = this.find.value, by = this.by.value, regex = this.regex.checked, worker = this.worker = new Worker(REPLACER);
    const {texts: after, error} = await new Promise(then => {
      worker.onmessage = ({data}) => then(data);
      setTimeout(() => then({error: `no result in ${REPLACE_SECONDS} seconds: simplify the expression`}), 1000 * REPLACE_SECONDS);
      worker.postMessage({texts, flags: this.case.checked ? "gu" : "giu", by: regex ? by : by.replaceAll("$", "$$$$"),
        find: regex ? find : find.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")});
    });
    worker.terminate();
    if (error) throw Error(error);
    return after;
  }

  async look() {
    const turn = this.turn = (this.turn || 0) + 1;
    let found = [], told = "";
    try {
      found = await this.changes();
      if (this.fields()) told = `${counted(found.length, "caption")} of ${counted(this.page.rows().length, "shown one")} would change`
        + (this.emptied ? `; ${counted(this.emptied, "caption")} would be empty, which stays as it is` : "");
    } catch (error) { told = error.message; }
    if (turn !== this.turn) return []; // other values were given meanwhile
    this.found.textContent = told;
    this.button.disabled = !found.length;
    const verb = this.how.value === TEXT ? "Replace in" : "Change";
    this.button.textContent = found.length ? `${verb} ${counted(found.length, "caption")}` : verb.split(" ")[0];
    this.preview.replaceChildren(...found.slice(0, SHOWN_CHANGES).map(([row, text]) =>
      el("li", {dir: "auto"}, el("del", {}, words(row)), " ", el("ins", {}, text))));
    return found;
  }

  async send() {
    const [name, read] = CHANGES[this.how.value], named = read.includes("find") ? ` “${this.find.value}”` : "";
    const by = read.includes("by") ? ` by “${this.by.value}”` : "", found = await this.look();
    const does = `${this.how.value === TEXT ? "replace" : name}${named}${by}`.slice(0, 200);
    if (!found.length) return;
    this.page.save(does, found.map(([row, text]) => [
      row, {caption: orNull(text, row), review: edit(row).review, unread: !isDecided(row)},
    ]));
    this.look();
  }
}

// Captions that are tags: each tag with its count, taken away or added in all that are shown.
class Tags extends Panel {
  constructor(page) { super(page, "tags", "tag"); }

  opened() { this.draw(); }

  draw() {
    if (!this.isOpen) return;
    const rows = this.page.rows(), counts = tagCounts(rows);
    const first = [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])).slice(0, MOST_TAGS);
    this.field = el("input", {type: "text", "aria-label": "New tag", autocomplete: "off"});
    this.box.replaceChildren(
      el("form", {class: "fields"}, el("label", {class: "field"}, "Tag ", this.field),
        el("button", {type: "submit"}, "Add to what is chosen, else to all shown")),
      el("p", {class: "quiet tiny"},
        `${counted(counts.size, "tag")} in ${counted(rows.length, "shown caption")}. `
        + "A tag is searched; ✕ takes it away. Replace… sorts and merges tags."),
      el("div", {class: "acts"}, first.map(([tag, count]) => el("span", {class: "tag"},
        button(`${tag} ${count}`, () => { $("search").value = tag; this.page.show(); }),
        button("✕", () => this.change(tag, false), {"aria-label": `Take away ${tag}`})))));
  }

  send() { this.change(this.field.value.trim(), true); }

  change(tag, add) {
    if (!tag || tag.includes(",")) return;
    const changes = this.page.chosenRows().map(row => [row, tagsOf(words(row))]).filter(([, tags]) => tags.includes(tag) !== add)
      .map(([row, tags]) => [row, (add ? [...tags, tag] : tags.filter(one => one !== tag)).join(", ")]).filter(([, text]) => text)
      .map(([row, text]) => [row, {...edit(row), caption: orNull(text, row), unread: !isDecided(row)}]);
    if (changes.length) this.page.save(`${add ? "add" : "take away"} tag “${tag}”`, changes);
    this.draw();
  }
}

// What a trainer would not see of captions, and those that a filter finds by it. It is asked for as long as there is a filter.
class Seen {
  constructor(page) {
    Object.assign(this, {page, lost: {}, keys: null, told: $("seen-told")});
    onTyped($("seen"), 400, () => this.look());
  }

  of({key}) { return this.lost[key] || {}; }

  // Those of the media with captions that the filter finds, too.
  chosen(found) {
    const left = rows => rows.filter(({key}) => !this.keys || this.keys.has(key));
    return found.map(one => ({...one, rows: left(one.rows)})).filter(({rows}) => rows.length);
  }

  // After an edit, all that is shown stays, as with every other filter.
  later() {
    clearTimeout(this.waiting);
    if ($("seen").value.trim()) this.waiting = setTimeout(() => this.look(true), 400);
  }

  async look(stays = false) {
    const wanted = $("seen").value.trim(), turn = this.turn = (this.turn || 0) + 1;
    const tell = (text, how = "quiet tiny") => { if (turn === this.turn) Object.assign(this.told, {textContent: text, className: how}); };
    let found = {keys: null, lost: {}, lines: [], notes: []};
    if (wanted && !stays) tell("looking at captions and media…");
    try {
      if (wanted) found = await ask(`run/${RUN}/seen?filter=${encodeURIComponent(wanted)}`);
      tell(joined([...found.lines, ...found.notes]));
    } catch (error) { tell(String(error), "warning tiny"); return; }
    if (turn !== this.turn) return; // another filter was typed meanwhile
    this.lost = found.lost;
    if (!stays) this.keys = found.keys && new Set(found.keys);
    if (stays) this.page.draw([...rowsOf.keys()]);
    else this.page.show();
  }

  // The part of a picture that is trained, over the picture: what is outside is dark.
  crop(rows) {
    const {crop, size: whole} = rows.map(row => this.of(row)).find(one => one.crop) || {};
    if (!crop) return null;
    const [left, top, right, bottom] = crop, [wide, high] = whole, part = `M${left} ${top}H${right}V${bottom}H${left}Z`;
    return draw("svg", {class: "crop", viewBox: `0 0 ${wide} ${high}`, role: "img",
      "aria-label": `${right - left} x ${bottom - top} of ${wide} x ${high} pixels are trained, from ${left}, ${top} on`},
    draw("path", {class: "outside", d: `M0 0H${wide}V${high}H0Z${part}`}), draw("path", {class: "trained", d: part}));
  }
}

// A second question about some captions, and the answers beside the first.
class Again extends Panel {
  constructor(page) { Object.assign(super(page, "again", "ask"), {answers: new Map(), known: "", left: new Set()}); }

  opened() { this.count(); $("again-prompt").focus(); }

  count() { if (this.isOpen) $("again-told").textContent = `about ${counted(this.page.someRows().length, "caption")}`; }

  send() {
    const given = {prompt: $("again-prompt").value.trim(), adapter: $("again-adapter").value, temperature: $("again-temperature").value};
    const values = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== ""));
    if (values.temperature) values.temperature = Number(values.temperature);
    return tried(async () => {
      const {line} = await tell(`run/${RUN}/again`, {keys: this.page.someRows().map(row => row.key), values});
      $("again-told").replaceChildren("asked: ", el("code", {}, line));
      this.asked = true;
      this.page.runs.look();
      this.look();
    });
  }

  // Asks until all have ended.
  async look() {
    clearTimeout(this.waiting);
    let open = false;
    try {
      const {again} = await ask(`run/${RUN}/again`), now = JSON.stringify(again);
      open = again.some(({state}) => !ENDED.includes(state));
      if (now !== this.known) {
        this.known = now;
        this.answers.clear();
        for (const {keys, answers, ...one} of again) for (const key of keys)
          this.answers.set(key, [...(this.answers.get(key) || []), {...one, text: answers[key]}]);
        this.page.draw([...this.answers.keys()]);
        if (this.asked && !open) this.tell(again.at(-1));
      }
    } catch { open = true; }
    if (open) this.waiting = setTimeout(() => this.look(), 1500);
  }

  // What came of the last question.
  tell({state, error, answers}) {
    const count = Object.keys(answers).length;
    this.asked = false;
    $("again-told").textContent = count ? `${counted(count, "answer")}, below` : error || `no answer: ${state}`;
  }

  // What the model answered the second time, below the first.
  of(row) {
    return (this.answers.get(row.key) || []).filter(({id}) => !this.left.has(id + row.key)).map(({id, values, text, state, error}) => {
      const asked = joined(Object.entries(values).map(([name, value]) => name === "prompt" ? `“${value}”` : `${name} ${value}`), ", ");
      const told = text ?? (ENDED.includes(state) ? error || "no answer" : "is being asked…"), is = text === words(row);
      const leave = act => () => { this.left.add(id + row.key); act(); };
      const use = () => this.page.save("use another answer", [[row, {caption: orNull(text, row), review: "accepted"}]]);
      return el("div", {class: "other"}, el("p", {class: "quiet tiny"}, `${asked || "asked again"}${is ? ": the same answer" : ""}`),
        is ? null : el("p", {dir: "auto"}, told), text === undefined ? null : el("div", {class: "acts"},
          is ? null : button("Use this", leave(use)), button("Dismiss this", leave(() => this.page.draw([row.key])))));
    });
  }
}

// Data sets for trainers, and what those will see of them.
class Writing extends Panel {
  constructor(page) { super(page, "writing", "write"); }

  async opened() {
    const formats = this.page.choices.options.find(({name}) => name === "format").values.filter(one => one !== "jsonl");
    const trainers = this.page.choices.trainers.map(value => el("option", {value}));
    this.told = el("p", {role: "status"});
    this.check = el("div", {});
    if (this.page.data.texts) {
      this.box.replaceChildren(el("p", {}, "Changed captions go into the texts beside the media. ",
        "A text that somebody else changed is left alone."),
        el("button", {type: "submit", class: "main"}, "Write changes"), this.told);
      return this.box.querySelector("button").focus();
    }
    this.box.replaceChildren(el("fieldset", {class: "acts"}, el("legend", {}, "Write what the last run wrote, and"),
      formats.map(value => el("label", {class: "check"}, el("input", {type: "checkbox", name: "format", value}), value)),
      el("label", {class: "field"}, "Set for a trainer and its model",
        el("input", {type: "text", name: "trainer", list: "trainers", placeholder: "musubi:wan", autocomplete: "off"})),
      el("datalist", {id: "trainers"}, trainers)),
    el("div", {class: "acts"}, el("button", {type: "submit", class: "main"}, "Write files"), button("Check again", () => this.look())),
    this.told, this.check);
    await this.look();
    this.box.querySelector("input").focus();
  }

  send() {
    const format = [...this.box.querySelectorAll("[name=format]:checked")].map(box => box.value);
    return tried(async () => {
      await this.page.saving.all();
      const trainer = tagsOf(this.box.querySelector("[name=trainer]")?.value ?? "");
      const {id, line, written} = await tell(`run/${RUN}/write`, {format, trainer});
      if (written) { this.told.textContent = written; return; }
      this.told.replaceChildren("writing… ", el("code", {}, line));
      this.wait(id);
    });
  }

  async wait(id) {
    await this.page.runs.look();
    const run = (this.page.runs.runs || []).find(one => one.id === id);
    if (!run || !ENDED.includes(run.state)) { setTimeout(() => this.wait(id), 700); return; }
    this.told.className = run.state === "done" ? "" : "warning";
    this.told.replaceChildren(run.state === "done" ? "written" : `${run.state}: ${run.error}`);
    await this.look();
  }

  look() {
    return tried(async () => {
      const {sets} = await ask(`run/${RUN}/sets`), some = ([count, names]) => count ? `${count}: ${names.join(", ")}` : "0";
      const rows = sets.map(({format, samples, is_old: isOld, captions, left_out: left, empty, missing, lost, problem: why, folder}) =>
        [format, why || samples + (isOld ? ", before the last edits" : ""),
          [captions, ...left].join("; "), some(empty), some(missing), lost.join("; ") || "–", folder]);
      this.check.replaceChildren(rows.length
        ? table(["data set", "samples", "of captions", "without a text", "without a file", "the trainer", "folder"], rows)
        : el("p", {class: "quiet"}, "No data set of a trainer is in this folder yet."));
    });
  }
}

// What is made of a run's model: an export, or an adapter trained on its captions.
class Following extends Panel {
  constructor(page) {
    super(page, "following", "follow");
    $("follow-to").addEventListener("change", () => this.name());
  }

  opened() {
    const kinds = this.page.choices.export_kinds.map(value => [value, `an export: ${value}`]);
    $("follow-to").replaceChildren(...options([["", "an adapter (penstock tune)"], ...kinds]));
    this.name();
    $("follow-to").focus();
  }

  name() {
    const to = $("follow-to").value;
    $("follow-out").value = `${this.page.choices.out}/${to ? `exports/${to}` : "adapters/tuned"}`;
  }

  send() {
    const to = $("follow-to").value, value = {command: to ? "export" : "tune", to, out: $("follow-out").value.trim()};
    return tried(async () => {
      $("follow-told").replaceChildren(el("code", {}, (await tell(`run/${RUN}/follow`, value)).line));
      this.page.runs.look();
    });
  }
}

// Learning from what was corrected: starts it, and shows what came of it.
class Learning {
  constructor(page) { Object.assign(this, {page, told: $("learn-told")}); }

  start() {
    return tried(async () => {
      await this.page.saving.all();
      const {line} = await tell(`run/${RUN}/learn`, {});
      this.before = new Map(this.chunks());
      this.told.textContent = line;
      this.page.runs.look();
    });
  }

  // What data that was just loaded says of it: the last round, and which captions have other words now.
  loaded({rounds}) {
    this.told.textContent = this.result(rounds.at(-1) || {});
    for (const [chunk, row] of this.before ? this.chunks() : []) {
      const was = this.before.get(chunk)?.said;
      if (was !== undefined && was !== row.said) row.before = was;
    }
  }

  chunks() {
    return this.page.data.media.flatMap(medium => medium.captions.map(row =>
      [JSON.stringify([medium.number, row.start, row.name, row.prompt]), row]));
  }

  // A round, in one line.
  result({round, phase, before, after, accepted, enough, changed, captions, examples, held_out: held, weak_test: weak}) {
    if (!after || (accepted && !["carried", "done"].includes(phase))) return "";
    const loss = `loss per token ${before.loss.toFixed(4)} → ${after.loss.toFixed(4)}`;
    const exact = `exact ${before.exact} → ${after.exact} of ${held} held out${weak ? "; weak test" : ""}`;
    const end = accepted ? `${grouped(changed)} of ${counted(captions, "caption")} changed`
      : `not accepted: ${enough ? "not better" : "too few corrections or media"}`;
    return `round ${round}, learned from ${counted(examples, "caption")}: ${loss}, ${exact}; ${end}`;
  }
}
