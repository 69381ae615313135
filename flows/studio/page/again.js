// A second question about some captions, and the answers beside the first.

class Again {
  constructor(page) {
    Object.assign(this, {page, form: at("again"), answers: new Map(), known: "", left: new Set()});
    this.form.addEventListener("submit", event => { event.preventDefault(); this.send(); });
  }

  toggle() {
    this.form.hidden = !this.form.hidden;
    at("ask").setAttribute("aria-expanded", !this.form.hidden);
    this.count();
    if (!this.form.hidden) at("again-prompt").focus();
  }

  count() {
    at("again-told").textContent = `about ${counted(this.page.someRows().length, "caption")}`;
  }

  send() {
    const values = {prompt: at("again-prompt").value.trim(), adapter: at("again-adapter").value};
    if (at("again-temperature").value !== "") values.temperature = Number(at("again-temperature").value);
    for (const name of ["prompt", "adapter"]) if (!values[name]) delete values[name];
    return tried(async () => {
      const {line} = await tell(`run/${RUN}/again`, {keys: this.page.someRows().map(row => row.key), values});
      at("again-told").replaceChildren("asked: ", el("code", {}, line));
      this.page.runs.look();
      this.look();
    });
  }

  // Asks until all have ended.
  async look() {
    clearTimeout(this.waiting);
    let open = false;
    try {
      const {again} = await ask(`run/${RUN}/again`);
      open = again.some(({state}) => !ENDED.includes(state));
      const now = JSON.stringify(again);
      if (now !== this.known) {
        this.known = now;
        this.answers.clear();
        for (const {id, keys, values, answers, state, error} of again) for (const key of keys) {
          if (!this.answers.has(key)) this.answers.set(key, []);
          this.answers.get(key).push({id, values, text: answers[key], state, error});
        }
        this.page.draw([...this.answers.keys()]);
      }
    } catch { open = true; }
    if (open) this.waiting = setTimeout(() => this.look(), 1500);
  }

  // What the model answered the second time, below the first.
  of(row) {
    return (this.answers.get(row.key) || []).filter(({id}) => !this.left.has(id + row.key)).map(({id, values, text, state, error}) => {
      const asked = Object.entries(values).map(([name, value]) => name === "prompt" ? `“${value}”` : `${name} ${value}`).join(", ");
      const told = text === undefined ? (ENDED.includes(state) ? error || "no answer" : "is being asked…") : text, same = text === words(row);
      const keep = () => { this.left.add(id + row.key); this.page.draw([row.key]); };
      return el("div", {class: "other"}, el("p", {class: "quiet small"}, `${asked || "asked again"}${same ? ": the same answer" : ""}`), same ? null : el("p", {dir: "auto"}, told),
        text === undefined ? null : el("div", {class: "acts"},
          same ? null : button("Use this", () => { this.left.add(id + row.key); this.page.save("use another answer", [[row, {caption: text === row.said ? null : text, review: "accepted"}]]); }),
          button(same ? "Hide" : "Keep the first", keep)));
    });
  }
}
