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
  /** The HTTP status; 0 if there was none, 200 if the connection was open. */
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
