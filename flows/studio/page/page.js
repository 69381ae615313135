// The page as a whole: what it loads, shows and sends.

const at = id => document.getElementById(id);
const GROUP = 24; // media that are drawn together
const POLL = 1000; // how soon an edit of another tab is shown
const DECIDED_ANEW = 20; // captions that are decided before the rest is ordered anew

class Page {
  constructor() {
    Object.assign(this, {found: [], picked: new Set(), revision: "", turns: 0, turning: Promise.resolve()});
    this.open = opener(at("viewer"));
    for (const [id, names] of [["filter", FILTERS], ["sort", SORTS]])
      at(id).append(...Object.entries(names).map(([value, [name]]) => el("option", {value}, name)));
    this.saving = new Saving({done: answer => this.done(answer), refused: why => this.refused(why), told: (...how) => this.told(...how)});
    this.replacing = new Replacing(this);
    Object.assign(this, {learning: new Learning(this), tags: new Tags(this), again: new Again(this), writing: new Writing(this), following: new Following(this)});
    at("choosing").addEventListener("submit", event => event.preventDefault());
    at("filter").addEventListener("change", () => this.show());
    at("sort").addEventListener("change", async () => { await this.rank(); this.show(); });
    at("view").addEventListener("change", () => this.show());
    let waiting = 0;
    at("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => this.show(), 60); });
    const buttons = {undo: () => this.undo(), redo: () => this.redo(), replace: () => this.replacing.toggle(), tag: () => this.tags.toggle(),
      ask: () => this.again.toggle(), write: () => this.writing.toggle(), follow: () => this.following.toggle(), learn: () => this.learning.start(), history: () => this.past(), help: () => this.help(), theme: turnTheme};
    for (const [id, run] of Object.entries(buttons)) at(id).addEventListener("click", run);
    keys(this);
    addEventListener("beforeunload", event => { if (RUN && this.saving.waiting.length) event.preventDefault(); });
  }

  async begin() {
    at("home").href = HOME;
    at("begin").hidden = Boolean(RUN);
    at("work").hidden = !RUN;
    this.runs = new Runs({box: at(RUN ? "running" : "runs"), only: RUN});
    const choices = ask("start");
    if (RUN) {
      await this.load();
      this.saving.send();
      this.poll();
      this.again.look();
    }
    this.choices = await choices;
    at("again-adapter").replaceChildren(el("option", {value: ""}, "as before"), ...adapterOptions(this.choices).slice(1));
    if (!RUN) {
      this.start = new Start(begun => { location.href = `${HOME}run/${begun.run}/`; }, () => this.runs.look());
      await this.start.begin(this.choices);
    }
    document.documentElement.dataset.ready = "true";
  }

  async load() {
    const data = await ask(`run/${RUN}/captions?since=${this.revision}`);
    if (data.media && document.querySelector("#list textarea")) return; // drawing anew would end what is being written
    this.revision = data.revision;
    if (data.media) await this.take(data);
    else this.changed(data);
  }

  async take(data) {
    this.data = data;
    edits.clear();
    this.changed(data, false);
    const first = data.media[0]?.captions[0]?.prompt;
    this.asked = data.media.every(medium => medium.captions.every(row => row.prompt === first));
    if (data.rounds) this.learning.loaded(data);
    at("name").textContent = data.name;
    document.title = `${data.name} – Penstock studio`;
    requestAnimationFrame(() => setTimeout(() => {
      performance.mark("captions shown");
      setTimeout(() => chosen(data.media, {filter: "all", sort: "source", sought: ["a"]}), 300); // the first search is as fast as the next
    }));
    const few = data.media.filter(medium => medium.captions.length > 3).length * 2 < data.media.length;
    if (!this.loaded && data.media.length) {
      at("view").value = few ? "grid" : "list";
      at("sort").value = data.order;
      this.loaded = true;
      await this.rank();
    }
    const before = scrollY;
    this.show();
    scrollTo(0, before);
  }

  // Asks in which order captions teach most, where that order is chosen.
  async rank() {
    this.decided = 0;
    this.note = "";
    if (at("sort").value !== "teach") return;
    at("shown").textContent = "ordering…";
    const found = await tried(() => ask(`run/${RUN}/teach`));
    ranks.clear();
    for (const [place, key] of (found?.keys || []).entries()) ranks.set(key, place);
    this.note = found?.note || "";
  }

  // What was decided changes what teaches most: what comes after the current caption's group is ordered anew.
  async rankAgain() {
    if (!this.flat.length) return;
    const now = this.place.get(currentRow()?.row.row.key) ?? 0, kept = this.found.slice(0, GROUP * (1 + Math.floor(this.flat[now].card / GROUP)));
    await this.rank();
    const stay = new Set(kept.map(({rows}) => rows[0].key));
    this.found = [...kept, ...chosen(this.data.media, this.choice()).filter(({rows}) => !stay.has(rows[0].key))];
    this.list(currentRow()?.row.row.key);
  }

  // Edits of any tab, except where this one has not sent its own yet.
  changed(answer, draw = true) {
    const mine = new Map();
    for (const {changes} of this.saving.waiting) for (const {of, caption, review} of changes || []) mine.set(of, {caption, review});
    for (const [key, value] of Object.entries(answer.edits)) edits.set(key, mine.get(key) || value);
    if (draw) this.draw(Object.keys(answer.edits));
    this.steps(answer);
  }

  async poll() {
    const began = performance.now();
    try { if (!this.saving.sending) await this.load(); } catch { /* the server is gone: saving says so */ }
    // A folder of 50,000 captions that grows is read anew at most a tenth of the time.
    setTimeout(() => this.poll(), Math.max(POLL, 9 * (performance.now() - began)));
  }

  rows() { return this.flat.map(({row}) => row); }
  chosenRows() { return this.picked.size ? this.rows().filter(row => this.picked.has(row.key)) : this.rows(); }

  // What is chosen, else the current caption.
  someRows() {
    if (this.picked.size) return this.rows().filter(row => this.picked.has(row.key));
    const row = currentRow()?.row?.row || this.last;
    return row ? [row] : [];
  }

  choice() {
    return {filter: at("filter").value, sort: at("sort").value, sought: at("search").value.toLowerCase().split(/\s+/).filter(Boolean)};
  }

  show() {
    if (!this.data) return;
    const focused = currentRow()?.row.row.key, {prefix = "", suffix = ""} = this.data;
    this.found = chosen(this.data.media, this.choice());
    this.around = {prefix, suffix, sought: this.choice().sought, asked: this.asked};
    this.list(focused);
    this.count();
    this.marks();
    this.tags.draw();
    if (!at("replacing").hidden) this.replacing.look();
  }

  // Draws what was found, and goes back to the caption that had the focus.
  list(focused) {
    const failed = at("filter").value === "failed", items = failed ? this.data.failures : this.found, grid = at("view").value === "grid";
    this.flat = this.found.flatMap(({rows}, card) => rows.map(row => ({row, card})));
    this.place = new Map(this.flat.map(({row}, place) => [row.key, place]));
    rowsOf.clear();
    at("list").className = at("view").value;
    windowed(at("list"), items, {group: GROUP, height: grid ? 380 : 240, columns: grid, build: failed ? failureCard : one => this.card(one)});
    at("shown").textContent = failed ? counted(items.length, "file") : this.data.empty ? "No captions yet: they appear here as they are made."
      : `${counted(new Set(this.found.map(({medium}) => medium)).size, "file")}, ${counted(this.flat.length, "caption")}${items.length ? "" : ": nothing is like that"}${this.note ? `; ${this.note}` : ""}`;
    // Keys are of the first caption until another is chosen.
    if (document.activeElement === document.body && this.flat.length) this.go(this.place.get(focused ?? this.last?.key) ?? 0);
  }

  card(one) {
    for (const {key} of one.rows) for (const row of rowsOf.get(key) || []) if (!row.box.isConnected) rowsOf.get(key).delete(row);
    const box = new Card(one, this.around, (does, changes) => this.save(does, changes), this.open).box;
    for (const row of box.querySelectorAll(".row")) this.dress(row.row);
    return box;
  }

  // What the studio adds to a caption: whether it is chosen, and other answers.
  dress(row) {
    const key = row.row.key;
    if (!row.pick) {
      row.pick = el("input", {type: "checkbox", "aria-label": `Choose the caption of ${row.media.name}`, change: () => this.pick(row.row)});
      row.edit.before(el("label", {class: "pick"}, row.pick));
      row.others = el("div", {class: "others"});
      row.before.after(row.others);
      row.box.addEventListener("focusin", () => { this.last = row.row; if (!at("again").hidden) this.again.count(); });
    }
    row.pick.checked = this.picked.has(key);
    row.box.classList.toggle("picked", row.pick.checked);
    row.others.replaceChildren(...this.again.of(row.row));
  }

  step(by) {
    const now = this.place.get(currentRow()?.row.row.key ?? this.last?.key);
    this.go(now === undefined ? 0 : now + by);
  }

  go(place) {
    const next = this.flat[place];
    const card = next && at("list").reach(next.card);
    const box = card && [...card.querySelectorAll(".row")].find(one => one.row.row.key === next.row.key);
    if (!box) return;
    box.focus({preventScroll: true});
    box.scrollIntoView({block: "nearest"});
  }

  pick(row) {
    this.picked.has(row.key) ? this.picked.delete(row.key) : this.picked.add(row.key);
    this.draw([row.key]);
    this.marks();
  }

  pickAll() {
    const all = this.rows().map(({key}) => key);
    this.picked = all.every(key => this.picked.has(key)) ? new Set() : new Set(all);
    this.draw(all);
    this.marks();
  }

  marks() {
    const rows = this.someRows(), many = this.picked.size;
    at("marked").hidden = !many;
    if (!at("again").hidden) this.again.count();
    if (!many) return;
    const all = review => () => this.save(review === "accepted" ? "accept" : "reject", rows.map(row => [row, {...edit(row), review}]));
    at("marked").replaceChildren(el("b", {}, `${counted(rows.length, "caption")} chosen`), button("Accept", all("accepted")), button("Reject", all("rejected")),
      button("Ask again…", () => { if (at("again").hidden) this.again.toggle(); }), button("Choose none", () => { this.picked = new Set(rows.map(({key}) => key)); this.picked.clear(); this.show(); }));
  }

  // What is done is shown at once; the server hears it in its order, with what it was based on: what is in force, unless it is given.
  save(does, changes) {
    const based = changes.map(([row, now, was]) => ({of: row.key, ...now, was: {...(was || edit(row))}}));
    for (const [row, now] of changes) edits.set(row.key, now);
    this.draw(changes.map(([row]) => row.key));
    this.decided = (this.decided || 0) + changes.length;
    if (this.decided >= DECIDED_ANEW && at("sort").value === "teach") this.rankAgain();
    this.saving.add({does, changes: based});
  }

  done(answer) {
    this.revision = answer.revision;
    this.changed(answer);
  }

  async refused(why) {
    const conflict = this.saving.conflict;
    this.saving.conflict = null;
    this.revision = "";
    await this.load().catch(() => {}); // the server is gone: saving says so
    at("saved").textContent = `not saved: ${why}`;
    at("saved").className = "warning";
    if (!conflict?.deed.changes) return;
    this.changed({edits: conflict.now});
    this.choosing = (this.choosing || Promise.resolve()).then(() => this.choose(conflict));
  }

  // Sends a refused deed again as a whole; asks about each caption that somebody else changed, too.
  async choose({deed, now}) {
    const known = new Map(this.data.media.flatMap(({captions}) => captions).map(row => [row.key, row]));
    const changes = deed.changes.filter(({of}) => known.has(of)), resent = [];
    let left = changes.filter(({of}) => now[of]).length, all = "";
    for (const {of, caption, review, was} of changes) {
      const row = known.get(of), there = edit(row), mine = {caption, review};
      if (!now[of] || same(there, was)) { resent.push([row, mine, was]); continue; }
      if (same(there, mine)) continue;
      const answer = all || await this.askWhich(row, there, mine, left -= 1);
      if (answer.startsWith("all")) all = answer;
      if (answer.endsWith("mine")) resent.push([row, mine, there]);
    }
    if (resent.length) this.save(deed.does, resent);
    else this.told(this.saving.waiting.length, 0);
  }

  // Both texts; the answer is "mine", or another, where `all` before it is of the other conflicts, too.
  askWhich(row, there, mine, left) {
    const text = one => [one.caption ?? row.said, one.review && ` (${one.review})`].join(""), dialog = at("conflict");
    const end = answer => button(answer === "mine" ? "Use mine" : answer === "that" ? "Keep that" : answer === "all mine" ? `Use mine for all ${left + 1}` : `Keep all ${left + 1} there`, () => dialog.close(answer));
    dialog.returnValue = "";
    dialog.replaceChildren(el("p", {}, el("b", {}, "This caption was changed in another tab."), left ? ` So were ${counted(left, "caption")} more.` : ""),
      el("div", {class: "both"}, el("div", {}, el("p", {class: "quiet"}, "saved there"), el("p", {dir: "auto"}, text(there))),
        el("div", {}, el("p", {class: "quiet"}, "yours"), el("p", {dir: "auto"}, text(mine)))),
      el("div", {class: "acts"}, ...(left ? ["all that", "all mine"] : []).map(end), end("that"), end("mine")));
    dialog.showModal();
    return new Promise(then => dialog.addEventListener("close", () => then(dialog.returnValue), {once: true}));
  }

  told(waiting, tries, why) {
    at("saved").textContent = !waiting ? (this.turns ? "saving…" : "all saved") : tries ? `${counted(waiting, "edit")} not saved yet: ${why}` : "saving…";
    at("saved").className = tries && waiting ? "warning" : "quiet";
  }

  draw(keys) {
    for (const key of keys) for (const row of rowsOf.get(key) || []) {
      row.field ? row.warn() : row.draw();
      this.dress(row);
    }
    this.count();
  }

  count() {
    if (!this.data) return;
    const told = {accepted: 0, rejected: 0, corrected: 0};
    this.total = this.data.media.reduce((sum, {captions}) => sum + captions.length, 0);
    for (const {caption, review} of edits.values()) {
      if (review) told[review] += 1;
      if (caption !== null) told.corrected += 1;
    }
    const open = this.total - told.accepted - told.rejected;
    at("counts").textContent = [counted(this.total, "caption"), `${open.toLocaleString("en")} not decided`,
      ...Object.entries(told).filter(([, count]) => count).map(([name, count]) => `${count.toLocaleString("en")} ${name}`)].join(" · ");
  }

  steps(answer) {
    for (const [id, name] of [["undo", "Undo"], ["redo", "Redo"]]) {
      if (answer[id] === undefined) continue;
      at(id).disabled = !answer[id];
      at(id).title = answer[id] ? `${name}: ${answer[id]}` : `Nothing to ${id}`;
    }
  }

  // One after the other: each names the action that it takes back, so that none of another tab is.
  turnBack(does) {
    this.turns += 1;
    this.told(1, 0);
    this.turning = this.turning.then(() => tried(async () => {
      await this.saving.all();
      const {tops} = await ask(`run/${RUN}/history`);
      if (tops[does]) this.saving.add({does, of: tops[does]});
      await this.saving.all();
    })).then(() => {
      this.turns -= 1;
      this.told(this.saving.waiting.length, this.saving.tries, this.saving.why);
    });
    return this.turning;
  }

  undo() { return this.turnBack("undo"); }
  redo() { return this.turnBack("redo"); }

  past() {
    return tried(async () => {
      const {history} = await ask(`run/${RUN}/history`), dialog = at("past");
      const back = async count => {
        dialog.close();
        for (let done = 0; done < count; done += 1) this.saving.add({does: "undo", of: history[done].id});
      };
      dialog.replaceChildren(el("form", {method: "dialog"}, el("b", {}, "History, the last first"), el("button", {"aria-label": "Close"}, "✕")),
        el("ol", {}, history.map(({does, count, of, time}, place) => el("li", {}, `${does}: ${count > 1 ? counted(count, "caption") : of} `,
          el("time", {class: "quiet small", datetime: time}, new Date(time).toLocaleString()), " ",
          button(place ? "Undo back to here" : "Undo", () => back(place + 1))))), history.length ? "" : el("p", {class: "quiet"}, "Nothing was done yet."));
      dialog.showModal();
    });
  }

  turn() {
    at("view").value = at("view").value === "grid" ? "list" : "grid";
    this.show();
  }

  help() {
    at("keys").replaceChildren(el("form", {method: "dialog"}, el("b", {}, "Keys"), el("button", {"aria-label": "Close"}, "✕")),
      el("dl", {}, KEYS.map(([key, what]) => el("div", {}, el("dt", {}, key.split("  ").map(each => [el("kbd", {}, each), " "])), el("dd", {}, what)))));
    at("keys").showModal();
  }
}

const page = new Page();
page.begin().catch(problem);
