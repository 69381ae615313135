// A new run: its files and values, the command that they stand for, its plan.

const TEXTS = ["model", "adapter", "memory", "prompt", "schema", "trigger", "sift", "out"];
const GIVEN = new Set([...TEXTS, "sources", "recursive", "prompts", "trust_remote_code"]);
const adapterOptions = ({adapters}) => options(adapters.map(value => [value, value.split("/").pop()]));

// Which files are captioned: folders below the roots, single files, and files that were dropped.
class Files {
  constructor(changed) {
    Object.assign(this, {changed, chosen: []});
    $("dropped").addEventListener("change", () => this.upload([...$("dropped").files]));
    onDrop($("drop"), files => this.upload(files), {over: is => $("drop").classList.toggle("over", is)});
  }

  begin({roots, folder}) {
    $("roots").replaceChildren(...roots.map(root => button(root, () => this.open(root))));
    return this.open(folder);
  }

  open(path) {
    return tried(async () => {
      const {path: here, count, folders, media, up} = await ask(`files?path=${encodeURIComponent(path)}`);
      const inside = name => `${here}/${name}`, line = (...buttons) => el("div", {class: "line"}, buttons);
      const choose = (text, name) => button(text, () => this.add(inside(name)), {"aria-label": `Choose ${name}`});
      $("where").replaceChildren(el("code", {}, here), ` has ${counted(count, "image or video", "images and videos")}. `,
        count || folders.length ? button("Choose this folder", () => this.add(here)) : "");
      $("folders").replaceChildren(...(up ? [line(button("↑ up", () => this.open(up)))] : []),
        ...folders.map(({name, media: some}) => line(button(`${name}/ (${some})`, () => this.open(inside(name))), choose("+", name))),
        ...media.map(name => line(choose(name, name))));
    });
  }

  add(path) {
    if (!this.chosen.includes(path)) this.chosen.push(path);
    this.draw();
  }

  draw() {
    const leave = path => () => { this.chosen = this.chosen.filter(one => one !== path); this.draw(); };
    const rows = this.chosen.map(path =>
      el("li", {}, el("span", {}, path), button("✕", leave(path), {"aria-label": `Leave out ${path}`})));
    $("sources").replaceChildren(...(rows.length ? rows : [el("li", {class: "quiet"}, "nothing yet")]));
    this.changed();
  }

  async upload(files) {
    const failed = [];
    let done = 0, folder = "";
    for (const file of files) {
      $("uploading").textContent = `${done + failed.length + 1} of ${files.length}: ${file.name}`;
      try {
        const path = `upload?name=${encodeURIComponent(file.name)}`;
        ({folder} = await answered(await sent(path, file, "application/octet-stream")));
        done += 1;
      } catch (error) { failed.push(String(error)); }
    }
    $("uploading").textContent = joined([`${counted(done, "file")} uploaded`, ...failed], "; ");
    $("dropped").value = "";
    if (folder) this.add(folder);
  }
}

class Start {
  constructor(begun, sifted) {
    Object.assign(this, {begun, sifted, files: new Files(() => this.changed()), fields: []});
    $("start").addEventListener("input", () => this.changed());
    $("start").addEventListener("submit", event => { event.preventDefault(); this.plan(); });
    const acts = {go: () => this.go(), which: () => this.which(), "sift-now": () => this.sift(), "keep-prompt": () => this.keepPrompt()};
    for (const [id, act] of Object.entries(acts)) $(id).addEventListener("click", act);
    $("preset").addEventListener("change", event => {
      const found = this.choices.prompts.find(({name}) => name === event.target.value);
      if (found) $("prompt").value = found.text;
      this.changed();
    });
  }

  async begin(choices) {
    const {models, servers, out, own, has_captions: has} = this.choices = choices;
    $("models").replaceChildren(...models.map(value => el("option", {value})));
    $("model").value = models.length === 1 ? models[0] : "";
    $("adapter").replaceChildren(...options([["", "none"]]), ...adapterOptions(choices));
    $("out").value = out;
    $("server").replaceChildren(...options([["", "this machine"], ...servers.map((url, value) => [String(value), url])]));
    $("server").parentElement.hidden = !servers.length;
    $("own").hidden = !has;
    $("own").replaceChildren(el("a", {href: `${HOME}run/${own}/`}, "Open the captions in ", out));
    this.presets(choices);
    this.every(choices.options.filter(({name}) => !GIVEN.has(name)));
    this.files.draw();
    await this.files.begin(choices);
  }

