// Search of the index by a text or by a picture; the hits as a sheet of small pictures, and one of them large.

const FIRST = 24;

// 0:03.0–0:07.5, or one time where it has no length.
const momentOf = ({time}) => !time ? "" : time.slice(0, time[1] - time[0] > 0.05 ? 2 : 1).map(each => clock(each, 1)).join("–");
const copiesOf = ({copies}) => copies ? counted(copies, "copy", "copies") : "";

const search = {
  able: false, hits: [], wanted: null, top: FIRST, stopper: null,

  start({index}) {
    this.able = Boolean(index);
    $("search").hidden = $("to-search").hidden = !index;
  },

  // `wanted` is {text, without, where} or {picture, name, where}.
  async find(wanted, top = FIRST) {
    this.stopper?.abort();
    const stopper = this.stopper = new AbortController(), {signal} = stopper;
    Object.assign(this, {wanted, top});
    complain($("search-error"), null);
    this.tell("seeking");
    const query = {q: wanted.text, not: wanted.without, where: wanted.where, top};
    try {
      const answer = await asked(wanted.picture ? "POST" : "GET", address("/v1/search", query),
        {body: wanted.picture || null, signal, waits: text => this.tell(text)});
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
    const name = hit.media_path.split("/").pop(), when = momentOf(hit);
    const image = el("img", {alt: "", loading: "lazy", decoding: "async", src: `/v1/thumbnail/${encodeURIComponent(hit.id)}`,
      error: () => image.replaceWith(el("span", {class: "blank quiet"}, "no picture of it"))});
    return el("li", {},
      button([image, when ? el("time", {class: "when"}, when) : null], () => viewer.open(this.hits, at), {class: "frame",
        title: hit.media_path, "aria-label": joined([hit.media_path, when, score(hit.score)], ", ")}),
      el("div", {class: "under"}, el("span", {class: "name", dir: "auto"}, name), el("span", {class: "number quiet"}, score(hit.score)),
        button("more like this", () => this.likeHit(hit), {class: "small link", "aria-label": joined([`More like ${name}`, when], ", ")}),
        el("span", {class: "quiet"}, copiesOf(hit))));
  },

  // What is sought, beside how it went.
  tell(text) {
    const {picture, name} = this.wanted || {};
    $("sought").hidden = !text && !picture;
    if (this.shown) URL.revokeObjectURL(this.shown);
    this.shown = picture ? URL.createObjectURL(picture) : null;
    const seed = picture ? [el("img", {class: "seed", src: this.shown, alt: ""}), el("span", {dir: "auto"}, `like ${name}`)] : [];
    $("sought").replaceChildren(...seed, el("span", {class: "quiet"}, text));
  },
};

// One hit: a picture with its box, or a film at the moment that was found. A moment of the film that is shown needs no other player.
const film = {node: null, path: null, content: null, moments: []};

function seek({at, time}) {
  if (film.node.readyState) film.node.currentTime = at ?? time?.[0] ?? 0;
  else film.node.addEventListener("loadedmetadata", () => seek(viewer.item), {once: true});
}

// All hits in one film, in its order.
function momentsIn(path) {
  const those = viewer.items.map((hit, at) => ({hit, at})).filter(({hit}) => hit.media_path === path && hit.time);
  return those.sort((a, b) => a.hit.time[0] - b.hit.time[0]).map(({hit, at}) =>
    button([el("time", {}, momentOf(hit)), el("small", {class: "quiet"}, ` ${score(hit.score)}`)], () => viewer.go(at), {"data-at": at}));
}

function shownHit(hit) {
  const isFilm = hit.kind === "video", name = score(hit.score);
  if (!isFilm || !film.node?.isConnected || film.path !== hit.media_path) {
    const node = isFilm ? el("video", {controls: true, playsinline: true, preload: "auto", "aria-label": hit.media_path})
      : el("img", {alt: hit.media_path}), scene = new Scene(node), moments = isFilm ? momentsIn(hit.media_path) : [];
    node.addEventListener("error", () => {
      if (node.getAttribute("src")) scene.box.replaceChildren(el("p", {class: "blank quiet"},
        "It is not where it was when the index was built, or this browser cannot show it."));
    });
    if (hit.box && !isFilm) scene.putLater([{label: name, passed: true, box: hit.box}]);
    node.src = `/v1/media/${encodeURIComponent(hit.id)}`;
    Object.assign(film, {node: isFilm ? node : null, path: hit.media_path, moments, content: el("div", {}, scene.box,
      moments.length ? el("div", {class: "moments", role: "group", "aria-label": "Moments in this film"}, moments) : null,
      el("p", {}, button("More like this", () => { $("viewer").close(); search.likeHit(viewer.item); })))});
  }
  if (isFilm) seek(hit);
  for (const moment of film.moments) moment.setAttribute("aria-current", Number(moment.dataset.at) === viewer.at);
  return {title: hit.media_path, place: joined([momentOf(hit), name, copiesOf(hit)]), content: film.content};
}

const viewer = new Viewer($("viewer"), shownHit);

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
