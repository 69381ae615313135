// How the page speaks with its own server. What changes something carries the token of this session.

const TOKEN = location.pathname.split("/")[1];
const HOME = `/${TOKEN}/`;
const RUN = (location.pathname.match(/\/run\/([0-9a-f]{16})\/$/) || [])[1] || "";

async function answered(request) {
  if (request.status >= 300) throw await refusal(request);
  return JSON.parse(request.responseText);
}

const sent = (path, body, type = "application/json") =>
  once("POST", HOME + path, {body, headers: {"Content-Type": type, "X-Penstock-Token": TOKEN}});
const ask = async path => answered(await once("GET", HOME + path));
const tell = async (path, value) => answered(await sent(path, JSON.stringify(value)));

function problem(error) {
  complain($("problem"), error);
  if (error) $("problem").scrollIntoView({block: "nearest"});
}

// Runs something that may fail, and shows why.
const tried = async run => {
  problem(null);
  try { return await run(); } catch (error) { problem(error); return null; }
};

// A part of the page that a button opens and closes.
class Panel {
  constructor(page, box, opener) {
    Object.assign(this, {page, box: $(box), opener: $(opener)});
    this.opener.addEventListener("click", () => this.toggle());
    this.box.addEventListener("submit", event => { event.preventDefault(); this.send(event); });
  }

  get isOpen() { return !this.box.hidden; }

  toggle() {
    this.box.hidden = this.isOpen;
    this.opener.setAttribute("aria-expanded", this.isOpen);
    return this.isOpen ? this.opened() : null;
  }
}
