// All by the keyboard: from one caption to the next, and what is done to it.

const KEYS = [
  ["j  ↓", "next caption"], ["k  ↑", "caption before"], ["e  Enter", "edit: Enter saves, Shift+Enter breaks the line, Esc leaves it"],
  ["a", "accept, and on"], ["r", "reject, and on"], ["x", "choose it, or not"], ["X", "choose all shown, or none"],
  ["n", "ask again about it, or about what is chosen"], ["c", "use another answer"], ["t", "tags"], ["w", "write data sets"],
  ["u  Ctrl+Z", "undo"], ["U  Ctrl+Shift+Z", "redo"], ["p", "play or open it"], ["/", "search"], ["h", "find and replace"],
  ["g", "grid or list"], ["?", "these keys"],
];

const typing = target => target.matches("input:not([type=checkbox]), textarea, select, video");
const currentRow = () => document.activeElement.closest?.(".row");

function keys(page) {
  const onRow = run => () => { const row = currentRow()?.row; if (row) run(row); };
  const decided = review => onRow(row => { row.decide(review); page.step(1); });
  const does = {
    j: () => page.step(1), ArrowDown: () => page.step(1), k: () => page.step(-1), ArrowUp: () => page.step(-1),
    e: onRow(row => row.write()), a: decided("accepted"), r: decided("rejected"), x: onRow(row => page.pick(row.row)), X: () => page.pickAll(),
    n: () => page.again.toggle(), c: onRow(row => row.box.querySelector(".other .acts button")?.click()), t: () => page.tags.toggle(), w: () => page.writing.toggle(),
    p: onRow(row => row.box.closest(".card").querySelector(".frame button")?.click()),
    u: () => page.undo(), U: () => page.redo(), "/": () => at("search").focus(), h: () => page.replacing.toggle(), g: () => page.turn(), "?": () => page.help(),
  };
  document.addEventListener("keydown", event => {
    if (document.querySelector("dialog[open]") || typing(event.target) || event.altKey || !RUN) return;
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key.toLowerCase() === "z") event.shiftKey ? page.redo() : page.undo();
    else if (!control && event.key === "Enter" && event.target.matches(".row")) event.target.row.write();
    else if (!control && does[event.key] && !(event.target.matches("button, summary") && event.key.startsWith("Arrow"))) does[event.key]();
    else return;
    event.preventDefault();
  });
}
