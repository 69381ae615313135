// The data of a report, and its sections.

const data = JSON.parse($("data").textContent);

function section(id, title, ...children) {
  $("nav").append(el("a", {href: `#${id}`}, title));
  $("main").append(el("section", {id, "aria-label": title}, el("h2", {}, title), ...children));
}

// A bar for each bin in a box of this size; the `height` of a bin is a share of the highest.
const bars = (bins, high, height = share => share) => bins.map((count, x) => {
  const tall = high * height(count / Math.max(1, most(bins)));
  return draw("rect", {class: "bin", x, width: 1, y: high - tall, height: tall});
});
