// The page as a whole: what the server has.

async function start() {
  try {
    const info = await asked("GET", "/v1/info"), {index} = info, names = new Set([info.model, info.caption_model]);
    $("about").textContent = joined([...names, index && `${counted(index.rows, "vector")} to search`]);
    $("about").title = joined([`Penstock ${info.version}`, index?.folder], ", index ");
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

onSlash($("query"));
document.querySelector("nav [href='#load']").addEventListener("click", () => { $("figures").open = true; });
start();
