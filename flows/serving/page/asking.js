// Requests to the server that this page came from: sent with progress, read as they come, and
// asked again where the server says when.

const $ = id => document.getElementById(id);
const TRIES = 6, LONGEST_SECONDS = 60, BUSY = [429, 503];

const sentence = text => text ? text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".") : "";

// What the server refuses, or that it cannot be reached.
class Refusal extends Error {
  constructor(error, hint = "", status = 0) { super(sentence(error)); Object.assign(this, {hint: sentence(hint), status}); }
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
    request.addEventListener("error", () => failed(new Refusal("The server does not answer.", "See whether penstock serve still runs where it was started.")));
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

const pause = (seconds, signal) => new Promise((done, failed) => {
  const timer = setTimeout(done, 1000 * seconds);
  signal?.addEventListener("abort", () => { clearTimeout(timer); failed(new Refusal("Stopped.")); });
});

// A request that waits for the token where one is asked for, and comes again a few times where the
// server is busy; `waits` is called with the number of seconds.
async function ask(method, path, options = {}) {
  for (let tries = 1; ; tries++) {
    const request = await once(method, path, options);
    if (request.status < 300) return request;
    if (request.status === 401) { await token.entered(); continue; }
    const told = await refusal(request);
    const after = Number(request.getResponseHeader("Retry-After"));
    if (!BUSY.includes(request.status) || !after || tries === TRIES) throw told;
    const seconds = Math.min(LONGEST_SECONDS, after) * (1 + Math.random() / 4); // or all come back at once
    options.waits?.(seconds, told);
    await pause(seconds, options.signal);
  }
}

const asked = async (method, path, options) => JSON.parse((await ask(method, path, options)).responseText);

// An address with what is known of its query.
function address(path, query) {
  const known = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return known.length ? `${path}?${new URLSearchParams(known)}` : path;
}

// Server-sent events of a text that grows: each is passed on once, when it is whole.
function events(pass) {
  let read = 0;
  return text => {
    for (let end; (end = text.indexOf("\n", read)) >= 0; read = end + 1) {
      const line = text.slice(read, end).trimEnd();
      if (line.startsWith("data:") && line !== "data: [DONE]") pass(JSON.parse(line.slice(5)));
    }
  };
}

// At most so many at a time, first come first served.
function gate(most) {
  const waiting = [];
  let inside = 0;
  const next = () => { if (inside < most && waiting.length) { inside++; waiting.shift()(); } };
  return async work => {
    await new Promise(enter => { waiting.push(enter); next(); });
    try { return await work(); } finally { inside--; next(); }
  };
}

// What went wrong, beside what it is about.
function complain(place, error) {
  place.hidden = !error;
  place.replaceChildren(...(error ? told(error) : []));
}

const told = error => [error.message, " ", error.hint ? el("span", {class: "hint"}, error.hint) : ""];
const say = text => { $("said").textContent = text; };
