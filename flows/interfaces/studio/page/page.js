// The page as a whole: what it loads, shows and sends, and its keys.

const GROUP = 24; // media that are drawn together
const POLL = 1000; // how soon an edit of another tab is shown
const SHOWN = ["all", "open", "accepted", "rejected", "corrected", "unread", "cut", "warned", "learned", "copies", "failed"];
const ORDERS = ["source", "name", "longest", "shortest", "copies", "doubt"];
const KEYS = [
  ["j  ↓", "next caption"], ["k  ↑", "caption before"], ["e  Enter", "edit: Enter saves, Shift+Enter breaks the line, Esc leaves it"],
  ["a", "accept, and on"], ["r", "reject, and on"], ["x", "choose it, or not"], ["X", "choose all shown, or none"],
  ["n", "ask again about it, or about what is chosen"], ["c", "use another answer"], ["t", "tags"], ["w", "write data sets"],
  ["u  Ctrl+Z", "undo"], ["U  Ctrl+Shift+Z", "redo"], ["p", "play or open it"], ["/", "search"], ["h", "find and replace"],
  ["g", "grid or list"], ["?", "these keys"],
];
const currentRow = () => document.activeElement.closest?.(".row")?.row;

// Draws a dialog below its title, and opens it.
function showDialog(dialog, title, ...content) {
  dialog.replaceChildren(dialogHead(el("b", {}, title)), ...content);
  dialog.showModal();
}

class Page {
  constructor() {
    Object.assign(this, {found: [], picked: new Set(), revision: "", turns: 0, turning: Promise.resolve(),
      viewer: new Viewer($("viewer"), medium => shownPicture(medium, this.seen.crop(medium.captions)))});
    $("filter").append(...chosenOf(FILTERS, SHOWN));
    $("sort").append(...chosenOf(SORTS, ORDERS));
    this.saving = new Saving({done: answer => this.done(answer), refused: why => this.refused(why), told: (...how) => this.told(...how)});
    Object.assign(this, {replacing: new Replacing(this), learning: new Learning(this), tags: new Tags(this), seen: new Seen(this),
      again: new Again(this), writing: new Writing(this), following: new Following(this)});
    $("choosing").addEventListener("submit", event => event.preventDefault());
    for (const id of ["filter", "view"]) $(id).addEventListener("change", () => this.show());
    $("sort").addEventListener("change", () => this.show());
    onTyped($("search"), 60, () => this.show());
    const acts = {undo: () => this.undo(), redo: () => this.redo(), learn: () => this.learning.start(), history: () => this.past(),
      help: () => this.help()};
    for (const [id, act] of Object.entries(acts)) $(id).addEventListener("click", act);
    document.addEventListener("keydown", event => this.key(event));
    addEventListener("beforeunload", event => { if (RUN && this.saving.waiting.length) event.preventDefault(); });
  }

  async begin() {
    set($("home"), {href: HOME}).hidden = !RUN;
    $("begin").hidden = Boolean(RUN);
    $("work").hidden = !RUN;
    this.runs = new Runs({box: $(RUN ? "running" : "runs"), only: RUN});
    const choices = ask("start");
    if (RUN) {
      await this.load();
      this.saving.send();
      this.poll();
      this.again.look();
    }
    this.choices = await choices;
    set($("answers"), {href: `${HOME}answers/`}).hidden = !this.choices.has_answers;
    $("again-adapter").replaceChildren(...options([["", "as before"]]), ...adapterOptions(this.choices));
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
    // The prompt of each kind of media, where all have one: it need not stand at each.
    this.asked = new Map(data.media.map(({kind, captions}) => [kind, captions[0]?.prompt]));
    for (const {kind, captions} of data.media) if (captions.some(row => row.prompt !== this.asked.get(kind))) this.asked.set(kind, null);
    if (data.rounds) this.learning.loaded(data);
    for (const id of ["ask", "learn", "learn-needs", "follow"]) $(id).hidden = Boolean(data.texts); // no model wrote them
    $("name").textContent = data.name;
    $("unused").textContent = data.unused ? `${data.unused}.` : "";
    document.title = `${data.name} – Penstock studio`;
    requestAnimationFrame(() => setTimeout(() => {
      performance.mark("captions shown");
      setTimeout(() => chosen(data.media, {filter: "all", sort: "source", sought: ["a"]}), 300); // the first search is as fast as the next
    }));
    if (!this.loaded && data.media.length) {
      $("view").value = areLong(data.media) ? "list" : "grid";
      $("sort").value = data.order;
      this.loaded = true;
    }
    const before = scrollY;
    this.show();
    scrollTo(0, before);
  }

