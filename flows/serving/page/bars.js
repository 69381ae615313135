// Labels as bars: the name as text, how much it scored, the least score by which it is given, why.

const score = value => value.toFixed(3).replace("-", "−");

function reason(label) {
  const parts = [`${label.label}: ${score(label.score)}`];
  if (label.threshold !== null) parts[0] += label.passed ? `, at least ${score(label.threshold)}` : `, below ${score(label.threshold)}`;
  if (label.box && typeof label.whole === "number") parts.push(`${score(label.whole)} in the picture as a whole`);
  if (label.why) parts.push(`the rule: ${label.why}`);
  return parts.join("; ");
}

// All bars of the page have one scale, so that a threshold stands at the same place on every card: that
// of probabilities, unless all scores so far are far below: then their own.
const scale = {most: 0, bars: [], all: () => scale.most > 0.6 || scale.most <= 0 ? 1 : 1.15 * scale.most};

class Bars {
  // `light` is called with the label under the pointer, or null.
  constructor(light) {
    this.light = light;
    this.list = el("ul", {class: "bars", "aria-label": "Labels"});
    this.why = el("p", {class: "why quiet", dir: "auto"});
    this.box = el("div", {}, this.list, this.why);
    this.rove = roving(this.list, "button");
    this.labels = [];
    scale.bars.push(new WeakRef(this));
  }

  put(labels, tint) {
    const before = scale.all();
    scale.most = labels.reduce((found, label) => Math.max(found, label.score, label.threshold ?? 0), scale.most);
    Object.assign(this, {labels, tint, first: labels[0]});
    this.draw(scale.all());
    this.tell(null);
    if (scale.all() === before) return;
    scale.bars = scale.bars.filter(one => one.deref());
    for (const one of scale.bars) if (one.deref() !== this) one.deref()?.draw(scale.all());
  }

  draw(all) {
    const {labels, tint} = this;
    const held = this.list.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    this.list.replaceChildren(...labels.map(label => el("li", {}, this.row(label, all, tint.get(label.label)))));
    this.rove.first();
    if (held !== null) [...this.list.querySelectorAll("button")].find(row => row.dataset.name === held)?.focus();
  }

  row(label, all, tint) {
    const x = value => `${Math.max(0, Math.min(100, 100 * value / all))}%`, point = to => () => { this.tell(to); };
    const bar = draw("svg", {class: "bar", "aria-hidden": "true"},
      draw("rect", {class: "ground", width: "100%", height: "100%", rx: 2}),
      draw("rect", {class: "length", width: x(label.score), height: "100%", rx: 2}),
      label.threshold === null ? null : draw("line", {class: "least", x1: x(label.threshold), x2: x(label.threshold), y1: 0, y2: "100%"}));
    return el("button", {type: "button", class: `${label.passed ? "passed" : ""}${tint === undefined ? "" : ` tint-${tint}`}`,
      "data-name": label.label, title: reason(label), "aria-description": reason(label),
      pointerenter: point(label), focus: point(label), pointerleave: point(null), blur: point(null)},
      el("span", {class: "called", dir: "auto"}, label.label), bar, el("span", {class: "number"}, score(label.score)),
      el("span", {class: "unseen"}, label.passed ? ", given" : ", not given"));
  }

  tell(label) {
    const shown = label || this.first;
    this.why.textContent = shown ? reason(shown) : "No label to show.";
    this.light(label?.label ?? null);
  }
}
