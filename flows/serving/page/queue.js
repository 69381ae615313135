// What was dropped, pasted or chosen, in its order, and how far the server is with it.

const LABELS_GATE = gate(4), CAPTION_GATE = gate(2);

const queue = {
  items: [],
  info: null,

  // What the server can do decides what can be wished.
  start(info) {
    this.info = info;
    const named = info.labels?.length ? info.labels : null;
    $("wants-labels").hidden = !info.model;
    $("wants-caption").hidden = !info.caption_model;
    $("want-labels").checked = Boolean(info.model);
    $("want-caption").checked = Boolean(info.caption_model && !info.model);
    $("kinds").hidden = !(info.model && info.caption_model);
    $("labels").placeholder = named ? `the server’s: ${named.slice(0, 3).join(", ")}${named.length > 3 ? ", …" : ""}` : "a red circle, a dog, snow";
    const {body_bytes: bytes, pixels} = info.limits || {};
    $("limits").textContent = [bytes ? `up to ${size(bytes)} each` : "", pixels ? `${Math.round(pixels / 1e6)} megapixels` : ""].filter(Boolean).join(", ");
    this.wish();
    for (const item of this.items) if (item.state === "waiting") this.ask(item);
  },

  // The fields are those of what is wished.
  wish() {
    $("labels-field").hidden = $("wants-labels").hidden || !$("want-labels").checked;
    $("prompt-field").hidden = $("wants-caption").hidden || !$("want-caption").checked;
  },

  wishes: () => ({
    labels: !$("labels-field").hidden, caption: !$("prompt-field").hidden,
    own: $("labels").value.split(",").map(name => name.trim()).filter(Boolean).join(","), prompt: $("prompt").value.trim(),
  }),

  add(files) {
    const found = [...files].map(file => new Item(file, {changed: () => this.tell(), like: item => search.like(item), remove: item => this.remove(item)}));
    this.items.unshift(...found);
    $("items").prepend(...found.map(item => item.box));
    this.tell();
    if (this.info) found.forEach(item => this.ask(item));
  },

  ask(item) {
    const wishes = this.wishes(), most = this.info.limits?.body_bytes, {labels} = item.parts;
    if (most && item.file.size > most) {
      labels.box.hidden = false;
      item.state = "failed";
      complain(labels.error, new Refusal(`It is ${size(item.file.size)}, and the server takes ${size(most)}.`, "Make it smaller, or label the file with penstock label, which has no such limit."));
      this.tell();
    } else item.run(wishes);
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
    $("progress-told").textContent = [`${done} of ${counted(all, "file")} done`, failed ? `${failed} failed` : ""].filter(Boolean).join(", ");
  },
};

// Files that are dropped or pasted: over the search they are sought by, elsewhere looked at.
function take(files, target) {
  if (!files.length) return;
  if (search.able && target instanceof Element && target.closest("#search")) search.byPicture(files[0], fileName(files[0]));
  else queue.add(files);
}

const carries = event => event.dataTransfer?.types.includes("Files");
let depth = 0;
const dragging = step => { depth = Math.max(0, depth + step); document.body.classList.toggle("dragging", depth > 0); };

document.addEventListener("dragenter", event => { if (carries(event)) { event.preventDefault(); dragging(1); } });
document.addEventListener("dragleave", event => { if (carries(event)) dragging(-1); });
document.addEventListener("dragover", event => { if (carries(event)) { event.preventDefault(); event.dataTransfer.dropEffect = "copy"; } });
document.addEventListener("drop", event => {
  if (!carries(event)) return;
  event.preventDefault();
  dragging(-depth);
  take(event.dataTransfer.files, event.target);
});
document.addEventListener("paste", event => {
  if (!event.clipboardData?.files.length) return;
  event.preventDefault();
  take(event.clipboardData.files, event.target);
});

$("choose").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", event => { queue.add(event.target.files); event.target.value = ""; });
for (const id of ["want-labels", "want-caption"]) $(id).addEventListener("change", () => queue.wish());
for (const id of ["labels", "prompt"]) $(id).addEventListener("keydown", event => { if (event.key === "Enter") $("again").click(); });
$("again").addEventListener("click", () => queue.items.forEach(item => queue.ask(item)));
$("clear").addEventListener("click", () => { [...queue.items].forEach(item => queue.remove(item)); $("choose").focus(); });
