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

// Edits carry the text that they are based on; the server refuses those of an older one.
class GuardedSaving extends Saving {
  async post(deed) {
    try {
      const response = await sent(`run/${RUN}/edits`, deed);
      const answer = await response.json();
      if (response.ok || response.status === 422 || response.status === 409) {
        this.tries = 0;
        if (response.status === 409) this.conflict = {deed, now: answer.now};
        return answer;
      }
      this.why = answer.error;
    } catch {
      this.why = "the studio has ended: run penstock studio again, here nothing is lost";
    }
    this.tries += 1;
    this.told(this.waiting.length, this.tries, this.why);
    return null;
  }
}
