"""A response of the router's own: everything but the event stream, which is the shard's."""

import http
import json
from dataclasses import dataclass, replace
from typing import Any, Final

Headers = tuple[tuple[str, str], ...]

SAFE: Final[Headers] = (("X-Content-Type-Options", "nosniff"),)
"""With every answer, a shard's too: what an event says is not taken for a page or a script."""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response; Content-Length is added when it is sent, unless it is not sized.

    That is the answer to a HEAD, of which nobody knows how long a GET's would be.
    """

    status: int
    body: bytes = b""
    headers: Headers = ()
    sized: bool = True

    @property
    def status_line(self) -> str:
        """The status as WSGI wants it."""
        return f"{self.status} {http.HTTPStatus(self.status).phrase}"

    def with_headers(self, headers: Headers) -> "Response":
        """The same response with these headers after its own."""
        return replace(self, headers=self.headers + headers)


def as_json(status: int, value: Any, headers: Headers = ()) -> Response:
    """A JSON response that is not to be kept by caches."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    return Response(status, body, (("Content-Type", "application/json"), ("Cache-Control", "no-store"), *headers))


def as_error(status: int, sentence: object, headers: Headers = ()) -> Response:
    """The body of every error: {"error": sentence}."""
    return as_json(status, {"error": str(sentence)}, headers)
