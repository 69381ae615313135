// Learning from what was corrected: starts it, and shows what came of it.

class Learning {
  constructor(page) {
    this.page = page;
    this.told = document.getElementById("learn-told");
  }

  start() {
    return tried(async () => {
      await this.page.saving.all();
      const {line} = await tell(`run/${RUN}/learn`, {});
      this.before = new Map(this.chunks());
      this.told.textContent = line;
      this.page.runs.look();
    });
  }

  // What data that was just loaded says of it: the last round, and which captions have other words now.
  loaded({rounds}) {
    this.round = rounds.at(-1);
    this.told.textContent = this.result();
    for (const [chunk, row] of this.before ? this.chunks() : [])
      if (this.before.has(chunk) && this.before.get(chunk).said !== row.said) row.before = this.before.get(chunk).said;
  }

  chunks() {
    return this.page.data.media.flatMap(medium => medium.captions.map(row => [JSON.stringify([medium.number, row.start, row.name, row.prompt]), row]));
  }

  // The last round, in one line.
  result() {
    const {round, phase, before, after, accepted, enough, changed, captions, examples, held_out: held, weak_test: weak} = this.round || {};
    if (!after || (accepted && !["carried", "done"].includes(phase))) return "";
    const loss = `loss per token ${before.loss.toFixed(4)} → ${after.loss.toFixed(4)}, exact ${before.exact} → ${after.exact} of ${held} held out${weak ? "; weak test" : ""}`;
    const end = accepted ? `${changed.toLocaleString("en")} of ${counted(captions, "caption")} changed` : enough ? "not accepted: not better" : "not accepted: too few corrections or media";
    return `round ${round}, learned from ${counted(examples, "caption")}: ${loss}; ${end}`;
  }
}
