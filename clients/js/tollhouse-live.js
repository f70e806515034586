// Follow Tollhouse's live stream from a browser: an async iterator that resumes by itself (README.md).
// A plain ES module: no build step, no dependency.

const FIRST_WAIT = 250;
const LONGEST_WAIT = 30_000; // milliseconds until a lost connection is made anew: at random up to a bound that doubles
const PING_INTERVAL = 20_000; // milliseconds between two pings; a server that answers none until the next is left
const MAX_WAITING = 1000; // messages that may wait for the iteration; then the connection is closed, and resumed later
const MAX_REFUSALS = 2; // fresh tokens in a row that may be refused before it is the person who is refused

const BAD_TOKEN = 1008;
const TOKEN_EXPIRED = 4401;

/** The server will not serve this, however often it is asked. `code` is a problem code of the API. */
export class Refused extends Error {
  constructor(code, detail) {
    super(`${code}: ${detail}`);
    this.name = "Refused";
    this.code = code;
  }
}

/** A person's session: logs in once, then refreshes. Refresh tokens are single-use: one session serves one page. */
export class Session {
  #url;
  #login;
  #accessToken = "";
  #obtaining = null;

  /** Log in with an address and a password at the first need, or go on with a refresh token. */
  constructor(url, { username = "", password = "", refreshToken = "" } = {}) {
    this.#url = new URL("/v1/users/token", url);
    this.#login = { grant_type: "password", username, password };
    this.refreshToken = refreshToken;
  }

  /** Return an access token; where `fresh`, not the one that was returned before. */
  async token({ fresh = false } = {}) {
    if (!this.#accessToken || fresh) {
      this.#obtaining ??= this.#obtain().finally(() => (this.#obtaining = null));
      await this.#obtaining;
    }
    return this.#accessToken;
  }

  async #obtain() {
    const grant = this.refreshToken
      ? { grant_type: "refresh_token", refresh_token: this.refreshToken }
      : this.#login;
    const answer = await fetch(this.#url, { method: "POST", body: new URLSearchParams(grant) });
    const body = await answer.json().catch(() => ({}));
    if ([400, 401, 403].includes(answer.status)) {
      if (this.refreshToken && this.#login.username) {
        this.refreshToken = ""; // the session has ended; the password begins another one
        return this.#obtain();
      }
      throw new Refused(body.code ?? "invalid_credentials", body.detail ?? "The login was refused.");
    }
    if (!answer.ok) throw new TypeError(`the token endpoint answered ${answer.status}`); // as fetch when it fails
    this.#accessToken = body.access_token;
    this.refreshToken = body.refresh_token ?? "";
  }
}

/**
 * Iterate over events of some topics: each once, in order, through cut connections and restarts.
 *
 * `for await (const message of stream)` yields `{type: "event", topic, cursor, event}`, where `event` is the CloudEvent,
 * and `{type: "gap", topic, from, to}` where events cannot be had any more. It throws Refused when no reconnecting helps.
 */
export class LiveStream {
  #url;
  #tokens;
  #topics;
  #socket = null;
  #waiting = [];
  #wake = () => {};
  #failures = 0;
  #refusals = 0;
  #closed = false;

  /** `url` is the system's; `tokens` has `token({fresh})`; `cursors` say, by topic, where to go on from an earlier run. */
  constructor(url, tokens, topics, { cursors = {} } = {}) {
    this.#url = new URL("/v1/ws", url);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#tokens = tokens;
    this.#topics = [...topics];
    /** Where each topic is, as far as it was iterated over. Store them to go on in a later run. */
    this.cursors = { ...cursors };
  }

  /** End the iteration and close the connection. */
  close() {
    this.#closed = true;
    this.#drop();
    this.#wake();
  }

  async *[Symbol.asyncIterator]() {
    try {
      while (!this.#closed) {
        const lost = await this.#connect();
        if (lost === null) yield* this.#messages();
        else await this.#pause(lost);
      }
    } finally {
      this.close();
    }
  }

