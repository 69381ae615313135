// The queue: what runs, what waits, what ended, and why.

const KINDS = {again: "asking again: ", write: "writing: ", learn: "learning: ", sift: "sifting: ", export: "exporting the model of ",
  tune: "training on "};

const CHOSEN = {best: "chosen as the best", keep: "taken back"};

class Runs {
  constructor({box, only}) {
    Object.assign(this, {box, only, drawn: "", cards: new Map()});
    this.look();
  }

  async look() {
    clearTimeout(this.waiting);
    let pause = 2000;
    try {
      const {runs} = await ask("runs");
      this.take(runs);
      if (runs.some(({state}) => !ENDED.includes(state))) pause = 1000;
    } catch { pause = 4000; }
    this.waiting = setTimeout(() => this.look(), pause);
  }

  take(runs) {
    this.runs = runs;
    const own = runs.filter(run => run.run === this.only), isSilent = run => run.state === "done" && !run.said && run.kind !== "caption";
    const tells = run => run === own.at(-1) && !isSilent(run);
    // A run's page shows what goes on, and how the last one ended.
    const shown = this.only ? own.filter(run => !ENDED.includes(run.state) || tells(run)) : [...runs].reverse();
    const now = JSON.stringify(shown);
    if (now !== this.drawn) {
      const focus = document.activeElement?.dataset?.act, cards = shown.map(run => this.card(run)), {children} = this.box;
      if (!cards.length || cards.length !== children.length || cards.some((card, at) => card !== children[at]))
        this.box.replaceChildren(...(cards.length || this.only ? cards : [el("p", {class: "quiet"}, "none yet")]));
      if (focus) this.box.querySelector(`[data-act="${focus}"]`)?.focus();
    }
    this.drawn = now;
  }

  // A run's buttons stay in the page while what stands above them is drawn anew, so that no click is lost.
  card(run) {
    const card = this.cards.get(run.id)
      || el("article", {class: "card run", "aria-label": `Run ${run.name}`}, el("div"), el("div", {class: "acts"}));
    const ended = ENDED.includes(run.state), acts = ended ? run.state : "stop";
    const act = (name, does) => button(name, () => tried(async () => this.take((await tell(`runs/${run.id}`, {do: does})).runs)),
      {"data-act": `${run.id} ${does}`});
    this.cards.set(run.id, card);
    card.firstElementChild.replaceWith(this.about(run, ended));
    if (card.dataset.acts === acts) return card;
    card.dataset.acts = acts;
    const again = acts !== "done" ? act("Go on", "go on") : run.kind === "sift" ? act("Sift again", "go on") : [];
    card.lastElementChild.replaceChildren(...[this.only || run.kind === "sift" ? []
      : el("a", {href: `${HOME}run/${run.run}/`, "data-act": `${run.id} open`}, "Open its captions"),
    ended ? [again, act("Remove from the list", "remove")] : act("Stop", "stop")].flat(2));
    return card;
  }

  // What stands above the buttons of a run.
  about(run, ended) {
    if (!ENDED.includes(run.state)) this.found?.delete(run.id);
    const {status, state, said, error} = run, stages = status?.stages || [];
    const at = stages.filter(stage => stage.done + stage.pending > 0), isDone = state === "done" && run.kind === "caption";
    const work = at.length ? el("div", {class: "stages"}, at.map(stage => this.stage(stage, status.budget))) : null;
    return el("div", {},
      el("p", {}, el("span", {class: `badge ${state}`}, state === "queued" ? "waits for the run before it" : state), " ",
        el("b", {}, `${KINDS[run.kind] || ""}${run.name}`), " ", el("span", {class: "quiet tiny"}, run.out)),
      isDone ? null : work,
      status && run.kind !== "sift" ? el("p", {class: "quiet"}, ended && !said ? `${counted(status.captions, "caption")} written, ` : "",
        ended || status.media.failed ? `${status.media.failed} of ${counted(status.media.total, "file")} failed`
          : counted(status.media.total, "file")) : null,
      said && said !== error ? el("p", {class: "quiet"}, said) : null,
      error && ended ? el("p", {class: "warning"}, error) : null,
      (status?.failures || []).slice(0, 5).map(({media_path: name, message, hint}) =>
        el("p", {class: "warning tiny"}, `${name}: ${message}. `, el("b", {}, hint))),
      (status?.rungs || []).slice(-1).map(({stage, name, reason}) =>
        el("p", {class: "quiet tiny"}, `${stage} runs with ${name} (${reason})`)),
      isDone && this.only ? this.following(run) : null,
      state === "done" && run.kind === "sift" ? this.sifted(run) : null,
      el("details", {}, el("summary", {class: "tiny"}, isDone ? "How it ran" : "Command"), isDone ? work : null,
        el("code", {}, run.line), " ", el("a", {href: `${HOME}log/${run.id}`}, "Output")));
  }

