/**
 * <headrace-stream src="/streams/…?since=17">: a durable, ordered event stream as a DOM element.
 *
 *     <headrace-stream src="/streams/…?since=17" refresh="/token" share="chat:42"></headrace-stream>
 *     element.addEventListener("event", ({ detail: { data, id, type, stream } }) => …)
 *
 * Attributes
 *   src               the signed URL; its `since` says where to begin: an id, `now` or `all`
 *   refresh           URL asked for a new one, {"src": "…"}, when src is refused (401, 403, 404, 410)
 *   resume            go on where this tab was before a reload; the value names the place (src's path if empty). An
 *                     id in src's own `since` is what the page already shows, and wins.
 *   share             tabs that give the same name use one connection. The name MUST differ where stream, user or
 *                     audiences differ, or a tab is shown another's events.
 *   streams           names for the streams of a connection of several, in the token's order
 *   silence           seconds without a byte, heartbeats included, until the connection counts as dead (45)
 *   with-credentials  send cookies to another origin too
 *   state             set here, for CSS: connecting, open, waiting (for the next try), closed (no more tries)
 *
 * Events (none bubbles)
 *   event             each server event: {data, id, type, stream}, id being that in its stream. And again under its
 *                     own type, unless that is a name of this list
 *   cursor            {id}: lastEventId moved, with an event or without one
 *   gap               {stream, missed_from, missed_to}: these are no longer kept
 *   reset             {stream, head}: the log is another one and goes on after head
 *   goodbye           {reason}: the server closes; the element comes back by itself
 *   open, error       connected; {status, wait, error}: disconnected, next try in `wait` ms, null if there is none
 */

const WAIT_MS = 1_000; // the first wait is below this, until the server's `retry:` says otherwise
const MAX_WAIT_MS = 30_000;
const STABLE_MS = 5_000; // a connection that lived this long ends a run of failures
const RESERVED = "headrace:";
const OWN_EVENTS = new Set(["event", "cursor", "gap", "reset", "goodbye", "open", "error"]);

/**
 * One frame as it came: `id` and `data` are undefined where it had no such line.
 * @typedef {{id?: string, type: string, data?: string}} Frame
 */

/** Text in, frames out, as WHATWG HTML 9.2.6 says; chunks may end anywhere. */
export class FrameParser {
  #line = "";
  #afterCR = false;
  #id;
  #type = "";
  #data = [];

  /**
   * @param {(frame: Frame) => void} onFrame
   * @param {(ms: number) => void} onRetry
   */
  constructor(onFrame, onRetry) {
    this.onFrame = onFrame;
    this.onRetry = onRetry;
  }

  /** @param {string} text decoded, without a byte order mark */
  push(text) {
    if (!text) return;
    let start = this.#afterCR && text[0] === "\n" ? 1 : 0;
    this.#afterCR = text.endsWith("\r");
    const breaks = /\r\n?|\n/g;
    breaks.lastIndex = start;
    for (let match; (match = breaks.exec(text)); start = breaks.lastIndex) {
      const line = this.#line + text.slice(start, match.index);
      this.#line = "";
      this.#take(line);
    }
    this.#line += text.slice(start);
  }

  #take(line) {
    if (!line) return this.#end();
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#type = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.onRetry(Number(value));
  }

  #end() {
    const frame = {
      id: this.#id,
      type: this.#type || "message",
      data: this.#data.length ? this.#data.join("\n") : undefined,
    };
    this.#id = undefined;
    this.#type = "";
    this.#data = [];
    if (frame.id !== undefined || frame.data !== undefined) this.onFrame(frame);
  }
}

/** "17.4.9/1" as {ids: [17n, 4n, 9n], index: 1}: where we are in each stream, and whose event it is. */
function parseCursor(text) {
  const [, ids, index] = /^(\d+(?:\.\d+)*)(?:\/(\d+))?$/.exec(text ?? "") ?? [];
  return ids ? { ids: ids.split(".").map(BigInt), index: index && Number(index) } : null;
}

