"""A response's body as it comes over HTTP/1.1: in chunks (RFC 9112, section 7.1) or as it is."""


class Body:
    """Takes the chunk headers off; a context of one response. head is the response's head."""

    def __init__(self, head: bytes) -> None:
        self._chunked = b"\r\ntransfer-encoding: chunked" in head.lower()
        self._left = 0
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """What of the body has come with these bytes. Raises ValueError for what is no chunk."""
        if not self._chunked:
            return data
        found = []
        data = self._rest + data
        while data:
            if not self._left:
                size, end, after = data.partition(b"\r\n")
                if not end or (size == b"0" and len(after) < 2):
                    break
                data, self._left = after, int(size, 16) + 2
            piece = data[: self._left]
            # The line break behind a chunk is none of it, also if it comes in two pieces.
            found.append(piece[: max(0, self._left - 2)])
            self._left -= len(piece)
            data = data[len(piece) :]
        self._rest = data
        return b"".join(found)
