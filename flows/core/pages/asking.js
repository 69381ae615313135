// Requests to the server that this page came from: sent with progress and read as they come.

const sentence = text => text ? text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".") : "";

// What the server refuses, or that it cannot be reached.
class Refusal extends Error {
  constructor(error, hint = "", status = 0) { super(sentence(error)); Object.assign(this, {hint: sentence(hint), status}); }
  toString() { return joined([this.message, this.hint], " "); }
}

// One request; XMLHttpRequest, because fetch does not tell how much of a body has been sent.
function once(method, path, {body = null, headers = {}, sent = null, heard = null, signal = null, kind = ""} = {}) {
  return new Promise((answered, failed) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    request.responseType = kind;
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    if (sent) request.upload.addEventListener("progress", event => sent(event.total ? event.loaded / event.total : 1));
    if (heard) request.addEventListener("progress", () => { if (request.status === 200) heard(request.responseText); });
    request.addEventListener("load", () => answered(request));
    request.addEventListener("error", () => failed(new Refusal("The server does not answer.",
      "See whether the command that began it still runs where it was started.")));
    request.addEventListener("abort", () => failed(new Refusal("Stopped.")));
    signal?.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

async function refusal(request) {
  const text = request.responseType === "blob" ? await request.response.text() : request.responseText;
  try {
    const {error, hint} = JSON.parse(text);
    if (error) return new Refusal(error, hint, request.status);
  } catch { /* something between here and the server answered */ }
  return new Refusal(`The server answered ${request.status} ${request.statusText}.`, "", request.status);
}

// What went wrong, beside what it is about.
function complain(place, error) {
  place.hidden = !error;
  place.replaceChildren(...(error ? [error.message, " ", error.hint ? el("b", {}, error.hint) : ""] : []));
}

// Files that are dropped on an element, or pasted on the page if `pasted`.
const carries = event => event.dataTransfer?.types.includes("Files");
function onDrop(target, take, {over = () => {}, pasted = false}) {
  let depth = 0;
  const step = by => { depth = Math.max(0, depth + by); over(depth > 0); };
  const acts = {dragenter: () => step(1), dragleave: () => step(-1), dragover: event => { event.dataTransfer.dropEffect = "copy"; },
    drop: event => { step(-depth); take([...event.dataTransfer.files], event.target); }};
  for (const [name, act] of Object.entries(acts)) target.addEventListener(name, event => {
    if (!carries(event)) return;
    event.preventDefault();
    act(event);
  });
  if (pasted) target.addEventListener("paste", event => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    take([...event.clipboardData.files], event.target);
  });
}