/** Both cursors' ids if they are of the same streams. */
function comparable(mine, theirs) {
  const [a, b] = [parseCursor(mine)?.ids, parseCursor(theirs)?.ids];
  return a && a.length === b?.length ? [a, b] : null;
}

/** Whether whoever is at cursor `mine` has been told all that led to cursor `theirs`. */
function covers(mine, theirs) {
  const [a, b] = comparable(mine, theirs) ?? [];
  return !!a?.every((id, i) => id >= b[i]);
}

/** Whether the event with this id has been delivered to one who is at `cursor`. */
function delivered(cursor, id) {
  const [a, b] = comparable(cursor, id) ?? [];
  const { index = 0 } = parseCursor(id) ?? {};
  return !!a && a[index] >= b[index];
}

/** The cursor after `id` came to one who was at `cursor`; it never goes back. */
function advance(cursor, id) {
  const [a, b] = comparable(cursor, id) ?? [];
  return (a ? b.map((part, i) => (part < a[i] ? a[i] : part)).join(".") : id.split("/")[0]) || null;
}

/** Retry-After in ms: seconds or a date (RFC 9110, 10.2.3); 0 without one. */
function retryAfterMs(response) {
  const text = response.headers.get("Retry-After");
  const ms = /^\d+$/.test(text) ? text * 1_000 : Date.parse(text) - Date.now();
  return ms > 0 ? ms : 0;
}

/**
 * Theory of operation. Each stay in the document is one #run: a loop of connections until the stay's signal aborts.
 * The cursor outlives stays, so an element that is moved in the document goes on where it was.
 *
 * Sharing: all tabs connect, and ask for one Web Lock. Its holder leads: it says on a BroadcastChannel what it
 * receives, each frame with its cursor before it. A tab whose cursor covers that one closes its connection and follows:
 * it takes frames while it has been told all before them; otherwise, or after a silence, it connects again from its own
 * cursor. When the leader goes, the browser gives the lock to the next. A lost message costs a connection, no event.
 */
export class HeadraceStream extends HTMLElement {
  static observedAttributes = ["src"];

  #src; // what is connected to: the attribute, or what refresh gave in its place
  #since = null; // the attribute's `since`, for as long as there is no cursor
  #cursor = null;
  #rewind = false; // after a reset the next id counts even if it is lower
  #retryMs = WAIT_MS;
  #stay = null; // AbortController while in the document
  #attempt = null; // AbortController of the connection
  #wake = () => {}; // ends the wait that is under way
  #silenceTimer;
  #channel = null;
  #leading = false;
  #following = false;

  /** The cursor: what a connection made now would begin after; null if nothing has been heard. */
  get lastEventId() {
    return this.#cursor;
  }

  get state() {
    return this.getAttribute("state") ?? "closed";
  }

  get src() {
    return this.getAttribute("src");
  }

  set src(url) {
    this.setAttribute("src", url);
  }

