/** Where an element is: `connecting`, `open`, `waiting` for its next try, or `closed`, with no more tries. */
export type HeadraceState = "connecting" | "open" | "waiting" | "closed";

/** One event of the server. */
export interface HeadraceEvent {
  /** The payload, as it was published. */
  data: string;
  /** The event's id in its stream: 1, 2, 3 … */
  id: string;
  /** The type that it was published with; `message` unless said otherwise. */
  type: string;
  /** The stream's name; its index in the token where the name is not known, undefined where there is only one. */
  stream: string | number | undefined;
}

/** Events of this stream were missed and are no longer kept. */
export interface HeadraceGap {
  stream: string;
  missed_from: number;
  missed_to: number;
}

/**
 * This stream's log is not the one that the cursor is of (a restored database, say); it goes on after `head`. Both are
 * null if it was the element's own cursor that did not fit the connection: it begins again as src says.
 */
export interface HeadraceReset {
  stream: string | null;
  head: number | null;
}

/** The server ends the connection; the element comes back by itself. */
export interface HeadraceGoodbye {
  reason: string;
}

/** The connection is gone, or was refused. */
export interface HeadraceError {
  /** The HTTP status; 0 if there was none, 200 if the connection was open, 503 for a proxy's word that no server is. */
  status: number;
  /** Milliseconds until the next try; null if there is none. */
  wait: number | null;
  error?: unknown;
}

/**
 * The events of the element; none bubbles. Each server event is dispatched as `event`, then under its own type unless
 * that is a name of this list.
 */
export interface HeadraceStreamEventMap {
  event: CustomEvent<HeadraceEvent>;
  message: CustomEvent<HeadraceEvent>;
  /** lastEventId moved, with an event or without one. */
  cursor: CustomEvent<{ id: string }>;
  gap: CustomEvent<HeadraceGap>;
  reset: CustomEvent<HeadraceReset>;
  goodbye: CustomEvent<HeadraceGoodbye>;
  open: CustomEvent<Record<string, never>>;
  error: CustomEvent<HeadraceError>;
}

/**
 * `<headrace-stream src="…">`: a durable, ordered event stream as a DOM element.
 *
 * Where it begins, so that the page's content and the cursor speak of the same moment:
 *
 * - At the attribute `cursor`, which is set to each id when the page has handled the event, so it goes wherever the
 *   content goes: the back/forward cache, a clone (page snapshots of Turbo and htmx), another place in the document.
 * - Else at an id in src's `since`, as of which the content was rendered. Reloaded, restored, duplicated or from an HTTP
 *   cache it is that again. What the tab had seen is no matter: begun ahead of the content, events would be lost, behind
 *   it, repeated. `all` asks for the content itself.
 * - With `now` or nothing the content shows nothing of the stream, so only here the tab's past counts: reloaded or
 *   restored, it goes on at its cursor in sessionStorage; come by a link, or after a removal, at the head.
 * - A new src, or `cursor` taken away (a morph into newly rendered HTML), is a new beginning.
 *
 * It works in Chrome and Edge 90, Firefox 90, Safari 15 (all of 2021) and later. What is missing there costs this much:
 * without Web Locks or BroadcastChannel (Safari before 15.4, Firefox before 96) `share` has no effect; without
 * DecompressionStream (Safari before 16.4, Firefox before 113) the names in a token of many streams are not known, so
 * `stream` is an index unless `streams` is given, and `share` needs a value.
 *
 * The module can be imported where there is no DOM (on a server, in a worker); it then defines nothing. Where a page
 * has several copies of it, the first one is the element.
 *
 * Attributes that a page sets:
 *
 * - `src`: the signed URL. Its `since` says what the page's content is as of: an id, or a composite cursor, that
 *   `headrace.head` gave; `all`: the content is empty; `now` or none: it shows nothing of the stream.
 * - `refresh`: a URL that is asked for a new one, `{"src": "…"}`, when src is refused (401, 403, 404, 410).
 * - `share`: tabs use one connection: those with the same value, or, with the attribute alone, those whose tokens are
 *   for the same streams, user and audiences. A value MUST differ where any of these does, or a tab is shown another's
 *   events. On https and localhost.
 * - `turbo`: payloads that begin with `<turbo-stream` are given to Turbo. They MUST be the server's own HTML.
 * - `resume`: the name of the place where the tab keeps its cursor over reloads, for pages whose `since` is no id. Such
 *   a page resumes after a reload without it too; with it also when it is come to by a link. `off` forbids both.
 * - `streams`: other names for the streams of a connection, in the token's order, separated by spaces.
 * - `silence`: seconds without a byte, heartbeats included, until the connection counts as dead (45).
 * - `with-credentials`: send cookies to another origin too.
 *
 * Attributes that it sets, for CSS: `state`; `gap` and `reset` until a new src; `goodbye` and `error` until it is
 * connected again. `cursor` is the id of the last event that the page has handled, so that it is kept with the content
 * where the document is copied; who renders the content anew removes it.
 */
export class HeadraceStream extends HTMLElement {
  /** The attribute; setting it is a new beginning, also with the same text. */
  src: string | null;
  readonly state: HeadraceState;
  /** What a connection made now would begin after; null if nothing has been heard. */
  readonly lastEventId: string | null;

  addEventListener<K extends keyof HeadraceStreamEventMap>(
    type: K,
    listener: (this: HeadraceStream, event: HeadraceStreamEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  /** An event type of your own. */
  addEventListener(
    type: string,
    listener: ((this: HeadraceStream, event: CustomEvent<HeadraceEvent>) => unknown) | EventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof HeadraceStreamEventMap>(
    type: K,
    listener: (this: HeadraceStream, event: HeadraceStreamEventMap[K]) => unknown,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: ((this: HeadraceStream, event: CustomEvent<HeadraceEvent>) => unknown) | EventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

declare global {
  interface HTMLElementTagNameMap {
    "headrace-stream": HeadraceStream;
  }
}
