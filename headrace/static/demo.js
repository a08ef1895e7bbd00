import "/headrace.js";

const COLUMNS = [["todo", "To do"], ["doing", "Doing"], ["done", "Done"]];
const MAX_MESSAGES = 200;
const MAX_FRAMES = 8;
const me = crypto.getRandomValues(new Uint32Array(2)).join("-"); // this page, to time its own events
const $ = (id) => document.getElementById(id);

/** An element with properties and children; text goes in as text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** The event's JSON object; anything else that someone published is taken as {text}. */
function read(data) {
  try {
    const value = JSON.parse(data);
    if (value !== null && typeof value === "object" && !Array.isArray(value)) return value;
  } catch { /* plain text */ }
  return { text: data };
}

async function publish(stream, value, refused) {
  refused.textContent = "";
  try {
    const response = await fetch("/demo/publish", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ stream, event: "message", data: JSON.stringify({ ...value, at: Date.now(), from: me }) }),
    });
    if (response.ok) return true;
    const { error } = await response.json().catch(() => ({}));
    refused.textContent = `Not published: ${error ?? `the server answered ${response.status}`}`;
  } catch {
    refused.textContent = "Not published: the server does not answer. Try again in a moment.";
  }
  return false;
}

function onSubmit(form, toValue, stream) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const field = form.elements.text;
    const text = field.value.trim();
    if (!text) return;
    const kept = field.value;
    if (await publish(stream, toValue(text), form.querySelector(".refused")) && field.value === kept) field.value = "";
    // The answer may come after the event, when the visitor is elsewhere by now.
    if (form.contains(document.activeElement) || document.activeElement === document.body) field.focus();
  });
}

/* Chat: one event a message. */

const chat = {
  clear() {
    $("chat-log").replaceChildren(make("li", { className: "empty" }, "No messages yet."));
  },
  take({ data }) {
    const { name, text, at, from } = read(data);
    const log = $("chat-log");
    log.querySelector(".empty")?.remove();
    const head = make("div", {}, make("b", {}, String(name ?? "someone")));
    const date = new Date(at);
    if (at && !isNaN(date)) {
      const shown = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
      head.append(make("time", { dateTime: date.toISOString() }, shown));
    }
    const className = from === me ? "arrived mine" : "arrived";
    log.append(make("li", { className }, head, make("p", {}, String(text ?? data))));
    while (log.children.length > MAX_MESSAGES) log.firstChild.remove();
    if (from === me) this.following = true;
    this.follow();
  },
  following: true, // until the reader scrolls up
  follow() {
    if (this.following) $("chat-log").scrollTop = $("chat-log").scrollHeight;
  },
};
$("chat-log").addEventListener("scroll", ({ target: log }) => {
  chat.following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
});
addEventListener("resize", () => chat.follow());

const nameField = $("chat-form").elements.name;
nameField.value = localStorage.getItem("headrace-demo-name") ?? `Guest ${Math.ceil(Math.random() * 99)}`;
nameField.addEventListener("change", () => localStorage.setItem("headrace-demo-name", nameField.value));
onSubmit($("chat-form"), (text) => ({ name: nameField.value.trim() || "someone", text }), "chat");

/* Board: the last event of a note says all about it, so that it stands alone when older ones are pruned. */

const board = {
  clear() {
    $("columns").replaceChildren(...COLUMNS.map(([key, title]) => {
      const list = make("ul");
      list.dataset.column = key;
      list.setAttribute("aria-label", title);
      const heading = make("h3", {}, title, make("span", {}, "0"));
      return make("div", { className: "column" }, heading, list);
    }));
  },
  take({ data, id }) {
    const { op = "put", id: key = `event-${id}`, text, column } = read(data);
    const old = [...document.querySelectorAll(".note")].find((note) => note.dataset.key === String(key));
    const focused = old?.contains(document.activeElement) && document.activeElement.dataset.tool;
    const known = COLUMNS.findIndex(([name]) => name === column);
    const note = op === "put" && drawNote(String(key), String(text ?? ""), Math.max(0, known));
    if (note && old && old.parentElement.dataset.column === note.dataset.column) old.replaceWith(note);
    else {
      old?.remove();
      if (note) document.querySelector(`ul[data-column="${note.dataset.column}"]`).append(note);
    }
    if (note && focused) (note.querySelector(`[data-tool="${focused}"]`) ?? note.querySelector("button")).focus();
    for (const column of document.querySelectorAll(".column")) {
      column.querySelector("h3 span").textContent = column.querySelectorAll("li").length;
    }
  },
};

