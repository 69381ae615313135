// A new run: its values, the command that they stand for, its plan.

const TEXTS = ["model", "adapter", "memory", "prompt", "schema", "trigger", "sift", "out"];
const GIVEN = new Set([...TEXTS, "sources", "recursive", "prompts", "trust_remote_code"]);

class Start {
  constructor(begun, sifted) {
    Object.assign(this, {begun, sifted});
    this.files = new Files(() => this.changed());
    const form = document.getElementById("start");
    form.addEventListener("input", () => this.changed());
    form.addEventListener("submit", event => { event.preventDefault(); this.plan(); });
    document.getElementById("go").addEventListener("click", () => this.go());
    document.getElementById("which").addEventListener("click", () => this.which());
    document.getElementById("sift-now").addEventListener("click", () => this.sift());
    document.getElementById("keep-prompt").addEventListener("click", () => this.keepPrompt());
    document.getElementById("preset").addEventListener("change", event => {
      const found = this.choices.prompts.find(({name}) => name === event.target.value);
      if (found) at("prompt").value = found.text;
      this.changed();
    });
  }

  async begin(choices) {
    this.choices = choices;
    at("models").replaceChildren(...choices.models.map(value => el("option", {value})));
    at("model").value = choices.models.length === 1 ? choices.models[0] : "";
    at("adapter").replaceChildren(...adapterOptions(choices));
    at("out").value = choices.out;
    at("server").replaceChildren(el("option", {value: ""}, "this machine"), ...choices.servers.map((url, value) => el("option", {value}, url)));
    at("server").parentElement.hidden = !choices.servers.length;
    at("own").hidden = !choices.has_captions;
    at("own").replaceChildren(el("a", {href: `${HOME}run/${choices.own}/`}, "Open the captions in ", choices.out));
    this.presets(choices);
    this.every(choices.options);
    this.files.draw();
    await this.files.begin(choices);
  }

  presets({prompts, prompt_folder: folder}) {
    this.choices.prompts = prompts;
    at("preset").replaceChildren(el("option", {value: ""}, "written here"), ...prompts.map(({name}) => el("option", {value: name}, name)));
    at("prompts-told").textContent = `Prompts are files in ${folder || this.choices.prompt_folder}.`;
  }

  keepPrompt() {
    const name = prompt("Name of this prompt", at("preset").value);
    if (name) tried(async () => this.presets(await tell("presets", {name, text: at("prompt").value})));
  }

  // Every other option, from the same table as the command line.
  every(options) {
    const headings = new Map();
    for (const option of options.filter(({name}) => !GIVEN.has(name))) {
      if (!headings.has(option.heading)) headings.set(option.heading, []);
      headings.get(option.heading).push(option);
    }
    this.fields = [];
    at("options").replaceChildren(...[...headings].map(([heading, of]) => el("fieldset", {class: "card"}, el("legend", {}, heading),
      el("div", {class: "fields"}, of.map(option => this.field(option))))));
  }

  field({name, flag, help, kind, values}) {
    let input, value;
    if (kind === "bool" || (kind === "tuple" && values.length)) {
      const boxes = (kind === "bool" ? [flag] : values).map(one => el("input", {type: "checkbox", value: one}));
      value = () => kind === "bool" ? (boxes[0].checked ? true : null) : boxes.filter(box => box.checked).map(box => box.value);
      this.fields.push([name, value]);
      const labels = boxes.map(box => el("label", {class: "check"}, box, kind === "bool" ? `${flag}: ${help}` : box.value));
      return kind === "bool" ? labels[0] : el("fieldset", {class: "fields"}, el("legend", {class: "quiet small"}, `${flag}: ${help}`), labels);
    }
    if (values.length) input = el("select", {}, el("option", {value: ""}, "–"), values.filter(Boolean).map(one => el("option", {value: one}, one)));
    else input = el("input", {type: kind === "int" || kind === "float" ? "number" : "text", step: kind === "float" ? "any" : null, autocomplete: "off"});
    value = () => kind === "int" || kind === "float" ? (input.value === "" ? null : Number(input.value))
      : kind === "tuple" ? input.value.split(",").map(one => one.trim()).filter(Boolean) : input.value;
    this.fields.push([name, value]);
    return el("label", {class: "field"}, `${flag}: ${help}`, input);
  }

