// Long lists. Up to a limit, all items are in the page: browsers skip layout of distant ones, but
// find and print them. In longer lists, only items near the view exist.

const AT_ONCE = {page: 24, box: 1000}; // items inserted before yielding to the browser

// `build(item)` creates an element; `root`: the scrolling box, or null for the page. Distant groups
// are emptied and keep their height, unless `all` is set.
function windowed(box, items, {group, height, build, root = null, columns = false, all = false}) {
  box.watch?.disconnect();
  clearTimeout(box.filling);
  clear(box);
  const parts = [];
  const put = part => {
    if (part.childElementCount) return;
    part.append(...part.items.map(build));
    part.style.height = "";
  };
  const drop = part => {
    // Keep elements that play or have the focus.
    if (!part.childElementCount || part.contains(document.activeElement)) return;
    if ([...part.querySelectorAll("video")].some(video => !video.paused)) return;
    part.style.height = `${part.getBoundingClientRect().height}px`;
    clear(part);
  };
  box.watch = new IntersectionObserver(seen => {
    for (const entry of seen) (entry.isIntersecting ? put : drop)(entry.target);
  }, {root, rootMargin: "600px 0px"});
  for (let at = 0; at < items.length; at += group) {
    const part = el("div", {class: `part${columns ? " sheet" : ""}${all ? " whole" : ""}`});
    part.items = items.slice(at, at + group);
    const high = `${height * (columns ? Math.ceil(part.items.length / 4) : part.items.length)}px`;
    if (all) part.style.containIntrinsicHeight = `auto ${high}`;
    else part.style.height = high;
    parts.push(part);
  }
  box.append(...parts);
  const rest = all || parts.length === 1 ? [...parts] : [];
  const fill = () => {
    rest.splice(0, Math.max(1, Math.floor(AT_ONCE[root ? "box" : "page"] / group))).forEach(put);
    if (rest.length) box.filling = setTimeout(fill);
  };
  if (rest.length) fill();
  else for (const part of parts) box.watch.observe(part);
  box.reach = at => {
    const part = at < 0 ? null : parts[Math.floor(at / group)];
    if (!part) return null;
    put(part);
    return part.children[at % group];
  };
  box.putAll = () => parts.forEach(put);
}

// A video that was removed from the page keeps its decoder unless it is unloaded.
function clear(box) {
  for (const video of box.querySelectorAll("video")) {
    video.removeAttribute("src");
    video.load();
  }
  box.replaceChildren();
}