  presets({prompts, prompt_folder: folder}) {
    this.choices.prompts = prompts;
    $("preset").replaceChildren(...options([["", "written here"], ...prompts.map(({name}) => [name, name])]));
    $("prompts-told").textContent = `Prompts are files in ${folder || this.choices.prompt_folder}.`;
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
    const read = value => this.fields.push([name, value]);
    if (kind === "bool") {
      const box = check(flag, label);
      read(() => box.firstChild.checked ? true : null);
      return box;
    }
    if (kind === "tuple" && values.length) {
      const boxes = values.map(value => check(value, value));
      read(() => boxes.map(box => box.firstChild).filter(box => box.checked).map(box => box.value));
      return el("fieldset", {class: "fields"}, el("legend", {}, label), boxes);
    }
    const input = values.length ? el("select", {}, options([["", "–"], ...values.filter(Boolean).map(one => [one, one])]))
      : el("input", {type: isNumber ? "number" : "text", step: kind === "float" ? "any" : null, autocomplete: "off"});
    read(() => isNumber ? (input.value === "" ? null : Number(input.value))
      : kind === "tuple" ? input.value.split(",").map(one => one.trim()).filter(Boolean) : input.value);
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
      $("planned").replaceChildren(el("p", {class: "warning"}, error.hint ? String(error) : error.message));
    }
    $("plan").disabled = false;
  }

  // Plans every model on this machine for these files: which fit, and which of them is the largest.
  async which() {
    const rows = [], {server: _, ...values} = this.values();
    const show = (...more) => $("fitting").replaceChildren(table(["model", "fits", ""], [...rows, ...more]));
    let largest = 0, best = null;
    for (const model of this.choices.models) {
      show([model, "planning…", ""]);
      const use = () => { $("model").value = model; $("server").value = ""; this.changed(); };
      try {
        const {plan} = await tell("plan", {values: {...values, model}});
        const peak = most([0, ...(plan.memory?.stages || []).map(one => one.peak_bytes)]);
        const parameters = Object.values(plan.halves || {}).reduce((sum, half) => sum + half.parameters, 0);
        const row = plan.fits ? [model, joined([`yes, ${size(peak)}`, plan.time], ", "), button("Use", use, {"aria-label": `Use ${model}`})]
          : [model, `no: ${plan.refusal.message}`, ""];
        rows.push(row);
        if (plan.fits && parameters > largest) [largest, best] = [parameters, row];
      } catch (error) { rows.push([model, String(error), ""]); }
    }
    if (best) best[1] += "; recommended: the largest that fits";
    show();
  }

  sift() {
    return tried(async () => {
      $("line").textContent = (await tell("sift", {values: this.values()})).line;
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

function planLines({fits, refusal: no, model, device, notes, files, chunks, failed, done, time, memory, ...plan}) {
  const budget = memory?.budget_bytes ? ` of ${size(memory.budget_bytes)}` : "";
  const rows = [
    ["Files", joined([counted(files, "file"), counted(chunks, "chunk"), failed && `${failed} that cannot be read`], ", ")],
    ["Done already", counted(done?.captions || 0, "caption")],
    ["Disk", joined([`${size(plan.feature_bytes)} of features, at most ${size(plan.frame_bytes_at_once)} of frames`,
      `${size(plan.free_bytes)} free`, plan.fetch_bytes && `${size(plan.fetch_bytes)} to download`], "; ")],
    ["Time", time || "unknown: run penstock doctor --measure once"],
    ...(memory?.stages || []).map(({rung, peak_bytes: peak}) => [`Memory: ${rung.stage}`, `${size(peak)}${budget}`]),
  ];
  return [el("p", {class: "badge " + (fits ? "done" : "failed")}, fits ? "It fits." : "It does not fit."),
    no ? el("p", {class: "warning"}, `${no.message}. ${no.hint}`) : "",
    table(["", `${model} on ${device}`], rows), ...(notes || []).map(text => el("p", {class: "quiet tiny"}, text))];
}
