// Long lists. Up to a limit, all items are in the page: browsers skip layout of distant ones, but
// find and print them. In longer lists, only items near the view exist.

const AT_ONCE = {page: 24, box: 1000}; // items inserted before yielding to the browser

// `build(item)` creates an element; `root`: the scrolling box, or null for the page. Distant groups
// are emptied and keep their height, unless `all` is set.
function windowed(box, items, {group, height, build, root = null, columns = false, all = false}) {
  box.watch?.disconnect();
  clearTimeout(box.filling);
  clear(box);
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
  box.watch = new IntersectionObserver(seen => seen.forEach(entry => (entry.isIntersecting ? put : drop)(entry.target)),
    {root, rootMargin: "600px 0px"});
  const parts = Array.from({length: Math.ceil(items.length / group)}, (_, at) => {
    const own = items.slice(at * group, (at + 1) * group), high = `${height * (columns ? Math.ceil(own.length / 4) : own.length)}px`;
    const part = el("div", {class: `part${columns ? " sheet" : ""}${all ? " whole" : ""}`,
      style: all ? {"contain-intrinsic-height": `auto ${high}`} : {height: high}});
    return Object.assign(part, {items: own});
  });
  box.append(...parts);
  const rest = all || parts.length === 1 ? [...parts] : [];
  const fill = () => {
    rest.splice(0, Math.max(1, Math.floor(AT_ONCE[root ? "box" : "page"] / group))).forEach(put);
    if (rest.length) box.filling = setTimeout(fill);
  };
  if (rest.length) fill();
  else parts.forEach(part => box.watch.observe(part));
  box.reach = at => {
    const part = parts[Math.floor(at / group)];
    if (part) put(part);
    return part ? part.children[at % group] : null;
  };
  box.putAll = () => parts.forEach(put);
}
