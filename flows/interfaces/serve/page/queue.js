// What was dropped, pasted or chosen, in its order, and how far the server is with it.

const LABELS_GATE = gate(4), CAPTION_GATE = gate(2);

const queue = {
  items: [],
  info: null,

  // What the server can do decides what can be wished.
  start(info) {
    this.info = info;
    const named = info.labels?.length ? info.labels : null, {body_bytes: bytes, pixels, clip_seconds: seconds} = info.limits || {};
    $("wants-labels").hidden = !info.model;
    $("wants-caption").hidden = !info.caption_model;
    $("want-labels").checked = Boolean(info.model);
    $("want-caption").checked = Boolean(info.caption_model);
    $("kinds").hidden = !(info.model && info.caption_model);
    $("labels").placeholder = !named ? "a red circle, a dog, snow"
      : `the server’s: ${joined([...named.slice(0, 3), named.length > 3 && "…"], ", ")}`;
    const limits = [bytes && `up to ${size(bytes)} each`, pixels && `${Math.round(pixels / 1e6)} megapixels`,
      seconds && `${Math.round(seconds / 60)} minutes`];
    $("limits").textContent = joined(limits, ", ");
    this.wish();
    for (const item of this.items) if (item.state === "waiting") this.ask(item);
  },

  // The fields are those of what is wished.
  wish() {
    $("labels-field").hidden = $("wants-labels").hidden || !$("want-labels").checked;
    $("prompt-field").hidden = $("wants-caption").hidden || !$("want-caption").checked;
  },

  add(files) {
    const acts = {changed: () => this.tell(), like: item => search.like(item), remove: item => this.remove(item)};
    const found = [...files].map(file => new Item(file, acts));
    this.items.unshift(...found);
    $("items").prepend(...found.map(item => item.box));
    this.tell();
    if (this.info) found.forEach(item => this.ask(item));
  },

  ask(item) {
    const allowed = this.info.limits?.body_bytes, {labels} = item.parts;
    const own = joined($("labels").value.split(",").map(name => name.trim()), ",");
    if (!allowed || item.file.size <= allowed) {
      item.run({labels: !$("labels-field").hidden, caption: !$("prompt-field").hidden, own, prompt: $("prompt").value.trim()});
      return;
    }
    labels.box.hidden = false;
    item.state = "failed";
    complain(labels.error, new Refusal(`It is ${size(item.file.size)}, and the server takes ${size(allowed)}.`,
      "Make it smaller, or label the file with penstock label, which has no such limit."));
    this.tell();
  },

  remove(item) {
    const next = item.box.nextElementSibling || item.box.previousElementSibling;
    item.close();
    this.items = this.items.filter(other => other !== item);
    this.tell();
    (next?.querySelector(".acts button:last-child") || $("choose")).focus({preventScroll: true});
  },

  tell() {
    const count = state => this.items.filter(item => item.state === state).length, all = this.items.length;
    const done = count("done"), failed = count("failed");
    $("line").hidden = !all;
    $("progress").value = all ? (done + failed) / all : 0;
    $("progress").hidden = done + failed === all;
    $("progress-told").textContent = joined([`${done} of ${counted(all, "file")} done`, failed && `${failed} failed`], ", ");
  },
};

// Over the search files are sought by, elsewhere looked at.
onDrop(document, (files, target) => {
  if (!files.length) return;
  if (search.able && target instanceof Element && target.closest("#search")) search.byPicture(files[0], fileName(files[0]));
  else queue.add(files);
}, {pasted: true, over: is => document.body.classList.toggle("dragging", is)});

$("choose").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", event => { queue.add(event.target.files); event.target.value = ""; });
for (const id of ["want-labels", "want-caption"]) $(id).addEventListener("change", () => queue.wish());
for (const id of ["labels", "prompt"]) $(id).addEventListener("keydown", event => { if (event.key === "Enter") $("again").click(); });
$("again").addEventListener("click", () => queue.items.forEach(item => queue.ask(item)));
$("clear").addEventListener("click", () => { [...queue.items].forEach(item => queue.remove(item)); $("choose").focus(); });
