// How the page speaks with its own server. What changes something carries the token of this session.

const TOKEN = location.pathname.split("/")[1];
const HOME = `/${TOKEN}/`;
const RUN = (location.pathname.match(/\/run\/([0-9a-f]{16})\/$/) || [])[1] || "";

async function answered(response) {
  const found = await response.json();
  if (!response.ok) throw new Error([found.error, found.hint].filter(Boolean).join(". "));
  return found;
}

const ask = async path => answered(await fetch(HOME + path));
const sent = (path, value) => fetch(HOME + path, {method: "POST", body: JSON.stringify(value),
  headers: {"Content-Type": "application/json", "X-Penstock-Token": TOKEN}});
const tell = async (path, value) => answered(await sent(path, value));

function problem(error) {
  const box = document.getElementById("problem");
  box.hidden = !error;
  box.textContent = error ? String(error.message || error) : "";
  if (error) box.scrollIntoView({block: "nearest"});
}

// Runs something that may fail, and shows why.
const tried = async run => {
  problem("");
  try { return await run(); } catch (error) { problem(error); return null; }
};

const button = (name, run, attributes = {}) => el("button", {type: "button", click: run, ...attributes}, name);
