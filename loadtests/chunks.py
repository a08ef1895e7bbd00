"""A response's body as it comes over HTTP/1.1: in chunks (RFC 9112, section 7.1) or as it is."""

import re
from typing import Final

_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}")
_MOST_SIZE_LINE: Final = 64
_BREAK: Final = b"\r\n"


class Body:
    """The body of one response, without the headers of its chunks. head is the response's head, in bytes."""

    def __init__(self, head: bytes) -> None:
        self._chunked = b"\r\ntransfer-encoding: chunked" in head.lower()
        self._left = 0
        self._last = self._ended = False
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes off the socket; returns the part of the body in them.

        Raises ValueError for a malformed chunk.
        """
        if not self._chunked:
            return data
        found = []
        data = self._rest + data
        while data:
            if self._ended:
                raise ValueError(f"bytes after the last chunk: {data[:60]!r}")
            if not self._left:
                line, end, after = data.partition(_BREAK)
                if not end and len(line) <= _MOST_SIZE_LINE:
                    break
                if not _SIZE.fullmatch(line):
                    raise ValueError(f"no size of a chunk: {line[:60]!r}")
                size = int(line, 16)
                # The line break behind a chunk does not belong to the body, and may come in two pieces.
                data, self._left, self._last = after, size + len(_BREAK), size == 0
            piece = data[: self._left - len(_BREAK)]
            found.append(piece)
            self._left -= len(piece)
            data = data[len(piece) :]
            if self._left > len(_BREAK) or len(data) < len(_BREAK):
                break
            if not data.startswith(_BREAK):
                raise ValueError(f"no line break behind a chunk: {data[:60]!r}")
            data, self._left, self._ended = data[len(_BREAK) :], 0, self._last
        self._rest = data
        return b"".join(found)
