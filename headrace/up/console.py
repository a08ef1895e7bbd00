"""The lines that `headrace up` prints: its own, and those of each process behind the process's name.

The reader of these lines may be slow, stop reading, or go away. So a thread writes them, from a queue of a limited
length: lines that do not fit are dropped, and their number is printed in their place. Nothing else ever waits for the
reader.

Where logs are JSON, each process's lines are printed as they are, since they name it, and ours in the same form.
"""

import contextlib
import json
import queue
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import cycle
from typing import TextIO

_CAPACITY = 10_000
_COLOURS = cycle((36, 33, 32, 35, 34, 96, 93, 92, 95, 94))


class Console:
    """Writes lines to a stream. Any thread may call it; one thread of its own writes."""

    def __init__(self, stream: TextIO, names: list[str], *, coloured: bool, structured: bool = False) -> None:
        self._stream = stream
        self._structured = structured
        self._width = max(map(len, names), default=0)
        self._colours = dict(zip(names, _COLOURS, strict=False)) if coloured else {}
        self._queue: queue.Queue[str | None] = queue.Queue(_CAPACITY)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="console", daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        """A line as it is, for programs to read."""
        try:
            self._queue.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def of(self, name: str, text: str) -> None:
        """A line of the named process."""
        if self._structured:
            self.line(text if text.startswith("{") else _as_json(name, text))
            return
        prefix = f"{name:<{self._width}} |"
        if name in self._colours:
            prefix = f"\x1b[{self._colours[name]}m{prefix}\x1b[0m"
        self.line(f"{prefix} {text}")

    def close(self, deadline_s: float = 1.0) -> None:
        """Write what is left, as far as the reader takes it within the deadline."""
        give_up = time.monotonic() + deadline_s
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=deadline_s)
        self._thread.join(max(0.0, give_up - time.monotonic()))

    def _write(self) -> None:
        while (text := self._queue.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            lines = f"[{dropped} lines lost, since nobody read them]\n{text}\n" if dropped else f"{text}\n"
            # A reader that has gone away takes nothing with it: there is just nobody to write for.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(lines)
                self._stream.flush()


def _as_json(name: str, text: str) -> str:
    timestamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"timestamp": timestamp, "level": "info", "process": name, "event": text}, ensure_ascii=False)


def takes_colours(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the stream is a terminal whose user has not asked for plain text (no-color.org)."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
