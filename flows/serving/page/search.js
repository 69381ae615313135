// Search of the index by a text or by a picture, and the hits as a sheet of small pictures.

const FIRST = 24;

const search = {
  able: false, hits: [], wanted: null, top: FIRST, stopper: null,

  start({index}) {
    this.able = Boolean(index);
    $("search").hidden = $("to-search").hidden = !index;
    if (index) this.counts = `${counted(index.rows, "vector")}`;
  },

  // `wanted` is {text, without, where} or {picture, name, where}.
  async find(wanted, top = FIRST) {
    this.stopper?.abort();
    const stopper = this.stopper = new AbortController(), {signal} = stopper;
    Object.assign(this, {wanted, top});
    complain($("search-error"), null);
    this.tell("seeking");
    const query = {q: wanted.text, not: wanted.without, where: wanted.where, top, moments: 1};
    try {
      const answer = await asked(wanted.picture ? "POST" : "GET", address("/v1/search", query), {body: wanted.picture || null, signal,
        waits: (seconds, why) => this.tell(`${why.message.replace(/\.$/, "")}: asked again in ${brief(seconds)}`)});
      if (stopper === this.stopper) this.show(answer);
    } catch (error) {
      if (stopper !== this.stopper) return;
      this.tell("");
      complain($("search-error"), error);
    }
  },

  byPicture(picture, name) {
    $("query").value = $("without").value = "";
    return this.find({picture, name, where: $("where").value.trim()});
  },

  async like(item) {
    $("search").scrollIntoView();
    await this.byPicture(await item.picture(), item.name);
  },

  // Of a film the small picture of the moment is sought by, not all of the film.
  async likeHit({id, kind, media_path: name}) {
    try {
      const request = await ask("GET", `/v1/${kind === "video" ? "thumbnail" : "media"}/${encodeURIComponent(id)}`, {kind: "blob"});
      await this.byPicture(request.response, name);
      $("search").scrollIntoView();
    } catch (error) {
      complain($("search-error"), error);
    }
  },

  show({hits, rows, seconds}) {
    const many = hits.length > this.hits.length && this.hits.every((hit, at) => hits[at].id === hit.id) ? this.hits.length : 0;
    this.hits = hits;
    $("hits").replaceChildren(...hits.map((hit, at) => this.tile(hit, at)));
    this.rove ||= roving($("hits"), "button");
    this.rove.first();
    $("more").hidden = hits.length < this.top;
    this.tell(`${counted(hits.length, "hit")} in ${counted(rows, "vector")}, ${brief(seconds)}`);
    say(hits.length ? `${counted(hits.length, "hit")}, the first is ${hits[0].media_path}` : "Nothing was found.");
    if (many) $("hits").querySelectorAll(".frame")[many]?.focus();
  },

  tile(hit, at) {
    const name = hit.media_path.split("/").pop(), when = hit.time ? momentOf(hit) : "";
    const image = el("img", {alt: "", loading: "lazy", decoding: "async", src: `/v1/thumbnail/${encodeURIComponent(hit.id)}`});
    image.addEventListener("error", () => image.replaceWith(el("span", {class: "blank quiet"}, "no picture of it")));
    return el("li", {},
      el("button", {type: "button", class: "frame", tabindex: "-1", title: hit.media_path, click: () => viewer.open(this.hits, at),
        "aria-label": `${hit.media_path}${when ? `, ${when}` : ""}, ${score(hit.score)}`},
        image, when ? el("time", {class: "when"}, when) : null),
      el("div", {class: "under"}, el("span", {class: "name", dir: "auto"}, name), el("span", {class: "number quiet"}, score(hit.score)),
        el("button", {type: "button", class: "small", tabindex: "-1", "aria-label": `More like ${name}${when ? `, ${when}` : ""}`, click: () => this.likeHit(hit)}, "more like this"),
        hit.copies ? el("span", {class: "quiet"}, counted(hit.copies, "copy", "copies")) : null));
  },

  // What is sought, beside how it went.
  tell(text) {
    const {picture, name} = this.wanted || {};
    $("sought").hidden = !text && !picture;
    if (this.shown) URL.revokeObjectURL(this.shown);
    this.shown = picture ? URL.createObjectURL(picture) : null;
    $("sought").replaceChildren(...(picture ? [el("img", {class: "seed", src: this.shown, alt: ""}), el("span", {dir: "auto"}, `like ${name}`)] : []),
      el("span", {class: "quiet"}, text));
  },
};

$("find").addEventListener("submit", event => {
  event.preventDefault();
  const [text, without, where] = ["query", "without", "where"].map(id => $(id).value.trim());
  if (text) search.find({text, without, where});
  else if (search.wanted?.picture) search.find({...search.wanted, where});
  else $("query").focus();
});
$("by-picture").addEventListener("click", () => $("search-file").click());
$("search-file").addEventListener("change", event => {
  const [file] = event.target.files;
  if (file) search.byPicture(file, file.name);
  event.target.value = "";
});
$("more").addEventListener("click", () => search.find(search.wanted, 2 * search.top));
