// Builds the page from its data.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
const SHEET = 60; // cards of one part of a grid, in full rows of 2 to 6
// Maximum captions on one page.
data.all = data.media.reduce((sum, medium) => sum + 1 + medium.captions.length, 0) <= 20000;

function section(id, title, ...children) {
  document.getElementById("nav").append(el("a", {href: `#${id}`}, title));
  const made = el("section", {id, "aria-label": title}, el("h2", {}, title), ...children);
  main.append(made);
  return made;
}

// Finished, but some items failed.
const state = data.failed ? `${data.state}, ${data.failed.toLocaleString("en")} failed` : data.state;

function run() {
  const marks = {done: "✓", running: "…", failed: "✕", interrupted: "‖", died: "✕"};
  section("run", "Run",
    el("p", {class: "state"}, el("span", {class: `badge ${data.failed ? "partly" : data.state}`}, `${data.failed ? "!" : marks[data.state] || ""} ${state}`), " ",
      el("span", {class: "quiet"}, `${data.name} · as of ${data.updated}`)),
    data.error ? el("p", {class: "warning"}, data.error) : null,
    data.advice ? el("p", {}, data.advice) : null,
    el("dl", {class: "totals"}, data.totals.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    el("details", {open: true}, el("summary", {}, "What was run, and on what"),
      el("dl", {class: "about"}, data.about.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {dir: "auto"}, value))))));
}

function memory() {
  const box = el("div");
  section("memory", "Time and memory", box, table(data.stages.columns, data.stages.rows, "stages"),
    data.plan.rows.length ? [el("p", {class: "quiet below"}, "Planned and measured, above what a stage's imports take"),
      table(data.plan.columns, data.plan.rows, "stages")] : null);
  new Plot(box, data.timeline);
  const {rungs} = data.timeline;
  if (rungs.length) section("rungs", "Rungs",
    el("p", {class: "quiet"}, "How each stage was run, and why it was changed."),
    table(["at", "stage", "rung", "because", "error"],
      rungs.map(rung => [clock(rung.at), rung.stage, rung.name, rung.reason, rung.error]), "rungs"));
}

function trouble() {
  const {failures, warnings} = data;
  if (failures.length) {
    const list = el("div", {class: "troubles"});
    section("failures", "Failures", el("p", {class: "quiet"}, counted(Math.max(data.failed, failures.length), "file")), list);
    windowed(list, failures, {group: 50, height: 76, build: failure => el("article", {class: "trouble"},
      el("h3", {dir: "auto"}, failure.media_path, el("span", {class: "quiet"}, ` ${failure.stage}`)),
      el("p", {dir: "auto"}, `${failure.message}. `, el("b", {}, failure.hint)))});
  }
  if (warnings.length) {
    const list = el("div", {class: "troubles"});
    section("warnings", "Warnings", el("details", {}, el("summary", {}, counted(warnings.length, "warning")), list));
    windowed(list, warnings, {group: 50, height: 30, build: ([stage, text]) => el("p", {dir: "auto"}, el("b", {}, stage), ` ${text}`)});
  }
}

function media() {
  const open = viewer(document.getElementById("viewer"), data);
  const kinds = [["video", "Videos", 6, 330], ["image", "Images", 40, 240]].map(([kind, title, group, height]) => {
    const all = data.media.filter(medium => medium.kind === kind), list = el("div"), status = el("p", {class: "quiet", "aria-live": "polite"});
    if (all.length) section(kind + "s", title, status, list);
    return {kind, all, list, status, group, height};
  });
  let words = [];
  const choose = choosing(data.media, data.failures, data.labels, () => show(words));
  kinds.find(({all}) => all.length)?.status.before(choose.box);
  const show = sought => {
    words = sought;
    const has = text => words.every(word => text.toLowerCase().includes(word));
    for (const {kind, all, list, status, group, height} of kinds) {
      const columns = kind === "image" || choose.grid(), picked = choose.pick(all);
      const found = picked.map(medium => ({medium, shown: medium.captions.filter(caption => has(caption[2]))}))
        .map(one => has(one.medium.name) && !one.shown.length ? {...one, shown: one.medium.captions} : one)
        .filter(one => !words.length || one.shown.length || has(one.medium.name));
      const captions = found.reduce((sum, one) => sum + one.shown.length, 0);
      status.textContent = `${found.length < all.length ? `${found.length.toLocaleString("en")} of ` : ""}${counted(all.length, kind)}`
        + `${data.labels ? "" : `, ${counted(captions, "caption")}`}${data.all ? "" : ". Find in page sees what is near: search above sees all"}`;
      const images = found.map(one => one.medium);
      const build = kind === "video" ? one => new VideoCard(one.medium, one.shown, words, data).box
        : one => imageTile(one.medium, words, data, medium => open(medium, images));
      windowed(list, found, {group: columns ? SHEET : group, height, build, columns, all: data.all});
    }
  };
  show([]);
  return {show, lists: kinds.map(one => one.list)};
}

run();
if (data.parity) parity(data.parity);
if (data.training) training(data.training);
if (data.rounds) training(data.rounds, "learn", "Rounds of learning");
memory();
trouble();
if (data.labels) labels(data.labels, data.media.length, data.files);
const shelves = media();

const search = document.getElementById("search");
if (data.labels) search.placeholder = "Search labels and names  ( / )";
let waiting = 0;
search.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => shelves.show(search.value.toLowerCase().split(/\s+/).filter(Boolean)), 150);
});
document.addEventListener("keydown", event => {
  if (event.key !== "/" || event.target.matches("input, textarea")) return;
  event.preventDefault();
  search.focus();
});
document.getElementById("theme").addEventListener("click", turnTheme);
addEventListener("beforeprint", () => {
  if (data.all) shelves.lists.forEach(list => list.putAll());
});
document.title = `${state} – ${data.name} – Penstock`;
document.documentElement.dataset.ready = "true";
