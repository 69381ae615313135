// Choosing files: what is in a folder as tiles with pictures, and what was chosen of it.

const TILE = {wide: 136, high: 140}; // pixels at least, and exactly
const pictureOf = path => `${HOME}small?path=${encodeURIComponent(path)}`;

// A long list of tiles, of which only those near the view are in the page.
class Tiles {
  constructor(box, build) {
    Object.assign(this, {box, build, items: [], shown: new Map(), sheet: el("div", {class: "tiles"})});
    box.replaceChildren(this.sheet);
    box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(box);
  }

  show(items) {
    for (const tile of this.shown.values()) this.leave(tile);
    this.items = items;
    this.shown.clear();
    this.box.scrollTop = 0;
    this.draw();
  }

  // A picture that is no longer seen need not arrive.
  leave(tile) {
    tile.querySelector("img")?.removeAttribute("src");
    tile.remove();
  }

  draw() {
    const {scrollTop: top, clientHeight: high, clientWidth: wide} = this.box, columns = Math.max(1, Math.floor(wide / TILE.wide));
    const first = Math.max(0, Math.floor(top / TILE.high) - 1) * columns;
    const end = Math.min(this.items.length, Math.ceil((top + high) / TILE.high + 1) * columns);
    this.sheet.style.height = `${Math.ceil(this.items.length / columns) * TILE.high}px`;
    for (const [at, tile] of this.shown) {
      if ((at >= first && at < end) || tile.contains(document.activeElement)) continue;
      this.leave(tile);
      this.shown.delete(at);
    }
    let next = null;
    for (let at = end - 1; at >= first; at -= 1) {
      const known = this.shown.get(at), tile = known || this.build(this.items[at]);
      const across = at % columns, down = (at - across) / columns;
      set(tile, {style: {left: percent(across / columns), width: percent(1 / columns), top: `${down * TILE.high}px`}});
      if (!known) this.sheet.insertBefore(tile, next);
      this.shown.set(at, next = tile);
    }
  }
}

// How many media lie below a folder, at any depth: one folder after the other, each asked once.
class Counts {
  constructor() { Object.assign(this, {known: new Map(), turn: Promise.resolve()}); }

  of(path) {
    const count = () => ask(`below?path=${encodeURIComponent(path)}`).catch(() => null);
    if (!this.known.has(path)) this.known.set(path, this.turn = this.turn.then(count));
    return this.known.get(path);
  }
}
const asCount = found => !found ? "?" : found.more ? `${grouped(found.count)}+ files` : counted(found.count, "file");

// Which files are captioned: folders below the roots, single files, and files that were dropped.
class Files {
  constructor(changed) {
    Object.assign(this, {changed, chosen: []});
    $("dropped").addEventListener("change", () => this.upload([...$("dropped").files]));
    onDrop($("drop"), files => this.upload(files), {over: is => $("drop").classList.toggle("over", is)});
  }

  // The folder that the studio was started with is chosen, unless it holds no media, or is that of the outputs.
  async begin({roots, folder, out, image_suffixes: images}) {
    this.images = images;
    this.tiles = new Tiles($("folders"), item => item.folder ? this.folder(item) : this.file(item));
    this.counts = new Counts();
    $("roots").replaceChildren(...roots.map(root => button(inParts(root), () => this.open(root))));
    const found = await this.open(folder);
    if (!found || folder === out || this.chosen.length) return;
    if (found.count) this.add(found.path);
    else if (found.folders.length) this.counts.of(found.path).then(below => {
      if (!below?.count || below.more || this.chosen.length) return;
      $("recursive").checked = true;
      this.add(found.path);
    });
  }

  open(path) {
    return tried(async () => {
      const found = await ask(`files?path=${encodeURIComponent(path)}`), {path: here, count, folders, media, up} = found;
      const inside = name => here === "/" ? `/${name}` : `${here}/${name}`;
      const has = count || !folders.length ? `has ${counted(count, "image or video", "images and videos")}`
        : "has no images and videos itself, only the folders below";
      $("where").replaceChildren(el("code", {}, inParts(here)), ` ${has}. `,
        ...(up ? [button("↑ The folder above", () => this.open(up)), " "] : []),
        count || folders.length ? button("Choose this folder", () => this.add(here)) : "");
      $("folders").hidden = !(count || folders.length);
      const item = folder => name => ({name, path: inside(name), folder});
      this.tiles.show([...folders.map(item(true)), ...media.map(item(false))]);
      performance.mark("files shown");
      return found;
    });
  }

  folder({name, path}) {
    const opener = sign("…", `Open ${name}`, () => this.open(path), {class: "frame folder"});
    this.counts.of(path).then(found => { opener.textContent = asCount(found); });
    return el("div", {class: "tile"}, opener, el("span", {class: "called", title: name}, `${name}/`),
      sign("+", `Choose ${name}`, () => this.add(path)));
  }

  file({name, path}) {
    const isImage = this.images.some(suffix => name.toLowerCase().endsWith(suffix));
    const picture = el("img", {alt: "", decoding: "async", src: pictureOf(path),
      error: () => { if (picture.hasAttribute("src")) picture.replaceWith(el("span", {class: "quiet tiny"}, "no picture")); }});
    return el("div", {class: "tile"}, button(picture, () => this.toggle(path),
      {class: `frame${isImage ? "" : " video"}`, "aria-label": `Choose ${name}`, "aria-pressed": this.chosen.includes(path)}),
    el("span", {class: "called", title: name}, name));
  }

  toggle(path) {
    if (!this.chosen.includes(path)) return this.add(path);
    this.chosen = this.chosen.filter(one => one !== path);
    return this.draw();
  }

  add(path) {
    if (!this.chosen.includes(path)) this.chosen.push(path);
    this.draw();
  }

  draw() {
    const rows = this.chosen.map(path =>
      el("li", {}, el("span", {}, path), button("✕", () => this.toggle(path), {"aria-label": `Leave out ${path}`})));
    for (const [at, tile] of this.tiles?.shown || [])
      tile.querySelector("[aria-pressed]")?.setAttribute("aria-pressed", this.chosen.includes(this.tiles.items[at].path));
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
