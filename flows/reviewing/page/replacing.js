// Find and replace over the captions that are shown.

const SHOWN_CHANGES = 20;
const REPLACE_SECONDS = 2;
// Some regular expressions take years: a worker tries them, which can be ended.
const REPLACER = URL.createObjectURL(new Blob([`onmessage = ({data: {texts, find, flags, by}}) => {
  try {
    const pattern = new RegExp(find, flags);
    postMessage({texts: texts.map(text => text.replace(pattern, by).trim())});
  } catch (error) { postMessage({error: "not a regular expression: " + error.message.split(": ").pop()}); }
};`], {type: "text/javascript"}));

class Replacing {
  constructor(page) {
    this.page = page;
    this.form = document.getElementById("replacing");
    for (const name of ["find", "by", "regex", "case", "found", "preview"]) this[name] = document.getElementById(name);
    this.button = document.getElementById("replace-all");
    this.form.addEventListener("input", () => this.look());
    this.form.addEventListener("submit", event => { event.preventDefault(); this.replace(); });
  }

  toggle() {
    this.form.hidden = !this.form.hidden;
    document.getElementById("replace").setAttribute("aria-expanded", !this.form.hidden);
    if (!this.form.hidden) { this.find.focus(); this.look(); }
  }

  // What would change. Throws where that cannot be told.
  async changes() {
    this.worker?.terminate();
    if (!this.find.value) return [];
    const rows = this.page.rows(), texts = rows.map(words), regex = this.regex.checked, worker = this.worker = new Worker(REPLACER);
    const {texts: after, error} = await new Promise(then => {
      worker.onmessage = ({data}) => then(data);
      setTimeout(() => then({error: `no result in ${REPLACE_SECONDS} seconds: simplify the expression`}), 1000 * REPLACE_SECONDS);
      worker.postMessage({texts, flags: this.case.checked ? "gu" : "giu",
        find: regex ? this.find.value : this.find.value.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), by: regex ? this.by.value : this.by.value.replaceAll("$", "$$$$")});
    });
    worker.terminate();
    if (error) throw Error(error);
    // A caption that was changed meanwhile stays as it is.
    return rows.map((row, place) => [row, after[place]]).filter(([row, text], place) => text && text !== words(row) && words(row) === texts[place]);
  }

  async look() {
    const turn = this.turn = (this.turn || 0) + 1;
    let found = [], told = "";
    try {
      found = await this.changes();
      if (this.find.value) told = `${counted(found.length, "caption")} of ${counted(this.page.rows().length, "shown one")} would change`;
    } catch (error) { told = error.message; }
    if (turn !== this.turn) return []; // other values were given meanwhile
    this.found.textContent = told;
    this.button.disabled = !found.length;
    this.button.textContent = found.length ? `Replace in ${counted(found.length, "caption")}` : "Replace";
    this.preview.replaceChildren(...found.slice(0, SHOWN_CHANGES).map(([row, text]) => el("li", {dir: "auto"},
      el("del", {}, words(row)), " ", el("ins", {}, text))));
    return found;
  }

  async replace() {
    const does = `replace “${this.find.value}” by “${this.by.value}”`.slice(0, 200), found = await this.look();
    if (!found.length) return;
    this.page.save(does, found.map(([row, text]) => [row, {caption: text === row.said ? null : text, review: edit(row).review}]));
    this.look();
  }
}
