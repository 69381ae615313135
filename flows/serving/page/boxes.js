// A picture or a clip, and over it the boxes of the labels it was given, in the picture's own pixels.

const TINTS = 4;
const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
const boxed = labels => labels.filter(label => label.passed && label.box);

// The colour of each name, in their order.
const tints = names => new Map([...new Set(names)].map((name, at) => [name, at % TINTS]));

class Scene {
  // `node` is an img or a video that fills the box.
  constructor(node) {
    this.node = node;
    this.over = el("div", {class: "over", "aria-hidden": "true"});
    this.box = el("div", {class: "scene"}, node, this.over);
    this.boxes = new Map();
    node.addEventListener("load", () => this.shape(node.naturalWidth, node.naturalHeight));
    node.addEventListener("loadedmetadata", () => this.shape(node.videoWidth, node.videoHeight));
    new ResizeObserver(() => this.name()).observe(this.over);
  }

  shape(width, height) {
    if (!width || !height) return;
    this.box.style.setProperty("--shape", width / height);
    this.box.style.aspectRatio = `${width} / ${height}`;
  }

  // Smaller boxes lie over larger ones.
  put(labels, width, height, tint) {
    const part = (length, all) => `${100 * length / all}%`;
    const found = boxed(labels).sort((a, b) => area(b.box) - area(a.box));
    this.boxes = new Map(found.map(label => {
      const [left, top, right, bottom] = label.box;
      const made = el("div", {class: `boxed tint-${tint.get(label.label)}`}, el("span", {dir: "auto"}, label.label));
      Object.assign(made.style, {left: part(left, width), top: part(top, height),
        width: part(right - left, width), height: part(bottom - top, height)});
      return [label.label, made];
    }));
    this.over.replaceChildren(...this.boxes.values());
    this.name();
  }

  // One label's box stands out; none: all are alike.
  light(name) {
    this.over.classList.toggle("lit", this.boxes.has(name));
    for (const [each, made] of this.boxes) made.classList.toggle("on", each === name);
  }

  // Names begin in the corner of their boxes, and lower where others stand already.
  name() {
    const {width, height} = this.over.getBoundingClientRect(), taken = [];
    if (!width) return;
    for (const made of this.boxes.values()) {
      const name = made.firstChild, left = made.offsetLeft, wide = name.offsetWidth, high = name.offsetHeight;
      const x = Math.max(0, Math.min(left, width - wide));
      let y = Math.max(0, made.offsetTop);
      for (let other; (other = taken.find(([a, b, c, d]) => x < c && a < x + wide && y < d && b < y + high));) y = other[3];
      taken.push([x, y, x + wide, y + high]);
      name.style.transform = `translate(${x - left}px, ${y - made.offsetTop}px)`;
      name.hidden = y + high > height;
    }
  }
}

// The arrows go from one to the next, so that Tab goes past all of them at once.
function roving(list, selector) {
  const all = () => [...list.querySelectorAll(selector)];
  const choose = (one, focus) => {
    for (const each of all()) each.tabIndex = each === one ? 0 : -1;
    if (focus) one.focus();
  };
  list.addEventListener("keydown", event => {
    const those = all(), at = those.indexOf(document.activeElement);
    const to = {ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: those.length - 1}[event.key];
    if (at < 0 || to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (those[to]) choose(those[to], true);
  });
  list.addEventListener("focusin", event => { if (event.target.matches(selector)) choose(event.target, false); });
  return {first: () => { const those = all(); if (those.length) choose(those[0], false); }};
}
