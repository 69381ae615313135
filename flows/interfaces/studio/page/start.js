// A new run: its files and values, the command that they stand for, its plan.

const TEXTS = ["model", "adapter", "memory", "prompt", "schema", "trigger", "sift", "out"];
const GIVEN = new Set([...TEXTS, "format", "sources", "recursive", "prompts", "trust_remote_code"]);
const DEMO = "demo", DEMO_TOLD = "knows drawn moving shapes alone: to try the program, not for photos or films";
const adapterOptions = ({adapters}) => options(adapters.map(value => [value, value.split("/").pop()]));

class Start {
  constructor(begun, sifted) {
    Object.assign(this, {begun, sifted, files: new Files(() => this.changed()), fields: []});
    $("start").addEventListener("input", () => this.changed());
    $("start").addEventListener("submit", event => { event.preventDefault(); this.plan(); });
    const acts = {go: () => this.go(), which: () => this.which(), "sift-now": () => this.sift(), "keep-prompt": () => this.keepPrompt()};
    for (const [id, act] of Object.entries(acts)) $(id).addEventListener("click", act);
    $("model").addEventListener("change", () => this.tellModel());
    $("preset").addEventListener("change", event => {
      const found = this.choices.prompts.find(({name}) => name === event.target.value);
      if (found) $("prompt").value = found.text;
      $("prompts-told").textContent = found?.why || this.promptsTold;
      this.changed();
    });
  }

  async begin(choices) {
    const {models, servers, out, own, has_captions: has, default_model: usual} = this.choices = choices;
    $("models").replaceChildren(...[...new Set([usual, ...models])].map(value => el("option", {value})));
    $("model").value = usual;
    this.tellModel();
    $("adapter").replaceChildren(...options([["", "none"]]), ...adapterOptions(choices));
    $("out").value = out;
    $("server").replaceChildren(...options([["", "this machine"], ...servers.map((url, value) => [String(value), url])]));
    $("server").parentElement.hidden = !servers.length;
    $("own").hidden = !has;
    $("own").replaceChildren(el("a", {href: `${HOME}run/${own}/`}, "Open the captions in ", out));
    this.presets(choices);
    this.every(choices.options.filter(({name}) => !GIVEN.has(name)));
    $("format").replaceChildren(this.field(choices.options.find(({name}) => name === "format")));
    const {runs} = await ask("runs"), last = runs.filter(({values}) => values.sources).at(-1);
    if (last) this.fill(last.values);
    this.files.draw();
    await this.files.begin(choices);
  }

  // The form goes on from the last run.
  fill({sources, recursive, prompts, ...values}) {
    this.files.chosen = [...sources];
    $("recursive").checked = Boolean(recursive);
    $("prompts").value = Object.entries(prompts || {}).map(pair => pair.join("=")).join("\n");
    for (const name of TEXTS) $(name).value = values[name] ?? "";
    for (const [name, , write] of this.fields) if (values[name] !== undefined) write(values[name]);
    if (["trigger", "sift", "schema", "format"].some(name => values[name]) || prompts) $("trigger").closest("details").open = true;
    this.tellModel();
  }

  // Whether the model is on this machine, else its download, or why it cannot be had.
  async tellModel() {
    const name = $("model").value.trim(), tell = (text, how = "quiet tiny") => {
      if (name === $("model").value.trim()) Object.assign($("model-told"), {textContent: text, className: how});
    };
    if (!name || name === DEMO) { tell(name && DEMO_TOLD); return; }
    tell("looking for it…");
    try {
      const {bytes, error, hint} = await ask(`model?name=${encodeURIComponent(name)}`);
      if (error) throw new Refusal(error, hint);
      tell(bytes ? `${size(bytes)} to download, once` : "on this machine");
    } catch (error) { tell(String(error), "warning tiny"); }
  }

  presets({prompts, prompt_folder: folder}) {
    this.choices.prompts = prompts;
    $("preset").replaceChildren(...options([["", "written here"], ...prompts.map(({name}) => [name, name])]));
    this.promptsTold ??= `Prompts are files in ${folder}.`;
    $("prompts-told").textContent = this.promptsTold;
  }

  keepPrompt() {
    const name = prompt("Name of this prompt", $("preset").value);
    if (name) tried(async () => this.presets(await tell("presets", {name, text: $("prompt").value})));
  }

  // Every other option, from the same table as the command line.
  every(fields) {
    const headings = [...new Set(fields.map(({heading}) => heading))];
    $("options").replaceChildren(...headings.map(heading => el("fieldset", {class: "card"}, el("legend", {}, heading),
      el("div", {class: "fields"}, fields.filter(field => field.heading === heading).map(field => this.field(field))))));
  }

  field({name, flag, help, kind, values}) {
    const label = `${flag}: ${help}`, isNumber = kind === "int" || kind === "float";
    const check = (value, text) => el("label", {class: "check"}, el("input", {type: "checkbox", value}), text);
    const read = (value, write) => this.fields.push([name, value, write]);
    if (kind === "bool") {
      const box = check(flag, label);
      read(() => box.firstChild.checked ? true : null, value => { box.firstChild.checked = value; });
      return box;
    }
    if (kind === "tuple" && values.length) {
      const boxes = values.map(value => check(value, value));
      read(() => boxes.map(box => box.firstChild).filter(box => box.checked).map(box => box.value),
        chosen => boxes.forEach(({firstChild: box}) => { box.checked = chosen.includes(box.value); }));
      return el("fieldset", {class: "fields"}, el("legend", {}, label), boxes);
    }
    const input = values.length ? el("select", {}, options([["", "–"], ...values.filter(Boolean).map(one => [one, one])]))
      : el("input", {type: isNumber ? "number" : "text", step: kind === "float" ? "any" : null, autocomplete: "off"});
    read(() => isNumber ? (input.value === "" ? null : Number(input.value))
      : kind === "tuple" ? input.value.split(",").map(one => one.trim()).filter(Boolean) : input.value, value => { input.value = value; });
    return el("label", {class: "field"}, label, input);
  }

