// All by the keyboard: from one caption to the next, and what is done to it.

const KEYS = [
  ["j  ↓", "next caption"], ["k  ↑", "caption before"], ["e  Enter", "edit: Enter saves, Shift+Enter breaks the line, Esc leaves it"],
  ["a", "accept, and on"], ["r", "reject, and on"], ["u  Ctrl+Z", "undo"], ["U  Ctrl+Shift+Z", "redo"], ["p", "play or open it"],
  ["/", "search"], ["h", "find and replace"], ["g", "grid or list"], ["?", "these keys"],
];

const typing = target => target.matches("input, textarea, select, video");
const currentRow = () => document.activeElement.closest?.(".row");

function step(by) {
  const all = [...document.querySelectorAll(".row")], now = all.indexOf(currentRow());
  const next = all[now < 0 ? 0 : now + by];
  if (!next) return;
  next.focus({preventScroll: true});
  next.scrollIntoView({block: "nearest"});
}

function keys(page) {
  const onRow = run => () => { const row = currentRow()?.row; if (row) run(row); };
  const decided = review => onRow(row => { row.decide(review); step(1); });
  const does = {
    j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
    e: onRow(row => row.write()), a: decided("accepted"), r: decided("rejected"),
    p: onRow(row => row.box.closest(".card").querySelector(".frame button")?.click()),
    u: () => page.undo(), U: () => page.redo(), "/": () => document.getElementById("search").focus(),
    h: () => page.replacing.toggle(), g: () => page.turn(), "?": () => page.help(),
  };
  document.addEventListener("keydown", event => {
    if (document.querySelector("dialog[open]") || typing(event.target) || event.altKey) return;
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key.toLowerCase() === "z") event.shiftKey ? page.redo() : page.undo();
    else if (!control && event.key === "Enter" && event.target.matches(".row")) event.target.row.write();
    else if (!control && does[event.key] && !(event.target.matches("button") && event.key.startsWith("Arrow"))) does[event.key]();
    else return;
    event.preventDefault();
  });
}
