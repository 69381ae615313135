// The page as a whole: what it loads, shows and sends.

const at = id => document.getElementById(id);
const DECIDED_ANEW = 20; // captions that are decided before the rest is ordered anew

class Page {
  constructor() {
    this.found = [];
    this.open = opener(at("viewer"));
    for (const [id, names] of [["filter", FILTERS], ["sort", SORTS]])
      at(id).append(...Object.entries(names).map(([value, [name]]) => el("option", {value}, name)));
    this.saving = new Saving({done: answer => this.done(answer), refused: why => this.refused(why), told: (...how) => this.told(...how)});
    this.replacing = new Replacing(this);
    this.learning = new Learning(this);
    at("choosing").addEventListener("submit", event => event.preventDefault());
    at("filter").addEventListener("change", () => this.show());
    at("sort").addEventListener("change", async () => { await this.rank(); this.show(); });
    at("view").addEventListener("change", () => { at("list").className = at("view").value; });
    let waiting = 0;
    at("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => this.show(), 150); });
    const buttons = {undo: () => this.undo(), redo: () => this.redo(), replace: () => this.replacing.toggle(), files: () => this.write(),
      learn: () => this.learning.start(), help: () => this.help(), theme: turnTheme};
    for (const [id, run] of Object.entries(buttons)) at(id).addEventListener("click", run);
    keys(this);
    addEventListener("beforeunload", event => { if (this.saving.waiting.length) event.preventDefault(); });
  }

  async load() {
    const response = await fetch("captions");
    const data = await response.json();
    if (!response.ok) { at("shown").textContent = data.error; return; }
    this.data = data;
    edits.clear();
    for (const [key, value] of Object.entries(data.edits)) edits.set(key, value);
    for (const {changes} of this.saving.waiting) for (const {of, ...now} of changes || []) edits.set(of, now);
    at("name").textContent = data.name;
    document.title = `${data.name} – Penstock review`;
    const few = data.media.filter(medium => medium.captions.length > 3).length * 2 < data.media.length;
    if (!this.loaded) at("sort").value = data.order;
    if (!this.loaded) { at("view").value = few ? "grid" : "list"; at("list").className = at("view").value; }
    this.loaded = true;
    this.steps(data);
    await this.rank();
    this.show();
    this.files(data.files);
    this.learning.loaded(data);
    document.documentElement.dataset.ready = "true";
  }

  // Asks in which order captions teach most, where that order is chosen.
  async rank() {
    this.decided = 0;
    if (at("sort").value !== "teach") return;
    at("shown").textContent = "ordering…";
    const {keys, note, error} = await fetch("teach").then(answer => answer.json()).catch(() => ({error: "not ordered: the review has ended"}));
    for (const [place, key] of (keys || []).entries()) ranks.set(key, place);
    this.note = note || error || "";
  }

  // What was decided changes what teaches most: what is further down is ordered anew, and nothing moves that is on the screen.
  async rankAgain() {
    await this.rank();
    this.tell();
    const cards = [...at("list").children], focused = cards.indexOf(document.activeElement.closest?.(".card"));
    const below = cards.findIndex((card, place) => place > focused && card.getBoundingClientRect().top > innerHeight);
    if (below < 0) return;
    const place = card => Math.min(...[...card.querySelectorAll(".row")].map(box => ranks.get(box.row.row.key) ?? Infinity));
    const later = cards.slice(below).map(card => [place(card), card]);
    at("list").append(...later.sort((one, other) => one[0] === other[0] ? 0 : one[0] - other[0]).map(([, card]) => card));
  }

  rows() {
    return this.found.flatMap(({rows}) => rows);
  }

  show() {
    const {media, failures, prefix, suffix} = this.data, filter = at("filter").value;
    const sought = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    this.found = chosen(media, {filter, sort: at("sort").value, sought});
    rowsOf.clear();
    const asked = new Set(media.flatMap(medium => medium.captions.map(row => row.prompt))).size === 1;
    const around = {prefix, suffix, sought, asked};
    const save = (does, changes) => this.save(does, changes);
    const cards = filter === "failed" ? failures.map(failureCard) : this.found.map(one => new Card(one, around, save, this.open).box);
    at("list").replaceChildren(...cards);
    if (document.activeElement === document.body) step(1); // keys are of the first caption until another is chosen
    this.tell();
    this.count();
    if (!at("replacing").hidden) this.replacing.look();
  }

  tell() {
    const {failures} = this.data, files = new Set(this.found.map(one => one.medium)).size, captions = this.rows().length;
    const note = at("sort").value === "teach" && this.note ? ` · ${this.note}` : "";
    at("shown").textContent = at("filter").value === "failed" ? counted(failures.length, "file") + (failures.length ? "" : ": nothing is like that")
      : `${counted(files, "file")}, ${counted(captions, "caption")}${captions ? note : ": nothing is like that"}`;
  }

  // What is done is shown at once; the server hears it in its order.
  save(does, changes) {
    for (const [row, now] of changes) edits.set(row.key, now);
    this.draw(changes.map(([row]) => row.key));
    this.decided += changes.length;
    this.saving.add({does, changes: changes.map(([row, now]) => ({of: row.key, ...now}))});
  }

  done(answer) {
    // What is still waiting was done after this.
    const later = new Set(this.saving.waiting.flatMap(deed => (deed.changes || []).map(change => change.of)));
    const changed = Object.entries(answer.edits).filter(([key]) => !later.has(key));
    for (const [key, value] of changed) edits.set(key, value);
    this.draw(changed.map(([key]) => key));
    this.steps(answer);
    if (this.decided >= DECIDED_ANEW && at("sort").value === "teach") this.rankAgain();
  }

  async refused(why) {
    await this.load();
    at("saved").textContent = `not saved: ${why}`;
    at("saved").className = "warning";
  }

  told(waiting, tries, why) {
    at("saved").textContent = !waiting ? "all saved" : tries ? `${counted(waiting, "edit")} not saved yet: ${why}` : "saving…";
    at("saved").className = tries && waiting ? "warning" : "quiet";
  }

  draw(keys) {
    for (const key of keys) for (const row of rowsOf.get(key) || []) if (!row.field) row.draw();
    this.count();
  }

  count() {
    const all = new Set(this.data.media.flatMap(medium => medium.captions));
    const told = {accepted: 0, rejected: 0, corrected: 0};
    for (const row of all) {
      const {caption, review} = edit(row);
      if (review) told[review] += 1;
      if (caption !== null) told.corrected += 1;
    }
    const open = all.size - told.accepted - told.rejected;
    at("counts").textContent = [counted(all.size, "caption"), `${open.toLocaleString("en")} not decided`,
      ...Object.entries(told).filter(([, count]) => count).map(([name, count]) => `${count.toLocaleString("en")} ${name}`)].join(" · ");
  }

  steps({undo, redo}) {
    for (const [id, what, name] of [["undo", undo, "Undo"], ["redo", redo, "Redo"]]) {
      at(id).disabled = !what;
      at(id).title = what ? `${name}: ${what}` : `Nothing to ${id}`;
    }
  }

  undo() { this.saving.add({does: "undo"}); }
  redo() { this.saving.add({does: "redo"}); }

  turn() {
    at("view").value = at("view").value === "grid" ? "list" : "grid";
    at("list").className = at("view").value;
  }

  async write() {
    this.files(await (await fetch("files", {method: "POST"})).json());
  }

  files({can, runs, failed, said}) {
    at("files").disabled = !can || runs;
    at("files").title = can ? "Run the same penstock caption once more, which writes all files with what is corrected"
      : "This run was not made by the command: run it again yourself to write its files";
    at("files-told").textContent = runs ? "writing files…" : said;
    at("files-told").className = failed ? "warning" : "quiet";
    if (runs) setTimeout(async () => this.files(await (await fetch("files")).json()), 500);
  }

  help() {
    at("keys").replaceChildren(el("form", {method: "dialog"}, el("b", {}, "Keys"), el("button", {"aria-label": "Close"}, "✕")),
      el("dl", {}, KEYS.map(([key, what]) => el("div", {}, el("dt", {}, key.split("  ").map(each => [el("kbd", {}, each), " "])), el("dd", {}, what)))));
    at("keys").showModal();
  }
}

const page = new Page();
page.load().then(() => page.saving.send());
