/** The state of an element: `connecting`, `open`, `waiting` for its next try, or `closed`, with no more tries. */
export type HeadraceState = "connecting" | "open" | "waiting" | "closed";

/** One event of a stream. */
export interface HeadraceEvent {
  /** The payload, as it was published. */
  data: string;
  /** The event's id in its stream: 1, 2, 3 … */
  id: string;
  /** The type that it was published with; `message` unless said otherwise. */
  type: string;
  /**
   * The stream's name. Where the name is not known: the stream's index in the token, or undefined if the token is for one
   * stream only.
   */
  stream: string | number | undefined;
}

/** Retention has removed events of this stream that the page has not got. */
export interface HeadraceGap {
  stream: string;
  /** The first id that was missed. */
  missed_from: number;
  /** The last id that was missed. */
  missed_to: number;
}

/**
 * The cursor is not of this stream's log, as after a database was restored; the stream continues after the id `head`.
 * Both are null if the element's cursor is not one of this connection's streams; then the element begins again where
 * src says.
 */
export interface HeadraceReset {
  stream: string | null;
  head: number | null;
}

/** The server ends the connection, for this reason; the element reconnects by itself. */
export interface HeadraceGoodbye {
  reason: string;
}

/** The connection has ended, or was refused. */
export interface HeadraceError {
  /** The HTTP status; 0 without an answer, 200 if the connection was open, 503 if a proxy answered without a server. */
  status: number;
  /** Milliseconds until the next try; null if there is none. */
  wait: number | null;
  error?: unknown;
}

/**
 * The DOM events of the element; none of them bubbles. Each event of a stream is dispatched as `event`, and then under
 * its own type, unless that type is a name in this list other than `message`.
 */
export interface HeadraceStreamEventMap {
  event: CustomEvent<HeadraceEvent>;
  message: CustomEvent<HeadraceEvent>;
  /** `lastEventId` has changed, with an event or without one. */
  cursor: CustomEvent<{ id: string }>;
  gap: CustomEvent<HeadraceGap>;
  reset: CustomEvent<HeadraceReset>;
  goodbye: CustomEvent<HeadraceGoodbye>;
  /** The server has accepted the connection. */
  open: CustomEvent<Record<string, never>>;
  error: CustomEvent<HeadraceError>;
}

/**
 * `<headrace-stream src="…">`: a durable, ordered event stream as a DOM element.
 *
 * The element begins where the page's content ends. That place is, in this order:
 *
 * - The attribute `cursor`. The element sets it to the id of each event that the page has handled, so it is kept with
 *   the content: in the back/forward cache, in a clone (page snapshots of Turbo and htmx), at another place in the
 *   document.
 * - The watermark in src's `since`: the content was rendered as of that. A page that is reloaded, restored, duplicated or
 *   taken from an HTTP cache has the content of that watermark again, whatever the tab has received meanwhile: a later
 *   beginning would lose events, an earlier one would repeat them. With `all` the stream delivers the content itself.
 * - With `since=now`, or without `since`, the content shows nothing of the stream. Only then the tab's past counts: a
 *   page that is reloaded or restored continues at the cursor in its sessionStorage; a page that is opened by a link,
 *   or an element that was removed and added again, begins at the head.
 * - A new src begins anew, and so does an element whose `cursor` was taken away, as by a morph into newly rendered
 *   HTML.
 *
 * It works in Chrome and Edge 90, Firefox 90, Safari 15 (all of 2021) and later. Without Web Locks or BroadcastChannel
 * (Safari before 15.4, Firefox before 96) `share` has no effect. Without DecompressionStream (Safari before 16.4,
 * Firefox before 113) the names in a token of many streams are not known, so `stream` is an index unless `streams` is
 * given, and `share` needs a value.
 *
 * The module can be imported where there is no DOM (on a server, in a worker); it then defines nothing. Where a page
 * has several copies of it, the first one is the element.
 *
 * Attributes that a page sets:
 *
 * - `src`: the signed URL. Its `since` is the place where the page's content ends: a watermark, or a cursor of several,
 *   that `headrace.watermark` gave; `all`: the content is empty; `now`, or no `since`: the content shows nothing of the
 *   stream.
 * - `refresh`: a URL from which the element fetches a new src, as JSON `{"src": "…"}`, when src is refused (401, 403,
 *   404, 410).
 * - `share`: tabs share one connection. Those with the same value do; without a value, those whose tokens are for the
 *   same streams, user and audiences. Values MUST differ where any of these differ, or a tab is shown the events of
 *   another user. Works on https and on localhost.
 * - `turbo`: data that begins with `<turbo-stream` is given to Turbo. It MUST be the server's own HTML.
 * - `resume`: the key under which the tab keeps its cursor in sessionStorage, for pages whose `since` is no id. Such a
 *   page continues after a reload without the attribute, too; with it, also when it is opened by a link. `off` prevents
 *   both.
 * - `streams`: other names for the streams of a connection, in the token's order, separated by spaces.
 * - `silence`: seconds without a byte, not even a heartbeat, after which the connection counts as dead; 45 by default.
 * - `with-credentials`: send cookies to another origin too.
 *
 * Attributes that the element sets, for CSS: `state`; `gap` and `reset`, until a new src; `goodbye` and `error`, until
 * it is connected again. It also sets `cursor`, the id of the last event that the page has handled with what is pending
 * behind it, so that a copy of the document has it. Code that renders the content anew MUST remove `cursor`.
 */
export class HeadraceStream extends HTMLElement {
  /** The attribute `src`. Setting it begins anew, even with the same text. */
  src: string | null;
  readonly state: HeadraceState;
  /**
   * The cursor after which a connection made now would begin; null if the element has received none. An id, such as
   * `17`, for each stream, joined by dots; behind it dashes and the numbers of pending events, if there are any.
   */
  readonly lastEventId: string | null;

  addEventListener<K extends keyof HeadraceStreamEventMap>(
    type: K,
    listener: (this: HeadraceStream, event: HeadraceStreamEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  /** A listener for events of a type of the application's own. */
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
