// One picture or clip: itself on one side, what the server says of it on the other.

const PLAYED = /\.(mp4|m4v|mov|webm|mkv|avi|mpe?g|ts|ogv|3gp|wmv|flv)$/i;
const isClip = file => file.type.startsWith("video/") || (!file.type && PLAYED.test(file.name));
const fileName = file => file.name || (isClip(file) ? "a clip" : "a picture");
// Of each half one, where there are two.
const precise = precision => typeof precision === "object" ? [...new Set(Object.values(precision ?? {}))].join(" and ") : precision;
let made = 0;

class Item {
  // `changed` is called when it is done with something; `like` is given a picture to seek by.
  constructor(file, {changed, like, remove}) {
    Object.assign(this, {file, changed, name: fileName(file), clip: isClip(file), state: "waiting", stopper: null,
      answers: {labels: "", caption: ""}, url: URL.createObjectURL(file)});
    this.node = this.clip
      ? el("video", {controls: true, muted: true, playsinline: true, preload: "metadata", "aria-label": this.name})
      : el("img", {alt: this.name, decoding: "async"});
    this.node.addEventListener("error", () => this.unseen());
    this.scene = new Scene(this.node);
    this.node.src = this.url;
    this.bars = new Bars(name => this.scene.light(name));
    this.times = new Clip(this.node, frame => this.see(frame.labels, this.times.tint));
    this.captions = new Captions(seconds => this.times.go(seconds));
    this.facts = el("p", {class: "facts quiet"}, size(file.size));
    this.parts = {labels: this.part("Labels", this.bars.box), caption: this.part("Caption", this.captions.box)};
    const id = `item-${++made}`, act = (text, run) => button(text, run, {"aria-label": `${text}: ${this.name}`});
    this.alike = set(act("More like this", () => like(this)), {hidden: true});
    this.box = el("article", {class: "card item", "aria-labelledby": id},
      el("div", {class: "head"}, el("h3", {id, dir: "auto"}, this.name), this.facts,
        el("span", {class: "acts"}, this.alike, act("Remove", () => remove(this)))),
      el("div", {class: "pair"}, el("div", {class: "side"}, this.scene.box, this.times.box),
        el("div", {class: "side"}, this.parts.labels.box, this.parts.caption.box)));
  }

  part(title, content) {
    const state = el("p", {class: "state quiet"}), error = el("p", {class: "warning", hidden: true});
    content.hidden = true;
    return {state, error, content, box: el("div", {class: "of", role: "group", "aria-label": title, hidden: true}, state, error, content)};
  }

  // Formats that only the server reads are labelled all the same.
  unseen() {
    this.scene.box.classList.add("bare");
    this.node.replaceWith(el("p", {class: "blank quiet"}, "This browser cannot show it. The server may read it all the same."));
  }

  // Ask for what is wished; an earlier answer to the same stays until the new one is there.
  async run({labels, caption, own, prompt}) {
    this.stopper?.abort();
    const stopper = this.stopper = new AbortController(), {signal} = stopper, parts = [];
    this.state = "busy";
    this.changed();
    if (labels) parts.push(this.ask("labels", LABELS_GATE, stopper, part => this.askLabels(part, own, signal)));
    if (caption) parts.push(this.ask("caption", CAPTION_GATE, stopper, part => this.askCaption(part, prompt, signal)));
    this.parts.labels.box.hidden = !labels;
    this.parts.caption.box.hidden = !caption;
    const well = await Promise.all(parts);
    if (stopper !== this.stopper) return;
    this.state = well.every(Boolean) ? "done" : "failed";
    const [first, second] = [this.parts.labels, this.parts.caption].map(part => part.error);
    if (second.textContent === first.textContent) second.hidden = true; // told once
    this.changed();
  }

  async ask(kind, enter, stopper, work) {
    const part = this.parts[kind];
    complain(part.error, null);
    part.state.textContent = "waiting for its turn";
    try {
      await enter(() => stopper.signal.aborted ? null : work(part));
      return true;
    } catch (error) {
      if (stopper !== this.stopper) return false;
      complain(part.error, error);
      say(`${this.name}: ${error.message}`);
      return false;
    } finally {
      if (stopper === this.stopper) part.state.textContent = "";
    }
  }

  // Sends a request and shows its progress.
  settings(part, signal) {
    const large = this.file.size > 2e6, tell = text => { part.state.textContent = text; };
    tell("looking");
    return {body: this.file, signal, headers: this.file.type ? {} : {"Content-Type": "application/octet-stream"}, waits: tell,
      sent: share => tell(large && share < 1 ? `sending, ${Math.round(100 * share)} %` : "looking")};
  }

  async askLabels(part, own, signal) {
    const answer = await asked("POST", address("/v1/label", {labels: own, top: 8}), this.settings(part, signal));
    part.content.hidden = false;
    this.size = [answer.width, answer.height];
    this.scene.shape(...this.size);
    let given = [];
    if (answer.kind === "video") given = this.times.put(answer.frames);
    else {
      this.see(answer.labels, tints(boxed(answer.labels).map(label => label.label)));
      given = answer.labels.filter(label => label.passed).map(label => label.label);
    }
    this.tell("labels", answer);
    this.alike.hidden = !search.able;
    say(`${this.name}: ${given.join(", ") || "no label"}`);
  }

  see(labels, tint) {
    this.scene.put(labels, ...this.size, tint);
    this.bars.put(labels, tint);
  }

  async askCaption(part, prompt, signal) {
    let answer = null, failed = null;
    const heard = events(event => {
      if (event.error) failed = new Refusal(event.error, event.hint);
      else if (event.done) answer = event;
      else {
        if (!this.captions.chunks.size) part.state.textContent = "writing";
        this.captions.add(event);
      }
    });
    part.content.hidden = false;
    this.captions.begin();
    try {
      const request = await ask("POST", address("/v1/caption", {prompt, stream: 1}), {...this.settings(part, signal), heard});
      heard(request.responseText);
      if (failed || !answer) throw failed || new Refusal("The caption ended before its time.", "Ask again.");
    } finally {
      this.captions.stop();
    }
    this.captions.done(answer.captions);
    this.tell("caption", answer);
    say(`${this.name}: ${joined(answer.captions.map(one => one.caption), " ")}`);
  }

  // Who answered, and how fast.
  tell(kind, {model, precision, seconds, cached}) {
    this.answers[kind] = `${kind} by ${joined([model, precise(precision)], " ")}, ${brief(seconds)}${cached ? ", from the store" : ""}`;
    this.facts.textContent = joined([this.size?.[0] ? this.size.join(" × ") : size(this.file.size), ...Object.values(this.answers)]);
  }

  // What is seen of it now, as a picture to seek by: of a clip the frame that is shown.
  async picture() {
    if (this.node.tagName !== "VIDEO") return this.file;
    const canvas = el("canvas", {width: this.node.videoWidth, height: this.node.videoHeight});
    canvas.getContext("2d").drawImage(this.node, 0, 0);
    return new Promise(done => canvas.toBlob(done, "image/jpeg", 0.92));
  }

  close() {
    this.stopper?.abort();
    this.stopper = null;
    URL.revokeObjectURL(this.url);
    this.box.remove();
  }
}
