"""Files from `headrace/static/`, read once and served with validators."""

import hashlib
from importlib import resources
from typing import Final

from headrace.router.request import Request
from headrace.router.response import Headers, Response

_TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
}


PAGE_HEADERS: Final[Headers] = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'",
    ),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
)
"""Of a page and its files: nothing runs but what this server has sent as a file, and no other page shows this one."""


class StaticFile:
    """One file as an endpoint. Immutable."""

    def __init__(self, name: str, *, max_age_s: int, headers: Headers = ()) -> None:
        """max_age_s: how long caches may use it without asking; 0 has them ask each time. headers go along."""
        self._body = (resources.files("headrace") / "static" / name).read_bytes()
        self._etag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'
        cache = f"public, max-age={max_age_s}" if max_age_s else "no-cache"
        self._headers = (("ETag", self._etag), ("Cache-Control", cache), *headers)
        self._type = _TYPES[name[name.rindex(".") :]]

    def __call__(self, request: Request, headers: Headers) -> Response:
        """The file, or 304 for a client that has it."""
        given = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self._etag in given or "*" in given:
            return Response(304, b"", self._headers)
        return Response(200, self._body, (("Content-Type", self._type), *self._headers))