  values() {
    const found = {sources: this.files.chosen, recursive: at("recursive").checked};
    for (const [name, value] of this.fields || []) found[name] = value();
    for (const name of TEXTS) found[name] = at(name).value.trim();
    if (at("server").value) found.server = Number(at("server").value);
    const lines = at("prompts").value.split("\n").map(line => line.trim()).filter(Boolean);
    found.prompts = Object.fromEntries(lines.map(line => [line.split("=")[0].trim(), line.split("=").slice(1).join("=").trim()]));
    const given = value => value !== null && value !== "" && value !== false && !(typeof value === "object" && !Object.keys(value).length);
    return Object.fromEntries(Object.entries(found).filter(([, value]) => given(value)));
  }

  // A plan is of the values that it was made for.
  changed() {
    at("go").disabled = true;
    at("planned").replaceChildren();
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.line(), 300);
  }

  async line() {
    const box = at("line");
    if (!this.files.chosen.length) { box.textContent = ""; return; }
    try { box.textContent = (await tell("words", {values: this.values()})).line; } catch (error) { box.textContent = error.message; }
  }

  async plan() {
    clearTimeout(this.waiting);
    const values = this.values();
    at("go").disabled = true;
    at("plan").disabled = true;
    at("planned").replaceChildren(el("p", {class: "quiet"}, "planning: files and model are read…"));
    try {
      const {plan, line} = await tell("plan", {values});
      if (JSON.stringify(this.values()) !== JSON.stringify(values)) throw Error("the values changed while they were planned: plan again");
      at("line").textContent = line;
      at("planned").replaceChildren(...planLines(plan));
      this.planned = values;
      at("go").disabled = !plan.fits;
      if (plan.fits) at("go").focus();
    } catch (error) {
      at("planned").replaceChildren(el("p", {class: "warning"}, error.message));
    }
    at("plan").disabled = false;
  }

  // Plans every model on this machine for these files: which fit, and which of them is the largest.
  async which() {
    const rows = [], {server: _, ...values} = this.values(), fitting = at("fitting"), draw = more => fitting.replaceChildren(table(["model", "fits", ""], [...rows, ...more]));
    let most = 0, best = null;
    for (const model of this.choices.models) {
      draw([[model, "planning…", ""]]);
      const use = () => { at("model").value = model; at("server").value = ""; this.changed(); };
      try {
        const {plan} = await tell("plan", {values: {...values, model}});
        const peak = Math.max(0, ...(plan.memory?.stages || []).map(stage => stage.peak_bytes));
        const parameters = Object.values(plan.halves || {}).reduce((sum, half) => sum + half.parameters, 0);
        const row = [model, plan.fits ? `yes, ${size(peak)}${plan.time ? `, ${plan.time}` : ""}` : `no: ${plan.refusal.message}`, plan.fits ? button("Use", use, {"aria-label": `Use ${model}`}) : ""];
        rows.push(row);
        if (plan.fits && parameters > most) [most, best] = [parameters, row];
      } catch (error) { rows.push([model, error.message, ""]); }
    }
    if (best) best[1] += "; recommended: the largest that fits";
    draw([]);
  }

  sift() {
    return tried(async () => {
      at("line").textContent = (await tell("sift", {values: this.values()})).line;
      this.sifted();
    });
  }

  go() {
    return tried(async () => {
      at("go").disabled = true;
      this.begun(await tell("runs", {values: this.planned}));
    });
  }
}

const adapterOptions = ({adapters}) => [el("option", {value: ""}, "none"), ...adapters.map(value => el("option", {value}, value.split("/").pop()))];

function planLines(plan) {
  const made = plan.done?.captions || 0;
  const memory = plan.memory?.stages || [];
  const rows = [
    ["Files", `${counted(plan.files, "file")}, ${counted(plan.chunks, "chunk")}${plan.failed ? `, ${plan.failed} that cannot be read` : ""}`],
    ["Done already", `${counted(made, "caption")}`],
    ["Disk", `${size(plan.feature_bytes)} of features, at most ${size(plan.frame_bytes_at_once)} of frames; ${size(plan.free_bytes)} free${plan.fetch_bytes ? `; ${size(plan.fetch_bytes)} to download` : ""}`],
    ["Time", plan.time || "unknown: run penstock doctor --measure once"],
    ...memory.map(stage => [`Memory: ${stage.rung.stage}`, `${size(stage.peak_bytes)}${plan.memory.budget_bytes ? ` of ${size(plan.memory.budget_bytes)}` : ""}`]),
  ];
  return [el("p", {class: "badge " + (plan.fits ? "done" : "failed")}, plan.fits ? "It fits." : "It does not fit."),
    plan.refusal ? el("p", {class: "warning"}, `${plan.refusal.message}. ${plan.refusal.hint}`) : null,
    table(["", `${plan.model} on ${plan.device}`], rows),
    ...(plan.notes || []).map(note => el("p", {class: "quiet small"}, note))].filter(Boolean);
}
