/**
 * The operations page. Everything it shows comes as an overview (headrace/node/overview.py): an event of its stream every two
 * seconds or, while the stream is silent because PostgreSQL or Redis is away, an answer of the router. All of it is put into
 * the page as text. Only the graphs' lines change by themselves: they are drawn anew with each overview.
 */

import "/headrace.js";

const WINDOW_MS = 300_000;
const MAX_SAMPLES = 400;
const SILENT_MS = 6_000; // without an overview the router is asked
const ASK_MS = 3_000;
const BREAK_MS = 12_000; // without an overview for so long, a line has a gap
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const number = (value) => (Math.abs(value) < 100 ? fine : whole).format(value);
const sum = (rows, key) => rows.reduce((total, row) => total + (row[key] ?? 0), 0);
const most = (rows, key) => Math.max(0, ...rows.map((row) => row[key] ?? 0));

/** An element with properties and children; text goes in as text. */
function make(tag, properties = {}, ...children) {
  const { role, label, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  if (role) element.setAttribute("role", role);
  if (label) element.dataset.label = label;
  element.append(...children);
  return element;
}

/** Assign only what differs: a selection, and what a screen reader is reading, stay as they are. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

async function ask(method, path, body) {
  const headers = { "X-Headrace-Ops": "1", ...(body && { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
  } catch {
    return { status: 0, value: { error: "the router cannot be reached" } };
  }
  const value = response.status === 204 ? {} : await response.json().catch(() => ({ error: `the answer was ${response.status}` }));
  if (response.status === 401 && path !== "/ops/session") signedOut();
  return { status: response.status, value };
}

// -- graphs

/** One figure with one or two lines: {title, lines: [{name, of}]}, `of` giving a number or null of an overview. */
class Graph {
  constructor({ title, lines }) {
    this.title = title;
    this.lines = lines;
    this.numbers = lines.map(() => document.createTextNode("–"));
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("class", "graph");
    this.svg.setAttribute("role", "img");
    const now = lines.map(({ name }, i) => {
      const key = lines.length > 1 ? `key${i ? " second" : ""}` : "";
      return make("span", {}, this.numbers[i], " ", make("small", { className: key }, name));
    });
    const caption = make("figcaption", {}, make("h2", {}, title), make("div", { className: "now" }, ...now));
    this.figure = make("figure", { className: "card" }, caption, this.svg);
  }

  draw(samples) {
    const end = samples.at(-1).at;
    const { width, height } = this.svg.getBoundingClientRect();
    if (!width) return;
    const series = this.lines.map(({ of }) => samples.map((sample) => of(sample)));
    const highest = Math.max(0, ...series.flat());
    const top = ceiling(highest);
    const bottom = height - 16;
    const x = (at) => width - ((end - at) / WINDOW_MS) * width;
    const y = (value) => bottom - (value / top) * (bottom - 14);
    const parts = [0, 0.5, 1].flatMap((share) => {
      const line = shape("line", { x1: 0, x2: width, y1: y(top * share), y2: y(top * share) });
      return share ? [line, label(number(top * share), 0, y(top * share) - 3)] : [line];
    });
    parts.push(label("5 min ago", 0, height - 3), label("now", width, height - 3, "end"));
    series.forEach((values, i) => {
      let d = "";
      let before = -Infinity;
      values.forEach((value, j) => {
        if (value === null) return;
        const { at } = samples[j];
        d += `${at - before > BREAK_MS ? "M" : "L"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
        before = at;
      });
      parts.push(shape("path", { d, class: i ? "second" : "first" }));
      const last = values.at(-1);
      this.numbers[i].data = last === null ? "–" : number(last);
    });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const spoken = this.lines.map(({ name }, i) => `${name} ${this.numbers[i].data}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}, last five minutes: ${spoken} now, highest ${number(highest)}`);
    this.svg.replaceChildren(...parts);
  }
}

function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function label(text, x, y, anchor = "start") {
  const element = shape("text", { x, y, "text-anchor": anchor, "aria-hidden": "true" });
  element.textContent = text;
  return element;
}

/** The next of 1, 2, 5, 10, 20, 50 … */
function ceiling(value) {
  const step = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((factor) => factor * step).find((each) => each >= value) ?? 10 * step;
}

const some = (value) => value || null; // 0 stands for nothing delivered
const graphs = [
  new Graph({ title: "Connections", lines: [{ name: "", of: ({ shards }) => sum(shards, "connections") }] }),
  new Graph({
    title: "Per second",
    lines: [
      { name: "deliveries", of: ({ shards }) => sum(shards, "deliveries_s") },
      { name: "events", of: ({ shards }) => sum(shards, "events_s") },
    ],
  }),
  new Graph({
    title: "Latency in ms, slowest shard",
    lines: [
      { name: "p99", of: ({ shards }) => some(most(shards, "latency_p99_ms")) },
      { name: "p50", of: ({ shards }) => some(most(shards, "latency_p50_ms")) },
    ],
  }),
  new Graph({ title: "Slow clients", lines: [{ name: "do not read", of: ({ shards }) => sum(shards, "blocked") }] }),
];
$("graphs").append(...graphs.map(({ figure }) => figure));

// -- tables

/** A table whose rows stay the same elements as long as their key does, so that the focus stays where it is. */
class Table {
  /** narrow: what rows become in a narrow window, `blocks` or `blocks lines`; none: the text that stands for no rows. */
  constructor(place, caption, columns, none, narrow = "") {
    this.columns = columns;
    this.rows = new Map();
    // Roles by hand, since a narrow window shows rows as blocks.
    const heads = columns.map(({ title, numeric }) =>
      make("th", { scope: "col", role: "columnheader", className: numeric ? "number" : "" }, title),
    );
    this.body = make("tbody", { role: "rowgroup" });
    const head = make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...heads));
    this.table = make("table", { role: "table", ariaLabel: caption }, head, this.body);
    this.none = make("p", { className: "none" }, none);
    place.className = narrow;
    place.replaceChildren(this.table, this.none);
  }

  show(rows) {
    const gone = new Set(this.rows.keys());
    rows.forEach(([key, values], place) => {
      gone.delete(key);
      const row = this.rows.get(key) ?? this.add(key);
      if (this.body.children[place] !== row) this.body.insertBefore(row, this.body.children[place] ?? null);
      this.columns.forEach(({ fill, key: name, kind }, i) => {
        const cell = row.cells[i];
        if (fill) return fill(cell, values);
        say(cell, String(values[name] ?? ""));
        if (kind) cell.className = kind(values);
      });
    });
    for (const key of gone) {
      this.rows.get(key).remove();
      this.rows.delete(key);
    }
    this.table.hidden = !rows.length;
    this.none.hidden = !!rows.length;
  }

  add(key) {
    const cells = this.columns.map(({ title, numeric, className = "" }, i) =>
      i
        ? make("td", { role: "cell", label: title, className: `${className} ${numeric ? "number" : ""}`.trim() })
        : make("th", { scope: "row", role: "rowheader" }),
    );
    const row = make("tr", { role: "row" }, ...cells);
    this.rows.set(key, row);
    return row;
  }
}

function fillAction(cell, shard) {
  const action = ["drained", "draining"].includes(shard.state) ? "undrain" : "drain";
  let button = cell.firstElementChild;
  if (!button) {
    button = make("button", { type: "button" });
    button.addEventListener("click", () => plan(button.dataset.action, button.dataset.shard));
    cell.append(button);
  }
  if (button.dataset.action === action) return;
  Object.assign(button.dataset, { action, shard: shard.id });
  say(button, action === "drain" ? "Drain…" : "Undrain…");
  button.setAttribute("aria-label", `${action === "drain" ? "Drain" : "Undrain"} ${shard.id}…`);
}

const tables = {
  shards: new Table(
    $("shards"),
    "Shards",
    [
      { title: "Shard", key: "id" },
      { title: "Node", key: "node" },
      { title: "State", key: "state", kind: ({ state }) => state },
      { title: "Connections", key: "connections", numeric: true },
      { title: "Capacity", key: "capacity", numeric: true },
      { title: "Streams", key: "streams", numeric: true },
      { title: "Slots", key: "slots", numeric: true },
      { title: "Deliveries/s", key: "deliveries", numeric: true },
      { title: "p99 ms", key: "p99", numeric: true },
      { title: "Lag s", key: "lag_s", numeric: true, kind: ({ lag_s }) => (lag_s ? "number wrong" : "number") },
      { title: "Canary", key: "canary", kind: ({ canary }) => (["ok", "–"].includes(canary) ? "" : "wrong") },
      { title: "", className: "act", fill: fillAction },
    ],
    "No shard is registered.",
    "blocks",
  ),
  moves: new Table(
    $("moves"),
    "Moves under way",
    [
      { title: "From", key: "from" },
      { title: "To", key: "to" },
      { title: "Connections left", key: "connections", numeric: true },
    ],
    "Nothing is moving.",
  ),
  errors: new Table($("errors"), "Last errors", [{ title: "Shard", key: "id" }, { title: "Error", key: "text" }], "None."),
  hot: new Table(
    $("hot"),
    "Hot streams",
    [
      { title: "Stream", key: "stream" },
      { title: "Node", key: "node" },
      { title: "Connections", key: "connections", numeric: true },
    ],
    "None: a stream is hot from HEADRACE_HOT_CONNECTIONS on a node.",
  ),
  slow: new Table(
    $("slow"),
    "Slow clients, the longest of each shard",
    [
      { title: "Client", key: "peer" },
      { title: "User", key: "user" },
      { title: "Shard", key: "shard" },
      { title: "Takes nothing for", key: "time", numeric: true },
    ],
    "Every client reads what it is sent.",
    "blocks lines",
  ),
};

function showTables({ shards, moves = [], hot_streams = [], slow_clients = [] }) {
  const keyed = (rows, ...names) => rows.map((row) => [names.map((name) => row[name]).join("\n"), row]);
  tables.shards.show(
    shards.map((shard) => {
      const { deliveries_s = 0, latency_p99_ms, canary } = shard;
      const p99 = latency_p99_ms ? number(latency_p99_ms) : "–";
      return [shard.id, { ...shard, deliveries: number(deliveries_s), p99, canary: canary || "–" }];
    }),
  );
  tables.moves.show(keyed(moves, "from", "to"));
  const errors = shards.flatMap(({ id, last_error, database_error }) =>
    [...new Set([database_error, last_error])].filter(Boolean).map((text) => ({ id, text })),
  );
  tables.errors.show(keyed(errors, "id", "text"));
  tables.hot.show(keyed(hot_streams, "node", "stream"));
  tables.slow.show(keyed(slow_clients.map((each) => ({ ...each, time: `${each.seconds} s` })), "shard", "peer"));
}

// -- overviews

let samples = [];
let heardAt = 0; // when the stream's last overview came, by performance.now()
let signedIn = false;
let element = null;

function take(sample) {
  if (!Array.isArray(sample?.shards) || !(sample.at > (samples.at(-1)?.at ?? 0))) return;
  samples = [...samples, sample].filter(({ at }) => at > sample.at - WINDOW_MS).slice(-MAX_SAMPLES);
  draw();
}

let drawing = false;
function draw() {
  // Once for each frame of the screen: when the page opens, many overviews come at once.
  if (drawing || !samples.length) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    if (!samples.length) return;
    const last = samples.at(-1);
    showTables(last);
    for (const graph of graphs) graph.draw(samples);
    showTrouble(last);
  });
}
new ResizeObserver(draw).observe($("graphs"));

function showTrouble({ redis, shards }) {
  const database = shards.filter(({ database_error, lag_s }) => database_error || lag_s);
  const found = [];
  if (redis === "away") found.push("Redis is away. This is what the router knew last; delivery goes on.");
  if (database.length) {
    const ids = database.map(({ id }) => id).join(", ");
    found.push(`PostgreSQL is away or refuses, as ${ids} found: ${database[0].database_error || "no answer"}`);
  }
  const failing = shards.filter(({ canary }) => canary && canary !== "ok");
  if (failing.length && !database.length) {
    found.push(`The canary fails: ${failing.map(({ id, canary }) => `${id} (${canary})`).join(", ")}`);
  }
  say($("trouble"), found.join("\n"));
}

function feed(state, text) {
  $("feed").dataset.state = state;
  say($("feed"), text);
}

/** Ask the router for an overview while the stream is silent. */
async function watch() {
  if (!signedIn) return;
  if (performance.now() - heardAt > SILENT_MS) {
    const { status, value } = await ask("GET", "/ops/status");
    if (!signedIn) return;
    if (status === 200) {
      take(value);
      feed("asking", "the stream is silent; asking the router");
    } else {
      feed("closed", value.error);
    }
  }
  setTimeout(watch, ASK_MS);
}

// -- signing in and out

function signedOut() {
  signedIn = false;
  samples = [];
  element?.remove();
  element = null;
  if ($("dialog").open) $("dialog").close();
  $("operations").hidden = $("sign-out").hidden = true;
  $("sign-in").hidden = false;
  feed("closed", "not signed in");
  $("token").focus();
}

async function start() {
  const { status, value } = await ask("GET", "/ops/status");
  if (status !== 200) {
    if (status !== 401) {
      feed("closed", value.error);
      setTimeout(start, ASK_MS);
    }
    return;
  }
  signedIn = true;
  heardAt = performance.now();
  $("sign-in").hidden = true;
  $("operations").hidden = $("sign-out").hidden = false;
  feed("asking", "connecting");
  showTables(value);
  showTrouble(value);
  follow();
  watch();
}

async function follow() {
  const { value } = await ask("GET", "/ops/stream");
  if (!signedIn || element) return;
  if (!value.src) return setTimeout(follow, ASK_MS);
  element = make("headrace-stream", { hidden: true });
  element.setAttribute("refresh", "/ops/stream"); // when its token has expired
  element.setAttribute("resume", "off");
  element.setAttribute("src", value.src);
  element.addEventListener("overview", ({ detail }) => {
    heardAt = performance.now();
    feed("open", "live");
    try {
      take(JSON.parse(detail.data));
    } catch {
      // Not an overview: a publisher of the database may publish anything to this stream.
    }
  });
  document.body.append(element);
}

$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  say($("refused"), "");
  const { status, value } = await ask("POST", "/ops/session", { token: $("token").value });
  if (status !== 204) return say($("refused"), value.error);
  $("token").value = "";
  start();
});

$("sign-out").addEventListener("click", async () => {
  await ask("DELETE", "/ops/session");
  signedOut();
});

// -- actions

const WORDS = {
  drain: (shard) => [`Drain ${shard}`, `All connections of ${shard} move to the others; no client reconnects. It takes no new ones until it is undrained.`],
  undrain: (shard) => [`Undrain ${shard}`, `${shard} serves again, and gets its share of the slots with their connections.`],
  rebalance: () => ["Rebalance", "Every slot goes to its place among the shards that are up, with its connections; no client reconnects."],
};
const planned = new Table(
  $("plan"),
  "The plan",
  [
    { title: "Shard", key: "shard" },
    { title: "Slots now", key: "slots", numeric: true },
    { title: "Slots then", key: "slots_then", numeric: true },
    { title: "Connections now", key: "connections", numeric: true },
  ],
  "Nothing has been planned.",
);
let current = null;

/** Show what an action would do, before it is done. */
async function plan(action, shard = "") {
  say($("done"), "");
  current = null;
  const [title, text] = WORDS[action](shard);
  say($("dialog-title"), title);
  say($("dialog-text"), text);
  say($("confirm"), title);
  say($("dialog-refused"), "");
  $("confirm").disabled = true;
  planned.show([]);
  if (!$("dialog").open) $("dialog").showModal();
  $("cancel").focus();
  const { status, value } = await ask("POST", "/ops/plan", { action, shard });
  if (status !== 200) return say($("dialog-refused"), value.error);
  planned.show(value.rows.map((row) => [`${row.node}\n${row.shard}`, row]));
  if (action === "rebalance" && !value.moves) return say($("dialog-text"), "Every slot is in its place: there is nothing to move.");
  say($("dialog-text"), `${text} ${whole.format(value.moves)} slots move.`);
  current = { action, shard, epoch: value.epoch };
  $("confirm").disabled = false;
}

$("dialog-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!current) return;
  const doing = current;
  current = null;
  $("confirm").disabled = true;
  say($("dialog-refused"), "");
  say($("confirm"), "Under way …");
  const { status, value } = await ask("POST", "/ops/act", doing);
  if (status === 409) {
    await plan(doing.action, doing.shard);
    return say($("dialog-refused"), value.error);
  }
  if (status !== 200) {
    say($("confirm"), WORDS[doing.action](doing.shard)[0]);
    return say($("dialog-refused"), value.error);
  }
  if ($("dialog").open) $("dialog").close();
  say($("done"), `${WORDS[doing.action](doing.shard)[0]}: done.`);
});

$("cancel").addEventListener("click", () => $("dialog").close());
$("rebalance").addEventListener("click", () => plan("rebalance"));

start();
