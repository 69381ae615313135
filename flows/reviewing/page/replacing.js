// Find and replace over the captions that are shown.

const SHOWN_CHANGES = 20;

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

  // What is sought; null where there is nothing to seek, or it is no expression.
  pattern() {
    const text = this.regex.checked ? this.find.value : this.find.value.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return text ? new RegExp(text, this.case.checked ? "gu" : "giu") : null;
  }

  changes() {
    const pattern = this.pattern();
    if (!pattern) return [];
    const by = this.regex.checked ? this.by.value : () => this.by.value;
    return this.page.rows().map(row => [row, words(row).replace(pattern, by).trim()])
      .filter(([row, text]) => text && text !== words(row));
  }

  look() {
    let found = [];
    try {
      found = this.changes();
      this.found.textContent = this.find.value ? `${counted(found.length, "caption")} of ${counted(this.page.rows().length, "shown one")} would change` : "";
    } catch (error) {
      this.found.textContent = `not a regular expression: ${error.message.split(": ").pop()}`;
    }
    this.button.disabled = !found.length;
    this.button.textContent = found.length ? `Replace in ${counted(found.length, "caption")}` : "Replace";
    this.preview.replaceChildren(...found.slice(0, SHOWN_CHANGES).map(([row, text]) => el("li", {dir: "auto"},
      el("del", {}, words(row)), " ", el("ins", {}, text))));
    return found;
  }

  replace() {
    const found = this.look();
    if (!found.length) return;
    const does = `replace “${this.find.value}” by “${this.by.value}”`;
    this.page.save(does, found.map(([row, text]) => [row, {caption: text === row.said ? null : text, review: edit(row).review}]));
    this.look();
  }
}