  // What a person does once a run is done.
  following({search}) {
    const review = () => document.querySelector("#list .row")?.focus();
    const write = () => { if ($("writing").hidden) $("write").click(); };
    return el("div", {}, el("p", {}, el("b", {}, "Next")), el("div", {class: "acts"},
      button("Review the captions", review, {class: "main"}), button("Write files for a trainer", write),
      el("a", {href: HOME}, "Change and run again")),
    !search.length ? null : el("details", {}, el("summary", {}, "Search these files by what is seen in them"),
      el("p", {class: "quiet tiny"}, "In a terminal: the first line once, the second as often as you like."),
      search.map(line => el("p", {}, el("code", {}, line)))));
  }

  // The copies that sift found, side by side, and what it left out. A choice applies when these files are sifted again.
  sifted({id}) {
    const box = el("div"), rest = count => count > 0 ? el("p", {class: "quiet"}, `and ${grouped(count)} more`) : null;
    const choose = (path, choice) => tried(async () => {
      this.found.set(id, Promise.resolve(await tell(`sifted/${id}`, {path, choice})));
      await this.found.get(id).then(show);
    });
    const picture = ({path, media_path: name, choice}, told, act, to, does = choice ? "Undo" : act) => el("figure", {},
      el("div", {class: "frame"}, el("img", {alt: "", loading: "lazy", src: pictureOf(path)})),
      el("figcaption", {class: "tiny"}, name, " ", el("span", {class: "quiet"}, CHOSEN[choice] || told)),
      does ? button(does, () => choose(path, choice ? "" : to), {"aria-label": `${does}: ${name}`}) : null);
    const group = (rows, all) => el("div", {class: "copies"},
      rows.map((row, at) => picture(
        row, row.why || (at ? "a copy" : "the best of them"), at || row.why ? "Choose as best" : "", "best",
      )), rest(all - rows.length));
    const show = ({count, groups, sizes, left_out: left, left: all}) => box.replaceChildren(
      el("h3", {}, counted(count, "group"), " of copies"), ...groups.map((rows, at) => group(rows, sizes[at])),
      ...(all ? [el("h3", {}, "Left out"), el("div", {class: "copies"},
        left.map(row => picture(row, row.why, "Take back", "keep")), rest(all - left.length))] : []));
    this.found ||= new Map();
    if (!this.found.has(id)) this.found.set(id, ask(`sifted/${id}`));
    this.found.get(id).then(show, problem);
    return box;
  }

  // Memory is what a stage takes above its imports, as it was planned.
  stage({name, done, pending, about, running, failed, seconds_left: left, now_bytes: now, taken_bytes: peak, ...stage}, budget) {
    const all = done + pending, rate = stage.rate_last_minute ?? stage.rate, planned = stage.planned_bytes;
    const memory = now || peak ? joined([now ? `memory ${size(now)} now` : "memory", peak && `peak ${size(peak)}`,
      planned && `planned ${size(planned)}`, budget && `budget ${size(budget)}`], ", ") : "";
    return [el("span", {}, name, running && stage.latest ? el("img", {class: "latest", alt: "", title: stage.latest,
      src: pictureOf(stage.latest), error: event => event.target.remove()}) : null),
      el("div", {}, el("progress", {max: all, value: done, "aria-label": `${name}: ${done} of ${all}`}),
        now && budget ? el("meter", {max: budget, high: planned || budget, value: now, "aria-label": `${name}: ${memory}`}) : null),
      el("span", {class: "quiet"}, joined([`${grouped(done)} of ${about ? "about " : ""}${grouped(all)}`, rate && `${rate.toFixed(2)}/s`,
        running && left && `${clock(left)} left`, memory, failed && `${failed} failed`]))];
  }
}
