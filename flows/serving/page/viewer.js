// One hit, large: a picture with its box, or a film at the moment that was found; and the way to
// the other hits.

const viewer = {
  hits: [], at: 0,

  open(hits, at) {
    this.hits = hits;
    this.from = document.activeElement;
    if (!$("viewer").open) $("viewer").showModal();
    this.show(at);
  },

  get hit() { return this.hits[this.at]; },

  show(at) {
    if (!this.hits[at]) return;
    const before = this.hit, same = this.film && before.media_path === this.hits[at].media_path;
    this.at = at;
    if (!same) this.build();
    this.seek(this.hit);
    this.mark();
  },

  // A moment of the film that is playing needs no other player.
  seek({at, time}) {
    const moment = at ?? time?.[0];
    if (!this.film || moment === undefined || moment === null) return;
    if (this.film.readyState) this.film.currentTime = moment;
    else this.film.addEventListener("loadedmetadata", () => this.seek(this.hit), {once: true});
  },

  build() {
    const {hit} = this, url = `/v1/media/${encodeURIComponent(hit.id)}`, isFilm = hit.kind === "video";
    const node = this.film = isFilm ? el("video", {controls: true, playsinline: true, preload: "metadata", "aria-label": hit.media_path})
      : el("img", {alt: hit.media_path});
    if (!isFilm) this.film = null;
    const scene = new Scene(node);
    node.addEventListener("error", () => scene.box.replaceChildren(el("p", {class: "blank quiet"}, "It is not where it was when the index was built, or this browser cannot show it.")));
    if (!isFilm && hit.box) node.addEventListener("load", () => {
      scene.put([{label: score(hit.score), passed: true, box: hit.box}], node.naturalWidth, node.naturalHeight);
    });
    node.src = url;
    const button = (text, name, act, attributes = {}) => el("button", {type: "button", "aria-label": name, title: name, click: act, ...attributes}, text);
    this.before = button("←", "Hit before (left arrow)", () => this.show(this.at - 1));
    this.after = button("→", "Next hit (right arrow)", () => this.show(this.at + 1));
    this.moments = isFilm ? this.momentsOf(hit) : null;
    this.place = el("p", {class: "facts quiet", "aria-live": "polite"});
    $("viewer").replaceChildren(
      el("div", {class: "head"}, el("h2", {id: "viewer-title", dir: "auto"}, hit.media_path),
        el("span", {class: "acts"}, this.before, this.after, button("✕", "Close (Escape)", () => $("viewer").close()))),
      scene.box, this.moments,
      el("div", {class: "head"}, this.place, el("span", {class: "acts"},
        el("button", {type: "button", click: () => { $("viewer").close(); search.likeHit(this.hit); }}, "More like this"))));
  },

  // All hits in one film, in its order.
  momentsOf({media_path: path}) {
    const those = this.hits.map((hit, at) => ({hit, at})).filter(({hit}) => hit.media_path === path && hit.time)
      .sort((a, b) => a.hit.time[0] - b.hit.time[0]);
    if (!those.length) return null;
    return el("div", {class: "moments", role: "group", "aria-label": "Moments in this film"}, those.map(({hit, at}) =>
      el("button", {type: "button", "data-at": at, click: () => this.show(at)},
        el("time", {}, momentOf(hit)), el("small", {class: "quiet"}, ` ${score(hit.score)}`))));
  },

  mark() {
    const {hit} = this;
    this.before.disabled = this.at === 0;
    this.after.disabled = this.at === this.hits.length - 1;
    this.place.textContent = [`hit ${this.at + 1} of ${this.hits.length}`, hit.time ? momentOf(hit) : "", score(hit.score),
      hit.copies ? counted(hit.copies, "copy", "copies") : ""].filter(Boolean).join(" · ");
    for (const moment of this.moments?.children || [])
      moment.toggleAttribute("aria-current", Number(moment.dataset.at) === this.at);
    if (!$("viewer").contains(document.activeElement)) $("viewer").focus();
  },
};

// 0:03.0–0:07.5, or one time where it has no length.
function momentOf({time: [start, end]}) {
  return end - start > 0.05 ? `${clock(start, 1)}–${clock(end, 1)}` : clock(start, 1);
}

$("viewer").addEventListener("keydown", event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  // In a player the arrows are the player's own.
  if (!step || event.target.matches("video") || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  viewer.show(viewer.at + step);
});
$("viewer").addEventListener("click", event => { if (event.target === $("viewer")) $("viewer").close(); });
$("viewer").addEventListener("close", () => {
  viewer.film?.pause();
  viewer.film = null;
  $("viewer").replaceChildren();
  viewer.from?.focus({preventScroll: true});
});
