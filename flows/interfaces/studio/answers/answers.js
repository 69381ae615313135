// The answers to one question: bars of p, a threshold with counts on either side, and decisions by keys.

const SHOWN = 200; // rows that are drawn at first, and with each press of the button
const MOST_BUTTONS = 9;
const ORDERS = {
  unsure: ["least sure first", (a, b) => doubt(a) - doubt(b)],
  low: ["smallest p first", (a, b) => a.p - b.p],
  high: ["largest p first", (a, b) => b.p - a.p],
  source: ["as in the folder", (a, b) => a.row - b.row],
};
const doubt = ({p, margin}) => margin ?? Math.abs(p - 0.5);
const isYesNo = ({labels}) => labels[0] === "Yes" && labels.length === 2;

class Answers {
  async begin() {
    $("home").href = HOME;
    $("sort").append(...options(Object.entries(ORDERS).map(([value, [name]]) => [value, name])));
    this.data = await ask("answers/rows");
    $("name").textContent = this.data.name;
    $("question").append(...options(this.data.probes.map(({question, tag}, at) => [at, tag ? `${question}: ${tag}` : question])));
    $("question").addEventListener("change", () => this.choose());
    $("sort").addEventListener("change", () => this.show());
    $("threshold").addEventListener("input", () => this.count());
    $("choosing").addEventListener("submit", event => event.preventDefault());
    $("more").addEventListener("click", () => this.more());
    document.addEventListener("keydown", event => this.key(event));
    await this.choose();
    document.documentElement.dataset.ready = "true";
  }

  choose() {
    const number = Number($("question").value);
    return tried(async () => {
      const {revision, answers} = await ask(`answers/probes/${number}`);
      if (number !== Number($("question").value)) return; // another one was chosen meanwhile
      if (revision !== this.data.revision) { location.reload(); return; }
      Object.assign(this, {number, answers, probe: this.data.probes[number]});
      $("threshold").value = this.probe.threshold;
      $("text").textContent = this.probe.text;
      this.show();
    });
  }

  show() {
    this.found = this.answers.toSorted(ORDERS[$("sort").value][1]);
    this.boxes = [];
    $("list").replaceChildren();
    this.more();
    this.decided();
  }

  more() {
    const some = this.found.slice(this.boxes.length, this.boxes.length + SHOWN).map(answer => this.draw(answer));
    this.boxes.push(...some);
    $("list").append(...some);
    $("more").hidden = this.boxes.length === this.found.length;
    this.count();
  }

  // A row: what it is about, its bar, and a button for each label.
  draw(answer) {
    const {labels} = this.probe, {name, start, end, kind} = this.data.rows[answer.row];
    const at = kind === "image" ? "" : `?at=${(start + end) / 2}`, span = end ? ` ${clock(start)}–${clock(end)}` : "";
    const acts = labels.length <= MOST_BUTTONS
      ? labels.map(label => button(label, () => this.decide(box, label), {"data-label": label}))
      : el("select", {"aria-label": "True label", change: event => this.decide(box, event.target.value)},
        options([["", "not decided"], ...labels.map(label => [label, label])]));
    const box = el("article", {class: "row", tabindex: "-1", "aria-label": `${name}${span}`},
      el("img", {alt: "", loading: "lazy", src: `${HOME}answers/small/${answer.row}${at}`, error: event => event.target.remove()}),
      el("span", {class: "called"}, name, el("span", {class: "quiet tiny"}, span)),
      el("meter", {min: 0, max: 1, value: answer.p, "aria-label": `p ${answer.p.toFixed(3)}`}),
      el("span", {class: "number", title: answer.raw === undefined ? null : `not calibrated: ${answer.raw.toFixed(3)}`},
        answer.p.toFixed(3), isYesNo(this.probe) ? null : el("span", {class: "quiet tiny folder"}, answer.answer)),
      el("div", {class: "acts"}, acts));
    box.answer = answer;
    this.mark(box);
    return box;
  }

  mark({answer, children: [...parts]}) {
    const acts = parts.at(-1), select = acts.querySelector("select");
    for (const one of acts.querySelectorAll("button")) one.setAttribute("aria-pressed", one.dataset.label === answer.decided);
    if (select) select.value = answer.decided || "";
  }

  count() {
    const threshold = Number($("threshold").value), above = this.found.filter(({p}) => p >= threshold).length;
    for (const box of this.boxes) box.classList.toggle("above", box.answer.p >= threshold);
    $("counts").textContent = `${grouped(this.found.length - above)} below ${threshold.toFixed(2)}, ${grouped(above)} from it on`;
  }

  decided() {
    const own = this.found.filter(({decided}) => decided).length;
    $("decided").textContent = `${counted(own, "decision")} on ${counted(this.found.length, "answer")}`;
  }

  decide(box, label) {
    const {answer} = box, {data, number: probe} = this;
    return tried(async () => {
      await tell("answers/decisions", {revision: data.revision, row: answer.row, probe, answer: label});
      answer.decided = label;
      if (this.boxes.includes(box)) { this.mark(box); this.decided(); }
    });
  }

  key(event) {
    if (event.target.matches("input, select") || isModified(event) || !this.boxes.length) return;
    const at = this.boxes.indexOf(document.activeElement.closest(".row")), box = this.boxes[Math.max(at, 0)];
    const go = to => this.boxes[Math.min(Math.max(to, 0), this.boxes.length - 1)].focus();
    const decide = label => { if (label === undefined) return; this.decide(box, label); go(at < 0 ? 1 : label ? at + 1 : at); };
    const {labels} = this.probe, isBinary = isYesNo(this.probe);
    const does = {
      j: () => go(at + 1), ArrowDown: () => go(at + 1), k: () => go(at - 1), ArrowUp: () => go(at - 1), u: () => decide(""),
      y: () => decide(isBinary ? "Yes" : box.answer.answer), n: () => decide(isBinary ? "No" : undefined),
    }[event.key] || (/^[1-9]$/.test(event.key) ? () => decide(labels[event.key - 1]) : null);
    if (!does) return;
    does();
    event.preventDefault();
  }
}

new Answers().begin().catch(problem);
