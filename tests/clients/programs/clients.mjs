/**
 * The clients of npm, each as its own documentation has it: `node clients.mjs CLIENT URL` follows a stream for ever.
 *
 * A line of JSON is printed for each event that the client hands to its caller, `{"id", "type", "data"}`. Most connect
 * again by themselves. Where a client gives up, its caller begins anew after the id of the last event that it was
 * handed (`since` in the URL), and prints `{"again": why}`.
 */
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const require = createRequire(new URL("../npm/package.json", import.meta.url));
const load = async (name) => await import(require.resolve(name));
const [client, url] = process.argv.slice(2);
const TYPES = ["message", "order", "headrace:gap", "headrace:reset", "headrace:goodbye", "headrace:cursor"];
const PAUSE_MS = 100;
let last = new URL(url).searchParams.get("since");

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

function told(id, type, data) {
  if (id) last = id;
  say({ id: id || null, type: type || "message", data });
}

function from(id) {
  const again = new URL(url);
  again.searchParams.set("since", id);
  return again.href;
}

/** Constructors that follow the standard's EventSource: closed for good after an answer that is not 200. */
function standard(EventSource) {
  const begin = (address) => {
    const source = new EventSource(address);
    for (const type of TYPES) source.addEventListener(type, (event) => told(event.lastEventId, type, event.data));
    source.addEventListener("error", async () => {
      if (source.readyState !== 2) return;
      say({ again: "closed" });
      await sleep(PAUSE_MS);
      begin(from(last));
    });
  };
  begin(url);
}

/** Functions that end with their connection: the caller loops. */
async function loop(connect) {
  for (;;) {
    let why = "end";
    try {
      await connect(from(last));
    } catch (error) {
      why = String(error);
    }
    say({ again: why });
    await sleep(PAUSE_MS);
  }
}

/** What packages for browsers look for, where Node has no window. */
function pretendWindow() {
  globalThis.window = globalThis;
  globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
}

async function lines(body, onText) {
  const decoder = new TextDecoder();
  for await (const chunk of body) onText(decoder.decode(chunk, { stream: true }));
}

const CLIENTS = {
  "eventsource-1": async () => standard((await load("eventsource1")).default),
  "eventsource-2": async () => standard((await load("eventsource2")).default),
  "eventsource-3": async () => standard((await load("eventsource3")).EventSource),
  "eventsource-4": async () => standard((await load("eventsource4")).EventSource),
  "eventsource-5": async () => standard((await load("eventsource5")).EventSource),
  "undici": async () => standard((await load("undici")).EventSource),
  "event-source-polyfill": async () => standard((await load("event-source-polyfill")).default.EventSourcePolyfill),
  "extended-eventsource": async () => standard((await load("extended-eventsource")).EventSource),

  "reconnecting-eventsource": async () => {
    const { EventSource, MessageEvent } = await load("undici");
    Object.assign(globalThis, { EventSource, MessageEvent }); // as a browser has both
    const Source = (await load("reconnecting-eventsource")).default;
    const source = new (Source.default ?? Source)(url, { max_retry_time: 2 * PAUSE_MS });
    for (const type of TYPES) source.addEventListener(type, (event) => told(event.lastEventId, type, event.data));
  },

  "launchdarkly-eventsource": async () => {
    const { EventSource } = (await load("launchdarkly-eventsource")).default;
    const source = new EventSource(url, { initialRetryDelayMillis: PAUSE_MS, errorFilter: () => true });
    for (const type of TYPES) source.addEventListener(type, (event) => told(event.lastEventId, type, event.data));
    source.addEventListener("error", () => {});
  },

  "eventsource-client": async () => {
    const { createEventSource } = await load("eventsource-client");
    createEventSource({ url, onMessage: ({ id, event, data }) => told(id, event, data) });
  },

  "eventsource-parser": async () => {
    const { createParser } = await load("eventsource-parser");
    await loop(async (address) => {
      const response = await fetch(address);
      if (response.status !== 200) throw new Error(`status ${response.status}`);
      const parser = createParser({ onEvent: ({ id, event, data }) => told(id, event, data) });
      await lines(response.body, (text) => parser.feed(text));
    });
  },

  "fetch-event-source": async () => {
    pretendWindow();
    const { fetchEventSource } = await load("@microsoft/fetch-event-source");
    await loop((address) =>
      fetchEventSource(address, {
        openWhenHidden: true,
        onmessage: ({ id, event, data }) => told(id, event, data),
        onclose: () => {
          throw new Error("closed"); // its documentation's way to connect again
        },
        onerror: () => {}, // to try again
      }),
    );
  },

  "event-source-plus": async () => {
    const { EventSourcePlus } = await load("event-source-plus");
    new EventSourcePlus(url).listen({ onMessage: ({ id, event, data }) => told(id, event, data) });
  },

  "fetch-event-stream": async () => {
    const { stream } = await load("fetch-event-stream");
    await loop(async (address) => {
      for await (const { id, event, data = "" } of await stream(address)) told(id, event, data);
    });
  },
};

setInterval(() => {}, 60_000); // some wait for their next try with a timer that keeps no process alive
process.on("unhandledRejection", (error) => say({ again: `unhandled: ${error}` }));
await CLIENTS[client]();