  /** Connect and subscribe; return null, or what went wrong. */
  async #connect() {
    let token;
    try {
      token = await this.#tokens.token({ fresh: this.#refusals > 0 });
    } catch (error) {
      if (error instanceof Refused) throw error;
      return { code: 1006, reason: String(error) };
    }
    if (this.#closed) return null;
    const socket = new WebSocket(this.#url, ["tollhouse.v1", `bearer.${token}`]);
    this.#waiting = [];
    const { promise, resolve } = Promise.withResolvers();
    socket.onopen = () => resolve(null);
    socket.onclose = ({ code, reason }) => {
      // A browser does not say why a handshake failed: it may have been the token.
      resolve({ code: code === 1006 ? BAD_TOKEN : code, reason, handshake: true });
      if (this.#socket === socket) this.#put({ type: "closed", code, reason });
    };
    socket.onmessage = ({ data }) => {
      if (this.#socket === socket) this.#put(JSON.parse(data));
    };
    this.#socket = socket;
    const lost = await promise;
    if (lost !== null) return lost;
    for (const topic of this.#topics) this.#send({ type: "subscribe", topic, cursor: this.cursors[topic] ?? null });
    return null;
  }

  #put(message) {
    if (message.type !== "closed" && this.#waiting.length >= MAX_WAITING) {
      // Nothing is lost: what was not iterated over comes again from the cursor.
      this.#drop();
      message = { type: "closed", code: 1000, reason: "too much waits" };
    }
    this.#waiting.push(message);
    this.#wake();
  }

  #send(frame) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(frame));
  }

  #drop() {
    this.#socket?.close();
    this.#socket = null;
  }

  /** Yield what one connection brings, until it is lost. */
  async *#messages() {
    let answered = true;
    const pings = setInterval(() => {
      if (!answered) {
        this.#drop();
        this.#put({ type: "closed", code: 1006, reason: "no pong" });
      }
      answered = false;
      this.#send({ type: "ping" });
    }, PING_INTERVAL);
    try {
      while (!this.#closed) {
        const message = this.#waiting.shift();
        if (message === undefined) {
          await new Promise((resolve) => (this.#wake = resolve));
          continue;
        }
        answered = true;
        if (message.type === "closed") {
          await this.#pause(message);
          return;
        }
        if (await this.#take(message)) yield message;
      }
    } finally {
      clearInterval(pings);
    }
  }

  /** Act upon a message; return whether it is for the iteration. */
  async #take(message) {
    switch (message.type) {
      case "event":
        this.cursors[message.topic] = message.cursor;
        return true;
      case "gap":
        this.cursors[message.topic] = message.to;
        return true;
      case "subscribed":
        this.cursors[message.topic] = message.cursor;
        this.#failures = 0;
        break;
      case "ready":
        this.#refusals = 0;
        break;
      case "expiring":
        try {
          this.#send({ type: "auth", token: await this.#tokens.token({ fresh: true }) });
        } catch (error) {
          if (error instanceof Refused) throw error; // else the server closes the socket, and reconnecting asks again
        }
        break;
      case "error":
        if (message.code !== "keys_unavailable") throw new Refused(message.code, message.detail);
    }
    return false;
  }

  /** Wait before the next attempt, or throw where none would help. */
  async #pause({ code, reason, handshake = false }) {
    this.#drop();
    if (code === BAD_TOKEN || code === TOKEN_EXPIRED) {
      this.#refusals += 1;
      // A failed handshake may as well be a server that is away.
      if (this.#refusals > MAX_REFUSALS && !handshake)
        throw new Refused("invalid_token", `Fresh access tokens are refused, too: ${reason}`);
    }
    const wait = Math.random() * Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#failures);
    this.#failures += 1;
    await new Promise((resolve) => {
      this.#wake = resolve; // close() need not wait
      setTimeout(resolve, wait);
    });
  }
}
