// Shared helpers: elements with plain text content, and formatted times and sizes.

const SVG = "http://www.w3.org/2000/svg";

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== ""));
  return made;
}

// String children become text nodes, so that markup in them is shown, not interpreted.
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Switches between the dark and the light theme, starting from the system's.
function turnTheme() {
  const set = document.documentElement.dataset.theme;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = (set || system) === "dark" ? "light" : "dark";
}

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

const counted = (number, one, many = one + "s") => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

// Splits a text, with the search terms marked.
function marked(text, words) {
  const low = text.toLowerCase();
  if (!words.length || low.length !== text.length) return [text];
  const found = [];
  let at = 0;
  while (at < text.length) {
    const next = words.map(word => [low.indexOf(word, at), word.length]).filter(([place]) => place >= 0)
      .sort((a, b) => a[0] - b[0] || b[1] - a[1])[0];
    if (!next) break;
    if (next[0] > at) found.push(text.slice(at, next[0]));
    found.push(el("mark", {}, text.slice(next[0], next[0] + next[1])));
    at = next[0] + next[1];
  }
  if (at < text.length) found.push(text.slice(at));
  return found;
}

function table(columns, rows, className = "") {
  return el("div", {class: "scroll"}, el("table", {class: className},
    el("thead", {}, el("tr", {}, columns.map(column => el("th", {scope: "col"}, column)))),
    el("tbody", {}, rows.map(row => el("tr", {}, row.map((cell, at) =>
      at ? el("td", {}, cell) : el("th", {scope: "row"}, cell)))))));
}
