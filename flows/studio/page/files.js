// Which files are captioned: folders below the roots, single files, and files that were dropped.

class Files {
  constructor(changed) {
    Object.assign(this, {changed, chosen: []});
    this.input = document.getElementById("dropped");
    this.input.addEventListener("change", () => this.upload([...this.input.files]));
    const drop = document.getElementById("drop");
    drop.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", event => {
      event.preventDefault();
      drop.classList.remove("over");
      this.upload([...event.dataTransfer.files]);
    });
  }

  begin({roots, folder}) {
    document.getElementById("roots").replaceChildren(...roots.map(root => button(root, () => this.open(root))));
    return this.open(folder);
  }

  open(path) {
    return tried(async () => {
      const found = await ask(`files?path=${encodeURIComponent(path)}`);
      const inside = name => `${found.path}/${name}`;
      document.getElementById("where").replaceChildren(el("code", {}, found.path), ` has ${counted(found.count, "image or video", "images and videos")}. `,
        found.count || found.folders.length ? button("Choose this folder", () => this.add(found.path)) : "");
      document.getElementById("folders").replaceChildren(
        ...(found.up ? [el("div", {class: "line"}, button("↑ up", () => this.open(found.up)))] : []),
        ...found.folders.map(({name, media}) => el("div", {class: "line"}, button(`${name}/ (${media})`, () => this.open(inside(name))),
          button("+", () => this.add(inside(name)), {"aria-label": `Choose ${name}`}))),
        ...found.media.map(name => el("div", {class: "line"}, button(name, () => this.add(inside(name)), {"aria-label": `Choose ${name}`}))));
    });
  }

  add(path) {
    if (!this.chosen.includes(path)) this.chosen.push(path);
    this.draw();
  }

  draw() {
    document.getElementById("sources").replaceChildren(...(this.chosen.length ? this.chosen.map(path => el("li", {}, el("span", {}, path),
      button("✕", () => { this.chosen = this.chosen.filter(one => one !== path); this.draw(); }, {"aria-label": `Leave out ${path}`})))
      : [el("li", {class: "quiet"}, "nothing yet")]));
    this.changed();
  }

  async upload(files) {
    const told = document.getElementById("uploading");
    let done = 0, folder = "";
    const failed = [];
    for (const file of files) {
      told.textContent = `${done + failed.length + 1} of ${files.length}: ${file.name}`;
      try {
        const response = await fetch(`${HOME}upload?name=${encodeURIComponent(file.name)}`, {method: "POST", body: file,
          headers: {"Content-Type": "application/octet-stream", "X-Penstock-Token": TOKEN}});
        folder = (await answered(response)).folder;
        done += 1;
      } catch (error) { failed.push(error.message); }
    }
    told.textContent = [`${counted(done, "file")} uploaded`, ...failed].join("; ");
    this.input.value = "";
    if (folder) this.add(folder);
  }
}