  // Edits of any tab, except where this one has not sent its own yet.
  changed(answer, draw = true) {
    const mine = new Map();
    for (const {changes} of this.saving.waiting) for (const {of, caption, review} of changes || []) mine.set(of, {caption, review});
    for (const [key, value] of Object.entries(answer.edits)) edits.set(key, mine.get(key) || value);
    if (draw) this.draw(Object.keys(answer.edits));
    if (Object.keys(answer.edits).length) this.seen.later();
    for (const [id, name] of [["undo", "Undo"], ["redo", "Redo"]]) if (answer[id] !== undefined)
      Object.assign($(id), {disabled: !answer[id], title: answer[id] ? `${name}: ${answer[id]}` : `Nothing to ${id}`});
  }

  async poll() {
    const began = performance.now();
    try { if (!this.saving.sending) await this.load(); } catch { /* the server is gone: saving says so */ }
    // A folder of 50,000 captions that grows is read anew at most a tenth of the time.
    setTimeout(() => this.poll(), Math.max(POLL, 9 * (performance.now() - began)));
  }

  rows() { return this.flat.map(({row}) => row); }
  pickedRows() { return this.rows().filter(row => this.picked.has(row.key)); }
  chosenRows() { return this.picked.size ? this.pickedRows() : this.rows(); }
  // What is chosen, else the current caption.
  someRows() { return this.picked.size ? this.pickedRows() : [currentRow()?.row || this.last].filter(Boolean); }

  choice() {
    const {prefix = "", suffix = ""} = this.data, sought = terms($("search").value);
    return {filter: $("filter").value, sort: $("sort").value, sought, around: `${prefix} ${suffix}`};
  }

  show() {
    if (!this.data) return;
    const focused = currentRow()?.row.key, {prefix = "", suffix = ""} = this.data;
    this.found = this.seen.chosen(chosen(this.data.media, this.choice()));
    this.around = {prefix, suffix, sought: this.choice().sought, asked: this.asked, texts: this.data.texts};
    this.list(focused);
    this.count();
    this.marks();
    this.tags.draw();
    if (this.replacing.isOpen) this.replacing.look();
  }

  // Draws what was found, and goes back to the caption that had the focus.
  list(focused) {
    const failed = $("filter").value === "failed", items = failed ? this.data.failures : this.found, columns = $("view").value === "grid";
    this.flat = this.found.flatMap(({rows}, card) => rows.map(row => ({row, card})));
    this.place = new Map(this.flat.map(({row}, place) => [row.key, place]));
    rowsOf.clear();
    $("list").className = $("view").value;
    windowed($("list"), items, {group: GROUP, height: columns ? 380 : 240, columns, build: failed ? failureCard : one => this.card(one)});
    const files = new Set(this.found.map(({medium}) => medium)).size, none = items.length ? "" : ": nothing is like that";
    $("shown").textContent = failed ? counted(items.length, "file")
      : this.data.empty ? "No captions yet: they appear here as they are made."
      : `${counted(files, "file")}, ${counted(this.flat.length, "caption")}${none}`;
    // Keys are of the first caption until another is chosen.
    if (document.activeElement === document.body && this.flat.length) this.go(this.place.get(focused ?? this.last?.key) ?? 0);
  }

  card(one) {
    for (const {key} of one.rows) for (const row of rowsOf.get(key) || []) if (!row.box.isConnected) rowsOf.get(key).delete(row);
    const {box} = new Card(one, this.around, (does, changes) => this.save(does, changes), medium => this.viewer.open([medium], 0));
    for (const row of box.querySelectorAll(".row")) this.dress(row.row);
    return box;
  }

