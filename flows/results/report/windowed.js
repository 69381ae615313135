// Long lists of which only what is near the view is in the page.

// `build(item)` makes an element; `root` is the box that scrolls, or null for the page. Groups far
// away are empty and keep their height.
function windowed(box, items, {group, height, build, root = null, columns = false}) {
  box.watch?.disconnect();
  clear(box);
  const parts = [];
  const put = part => {
    if (part.childElementCount) return;
    part.append(...part.items.map(build));
    part.style.height = "";
  };
  const drop = part => {
    // What plays, or has the keyboard, stays.
    if (!part.childElementCount || part.contains(document.activeElement)) return;
    if ([...part.querySelectorAll("video")].some(video => !video.paused)) return;
    part.style.height = `${part.getBoundingClientRect().height}px`;
    clear(part);
  };
  box.watch = new IntersectionObserver(seen => {
    for (const entry of seen) (entry.isIntersecting ? put : drop)(entry.target);
  }, {root, rootMargin: "600px 0px"});
  for (let at = 0; at < items.length; at += group) {
    const part = el("div", {class: columns ? "part sheet" : "part"});
    part.items = items.slice(at, at + group);
    part.style.height = `${height * (columns ? Math.ceil(part.items.length / 4) : part.items.length)}px`;
    parts.push(part);
  }
  box.append(...parts);
  if (parts.length === 1) put(parts[0]);
  else for (const part of parts) box.watch.observe(part);
  box.reach = at => {
    const part = at < 0 ? null : parts[Math.floor(at / group)];
    if (!part) return null;
    put(part);
    return part.children[at % group];
  };
  box.putAll = () => parts.forEach(put);
}

// A video that is out of the page still holds its decoder, unless it is told to let go.
function clear(box) {
  for (const video of box.querySelectorAll("video")) {
    video.removeAttribute("src");
    video.load();
  }
  box.replaceChildren();
}
