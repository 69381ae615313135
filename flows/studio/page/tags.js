// Captions that are tags: each tag with its count, taken away or added in all that are shown.

const MOST_TAGS = 200;
const tagsOf = text => text.split(",").map(tag => tag.trim()).filter(Boolean);

class Tags {
  constructor(page) {
    Object.assign(this, {page, box: at("tags")});
  }

  toggle() {
    this.box.hidden = !this.box.hidden;
    at("tag").setAttribute("aria-expanded", !this.box.hidden);
    if (!this.box.hidden) this.draw();
  }

  draw() {
    if (this.box.hidden) return;
    const counts = new Map();
    for (const row of this.page.rows()) for (const tag of new Set(tagsOf(words(row)))) counts.set(tag, (counts.get(tag) || 0) + 1);
    const first = [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])).slice(0, MOST_TAGS);
    const field = el("input", {type: "text", "aria-label": "New tag", autocomplete: "off"});
    const add = event => { event.preventDefault(); this.change(field.value.trim(), true); };
    this.box.replaceChildren(
      el("form", {class: "fields", submit: add}, el("label", {class: "field"}, "Tag ", field), el("button", {type: "submit"}, "Add to what is chosen, else to all shown")),
      el("p", {class: "quiet small"}, `${counted(counts.size, "tag")} in ${counted(this.page.rows().length, "shown caption")}. A tag is searched; ✕ takes it away.`),
      el("div", {class: "acts"}, first.map(([tag, count]) => el("span", {class: "tag"},
        button(`${tag} ${count}`, () => { at("search").value = tag; this.page.show(); }),
        button("✕", () => this.change(tag, false), {"aria-label": `Take away ${tag}`})))));
  }

  change(tag, add) {
    if (!tag || tag.includes(",")) return;
    const changes = [];
    for (const row of this.page.chosenRows()) {
      const before = tagsOf(words(row)), has = before.includes(tag);
      if (has === add) continue;
      const text = (add ? [...before, tag] : before.filter(one => one !== tag)).join(", ");
      if (text) changes.push([row, {...edit(row), caption: text === row.said ? null : text}]);
    }
    if (changes.length) this.page.save(`${add ? "add" : "take away"} tag “${tag}”`, changes);
    this.draw();
  }
}
