// A picture or a video with the captions of it.

class Card {
  constructor({medium, rows}, around, save, open) {
    Object.assign(this, {medium, open});
    this.frame = el("div", {class: "frame"});
    const show = seconds => this.play(seconds);
    show.around = around;
    const prompts = [...new Set(rows.map(row => row.prompt))].filter(Boolean);
    const some = rows.length < medium.captions.length ? `${rows.length} of ${counted(medium.captions.length, "caption")}` : "";
    this.box = el("article", {class: "card", "aria-label": medium.name}, this.frame,
      el("div", {class: "about"}, el("h2", {dir: "auto"}, marked(medium.name, around.sought)),
        el("p", {class: "quiet small"}, [some, around.asked ? "" : prompts.join(" · ")].filter(Boolean).join(" · ")),
        rows.map(row => new Row(row, {media: medium, frame: show, save}).box)));
    this.still(rows[0]);
  }

  still(row) {
    const {medium} = this;
    if (medium.gone) return this.frame.replaceChildren(this.gone(`${medium.gone}:`));
    const at = medium.kind === "video" ? `?at=${Math.max(0, (row.start + Math.max(row.start, row.end)) / 2).toFixed(2)}` : "";
    const image = el("img", {loading: "lazy", decoding: "async", alt: "", src: `small/${medium.number}${at}`,
      error: () => button.replaceChildren(el("span", {class: "gone"}, "no picture can be made of it"))});
    const button = el("button", {type: "button", "aria-label": `${medium.kind === "video" ? "Play" : "Open"} ${medium.name}`,
      click: () => medium.kind === "video" ? this.play(row.start) : this.open(medium)}, image,
      medium.kind === "video" ? el("span", {class: "sign", "aria-hidden": "true"}, "▶") : null);
    this.frame.replaceChildren(button);
  }

  play(seconds) {
    if (this.medium.kind !== "video" || this.medium.gone) return;
    let video = this.frame.querySelector("video");
    if (!video) {
      video = el("video", {controls: true, playsinline: true, "aria-label": this.medium.name,
        error: () => this.frame.replaceChildren(this.gone("This browser cannot play it:"))});
      video.src = `media/${this.medium.number}`;
      this.frame.replaceChildren(video);
    }
    video.currentTime = seconds;
    video.play().catch(() => {});
  }

  gone(why) {
    return el("p", {class: "gone"}, el("strong", {}, why), " ", el("code", {}, this.medium.path));
  }
}

function failureCard(failure) {
  return el("article", {class: "card failure"}, el("h2", {dir: "auto"}, failure.media_path),
    el("p", {class: "quiet small"}, failure.stage), el("p", {dir: "auto"}, `${failure.message}. `, el("b", {}, failure.hint)));
}

// A picture as large as the window allows.
function opener(dialog) {
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  return medium => {
    dialog.replaceChildren(el("form", {method: "dialog"}, el("span", {class: "quiet", dir: "auto"}, medium.name),
      el("button", {"aria-label": "Close"}, "✕")), el("img", {alt: medium.name, src: `media/${medium.number}`,
      error: event => { event.target.src = `small/${medium.number}`; }}));
    dialog.showModal();
  };
}
