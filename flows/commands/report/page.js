// Builds the page from its data.

const SHEET = 60; // cards of one part of a grid, in full rows of 2 to 6
const DECIDED = ["open", "accepted", "rejected", "corrected"];
const SHOWN = ["all", ...DECIDED, "cut", "warned", "gone", "failed"];
const ORDERS = ["source", "name", "longest", "shortest", "most", "long"];
for (const medium of data.media) {
  medium.captions = medium.captions.map(([start, end, said, tokens, cut, decided = []]) => {
    const row = {start, end, said, tokens, cut, decided};
    row.key = row;
    const caption = decided.includes("corrected") ? said : null;
    if (decided.length) edits.set(row, {caption, review: decided.find(word => word !== "corrected") || ""});
    return row;
  });
  if (medium.labels) medium.labels = medium.labels.map(([label, score, box]) => ({label, score, box, passed: true}));
}
// Maximum captions on one page.
data.all = data.media.reduce((sum, medium) => sum + 1 + medium.captions.length, 0) <= 20000;

// Finished, but some items failed.
const state = data.failed ? `${data.state}, ${grouped(data.failed)} failed` : data.state;

function run() {
  const marks = {done: "✓", running: "…", failed: "✕", interrupted: "‖", died: "✕"};
  section("run", "Run",
    el("p", {}, el("span", {class: `badge ${data.failed ? "partly" : data.state}`},
      `${data.failed ? "!" : marks[data.state] || ""} ${state}`), " ",
    el("span", {class: "quiet"}, `${data.name} · as of ${data.updated}`)),
    data.error ? el("p", {class: "warning"}, data.error) : null,
    data.advice ? el("p", {}, data.advice) : null, definitions(data.totals, {class: "totals"}),
    el("details", {open: true}, el("summary", {}, "What was run, and on what"), definitions(data.about, {class: "about"})));
}

function memory() {
  const box = el("div"), {rungs} = data.timeline, above = text => el("p", {class: "quiet below"}, text);
  section("memory", "Time and memory",
    data.of_run ? el("p", {class: "quiet"}, `The last run had nothing to make. Shown is the run of ${data.of_run}.`) : null, box,
    data.runs ? [above("Runs that made something"), table(data.runs.columns, data.runs.rows, "stages"), above("The last run")] : null,
    table(data.stages.columns, data.stages.rows, "stages"),
    data.plan.rows.length ? [above("Planned and measured, above what a stage's imports take"),
      table(data.plan.columns, data.plan.rows, "stages")] : null);
  new Timeline(box, data.timeline);
  if (rungs.length) section("rungs", "Rungs", el("p", {class: "quiet"}, "How each stage was run, and why it was changed."),
    table(["at", "stage", "rung", "because", "error"],
      rungs.map(({at, stage, name, reason, error}) => [clock(at), stage, name, reason, error]), "rungs"));
}

function trouble() {
  const {failures, warnings} = data, list = el("div"), told = el("div");
  if (failures.length)
    section("failures", "Failures", el("p", {class: "quiet"}, counted(Math.max(data.failed, failures.length), "file")), list);
  windowed(list, failures, {group: 50, height: 76, build: failure => el("article", {class: "trouble"},
    el("h3", {dir: "auto"}, failure.media_path, el("span", {class: "quiet"}, ` ${failure.stage}`)),
    el("p", {dir: "auto"}, `${failure.message}. `, el("b", {}, failure.hint)))});
  if (warnings.length) section("warnings", "Warnings", el("details", {}, el("summary", {}, counted(warnings.length, "warning")), told));
  windowed(told, warnings, {group: 50, height: 30, build: ([stage, text]) => el("p", {dir: "auto"}, el("b", {}, stage), ` ${text}`)});
}

// The select boxes. A list wastes space for few captions.
function choices(changed) {
  const videos = data.media.filter(medium => medium.kind === "video");
  const uncaptioned = data.captioned ? [] : ["cut", "longest", "shortest"];
  const left = [...uncaptioned, ...(edits.size ? [] : DECIDED), data.failures.length ? "" : "failed"];
  const kept = (table, names) => chosenOf(table, names.filter(name => !left.includes(name)));
  const select = (id, title, all) => el("label", {}, `${title} `, el("select", {id, change: changed}, all));
  const box = el("form", {class: "choosing", submit: event => event.preventDefault()},
    select("filter", "Show", kept(FILTERS, SHOWN)), select("sort", "Order", kept(SORTS, ORDERS)),
    videos.length ? select("view", "Videos as", options([["grid", "grid"], ["list", "list"]])) : null);
  if (videos.length && areLong(videos)) box.querySelector("#view").value = "list";
  return box;
}

function media() {
  const viewer = new Viewer($("viewer"), shownImage), search = $("search");
  const kinds = [["video", "Videos", 6, 330], ["image", "Images", 40, 240]].map(([kind, title, group, height]) => {
    const all = data.media.filter(medium => medium.kind === kind), list = el("div");
    const status = el("p", {class: "quiet", "aria-live": "polite"});
    if (all.length) section(kind + "s", title, status, list);
    return {kind, all, list, status, group, height};
  });
  const show = () => {
    const sought = terms(search.value), filter = $("filter").value, sort = $("sort").value;
    if (filter === "failed") $("failures").scrollIntoView();
    for (const {kind, all, list, status, group, height} of kinds) {
      const columns = kind === "image" || $("view")?.value === "grid", found = chosen(all, {filter, sort, sought, bare: true});
      const images = found.map(({medium}) => medium), captions = found.reduce((sum, {rows}) => sum + rows.length, 0);
      const near = data.all ? "" : ". Find in page sees what is near: search above sees all";
      status.textContent = (found.length < all.length ? `${grouped(found.length)} of ` : "")
        + joined([counted(all.length, kind), data.captioned ? counted(captions, "caption") : ""], ", ") + near;
      const build = kind === "video" ? one => new VideoCard(one, sought).box
        : ({medium}) => imageTile(medium, sought, one => viewer.open(images, images.indexOf(one)));
      windowed(list, found, {group: columns ? SHEET : group, height, build, columns, all: data.all});
    }
  };
  const first = kinds.find(({all}) => all.length);
  if (!first) return;
  first.status.before(choices(show));
  show();
  if (!data.captioned) search.placeholder = "Search labels and names  ( / )";
  onTyped(search, 150, show);
  addEventListener("beforeprint", () => {
    if (data.all) kinds.forEach(({list}) => list.putAll());
    document.querySelectorAll(".summary").forEach(summary => set(summary, {open: true}));
  });
}

run();
if (data.parity) parity(data.parity);
if (data.training) training(data.training);
if (data.rounds) training(data.rounds, "learn", "Rounds of learning");
trouble();
if (data.labels) labels(data.labels, data.media.length, data.files);
media();
memory();
onSlash($("search"));
document.title = `${state} – ${data.name} – Penstock`;
document.documentElement.dataset.ready = "true";