  // What the studio adds to a caption: whether it is chosen, what a trainer loses of it, and other answers.
  dress(row) {
    if (!row.pick) {
      row.pick = el("input", {type: "checkbox", "aria-label": `Choose the caption of ${row.media.name}`, change: () => this.pick(row.row)});
      row.edit.before(el("label", {class: "pick"}, row.pick));
      row.others = el("div", {class: "others"});
      row.lost = el("div", {});
      row.before.after(row.lost, row.others);
      row.box.addEventListener("focusin", () => { this.last = row.row; this.again.count(); });
    }
    row.pick.checked = this.picked.has(row.row.key);
    row.box.classList.toggle("picked", row.pick.checked);
    row.lost.replaceChildren(...(this.seen.of(row.row).texts || []).map(text => el("p", {class: "warning", dir: "auto"}, text)));
    const card = row.box.closest(".card"), picture = card?.querySelector(".player > button");
    card?.querySelector(".crop")?.remove();
    picture?.append(this.seen.crop([...card.querySelectorAll(".row")].map(box => box.row.row)) || "");
    row.others.replaceChildren(...this.again.of(row.row));
  }

  step(by) {
    const now = this.place.get(currentRow()?.row.key ?? this.last?.key);
    this.go(now === undefined ? 0 : now + by);
  }

  go(place) {
    const next = this.flat[place], card = next && $("list").reach(next.card);
    const box = card && [...card.querySelectorAll(".row")].find(one => one.row.row.key === next.row.key);
    box?.focus({preventScroll: true});
    box?.scrollIntoView({block: "nearest"});
  }

  pick({key}) {
    if (!this.picked.delete(key)) this.picked.add(key);
    this.draw([key]);
    this.marks();
  }

  pickAll() {
    const all = this.rows().map(({key}) => key);
    this.picked = all.every(key => this.picked.has(key)) ? new Set() : new Set(all);
    this.draw(all);
    this.marks();
  }

  marks() {
    const rows = this.someRows();
    $("marked").hidden = !this.picked.size;
    this.again.count();
    const all = (does, review) => () => this.save(does, rows.map(row => [row, {...edit(row), review}]));
    $("marked").replaceChildren(el("b", {}, `${counted(rows.length, "caption")} chosen`), button("Accept", all("accept", "accepted")),
      button("Reject", all("reject", "rejected")), button("Ask again…", () => { if (!this.again.isOpen) this.again.toggle(); }),
      button("Choose none", () => { this.picked.clear(); this.show(); }));
  }

  // What is done is shown at once; the server hears it in its order, with what it was based on: what is in force, unless it is given.
  save(does, changes) {
    const based = changes.map(([row, now, was]) => ({of: row.key, ...now, was: {...(was || edit(row))}}));
    for (const [row, now] of changes) edits.set(row.key, now);
    this.draw(changes.map(([row]) => row.key));
    this.saving.add({does, changes: based});
  }

  done(answer) {
    this.revision = answer.revision;
    this.changed(answer);
  }

  async refused(why) {
    const {conflict} = this.saving;
    this.saving.conflict = null;
    this.revision = "";
    await this.load().catch(() => {}); // the server is gone: saving says so
    Object.assign($("saved"), {textContent: `not saved: ${why}`, className: "warning"});
    if (!conflict?.deed.changes) return;
    this.changed({edits: conflict.now});
    this.choosing = (this.choosing || Promise.resolve()).then(() => this.choose(conflict));
  }

