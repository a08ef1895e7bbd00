/**
 * <headrace-stream src="/streams/…?since=17">: a durable, ordered event stream as a DOM element. headrace.d.ts describes
 * its attributes, its events, the oldest browsers, and where it begins.
 */

const WAIT_MS = 1_000; // the first wait is below this, until there is a `retry:`
const MAX_WAIT_MS = 8_000; // unless the server's `retry:` is longer
const MAX_RETRY_AFTER_MS = 3_600_000;
const ANSWER_S = 15; // an answer begins within this; the silence of a stream may be longer
const STABLE_MS = 5_000; // a connection that lived this long ends a run of failures
const TAG = "headrace-stream";
const RESERVED = "headrace:";
const SHOWN = ["gap", "reset", "goodbye", "error"]; // also as attributes
const OWN_EVENTS = ["event", "cursor", "open", ...SHOWN];

/** A function that takes text in pieces and calls onFrame with {id, type, data} (WHATWG HTML, 9.2.6). */
function parser(onFrame, onRetry) {
  let rest = []; // of a line, in pieces: a long line is not read again with each
  let afterCr = false; // a \n that comes now belongs to the \r before
  let frame = {};
  return (text) => {
    const [first, ...lines] = (afterCr && text.startsWith("\n") ? text.slice(1) : text).split(/\r\n|\r|\n/);
    if (text) afterCr = text.endsWith("\r");
    rest.push(first);
    if (!lines.length) return;
    lines.unshift(rest.join(""));
    rest = [lines.pop()];
    for (const line of lines) {
      const [, field, value] = /^([^:]*)(?:: ?)?([^]*)/.exec(line);
      if (field === "data") frame.data = frame.data === undefined ? value : `${frame.data}\n${value}`;
      else if (field === "event") frame.type = value;
      else if (field === "id" && !value.includes("\0")) frame.id = value;
      else if (field === "retry" && /^\d+$/.test(value)) onRetry(Number(value) || 1);
      else if (!line) {
        const whole = frame;
        frame = {};
        if (whole.id !== undefined || whole.data !== undefined) onFrame(whole);
      }
    }
  };
}

/** "17-81-3.4/1" as {parts: ["17-81-3", "4"], index: 1} (headrace/cursor.py). */
function parseCursor(text) {
  const [, parts, index] = /^(\d[\d.-]*)(?:\/(\d+))?$/.exec(text) ?? [];
  return parts && { parts: parts.split("."), index: index && Number(index) };
}

const idOf = (part) => BigInt(part.split("-")[0]);
const pending = (cursor) => cursor.replace(/(^|\.)\d+/g, "$1");

/** Both cursors' parts, stream by stream; none if they are not of the same streams. */
function pairs(mine, theirs) {
  const [a, b] = [mine, theirs].map((cursor) => parseCursor(cursor)?.parts ?? []);
  return a.length === b.length ? a.map((each, i) => [each, b[i]]) : [];
}

/** Whether an element at `cursor` has had the event with this id. */
function delivered(cursor, id) {
  const [a, b] = pairs(cursor, id)[parseCursor(id)?.index ?? 0] ?? [];
  return a && idOf(a) >= idOf(b);
}

/** The cursor of an element at `cursor` after `id`; it never goes back. */
function advance(cursor, id) {
  const parts = pairs(cursor, id).map(([a, b]) => (idOf(a) < idOf(b) ? b : a));
  return parts.join(".") || id.split("/")[0] || null;
}

/** The claims of the token in a stream's URL (headrace/tokens.py); {} if it has none. */
async function claims(url) {
  try {
    const [, packed, text] = /\/\d+\.(\.?)([\w-]+)\./.exec(url.pathname);
    const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const { body } = new Response(Uint8Array.from(binary, (char) => char.charCodeAt()));
    return await new Response(packed ? body.pipeThrough(new DecompressionStream("deflate")) : body).json();
  } catch {
    return {};
  }
}

/** Elements wait in the document until Turbo is loaded. */
function renderTurbo(html) {
  if (globalThis.Turbo) globalThis.Turbo.renderStreamMessage(html);
  else document.body.insertAdjacentHTML("beforeend", html);
}

/** Retry-After in ms: seconds or a date (RFC 9110, 10.2.3); 0 without one. */
function retryAfterMs(response) {
  const text = response.headers.get("Retry-After");
  const ms = /^\d+$/.test(text) ? text * 1_000 : Date.parse(text) - Date.now();
  return ms > 0 ? Math.min(ms, MAX_RETRY_AFTER_MS) : 0;
}

