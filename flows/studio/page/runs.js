// The queue: what runs, what waits, what ended, and why.

const KINDS = {again: "asking again: ", write: "writing: ", learn: "learning: ", sift: "sifting: ", export: "exporting the model of ", tune: "training on "};
const ENDED = ["done", "failed", "interrupted", "died"];

class Runs {
  constructor({box, only}) {
    Object.assign(this, {box, only, drawn: ""});
    this.look();
  }

  async look() {
    clearTimeout(this.waiting);
    let wait = 2000;
    try {
      const {runs} = await ask("runs");
      this.take(runs);
      if (runs.some(({state}) => !ENDED.includes(state))) wait = 1000;
    } catch { wait = 4000; }
    this.waiting = setTimeout(() => this.look(), wait);
  }

  take(runs) {
    this.runs = runs;
    const own = runs.filter(run => run.run === this.only), last = own.at(-1);
    // A run's page shows what goes on, and why the last one ended when that is not seen in its captions.
    const shown = this.only ? own.filter(run => !ENDED.includes(run.state) || (run === last && (run.state !== "done" || run.said))) : [...runs].reverse();
    const now = JSON.stringify(shown);
    if (now !== this.drawn) {
      const focus = document.activeElement?.dataset?.act;
      this.box.replaceChildren(...(shown.length || this.only ? shown.map(run => this.card(run)) : [el("p", {class: "quiet"}, "none yet")]));
      if (focus) this.box.querySelector(`[data-act="${focus}"]`)?.focus();
    }
    this.drawn = now;
  }

  act(run, name, does) {
    return button(name, () => tried(async () => this.take((await tell(`runs/${run.id}`, {do: does})).runs)), {"data-act": `${run.id} ${does}`});
  }

  card(run) {
    const {status, state} = run, ended = ENDED.includes(state);
    const stages = (status?.stages || []).filter(stage => stage.done + stage.pending > 0);
    const waiting = state === "queued" ? "waits for the run before it" : state;
    return el("article", {class: "card run", "aria-label": `Run ${run.name}`},
      el("p", {}, el("span", {class: `badge ${state}`}, waiting), " ", el("b", {}, `${KINDS[run.kind] || ""}${run.name}`), " ",
        el("span", {class: "quiet small"}, run.out)),
      stages.length ? el("div", {class: "stages"}, stages.map(stage => this.stage(stage, status))) : null,
      status ? el("p", {class: "quiet"}, ended && !run.said ? `${counted(status.captions, "caption")} written, ` : "", `${status.media.failed} of ${counted(status.media.total, "file")} failed`) : null,
      run.said && run.said !== run.error ? el("p", {class: "quiet"}, run.said) : null,
      run.error && ended ? el("p", {class: "warning"}, run.error) : null,
      (status?.failures || []).slice(0, 5).map(({media_path: path, message, hint}) => el("p", {class: "warning small"}, `${path}: ${message}. `, el("b", {}, hint))),
      (status?.rungs || []).slice(-1).map(({stage, name, reason}) => el("p", {class: "quiet small"}, `${stage} runs with ${name} (${reason})`)),
      el("details", {}, el("summary", {class: "quiet small"}, "Command"), el("code", {}, run.line), " ", el("a", {href: `${HOME}log/${run.id}`}, "Output")),
      el("div", {class: "acts"},
        this.only ? null : el("a", {href: `${HOME}run/${run.run}/`, "data-act": `${run.id} open`}, "Open its captions"),
        ended ? null : this.act(run, "Stop", "stop"),
        ended && state !== "done" ? this.act(run, "Go on", "go on") : null,
        ended ? this.act(run, "Remove from the list", "remove") : null));
  }

  // Memory is what a stage takes above its imports, as it was planned.
  stage(stage, {budget}) {
    const all = stage.done + stage.pending, rate = stage.rate_last_minute ?? stage.rate, {now_bytes: now, taken_bytes: peak, planned_bytes: planned} = stage;
    const memory = now || peak ? [now ? `memory ${size(now)} now` : "memory", peak ? `peak ${size(peak)}` : "", planned ? `planned ${size(planned)}` : "", budget ? `budget ${size(budget)}` : ""].filter(Boolean).join(", ") : "";
    return [el("span", {}, stage.name),
      el("div", {}, el("progress", {max: all, value: stage.done, "aria-label": `${stage.name}: ${stage.done} of ${all}`}),
        now && budget ? el("meter", {max: budget, high: planned || budget, value: now, "aria-label": `${stage.name}: ${memory}`}) : null),
      el("span", {class: "quiet"}, [`${stage.done.toLocaleString("en")} of ${stage.about ? "about " : ""}${all.toLocaleString("en")}`,
        rate ? `${rate.toFixed(2)}/s` : "", stage.running && stage.seconds_left ? `${clock(stage.seconds_left)} left` : "",
        memory, stage.failed ? `${stage.failed} failed` : ""].filter(Boolean).join(" · "))];
  }
}
