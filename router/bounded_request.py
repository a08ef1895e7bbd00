"""A request as gunicorn parses it, with bounds on what its head and its body may cost this process.

gunicorn's parser goes over all that has come of a head each time that more comes, so that a head of many pieces costs
the square of its length. Here a head is complete before that parser sees it, and each byte of it is looked at once.

Imported by gunicorn's master before gevent has patched anything, so nothing but gunicorn may be imported here.
"""

import re
from typing import Any, Final

from gunicorn.http.body import Body, ChunkedReader, LengthReader
from gunicorn.http.errors import InvalidChunkSize, LimitRequestHeaders, LimitRequestLine, NoMoreData
from gunicorn.http.message import Request

HEADERS: Final = 4
"""The largest header has this many times its place among all headers together."""
FREE_CHUNKS: Final = 1000
CHUNK_BYTES: Final = 64
"""A body of more than FREE_CHUNKS chunks has at least so many bytes in each, on average."""
TRAILER_BYTES: Final = 4096
"""Nobody reads what comes behind the last chunk, and gunicorn's parser goes over it with each piece again."""
MOST_DRAINED: Final = 4 << 20
"""Bytes of a body of known length that may be read only to reach the next request."""
_END: Final = b"\r\n\r\n"
# A line that does not end as it must: gunicorn refuses the head at once.
_BARE: Final = re.compile(rb"(?<!\r)\n")


class BoundedRequest(Request):  # type: ignore[misc]
    """One request. gunicorn's worker makes it in the greenlet of its connection. Reading yields."""

    body: Any

    def parse(self, unreader: Any) -> bytes:
        """Read the whole head, then have it parsed; returns what has come behind it.

        Raises gunicorn's errors, LimitRequestHeaders among them for a head that is above the limit in all.
        """
        self.max_buffer_headers = HEADERS * self.limit_request_field_size
        most = self.limit_request_line + self.max_buffer_headers
        head = bytearray()
        while True:
            data = unreader.read()
            if not data:
                if not head:
                    raise StopIteration
                raise NoMoreData(bytes(head[:100]))
            seen = max(0, len(head) - len(_END) + 1)
            head += data
            end = head.find(_END, seen)
            if end >= 0 or _BARE.search(head, seen):
                break
            if len(head) > self.limit_request_line and head.find(b"\r\n", 2, self.limit_request_line + 2) < 0:
                raise LimitRequestLine(len(head), self.limit_request_line)
            if len(head) > most:
                break
        if end > most or (end < 0 and len(head) > most):
            raise LimitRequestHeaders(f"the head has more than {most} bytes")
        unreader.unread(bytes(head))
        return bytes(super().parse(unreader))

    def set_body_reader(self) -> None:
        """Bound the chunks of a body that comes in chunks."""
        super().set_body_reader()
        if isinstance(self.body.reader, ChunkedReader):
            self.body = Body(_BoundedChunks(self, self.unreader))

    def should_close(self) -> bool:
        """Whether no further request is read from this connection: also where reaching it would cost too much."""
        return bool(super().should_close()) or self.body_left

    @property
    def body_left(self) -> bool:
        """Whether there is more of the body than is read only for the next request's sake, or nobody knows how much."""
        reader: Any = self.body.reader
        if self.body.failed:
            return True
        if isinstance(reader, ChunkedReader):
            return reader.parser is not None
        return isinstance(reader, LengthReader) and reader.length > MOST_DRAINED


class _BoundedChunks(ChunkedReader):  # type: ignore[misc]
    """The body's reader. Chunks of a byte each cost far more than their bytes."""

    def __init__(self, request: BoundedRequest, unreader: Any) -> None:
        super().__init__(request, unreader)
        self.limit_trailer_section = TRAILER_BYTES
        self._chunks = 0
        self._bytes = 0

    def parse_chunk_size(self, unreader: Any, data: bytes | None = None) -> tuple[int, bytes | None]:
        size, rest = super().parse_chunk_size(unreader, data)
        self._chunks += 1
        self._bytes += size
        if self._chunks > FREE_CHUNKS + self._bytes // CHUNK_BYTES:
            raise InvalidChunkSize(b"the chunks are too small; send larger ones")
        return size, rest
