// Data sets for trainers, and what those will see of them.

class Writing {
  constructor(page) {
    Object.assign(this, {page, form: at("writing")});
    this.form.addEventListener("submit", event => { event.preventDefault(); this.write(); });
  }

  async toggle() {
    this.form.hidden = !this.form.hidden;
    at("write").setAttribute("aria-expanded", !this.form.hidden);
    if (!this.form.hidden) await this.draw();
  }

  async draw() {
    const formats = this.page.choices.options.find(({name}) => name === "format").values.filter(one => one !== "jsonl");
    this.told = el("p", {role: "status"});
    this.check = el("div", {});
    this.form.replaceChildren(el("fieldset", {class: "acts"}, el("legend", {}, "Write what the last run wrote, and"),
      formats.map(value => el("label", {class: "check"}, el("input", {type: "checkbox", name: "format", value}), value))),
      el("div", {class: "acts"}, el("button", {type: "submit", class: "main"}, "Write"), button("Check again", () => this.look())), this.told, this.check);
    await this.look();
    this.form.querySelector("input").focus();
  }

  write() {
    const format = [...this.form.querySelectorAll("[name=format]:checked")].map(box => box.value);
    return tried(async () => {
      await this.page.saving.all();
      const {id, line} = await tell(`run/${RUN}/write`, {format});
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
      const {sets} = await ask(`run/${RUN}/sets`);
      const some = ([count, names]) => count ? `${count}: ${names.join(", ")}` : "0";
      this.check.replaceChildren(sets.length ? table(["data set", "samples", "of captions", "without a text", "without a file", "folder"],
        sets.map(({format, samples, captions, left_out: left, empty, missing, problem, folder}) => [format, problem || String(samples), [captions, ...left].join("; "), some(empty), some(missing), folder]))
        : el("p", {class: "quiet"}, "No data set of a trainer is in this folder yet."));
    });
  }
}
