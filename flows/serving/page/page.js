// The page as a whole: what the server has, and how light it is.

$("theme").addEventListener("click", () => {
  turnTheme();
  plots.draw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.draw());
document.addEventListener("keydown", event => {
  if (event.key !== "/" || event.target.matches("input, textarea") || !search.able || $("viewer").open) return;
  event.preventDefault();
  $("query").focus();
});

async function start() {
  try {
    const info = await asked("GET", "/v1/info");
    const {index} = info, names = [...new Set([info.model, info.caption_model].filter(Boolean))];
    $("about").textContent = [...names, index ? `${counted(index.rows, "vector")} to search` : ""].filter(Boolean).join(" · ");
    $("about").title = [`Penstock ${info.version}`, index?.folder].filter(Boolean).join(", index ");
    $("look").hidden = $("load").hidden = false;
    search.start(info);
    queue.start(info);
    plots.start();
    complain($("trouble"), null);
    document.documentElement.dataset.ready = "true";
  } catch (error) {
    complain($("trouble"), error);
    setTimeout(start, 3000);
  }
}

start();
