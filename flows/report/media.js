// Videos beside their captions, and images on a contact sheet.

const playing = {source: medium => new URL(medium.url, document.baseURI).href,
                 other: (medium, data) => new URL(medium.url, data.folder).href};

function gone(medium, why) {
  return el("p", {class: "gone"}, el("strong", {}, why), " ", el("code", {}, medium.path));
}

// Its place is told from the report's; a report that was moved alone still finds it by the whole path.
function withFallback(node, medium, data, fail) {
  let tries = 0;
  node.addEventListener("error", () => {
    if (!node.getAttribute("src")) return;
    const other = playing.other(medium, data);
    if (tries++ === 0 && other !== node.src) node.src = other;
    else fail();
  });
  node.src = playing.source(medium);
  return node;
}

function videoCard(medium, shown, words, data) {
  const captions = medium.captions;
  const length = captions.length ? captions[captions.length - 1][1] : 0;
  const list = el("div", {class: "captions", tabindex: "-1"});
  const player = el("div", {class: "player"});
  const position = el("i", {class: "position"}), current = el("i", {class: "current"});
  const strip = el("div", {class: "strip", "aria-hidden": "true"}, current, position);
  let video = null, now = -1, total = length;

  const place = at => {
    const width = at < 0 || !total ? 0 : (Math.min(captions[at][1], total) - captions[at][0]) / total;
    current.style.left = at < 0 || !total ? "0" : `${100 * captions[at][0] / total}%`;
    current.style.width = `${100 * width}%`;
  };
  const paint = () => {
    const image = captions.slice(1, 400).map(caption => `${100 * caption[0] / (total || 1)}%`);
    strip.querySelectorAll("b").forEach(tick => tick.remove());
    strip.prepend(...image.map(left => { const tick = el("b"); tick.style.left = left; return tick; }));
  };
  const mark = () => {
    const time = video.currentTime;
    position.style.left = `${total ? 100 * Math.min(1, time / total) : 0}%`;
    let at = captions.findIndex(([start, end]) => start <= time + 0.002 && time + 0.002 < end);
    if (at < 0 && captions.length && time >= length && captions[captions.length - 1][0] < time) at = captions.length - 1;
    if (at === now) return;
    list.querySelectorAll("[aria-current]").forEach(old => old.removeAttribute("aria-current"));
    now = at;
    place(at);
    const row = shown.indexOf(captions[at]);
    const button = row < 0 ? null : list.reach(row);
    if (!button) return;
    button.setAttribute("aria-current", "true");
    if (!list.matches(":hover") || !video.paused) {
      const inside = button.getBoundingClientRect(), around = list.getBoundingClientRect();
      if (inside.top < around.top || inside.bottom > around.bottom) list.scrollTop += inside.top - around.top - around.height / 3;
    }
  };
  const go = seconds => {
    if (!video) return;
    if (video.preload === "none") video.preload = "metadata";
    video.currentTime = seconds;
    mark();
  };
  const row = caption => el("button", {
    type: "button", "aria-current": captions[now] === caption ? "true" : null, click: () => go(caption[0]),
  }, el("time", {}, clock(caption[0], 1)), el("span", {dir: "auto"}, caption[2].trim() ? marked(caption[2], words) : el("em", {}, "nothing was said")));

  if (medium.gone) player.append(gone(medium, "The file is not where it was:"));
  else {
    video = el("video", {controls: true, preload: "none", playsinline: true, "aria-label": medium.name,
      timeupdate: mark, seeking: mark, seeked: mark,
      loadedmetadata: () => {
        if (Number.isFinite(video.duration)) total = Math.max(video.duration, captions.length ? captions[captions.length - 1][0] : 0);
        paint();
        place(now);
      }});
    player.append(withFallback(video, medium, data, () => {
      video = null;
      const told = gone(medium, "This browser cannot play it, or it was moved since:");
      // A picture that moves is a video to the run and none to a browser's player.
      player.replaceChildren(/\.gif$/i.test(medium.name)
        ? withFallback(el("img", {alt: medium.name}), medium, data, () => player.replaceChildren(told)) : told);
    }));
    nearby.observe(video);
    strip.addEventListener("click", event => {
      const box = strip.getBoundingClientRect();
      go(total * (event.clientX - box.left) / box.width);
    });
  }
  list.addEventListener("keydown", event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    const buttons = [...list.querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    event.preventDefault();
  });
  paint();
  windowed(list, shown, {group: 40, height: 44, build: row, root: list});
  const some = shown.length < captions.length ? `${shown.length} of ${counted(captions.length, "caption")}` : counted(captions.length, "caption");
  return el("article", {class: "card"},
    el("h3", {dir: "auto"}, marked(medium.name, words)),
    el("p", {class: "quiet"}, [some, length ? clock(length) : "", counted(captions.reduce((sum, c) => sum + c[3], 0), "token")].filter(Boolean).join(" · ")),
    medium.prompt ? el("p", {class: "quiet", dir: "auto"}, `Asked: ${medium.prompt}`) : null,
    medium.warnings.map(text => el("p", {class: "warning", dir: "auto"}, text)),
    el("div", {class: "pair"}, el("div", {}, player, strip), list));
}

// The first picture of a video is fetched when the video is looked at, not before.
const nearby = new IntersectionObserver(seen => {
  for (const {target, isIntersecting} of seen) {
    if (isIntersecting && target.preload === "none") { target.preload = "metadata"; nearby.unobserve(target); }
  }
});

function imageTile(medium, words, data, open) {
  const frame = el("button", {type: "button", class: "frame", click: () => open(medium), "aria-label": `Open ${medium.name}`});
  if (medium.gone) frame.replaceChildren(el("span", {class: "gone"}, "not where it was"));
  else frame.append(withFallback(el("img", {loading: "lazy", decoding: "async", alt: ""}), medium, data,
    () => frame.replaceChildren(el("span", {class: "gone"}, "this browser cannot show it"))));
  const text = medium.captions.map(caption => caption[2]).join("\n");
  return el("figure", {}, frame, el("figcaption", {},
    el("span", {class: "said", dir: "auto"}, marked(text, words)),
    el("span", {class: "quiet name", dir: "auto", title: medium.name}, marked(medium.name, words))));
}

// One image as large as the window allows, with its caption; arrows lead to its neighbours.
function viewer(dialog, data) {
  let among = [], at = 0;
  const show = () => {
    const medium = among[at];
    const image = withFallback(el("img", {alt: medium.captions.map(c => c[2]).join("\n")}), medium, data,
      () => image.replaceWith(gone(medium, "This browser cannot show it, or it was moved since:")));
    dialog.replaceChildren(
      el("form", {method: "dialog"}, el("span", {class: "quiet"}, `${at + 1} of ${among.length}`), el("button", {"aria-label": "Close"}, "✕")),
      medium.gone ? gone(medium, "The file is not where it was:") : image,
      el("p", {dir: "auto"}, medium.captions.map(c => c[2]).join("\n")),
      el("p", {class: "quiet", dir: "auto"}, medium.name, medium.prompt ? ` · ${medium.prompt}` : ""),
      medium.warnings.map(text => el("p", {class: "warning"}, text)));
  };
  const step = by => { if (among[at + by]) { at += by; show(); } };
  dialog.addEventListener("keydown", event => {
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  });
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  return (medium, all) => {
    among = all;
    at = all.indexOf(medium);
    show();
    dialog.showModal();
  };
}