/**
 * Each stay in the document is one #run: a loop of connections until the stay's signal aborts.
 *
 * Sharing: all tabs connect, and ask for one Web Lock. Its holder leads: it says on a BroadcastChannel what it
 * receives, each frame with its cursor before it. A tab whose cursor covers that one closes its connection and follows
 * while it is told all; otherwise, or after a silence, it connects. A lost message costs a connection, no event.
 */
class HeadraceStream extends (globalThis.HTMLElement ?? Object) {
  static observedAttributes = ["src", "cursor"];

  #src; // the attribute, or what refresh gave in its place
  #since = null; // the attribute's
  #cursor = null;
  #names = []; // of the streams, in the cursor's order
  #place = null; // in sessionStorage
  #rewind = false; // after a reset the next id counts, even a lower one
  #retryMs = WAIT_MS;
  #failures = 0;
  #stay = null; // its AbortController while there is one
  #attempt = null; // the connection's
  #wake = () => {};
  #silenceTimer;
  #channel = null;
  #leading = false;
  #following = false;

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
    this.#start();
  }

  disconnectedCallback() {
    this.#stop();
    if (!this.hasAttribute("resume")) this.#stored("removeItem");
  }

  attributeChangedCallback(name, old, value) {
    if (name === "cursor" && value === this.#cursor) return; // set here
    this.#stop();
    this.#src = undefined;
    if (name === "src" && old !== null) {
      this.#cursor = null;
      for (const each of ["cursor", ...SHOWN]) this.removeAttribute(each);
    }
    this.#start();
  }

  #start() {
    if (!this.src || !this.isConnected || this.#stay) return;
    if (this.#src === undefined) {
      this.#src = this.src;
      this.#since = this.#url().searchParams.get("since");
      this.#cursor = [this.getAttribute("cursor"), this.#since].find(parseCursor) ?? null;
      this.#rewind = false;
    }
    this.#stay = new AbortController();
    const { signal } = this.#stay;
    const on = (name, listener) => addEventListener(name, listener, { signal });
    on("offline", () => this.#attempt?.abort());
    const again = () => {
      this.#failures = 0;
      this.#wake();
    };
    on("online", again);
    on("visibilitychange", () => document.hidden || again());
    // Connections, locks and channels keep a page out of the back/forward cache.
    on("pagehide", () => {
      this.#stop();
      addEventListener("pageshow", () => this.#start(), { once: true });
    });
    this.#setState("connecting");
    this.#run(signal).catch((error) => {
      if (signal.aborted) return;
      this.#stop();
      this.#emit("error", { status: 0, wait: null, error });
    });
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
    const token = await claims(this.#url());
    if (signal.aborted) return;
    this.#names = this.getAttribute("streams")?.trim().split(/\s+/) ?? token.s ?? [];
    this.#share(signal, token);
    this.#recall();
    this.#failures = 0;
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
        // The cursor is of other streams. The next try begins where src says.
        this.#cursor = null;
        this.#emit("reset", { stream: null, head: null });
        continue;
      }
      if (status === 200 && performance.now() - began > STABLE_MS) this.#failures = 0;
      // 204 means: do not reconnect (WHATWG HTML, 9.2.3). Other refusals would be repeated.
      const final = status === 204 || (status >= 400 && status < 500 && ![408, 425, 429].includes(status));
      // Full jitter: clients cut off together reconnect spread out.
      const longest = Math.max(this.#retryMs, Math.min(MAX_WAIT_MS, this.#retryMs * 2 ** this.#failures++));
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
    signal.addEventListener("abort", () => attempt.abort(), { signal: attempt.signal });
    let status = 0;
    this.#setState("connecting");
    this.#heard(ANSWER_S);
    try {
      // The cursor is in the URL, as a Last-Event-ID header would cost other origins a preflight.
      const url = this.#url();
      const since = this.#cursor ?? this.#since;
      if (since) url.searchParams.set("since", since);
      const response = await fetch(url, { ...this.#fetchOptions("text/event-stream"), signal: attempt.signal });
      if (response.status !== 200) return { status: response.status, after: retryAfterMs(response) };
      const { headers } = response;
      if (!headers.get("Content-Type")?.startsWith("text/event-stream")) {
        throw new TypeError("not an event stream"); // such as a login page
      }
      // A stream has no length: this is a proxy without a server. 503 would end an EventSource.
      if (headers.has("Content-Length")) return { status: 503 };
      status = 200;
      this.#setState("open");
      const parse = parser(
        (frame) => !attempt.signal.aborted && this.#received(frame),
        (ms) => (this.#retryMs = ms),
      );
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      for (let chunk; !(chunk = await reader.read()).done; ) {
        this.#heard();
        parse(decoder.decode(chunk.value, { stream: true }));
        if (this.#leading) this.#tell();
        else this.#channel?.postMessage("hello"); // this tab may have met the leader
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

  /** The connection, or the leader, is alive. */
  #heard(most = Infinity) {
    clearTimeout(this.#silenceTimer);
    const silence = Math.min(Number(this.getAttribute("silence")) || 45, most);
    this.#silenceTimer = setTimeout(() => {
      if (this.#following) this.#unfollow();
      else this.#attempt?.abort(new Error(`silent for ${silence} s`));
    }, silence * 1_000);
  }

  #received(frame) {
    // Before the page's handlers, which may remove this element.
    this.#tell(frame.type === RESERVED + "goodbye" ? { id: frame.id } : frame);
    this.#take(frame);
  }

  #take({ id, type, data }) {
    type ||= "message";
    const at = parseCursor(id);
    const before = this.#cursor;
    const sentinel = type.startsWith(RESERVED) && type.slice(RESERVED.length);
    if (sentinel === "reset") this.#rewind = true;
    const repeated = !this.#rewind && delivered(before, id);
    if (id !== undefined) {
      this.#cursor = advance(this.#rewind ? null : before, id);
      this.#rewind = false;
    }
    const cursor = this.#cursor;
    if (cursor !== before) this.#emit("cursor", { id: cursor });
    if (SHOWN.includes(sentinel)) this.#emit(sentinel, JSON.parse(data));
    else if (sentinel === false && data !== undefined && !repeated) {
      const stream = this.#names[at?.index ?? 0] ?? at?.index;
      const detail = { data, id: at ? String(idOf(at.parts[at.index ?? 0])) : cursor, type, stream };
      this.#emit("event", detail);
      if (!OWN_EVENTS.includes(type)) this.#emit(type, detail);
      if (this.hasAttribute("turbo") && /^\s*<turbo-stream\b/.test(data)) renderTurbo(data);
    }
    // After the handlers, so that a crash between loses no event. They may have set src.
    if (cursor && cursor === this.#cursor) {
      this.setAttribute("cursor", cursor);
      this.#remember();
    }
  }

  #share(signal, { s, u, a }) {
    const given = this.getAttribute("share");
    const name = RESERVED + (given || JSON.stringify([this.#url().origin, s, u, a]));
    // Web Locks exist on https and localhost only; without them each tab has its own connection.
    if (given === null || !(given || s) || !navigator.locks || !globalThis.BroadcastChannel) return;
    const channel = (this.#channel = new BroadcastChannel(name));
    channel.onmessage = ({ data }) => this.#hear(data);
    signal.addEventListener("abort", () => channel.close());
    const lead = () => {
      if (signal.aborted) return;
      this.#leading = true;
      this.#unfollow();
      this.#tell();
      return new Promise((resolve) => signal.addEventListener("abort", resolve));
    };
    navigator.locks.request(name, { signal }, lead).catch(() => {}); // aborted before its turn
    channel.postMessage("hello");
  }

  /** Tells other tabs the state, the cursor and the frame after it. */
  #tell(frame) {
    if (this.#leading) this.#channel.postMessage({ state: this.state, cursor: this.#cursor, frame });
  }

  #hear(message) {
    if (message === "hello") return this.#tell();
    if (this.#leading) return;
    const { state, cursor, frame } = message;
    const mine = this.#cursor;
    // Pending events are left out for both, or for neither.
    const caughtUp = cursor && advance(mine, cursor) === mine && pending(mine) === pending(cursor);
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
    if (state !== "open") return;
    this.removeAttribute("goodbye");
    this.removeAttribute("error");
    this.#emit("open", {});
  }

  #emit(type, detail) {
    if (SHOWN.includes(type)) this.setAttribute(type, "");
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Continues at this tab's stored cursor, unless the content has its own. */
  #recall() {
    const given = this.getAttribute("resume");
    this.#place = null;
    if (given === "off" || (given === null && (this.#since ?? "now") !== "now")) return;
    this.#place = RESERVED + (given || this.#names + this.#url().pathname.split(".")[0]);
    const kept = this.#stored("getItem");
    const [visit] = performance.getEntriesByType("navigation");
    if (!this.#cursor && parseCursor(kept) && (given !== null || visit?.type !== "navigate")) {
      this.#cursor = kept;
      this.#emit("cursor", { id: kept });
    }
    this.#remember();
  }

  #remember() {
    if (this.#cursor) this.#stored("setItem", this.#cursor);
  }

  #stored(method, ...values) {
    try {
      return this.#place && sessionStorage[method](this.#place, ...values);
    } catch {
      // Forbidden or full.
    }
  }
}

// Importing it needs no DOM; of several copies in a page the first is the element.
const registry = globalThis.customElements;
const first = registry?.get(TAG) ?? HeadraceStream;
if (first === HeadraceStream) registry?.define(TAG, first);
export { first as HeadraceStream };
