// One hit, large: a picture with its box, or a film at the moment that was found; and the way to
// the other hits.

const viewer = {
  hits: [], at: 0,

  open(hits, at) {
    Object.assign(this, {hits, from: document.activeElement, film: null, shown: null});
    const button = (text, name, act) => el("button", {type: "button", "aria-label": name, title: name, click: act}, text);
    this.before = button("←", "Hit before (left arrow)", () => this.show(this.at - 1));
    this.after = button("→", "Next hit (right arrow)", () => this.show(this.at + 1));
    this.title = el("h2", {id: "viewer-title", dir: "auto"});
    this.stage = el("div");
    this.place = el("p", {class: "facts quiet", "aria-live": "polite"});
    $("viewer").replaceChildren(
      el("div", {class: "head"}, this.title, el("span", {class: "acts"}, this.before, this.after, button("✕", "Close (Escape)", () => $("viewer").close()))),
      this.stage, el("div", {class: "head"}, this.place, el("span", {class: "acts"},
        el("button", {type: "button", click: () => { $("viewer").close(); search.likeHit(this.hit); }}, "More like this"))));
    $("viewer").showModal();
    this.show(at);
  },

  get hit() { return this.hits[this.at]; },

  show(at) {
    if (!this.hits[at]) return;
    this.at = at;
    // A moment of the film that is shown needs no other player.
    if (!this.film || this.shown !== this.hit.media_path) this.build();
    this.seek();
    this.mark();
  },

  seek() {
    const {at, time} = this.hit, moment = at ?? time?.[0] ?? 0;
    if (this.film?.readyState) this.film.currentTime = moment;
    else this.film?.addEventListener("loadedmetadata", () => this.seek(), {once: true});
  },

  build() {
    const {hit} = this, isFilm = hit.kind === "video";
    const node = isFilm ? el("video", {controls: true, playsinline: true, preload: "auto", "aria-label": hit.media_path})
      : el("img", {alt: hit.media_path});
    Object.assign(this, {film: isFilm ? node : null, shown: hit.media_path, moments: isFilm ? this.momentsOf(hit) : null});
    const scene = new Scene(node);
    node.addEventListener("error", () => scene.box.replaceChildren(el("p", {class: "blank quiet"}, "It is not where it was when the index was built, or this browser cannot show it.")));
    if (hit.box && !isFilm) node.addEventListener("load", () => {
      const name = score(hit.score);
      scene.put([{label: name, passed: true, box: hit.box}], node.naturalWidth, node.naturalHeight, tints([name]));
    });
    node.src = `/v1/media/${encodeURIComponent(hit.id)}`;
    this.title.textContent = hit.media_path;
    this.stage.replaceChildren(...[scene.box, this.moments].filter(Boolean));
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
    // Not `disabled`, which would take the focus from who goes on by them.
    this.before.setAttribute("aria-disabled", String(this.at === 0));
    this.after.setAttribute("aria-disabled", String(this.at === this.hits.length - 1));
    this.place.textContent = [`hit ${this.at + 1} of ${this.hits.length}`, hit.time ? momentOf(hit) : "", score(hit.score),
      hit.copies ? counted(hit.copies, "copy", "copies") : ""].filter(Boolean).join(" · ");
    for (const moment of this.moments?.children || [])
      moment.setAttribute("aria-current", String(Number(moment.dataset.at) === this.at));
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
