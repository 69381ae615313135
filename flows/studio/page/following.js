// What is made of a run's model: an export, or an adapter trained on its captions.

class Following {
  constructor(page) {
    Object.assign(this, {page, form: at("following")});
    this.form.addEventListener("submit", event => { event.preventDefault(); this.send(); });
    at("follow-to").addEventListener("change", () => this.name());
  }

  toggle() {
    this.form.hidden = !this.form.hidden;
    at("follow").setAttribute("aria-expanded", !this.form.hidden);
    if (this.form.hidden) return;
    at("follow-to").replaceChildren(el("option", {value: ""}, "an adapter (penstock tune)"), ...this.page.choices.export_kinds.map(value => el("option", {value}, `an export: ${value}`)));
    this.name();
    at("follow-to").focus();
  }

  name() {
    const to = at("follow-to").value;
    at("follow-out").value = `${this.page.choices.out}/${to ? `exports/${to}` : "adapters/tuned"}`;
  }

  send() {
    const to = at("follow-to").value, value = {command: to ? "export" : "tune", to, out: at("follow-out").value.trim()};
    return tried(async () => {
      at("follow-told").replaceChildren(el("code", {}, (await tell(`run/${RUN}/follow`, value)).line));
      this.page.runs.look();
    });
  }
}
