// What was done and is not on the server's disk yet: sent one after the other, and again until it is.

const KEPT = `penstock review ${location.pathname}`;
const RETRY_SECONDS = [1, 2, 4, 8];
const wait = milliseconds => new Promise(then => setTimeout(then, milliseconds));

class Saving {
  // `done` hears an answer, `refused` why something was not taken, `told` how it stands.
  constructor({done, refused, told}) {
    Object.assign(this, {done, refused, told, tries: 0, sending: false});
    // A tab that was closed before all was saved left it here.
    try { this.waiting = JSON.parse(localStorage.getItem(KEPT)) || []; } catch { this.waiting = []; }
  }

  add(deed) {
    this.waiting.push({id: crypto.randomUUID?.() || `${Date.now()}-${Math.random()}`, ...deed});
    this.keep();
    this.send();
  }

  keep() {
    try { localStorage.setItem(KEPT, JSON.stringify(this.waiting)); } catch { /* private windows keep nothing */ }
    this.told(this.waiting.length, this.tries, this.why);
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    while (this.waiting.length) {
      const answer = await this.post(this.waiting[0]);
      if (!answer) {
        await wait(1000 * RETRY_SECONDS[Math.min(this.tries, RETRY_SECONDS.length) - 1]);
        continue;
      }
      this.waiting.shift();
      this.keep();
      if (answer.error) this.refused(answer.error);
      else this.done(answer);
    }
    this.sending = false;
  }

  // Ends when all is saved.
  async all() { while (this.waiting.length) await wait(50); }

  // The answer; nothing where it is to be tried again. The server refuses an edit of a text that was changed meanwhile.
  async post(deed) {
    try {
      const {status, responseText} = await sent(`run/${RUN}/edits`, JSON.stringify(deed)), answer = JSON.parse(responseText);
      if (status < 300 || status === 422 || status === 409) {
        this.tries = 0;
        if (status === 409) this.conflict = {deed, now: answer.now};
        return answer;
      }
      this.why = answer.error;
    } catch {
      this.why = "the review has ended: run the same command again, here nothing is lost";
    }
    this.tries += 1;
    this.told(this.waiting.length, this.tries, this.why);
    return null;
  }
}
