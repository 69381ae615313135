// A picture or a clip, and over it the boxes of the labels it was given, in the picture's own pixels.

const TINTS = 4;
const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
const boxed = labels => labels.filter(label => label.passed && label.box);
// The colour of each name, in their order.
const tints = names => new Map([...new Set(names)].map((name, at) => [name, at % TINTS]));
const gone = (medium, why) => el("p", {class: "gone"}, el("strong", {}, why), " ", el("code", {}, inParts(medium.path)));

class Scene {
  // `node` is an img or a video that fills the box.
  constructor(node) {
    Object.assign(this, {node, over: el("div", {class: "over", "aria-hidden": "true"}), boxes: new Map()});
    this.box = el("div", {class: "scene"}, node, this.over);
    node.addEventListener("load", () => this.shape(node.naturalWidth, node.naturalHeight));
    node.addEventListener("loadedmetadata", () => this.shape(node.videoWidth, node.videoHeight));
    new ResizeObserver(() => this.name()).observe(this.over);
  }

  shape(width, height) {
    if (width && height) set(this.box, {style: {"--shape": width / height, "aspect-ratio": `${width} / ${height}`}});
  }

  // Boxes of a picture of this size. Smaller boxes lie over larger ones.
  put(labels, width, height, tint) {
    const found = boxed(labels).sort((a, b) => area(b.box) - area(a.box));
    this.boxes = new Map(found.map(({label, box: [left, top, right, bottom]}) => [label,
      el("div", {class: `boxed tint-${tint.get(label)}`, title: label, style: {left: percent(left / width), top: percent(top / height),
        width: percent((right - left) / width), height: percent((bottom - top) / height)}}, el("span", {dir: "auto"}, label))]));
    this.over.replaceChildren(...this.boxes.values());
    this.name();
  }

  // Boxes of a picture that may not be there yet.
  putLater(labels) {
    const tint = tints(boxed(labels).map(({label}) => label));
    this.node.addEventListener("load", () => this.put(labels, this.node.naturalWidth, this.node.naturalHeight, tint));
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