  // Sends a refused deed again as a whole; asks about each caption that somebody else changed, too.
  async choose({deed, now}) {
    const known = new Map(this.data.media.flatMap(({captions}) => captions).map(row => [row.key, row]));
    const changes = deed.changes.filter(({of}) => known.has(of)), resent = [];
    let left = changes.filter(({of}) => now[of]).length, all = "";
    for (const {of, caption, review, unread, was} of changes) {
      const row = known.get(of), there = edit(row), mine = {caption, review, unread};
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
    const dialog = $("conflict"), text = one => [one.caption ?? row.said, one.review && ` (${one.review})`].join("");
    const side = (name, one) => el("div", {}, el("p", {class: "quiet"}, name), el("p", {dir: "auto"}, text(one)));
    const end = ([answer, name]) => button(name, () => dialog.close(answer));
    const ends = [["all that", `Keep all ${left + 1} there`], ["all mine", `Use mine for all ${left + 1}`],
      ["that", "Keep that"], ["mine", "Use mine"]];
    dialog.returnValue = "";
    dialog.replaceChildren(
      el("p", {}, el("b", {}, "This caption was changed in another tab."), left ? ` So were ${counted(left, "caption")} more.` : ""),
      el("div", {class: "both"}, side("saved there", there), side("yours", mine)),
      el("div", {class: "acts"}, ends.slice(left ? 0 : 2).map(end)));
    dialog.showModal();
    return new Promise(then => dialog.addEventListener("close", () => then(dialog.returnValue), {once: true}));
  }

  told(waiting, tries, why) {
    const troubled = tries && waiting, done = !waiting && !this.turns;
    Object.assign($("saved"), {className: troubled ? "warning" : "quiet",
      textContent: done ? "all saved" : troubled ? `${counted(waiting, "edit")} not saved yet: ${why}` : "saving…"});
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
    const told = {accepted: 0, rejected: 0, corrected: 0, "changed in bulk": 0}, taught = new Set(), every = new Set();
    let total = 0, left = 0;
    for (const {captions} of this.data.media) for (const row of captions) {
      const {caption, review} = edit(row);
      total += 1;
      every.add(row.key);
      if (!isDecided(row)) left += 1;
      if (review) told[review] += 1;
      if (caption !== null) told[isUnread(row) ? "changed in bulk" : "corrected"] += 1;
      if (isDecided(row) && review !== "rejected") taught.add(row.key);
    }
    const least = this.data.learns_from ?? 0, needed = least - taught.size;
    $("learn").disabled = needed > 0;  // it would refuse
    $("learn-needs").textContent = every.size < least ? `too few captions for Learn, which needs ${least}: see penstock tune`
      : needed > 0 ? `Learn needs ${counted(needed, "more decision")}` : "";
    $("counts").textContent = !total ? "" : joined([counted(total, "caption"), `${grouped(left)} not decided`,
      ...Object.entries(told).map(([name, count]) => count && `${grouped(count)} ${name}`)]);
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
      const {history} = await ask(`run/${RUN}/history`);
      const back = place => {
        $("past").close();
        for (const {id} of history.slice(0, place + 1)) this.saving.add({does: "undo", of: id});
      };
      showDialog($("past"), "History, the last first", el("ol", {}, history.map(({does, count, of, time}, place) =>
        el("li", {}, `${does}: ${count > 1 ? counted(count, "caption") : of} `,
          el("time", {class: "quiet tiny", datetime: time}, new Date(time).toLocaleString()), " ",
          button(place ? "Undo back to here" : "Undo", () => back(place))))),
      history.length ? "" : el("p", {class: "quiet"}, "Nothing was done yet."));
    });
  }

  turn() {
    $("view").value = $("view").value === "grid" ? "list" : "grid";
    this.show();
  }

  help() {
    const signs = key => key.split("  ").map(each => [el("kbd", {}, each), " "]);
    showDialog($("keys"), "Keys", definitions(KEYS.map(([key, what]) => [signs(key), what])));
  }

  // All by the keyboard: from one caption to the next, and what is done to it.
  key(event) {
    const typing = event.target.matches("input:not([type=checkbox]), textarea, select, video");
    if (document.querySelector("dialog[open]") || typing || event.altKey || !RUN) return;
    // A click on an empty place takes the focus from the caption, and not the keys.
    const current = () => currentRow() || (this.go(this.place?.get(this.last?.key) ?? -1), currentRow());
    const onRow = act => () => { const row = current(); if (row) act(row); };
    const decided = review => onRow(row => { row.decide(review); this.step(1); }), next = () => this.step(1), before = () => this.step(-1);
    const does = {
      j: next, ArrowDown: next, k: before, ArrowUp: before, e: onRow(row => row.write()), a: decided("accepted"), r: decided("rejected"),
      x: onRow(row => this.pick(row.row)), X: () => this.pickAll(), n: () => this.again.toggle(), t: () => this.tags.toggle(),
      c: onRow(row => row.box.querySelector(".other .acts button")?.click()), w: () => this.writing.toggle(),
      p: onRow(row => row.box.closest(".card").querySelector(".player button")?.click()), u: () => this.undo(), U: () => this.redo(),
      "/": () => $("search").focus(), h: () => this.replacing.toggle(), g: () => this.turn(), "?": () => this.help(),
    };
    const control = event.ctrlKey || event.metaKey, moves = event.target.matches("button, summary") && event.key.startsWith("Arrow");
    if (control && event.key.toLowerCase() === "z") event.shiftKey ? this.redo() : this.undo();
    else if (!control && event.key === "Enter" && event.target.matches(".row")) event.target.row.write();
    else if (!control && does[event.key] && !moves) does[event.key]();
    else return;
    event.preventDefault();
  }
}

const page = new Page();
page.begin().catch(problem);