  values() {
    const named = $("prompts").value.split("\n").map(line => line.trim()).filter(Boolean).map(line => {
      const [name, ...text] = line.split("=");
      return [name.trim(), text.join("=").trim()];
    });
    const found = [["sources", this.files.chosen], ["recursive", $("recursive").checked],
      ...this.fields.map(([name, value]) => [name, value()]), ...TEXTS.map(name => [name, $(name).value.trim()]),
      ["server", $("server").value && Number($("server").value)], ["prompts", Object.fromEntries(named)]];
    const given = value => value !== null && value !== "" && value !== false && !(typeof value === "object" && !Object.keys(value).length);
    return Object.fromEntries(found.filter(([, value]) => given(value)));
  }

  // A plan is of the values that it was made for.
  changed() {
    $("go").disabled = true;
    $("planned").replaceChildren();
    complain($("sift-told"), null);
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.line(), 300);
  }

  async line() {
    if (!this.files.chosen.length) { $("line").textContent = ""; return; }
    $("line").textContent = await tell("words", {values: this.values()}).then(({line}) => line, String);
  }

  async plan() {
    clearTimeout(this.waiting);
    const values = this.values();
    $("go").disabled = $("plan").disabled = true;
    $("planned").replaceChildren(el("p", {class: "quiet"}, "planning: files and model are read…"));
    try {
      const {plan, line} = await tell("plan", {values});
      if (JSON.stringify(this.values()) !== JSON.stringify(values)) throw Error("the values changed while they were planned: plan again");
      $("line").textContent = line;
      $("planned").replaceChildren(...planLines(plan));
      this.planned = values;
      $("go").disabled = !plan.fits;
      if (plan.fits) $("go").focus();
    } catch (error) {
      $("planned").replaceChildren(this.isOfFilter(error) ? "" : el("p", {class: "warning"}, error.hint ? String(error) : error.message));
    }
    $("plan").disabled = false;
  }

  // Plans every model on this machine for these files: which fit, and which of them is the largest.
  async which() {
    const rows = [], {server: _, ...values} = this.values();
    const show = (...more) => $("fitting").replaceChildren(table(["model", "fits", ""], [...rows, ...more]));
    let largest = 0, best = null;
    for (const model of new Set([$("model").value.trim(), ...this.choices.models])) {
      if (!model) continue;
      show([model, "planning…", ""]);
      const use = () => { $("model").value = model; $("server").value = ""; this.changed(); this.tellModel(); };
      try {
        const {plan} = await tell("plan", {values: {...values, model}});
        const peak = most([0, ...(plan.memory?.stages || []).map(one => one.peak_bytes)]);
        const parameters = Object.values(plan.halves || {}).reduce((sum, half) => sum + half.parameters, 0);
        const about = model === DEMO ? DEMO_TOLD : plan.fetch_bytes && `${size(plan.fetch_bytes)} to download`;
        const fits = joined([`yes, ${size(peak)}`, plan.seconds && plan.time, about], "; ");
        const row = plan.fits ? [model, fits, button("Use", use, {"aria-label": `Use ${model}`})]
          : [model, `no: ${plan.refusal.message}`, ""];
        rows.push(row);
        if (plan.fits && model !== DEMO && parameters > largest) [largest, best] = [parameters, row];
      } catch (error) { rows.push([model, String(error), ""]); }
    }
    if (best) best[1] += "; recommended: the largest that fits";
    show();
  }

  // What is wrong with the filter is shown at its field.
  isOfFilter(error) {
    const is = error.message.startsWith("Only media that meet");
    complain($("sift-told"), is ? error : null);
    if (is) $("sift").closest("details").open = true;
    if (is) $("sift").focus();
    return is;
  }

  sift() {
    return tried(async () => {
      try { $("line").textContent = (await tell("sift", {values: this.values()})).line; }
      catch (error) { if (this.isOfFilter(error)) return; throw error; }
      this.sifted();
    });
  }

  go() {
    return tried(async () => {
      $("go").disabled = true;
      this.begun(await tell("runs", {values: this.planned}));
    });
  }
}

function planLines({fits, refusal: no, model, device, notes, files, chunks, failed, unreadable, done, time, memory, ...plan}) {
  const budget = memory?.budget_bytes ? ` of ${size(memory.budget_bytes)}` : "";
  const unread = failed + unreadable;
  const rows = [
    ["Files", joined([counted(files - unreadable, "file"), counted(chunks, "chunk"), unread && `${unread} that cannot be read`], ", ")],
    ["Done already", counted(done?.captions || 0, "caption")],
    ["Disk", joined([`${size(plan.feature_bytes)} of features, at most ${size(plan.frame_bytes_at_once)} of frames`,
      `${size(plan.free_bytes)} free`, plan.fetch_bytes && `${size(plan.fetch_bytes)} to download`], "; ")],
    ["Time", time || "unknown"],
    ...(memory?.stages || []).map(({rung, peak_bytes: peak}) => [`Memory: ${rung.stage}`, `${size(peak)}${budget}`]),
  ];
  return [el("p", {class: "badge " + (fits ? "done" : "failed")}, fits ? "It fits." : "It does not fit."),
    no ? el("p", {class: "warning"}, `${no.message}. ${no.hint}`) : "",
    table(["", `${model} on ${device}`], rows), ...(notes || []).map(text => el("p", {class: "quiet tiny"}, text))];
}
