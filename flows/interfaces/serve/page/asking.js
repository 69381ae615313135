// Requests to this server: asked again where it says when, and after the token was entered, which the browser then keeps as a cookie that
// no script can read.

const TRIES = 6, LONGEST_SECONDS = 60, BUSY = [429, 503];
const say = text => { $("said").textContent = text; };
const brief = seconds => seconds < 1 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`;
const askedAgain = (seconds, why) => `${why.message.replace(/\.$/, "")}: asked again in ${brief(seconds)}`;

const token = {
  waiting: null,

  // Done when the server took a token; all requests that were refused wait for the same.
  entered() {
    this.waiting ||= new Promise(done => {
      this.done = done;
      $("token").hidden = false;
      $("token-value").focus();
    });
    return this.waiting;
  },

  async send() {
    complain($("token-error"), null);
    try {
      const request = await once("POST", "/v1/session", {headers: {Authorization: `Bearer ${$("token-value").value.trim()}`}});
      if (request.status === 401) throw new Refusal("That is not the token.", "Copy the whole line of the file.");
      if (request.status >= 300) throw await refusal(request);
    } catch (error) {
      complain($("token-error"), error);
      $("token-value").select();
      return;
    }
    $("token-value").value = "";
    $("token").hidden = true;
    say("The token was taken.");
    this.waiting = null;
    this.done();
  },
};
$("token").addEventListener("submit", event => { event.preventDefault(); token.send(); });

const pause = (seconds, signal) => new Promise((done, failed) => {
  const timer = setTimeout(done, 1000 * seconds);
  signal?.addEventListener("abort", () => { clearTimeout(timer); failed(new Refusal("Stopped.")); });
});

// A request that waits for the token where one is asked for, and comes again a few times where the
// server is busy; `waits` is called with what it waits for.
async function ask(method, path, settings = {}) {
  for (let tries = 1; ; tries++) {
    const request = await once(method, path, settings);
    if (request.status < 300) return request;
    if (request.status === 401) { await token.entered(); continue; }
    const why = await refusal(request), after = Number(request.getResponseHeader("Retry-After"));
    if (!BUSY.includes(request.status) || !after || tries === TRIES) throw why;
    const seconds = Math.min(LONGEST_SECONDS, after) * (1 + Math.random() / 4); // or all come back at once
    settings.waits?.(askedAgain(seconds, why));
    await pause(seconds, settings.signal);
  }
}

const asked = async (method, path, settings) => JSON.parse((await ask(method, path, settings)).responseText);

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
function gate(places) {
  const waiting = [];
  let inside = 0;
  const next = () => { if (inside < places && waiting.length) { inside++; waiting.shift()(); } };
  return async work => {
    await new Promise(enter => { waiting.push(enter); next(); });
    try { return await work(); } finally { inside--; next(); }
  };
}

// The arrows go from one to the next, so that Tab goes past all of them at once.
function roving(list, selector) {
  const all = () => [...list.querySelectorAll(selector)];
  const choose = one => all().forEach(each => { each.tabIndex = each === one ? 0 : -1; });
  list.addEventListener("keydown", event => {
    const those = all(), at = those.indexOf(document.activeElement);
    const to = {ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: those.length - 1}[event.key];
    if (at < 0 || to === undefined || isModified(event)) return;
    event.preventDefault();
    those[to]?.focus();
  });
  list.addEventListener("focusin", event => { if (event.target.matches(selector)) choose(event.target); });
  return {first: () => choose(all()[0])};
}