  connectedCallback() {
    if (this.src && !this.#stay) this.#start();
  }

  disconnectedCallback() {
    this.#stop();
  }

  /** A new src is a new beginning, also when it is the same text. */
  attributeChangedCallback() {
    this.#stop();
    this.#src = undefined;
    if (this.isConnected && this.src) this.#start();
  }

  #start() {
    if (this.#src === undefined) {
      this.#src = this.src;
      this.#since = this.#url().searchParams.get("since");
      this.#cursor = parseCursor(this.#since) ? this.#since : this.#remembered();
      this.#rewind = false;
    }
    this.#stay = new AbortController();
    const { signal } = this.#stay;
    addEventListener("online", () => this.#wake(), { signal });
    this.#share(signal);
    this.#run(signal);
  }

  #stop() {
    this.#stay?.abort();
    this.#stay = this.#channel = null;
    this.#leading = this.#following = false;
    clearTimeout(this.#silenceTimer);
    this.#wake();
    this.#setState("closed");
  }

  async #run(signal) {
    let failures = 0;
    let refreshed = false;
    while (!signal.aborted) {
      if (this.#following) {
        await this.#wait();
        continue;
      }
      const began = performance.now();
      let { status, after = 0, error } = await this.#connect(signal);
      if (signal.aborted) return;
      if (this.#following) continue;
      if (status === 200) refreshed = false;
      if ([401, 403, 404, 410].includes(status) && this.hasAttribute("refresh")) {
        status = await this.#refresh(signal);
        if (signal.aborted) return;
        if (status === 200 && !refreshed) {
          refreshed = true;
          continue;
        }
      } else if (status === 400 && this.#cursor && this.#cursor !== this.#since) {
        // Remembered for other streams. Without it the next try is src's own.
        this.#cursor = null;
        this.#emit("reset", { stream: null, head: null });
        continue;
      }
      failures = status === 200 && performance.now() - began > STABLE_MS ? 0 : failures + 1;
      // 204 asks to stay away (WHATWG HTML, 9.2.3); other refusals do not get better by asking again.
      const final = status === 204 || (status >= 400 && status < 500 && ![408, 425, 429].includes(status));
      // Full jitter: clients cut off together come back spread out.
      const longest = Math.min(MAX_WAIT_MS, this.#retryMs * 2 ** Math.max(0, failures - 1));
      const wait = final ? null : after + Math.random() * longest;
      this.#setState(final ? "closed" : "waiting");
      this.#emit("error", { status, wait, error });
      if (signal.aborted) return; // by a handler
      if (final) return this.#stop();
      await this.#wait(wait);
    }
  }

  /** One connection until it ends. Returns its HTTP status; 0 if it never had one. */
  async #connect(signal) {
    const attempt = (this.#attempt = new AbortController());
    const both = AbortSignal.any([signal, attempt.signal]);
    const url = this.#url();
    const since = this.#cursor ?? this.#since;
    if (since) url.searchParams.set("since", since);
    let status = 0;
    this.#setState("connecting");
    this.#heard();
    try {
      // The cursor is in the URL, as a Last-Event-ID header would cost other origins a preflight.
      const response = await fetch(url, { ...this.#fetchOptions("text/event-stream"), signal: both });
      if (response.status !== 200) return { status: response.status, after: retryAfterMs(response) };
      if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
        throw new TypeError("not an event stream"); // such as a café's login page: it passes
      }
      status = 200;
      this.#setState("open");
      const parser = new FrameParser(
        (frame) => !both.aborted && this.#received(frame),
        (ms) => (this.#retryMs = ms),
      );
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      for (let chunk; !(chunk = await reader.read()).done; ) {
        this.#heard();
        parser.push(decoder.decode(chunk.value, { stream: true }));
        if (this.#leading) this.#tell();
        else this.#channel?.postMessage("hello"); // perhaps we have met the leader
      }
      return { status };
    } catch (error) {
      return { status, error };
    } finally {
      if (this.#attempt === attempt && !this.#following) clearTimeout(this.#silenceTimer);
      attempt.abort(); // a body that nobody reads
    }
  }

  #fetchOptions(accept) {
    const credentials = this.hasAttribute("with-credentials") ? "include" : "same-origin";
    return { headers: { Accept: accept }, cache: "no-store", credentials };
  }

  #url() {
    return new URL(this.#src, this.baseURI);
  }

  async #refresh(signal) {
    try {
      const url = new URL(this.getAttribute("refresh"), this.baseURI);
      const response = await fetch(url, { ...this.#fetchOptions("application/json"), signal });
      if (response.ok) this.#src = (await response.json()).src ?? this.#src;
      return response.ok ? 200 : response.status;
    } catch {
      return 0;
    }
  }

  /** Something arrived, so the connection, or the leader, is alive. */
  #heard() {
    clearTimeout(this.#silenceTimer);
    const silence = Number(this.getAttribute("silence")) || 45;
    this.#silenceTimer = setTimeout(() => {
      if (this.#following) this.#unfollow();
      else this.#attempt?.abort(new Error(`silent for ${silence} s`));
    }, silence * 1_000);
  }

  /** @param {Frame} frame from the server */
  #received(frame) {
    // Before the page's handlers, which may remove this element.
    if (frame.type !== "headrace:goodbye") this.#tell(frame);
    this.#take(frame);
  }

  /** @param {Frame} frame from the server or the leader */
  #take({ id, type, data }) {
    const hasId = id !== undefined;
    const repeated = hasId && !this.#rewind && delivered(this.#cursor, id);
    const at = parseCursor(id);
    if (hasId) {
      const cursor = advance(this.#rewind ? null : this.#cursor, id);
      const moved = cursor !== this.#cursor;
      this.#cursor = cursor;
      this.#rewind = false;
      if (moved) this.#emit("cursor", { id: cursor });
    }
    if (data !== undefined && !repeated) {
      if (type.startsWith(RESERVED)) this.#sentinel(type.slice(RESERVED.length), data);
      else {
        const stream = this.getAttribute("streams")?.trim().split(/\s+/)[at?.index ?? 0] ?? at?.index;
        const detail = { data, id: at ? String(at.ids[at.index ?? 0]) : this.#cursor, type, stream };
        this.#emit("event", detail);
        if (!OWN_EVENTS.has(type)) this.#emit(type, detail);
      }
    }
    // After the page's handlers: a crash between the two repeats an event and does not lose it.
    if (hasId) this.#remember();
  }

  #sentinel(kind, data) {
    if (!["gap", "reset", "goodbye"].includes(kind)) return;
    if (kind === "reset") this.#rewind = true;
    this.#emit(kind, JSON.parse(data));
  }

  #share(signal) {
    const name = this.getAttribute("share");
    // Web Locks exist on https and localhost only; elsewhere each tab has its own connection.
    if (!name || !navigator.locks) return;
    const channel = (this.#channel = new BroadcastChannel(RESERVED + name));
    channel.onmessage = ({ data }) => this.#hear(data);
    signal.addEventListener("abort", () => channel.close());
    const lead = () => {
      if (signal.aborted) return;
      this.#leading = true;
      this.#unfollow();
      this.#tell();
      return new Promise((resolve) => signal.addEventListener("abort", resolve));
    };
    navigator.locks.request(RESERVED + name, { signal }, lead).catch(() => {}); // aborted before its turn
    channel.postMessage("hello");
  }

  /** Tell the followers how things stand, and which frame comes next. */
  #tell(frame) {
    if (this.#leading) this.#channel.postMessage({ state: this.state, cursor: this.#cursor, frame });
  }

  #hear(message) {
    if (message === "hello") return this.#tell();
    if (this.#leading) return;
    const { state, cursor, frame } = message;
    const caughtUp = covers(this.#cursor, cursor);
    if (this.#following) {
      if (!caughtUp) return this.#unfollow();
    } else {
      if (!caughtUp || state !== "open") return;
      this.#following = true;
      this.#attempt?.abort();
      this.#wake();
    }
    this.#heard();
    this.#setState(state);
    if (frame) this.#take(frame);
  }

  #unfollow() {
    this.#following = false;
    this.#wake();
  }

  #wait(ms) {
    return new Promise((resolve) => {
      this.#wake = resolve;
      if (ms !== undefined) setTimeout(resolve, ms);
    });
  }

  #setState(state) {
    if (this.getAttribute("state") === state) return;
    this.setAttribute("state", state);
    this.#tell();
    if (state === "open") this.#emit("open", {});
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #place() {
    return this.hasAttribute("resume") && RESERVED + (this.getAttribute("resume") || this.#url().pathname);
  }

  #remembered() {
    try {
      return (this.#place() && sessionStorage.getItem(this.#place())) || null;
    } catch {
      return null; // storage is forbidden here
    }
  }

  #remember() {
    try {
      if (this.#place()) sessionStorage.setItem(this.#place(), this.#cursor ?? "");
    } catch {
      // Forbidden or full: a reload begins at src's `since`.
    }
  }
}

customElements.define("headrace-stream", HeadraceStream);
