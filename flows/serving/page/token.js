// The token of a server that asks for one: entered once, then kept by the browser as a cookie that
// no script can read.

const token = {
  waiting: null,

  // Done when the server took a token; all requests that were refused wait for the same.
  entered() {
    this.waiting ||= new Promise(done => { this.done = done; this.show(); });
    return this.waiting;
  },

  show() {
    $("token").hidden = false;
    $("token-value").focus();
  },

  async send() {
    complain($("token-error"), null);
    const value = $("token-value").value.trim();
    try {
      const request = await once("POST", "/v1/session", {headers: {Authorization: `Bearer ${value}`}});
      if (request.status === 401) throw new Refusal("That is not the token.", "Copy the whole line of the file.");
      if (request.status >= 300) throw await refusal(request);
    } catch (error) {
      complain($("token-error"), error);
      $("token-value").select();
      return;
    }
    $("token-value").value = "";
    $("token").hidden = true;
    say("The token was taken.");
    this.waiting = null;
    this.done();
  },
};

$("token").addEventListener("submit", event => { event.preventDefault(); token.send(); });
