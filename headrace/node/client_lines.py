"""Log lines about clients that come and go: so many a second, since ten thousand of them help nobody.

    {"event": "hand-off", …}                        the first lines of a second are written
    {"event": "hand-off", "left_out": 812, …}       the next line says how many were not

Lines at WARNING and above, and lines about anything else, are always written.
"""

import logging
from typing import Final

CLIENT_LINES: Final = ("hand-off", "client taken", "client closed")
"""What a line of these kinds says as its `event`."""


class ClientLines(logging.Filter):
    """A filter that limits the lines of each kind of `CLIENT_LINES` in a process. Owned by a handler."""

    def __init__(self, most_per_s: int) -> None:
        """most_per_s is for each kind; with 0 no line of these kinds is written."""
        super().__init__()
        self._most_per_s = most_per_s
        self._second = dict.fromkeys(CLIENT_LINES, 0)
        self._written = dict.fromkeys(CLIENT_LINES, 0)
        self._left_out = dict.fromkeys(CLIENT_LINES, 0)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; one that comes behind lines that were not gets the key left_out."""
        kind = record.msg
        if record.levelno > logging.INFO or kind not in CLIENT_LINES:
            return True
        second = int(record.created)
        if second != self._second[kind]:
            self._second[kind], self._written[kind] = second, 0
        if self._written[kind] >= self._most_per_s:
            self._left_out[kind] += 1
            return False
        self._written[kind] += 1
        if self._left_out[kind]:
            record.left_out = self._left_out[kind]
            self._left_out[kind] = 0
        return True
