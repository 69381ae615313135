// What the scripts of all pages are made of: elements whose text is shown as it is, times and sizes.

const SVG = "http://www.w3.org/2000/svg";
const $ = id => document.getElementById(id);

function set(made, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (name === "style") for (const [key, part] of Object.entries(value)) made.style.setProperty(key, part);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  return made;
}

function fill(made, attributes, children) {
  set(made, attributes).append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== ""));
  return made;
}

// String children become text nodes, so that markup in them is shown, not interpreted.
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const button = (text, click, attributes = {}) => el("button", {type: "button", click, ...attributes}, text);
// A button with a sign for a text.
const sign = (text, name, click, attributes = {}) => button(text, click, {"aria-label": name, title: name, ...attributes});
const options = names => names.map(([value, name]) => el("option", {value}, name));
const joined = (texts, by = " · ") => texts.filter(Boolean).join(by);
// A text as it is searched: composed letters, as a Mac's file names do not have them, and no capitals.
const folded = text => text.normalize("NFC").toLowerCase();
const terms = text => folded(text).split(/\s+/).filter(Boolean);
const most = values => values.reduce((a, b) => Math.max(a, b), -Infinity);
const least = values => values.reduce((a, b) => Math.min(a, b), Infinity);
const percent = share => `${100 * share}%`;
const isModified = event => event.ctrlKey || event.metaKey || event.altKey;

// Switches between the dark and the light theme, starting from the system's.
$("theme")?.addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = (document.documentElement.dataset.theme || system) === "dark" ? "light" : "dark";
});

// Calls `run` once nothing was typed into a field for so many milliseconds.
function onTyped(field, milliseconds, run) {
  let waiting = 0;
  field.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(run, milliseconds); });
}

// The key / goes to a search field.
const onSlash = field => document.addEventListener("keydown", event => {
  if (event.key !== "/" || event.target.matches("input, textarea")) return;
  if (!field.checkVisibility() || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  field.focus();
});

function size(bytes) {
  let value = bytes;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000) return unit === "B" ? `${Math.round(value)} B` : `${value.toPrecision(3)} ${unit}`;
    value /= 1000;
  }
  return `${value.toFixed(2)} TB`;
}

// Formats seconds as 0:07, 12:05 or 1:02:05, with the requested number of decimals.
function clock(seconds, decimals = 0) {
  const unit = 10 ** decimals, all = Math.round(Math.max(0, seconds) * unit) / unit;
  const whole = Math.floor(all), rest = decimals ? (all - whole).toFixed(decimals).slice(1) : "";
  const two = number => String(number).padStart(2, "0");
  const minutes = Math.floor(whole / 60) % 60, hours = Math.floor(whole / 3600);
  return (hours ? `${hours}:${two(minutes)}` : minutes) + ":" + two(whole % 60) + rest;
}

const grouped = number => number.toLocaleString("en");
const counted = (number, one, many = one + "s") => `${grouped(number)} ${number === 1 ? one : many}`;

// Splits a text, with the search terms marked.
function marked(given, words) {
  const text = words.length ? given.normalize("NFC") : given, low = folded(text);
  if (!words.length || low.length !== text.length) return [text];
  const found = [];
  let at = 0;
  while (at < text.length) {
    const next = words.map(word => [low.indexOf(word, at), word.length]).filter(([place]) => place >= 0)
      .sort((a, b) => a[0] - b[0] || b[1] - a[1])[0];
    if (!next) break;
    found.push(text.slice(at, next[0]), el("mark", {}, text.slice(next[0], next[0] + next[1])));
    at = next[0] + next[1];
  }
  return [...found, text.slice(at)].filter(Boolean);
}

const inParts = path => path.split("/").flatMap((part, at) => at ? ["/", el("wbr"), part] : [part]);

// The name of a file, and its folder in small letters; the words sought are marked.
function titleOf(path, words = []) {
  const folders = path.split("/"), name = folders.pop();
  const small = folders.map(part => [marked(part, words), "/", el("wbr")]);
  return [marked(name, words), small.length ? el("span", {class: "folder"}, " ", small) : ""];
}

function table(columns, rows, className = "") {
  return el("div", {class: "scroll"}, el("table", {class: className},
    el("thead", {}, el("tr", {}, columns.map(column => el("th", {scope: "col"}, column)))),
    el("tbody", {}, rows.map(row => el("tr", {}, row.map((cell, at) => el(at ? "td" : "th", {scope: at ? null : "row"}, cell)))))));
}

const definitions = (pairs, attributes) => el("dl", attributes, pairs.map(([name, value]) =>
  el("div", {}, el("dt", {}, name), el("dd", {dir: "auto"}, value))));

// The bar above a dialog's content, which closes it.
const dialogHead = (...content) => el("form", {method: "dialog", class: "head"}, content,
  el("button", {"aria-label": "Close", title: "Close"}, "✕"));

// One of several things at a time in a dialog, and the way to the others. `show` returns the title, the place and the content of one;
// content that stays the same is not drawn anew.
class Viewer {
  constructor(dialog, show) {
    const step = (text, name, by) => sign(text, name, () => this.go(this.at + by));
    Object.assign(this, {dialog, show, items: [], at: 0, stage: el("div"), title: el("h2", {id: "viewer-title", dir: "auto"}),
      place: el("span", {class: "quiet tiny"}), before: step("←", "The one before (left arrow)", -1),
      after: step("→", "The next (right arrow)", 1)});
    dialog.append(dialogHead(this.title, this.place, el("span", {class: "acts"}, this.before, this.after)), this.stage);
    dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => { this.content = null; clear(this.stage); });
    dialog.addEventListener("keydown", event => {
      const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      // In a player the arrows are the player's own.
      if (!by || event.target.matches("video") || isModified(event)) return;
      event.preventDefault();
      this.go(this.at + by);
    });
  }

  get item() { return this.items[this.at]; }

  open(items, at) {
    this.items = items;
    this.before.hidden = this.after.hidden = items.length < 2;
    this.dialog.showModal();
    this.go(at);
  }

  go(at) {
    if (!this.items[at]) return;
    this.at = at;
    const {title, place = "", content} = this.show(this.item);
    this.title.textContent = title;
    this.place.textContent = joined([this.items.length > 1 ? `${at + 1} of ${this.items.length}` : "", place]);
    if (content !== this.content) {
      clear(this.stage);
      this.stage.append(this.content = content);
    }
    // Not `disabled`, which would take the focus from who goes on by them.
    this.before.setAttribute("aria-disabled", at === 0);
    this.after.setAttribute("aria-disabled", at === this.items.length - 1);
    if (!this.dialog.contains(document.activeElement)) this.dialog.focus();
  }
}

// A video that was removed from the page keeps its decoder unless it is unloaded.
function clear(box) {
  for (const video of box.querySelectorAll("video")) {
    if (video.src.startsWith("blob:")) URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    video.load();
  }
  box.replaceChildren();
}
