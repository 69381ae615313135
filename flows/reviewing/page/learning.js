// Learning from what was corrected: starts it, follows it, and shows what came of it.

class Learning {
  constructor(page) {
    this.page = page;
    this.button = document.getElementById("learn");
    this.told = document.getElementById("learn-told");
  }

  // What a page that was just loaded knows of it.
  loaded({learn, rounds}) {
    this.round = rounds.at(-1);
    this.show(learn);
  }

  async start() {
    await this.page.saving.all();
    this.show(await (await fetch("learn", {method: "POST"})).json());
  }

  show({can, runs, failed, said}) {
    this.button.disabled = !can || runs;
    this.button.title = can ? "Train on what was corrected and accepted, and caption again: penstock learn"
      : "This run was not made by a command of yours on this machine: run penstock learn yourself";
    this.told.textContent = runs ? `learning… ${said}` : failed ? said : this.result();
    this.told.className = failed ? "warning" : "";
    if (runs) setTimeout(() => this.follow(), 500);
  }

  async follow() {
    const state = await (await fetch("learn")).json();
    if (state.runs) return this.show(state);
    const before = new Map(this.chunks());
    await this.page.load();
    for (const [chunk, row] of this.chunks())
      if (before.has(chunk) && before.get(chunk).said !== row.said) row.before = before.get(chunk).said;
    this.page.show();
    this.show(state);
  }

  chunks() {
    return this.page.data.media.flatMap(medium => medium.captions.map(row => [JSON.stringify([medium.number, row.start, row.name, row.prompt]), row]));
  }

  // The last round, in one line.
  result() {
    const {round, before, after, accepted, enough, changed, captions, examples, held_out: held} = this.round || {};
    if (!after) return "";
    const loss = `loss per token ${before.loss.toFixed(4)} → ${after.loss.toFixed(4)}, exact ${before.exact} → ${after.exact} of ${held} held out`;
    const end = accepted ? `${changed.toLocaleString("en")} of ${counted(captions, "caption")} changed` : enough ? "not accepted: not better" : "not accepted: too few corrections";
    return `round ${round}, learned from ${counted(examples, "caption")}: ${loss}; ${end}`;
  }
}