function drawNote(key, text, index) {
  const note = make("li", { className: "note arrived" }, make("div", {}, text));
  Object.assign(note.dataset, { key, column: COLUMNS[index][0] });
  const refused = $("board-form").querySelector(".refused");
  const tool = (name, sign, label, value) => {
    const button = make("button", { type: "button", title: label, ariaLabel: `${label}: ${text}` }, sign);
    button.dataset.tool = name;
    button.addEventListener("click", () => publish("board", { id: key, ...value }, refused));
    return button;
  };
  const moves = [[-1, "left", "←"], [1, "right", "→"]].filter(([step]) => COLUMNS[index + step]);
  const tools = moves.map(([step, name, sign]) => {
    const [column, title] = COLUMNS[index + step];
    return tool(name, sign, `Move to ${title}`, { op: "put", text, column });
  });
  note.append(make("div", { className: "tools" }, ...tools, tool("remove", "✕", "Remove", { op: "remove" })));
  return note;
}

onSubmit($("board-form"), (text) => ({ op: "put", id: crypto.getRandomValues(new Uint32Array(2)).join("-"), text, column: "todo" }), "board");

/* Likes: nothing to keep; the cursor is the count. */

const likes = {
  clear() {
    $("likes-count").textContent = "–";
  },
  take() {},
  at(id) {
    $("likes-count").textContent = id?.split("-")[0] ?? "–";
  },
};
$("like").addEventListener("click", () => publish("likes", {}, document.querySelector(".likes .refused")));

/* The streams. */

const STATES = { open: "live", connecting: "connecting", waiting: "trying again", closed: "closed" };
const frames = [];

function connect(name, view, src) {
  const element = document.createElement("headrace-stream");
  const wire = $(`${name}-wire`);
  const part = (className, text = "") => wire.appendChild(make("span", { className }, text));
  wire.replaceChildren();
  const [state, last, trip, notice] = [part("state"), part("last"), part("trip"), part("notice")];
  state.setAttribute("role", "status");

  const showState = () => {
    wire.dataset.state = element.state;
    state.textContent = STATES[element.state];
  };
  new MutationObserver(showState).observe(element, { attributeFilter: ["state"] });

  const startAfresh = (src) => {
    view.clear();
    element.src = src;
  };
  element.addEventListener("event", ({ detail }) => {
    view.take(detail);
    const { from, at } = read(detail.data);
    if (from === me) trip.textContent = `round trip ${Math.max(0, Date.now() - at)} ms`;
    frames.unshift(`${name}\nid: ${detail.id}\n${detail.data.split("\n").map((line) => `data: ${line}`).join("\n")}`);
    frames.length = Math.min(frames.length, MAX_FRAMES);
    $("frames").textContent = frames.join("\n\n");
  });
  element.addEventListener("cursor", ({ detail }) => {
    last.textContent = `last id ${detail.id}`;
    view.at?.(detail.id);
  });
  element.addEventListener("gap", () => (notice.textContent = "Older events are no longer kept."));
  element.addEventListener("reset", () => {
    notice.textContent = "The log was replaced; this is what it has now.";
    startAfresh(src);
  });
  element.addEventListener("error", async ({ detail }) => {
    // Refused for good, such as by an expired token: ask for a new address.
    if (detail.wait !== null) return;
    await new Promise((resolve) => setTimeout(resolve, 1_000 + Math.random() * 4_000));
    startAfresh((await configuration()).streams[name]);
  });

  view.clear();
  // Three streams in two windows would be all the connections that a browser makes to one host.
  element.setAttribute("share", `demo:${name}`);
  element.src = src;
  document.body.append(element);
  showState();
}

/** The demo's streams. Keeps asking while the server is down. */
async function configuration() {
  for (let wait = 500; ; wait = Math.min(wait * 2, 10_000)) {
    try {
      const response = await fetch("/demo/config", { cache: "no-store" });
      if (response.ok) return await response.json();
    } catch { /* it is being restarted */ }
    await new Promise((resolve) => setTimeout(resolve, wait / 2 + (Math.random() * wait) / 2));
  }
}

for (const view of [chat, board, likes]) view.clear();
document.querySelector(".open-window").href = location.href;
const { streams, names } = await configuration();
const chatName = names?.chat ?? "demo:chat";
$("sql").textContent = `BEGIN;\nSELECT headrace.publish('${chatName}', 'hello from psql');\nCOMMIT;`;
$("cli").textContent = `headrace publish ${chatName} 'hello from the shell'`;
$("curl").textContent = `curl -N '${new URL(streams.chat, location.href)}'`;
connect("chat", chat, streams.chat);
connect("board", board, streams.board);
connect("likes", likes, streams.likes);
