// What a person would see at a glance, by script.

// Each line of text that can be seen, with its place.
function texts() {
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode());) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest(".unseen, script, style, noscript, [hidden]")) continue;
    if (!parent.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 1 && box.height > 1) found.push({text: node.data.trim(), parent, box: cut(box, parent)});
  }
  return found;
}

// The part of a box that its surroundings show.
function cut(box, parent) {
  let {left, right, top, bottom} = box;
  for (let at = parent; at; at = at.parentElement) {
    if (getComputedStyle(at).overflowX === "visible" || at === document.documentElement || at === document.body) continue;
    const around = at.getBoundingClientRect();
    left = Math.max(left, around.left);
    right = Math.min(right, around.right);
    top = Math.max(top, around.top);
    bottom = Math.min(bottom, around.bottom);
  }
  return {left, right, top, bottom};
}

// Pairs of texts of which one lies on the other by more than letters' own slack.
function overlapping(slack = 2) {
  const all = texts(), found = [];
  for (const [at, one] of all.entries()) for (const other of all.slice(at + 1)) {
    if (one.parent === other.parent) continue;
    const wide = Math.min(one.box.right, other.box.right) - Math.max(one.box.left, other.box.left);
    const high = Math.min(one.box.bottom, other.box.bottom) - Math.max(one.box.top, other.box.top);
    if (wide > slack && high > slack) found.push([one.text, other.text, wide, high]);
  }
  return found;
}

// Colours are mixed by the browser, whatever notation they are in.
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function over(colour, [red, green, blue]) {
  for (const each of [`rgb(${red} ${green} ${blue})`, colour]) {
    canvas.fillStyle = each;
    canvas.fillRect(0, 0, 1, 1);
  }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

function ground(element) {
  const colours = [];
  for (let at = element; at; at = at.parentElement) colours.unshift(getComputedStyle(at).backgroundColor);
  return colours.reduce((below, colour) => over(colour, below), [255, 255, 255]);
}

const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = rgb => rgb.map(value => linear(value / 255)).reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);

// As WCAG has it, from 1 to 21.
function contrast(colour, element) {
  const below = ground(element), [high, low] = [light(over(colour, below)), light(below)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}

function faint(least) {
  const judged = texts().map(({text, parent}) => {
    const style = getComputedStyle(parent);
    return [text, contrast(parent instanceof SVGElement ? style.fill : style.color, parent)];
  });
  for (const input of document.querySelectorAll("input[placeholder]"))
    if (input.checkVisibility()) judged.push([input.placeholder, contrast(getComputedStyle(input, "::placeholder").color, input)]);
  return {count: judged.length, faint: judged.filter(([, value]) => !(value >= least))};
}

// What reaches beyond the right edge, but for what is cut there.
function tooWide() {
  const wide = document.documentElement.clientWidth;
  const held = element => element.parentElement?.closest(".over, .track, .scroll, svg, .unseen");
  const found = [...document.body.querySelectorAll("*")].filter(element => element.checkVisibility() && !held(element))
    .filter(element => element.getBoundingClientRect().right > wide + 1)
    .map(element => `${element.tagName} ${element.id} ${element.className}`);
  return document.documentElement.scrollWidth > wide ? [...found, "the page"] : found;
}

// What a screen reader has no name for.
function unnamed() {
  const kinds = "button, input, select, textarea, video, img, [role=img], dialog[open]";
  const named = element => element.ariaLabel || element.textContent.trim() || element.labels?.length
    || element.hasAttribute("alt") || element.hasAttribute("aria-labelledby");
  return [...document.querySelectorAll(kinds)].filter(element => element.checkVisibility() && !named(element))
    .map(element => element.outerHTML);
}

// Addresses of other servers that something was loaded from.
function askedElsewhere() {
  const own = [location.origin, "blob:", "data:"];
  return performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !own.some(start => name.startsWith(start)));
}

// What does not fit its own box and is cut or scrolls sideways there, but for what may scroll.
function overflowing(mayScroll) {
  return [document.documentElement, ...document.body.querySelectorAll("*")]
    .filter(element => element.checkVisibility() && element.scrollWidth > element.clientWidth + 1)
    .filter(element => element === document.documentElement || (getComputedStyle(element).overflowX !== "visible" && !element.matches(mayScroll)))
    .map(element => `${element.tagName}.${element.className}: ${element.scrollWidth} > ${element.clientWidth}`);
}

// Buttons whose text is cut off, or wrapped within a word.
function cutInButtons() {
  const places = range => new Set([...range.getClientRects()].filter(({width}) => width > 0).map(({top}) => Math.round(top / 4)));
  const isSplit = node => [...node.data.matchAll(/[\p{L}\p{N}]+/gu)].some(({0: word, index}) => {
    const range = document.createRange();
    range.setStart(node, index);
    range.setEnd(node, index + word.length);
    return places(range).size > 1;
  });
  const isCut = element => element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1;
  return [...document.querySelectorAll("button, [role=button], input[type=submit]")]
    .filter(element => element.checkVisibility() && element.textContent.trim()).filter(element => {
      const walk = document.createTreeWalker(element, NodeFilter.SHOW_TEXT), nodes = [];
      while (walk.nextNode()) if (!walk.currentNode.parentElement.closest(".unseen")) nodes.push(walk.currentNode);
      const boxes = [element, ...nodes.map(node => node.parentElement)].filter(box => getComputedStyle(box).display !== "inline");
      return boxes.some(isCut) || nodes.some(isSplit);
    }).map(element => element.textContent.trim());
}
