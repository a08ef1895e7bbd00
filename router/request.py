"""A request as the router sees it, read from the WSGI environment once."""

import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, Final
from urllib.parse import parse_qs

import gevent
from gunicorn.http.errors import NoMoreData, ParseException

from headrace.router.errors import BodyTooSlowError, MalformedBodyError, TooLargeError

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")
_MAX_QUERY_FIELDS: Final = 16
_PASSED_ON: Final = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded", "via")
_CODED: Final = re.compile("[%#]")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. path is percent-decoded; headers have lower-case names; peer is `host:port`.

    plain tells that the path was sent as it reads here, so that a proxy's rule for it has seen the same.
    id is the client's X-Request-Id if that is sane, else random. understands_chunks tells that the answer's body may be
    in chunks, which HTTP/1.0 does not know. client is the socket itself.
    """

    method: str
    path: str
    plain: bool
    query: str
    headers: Mapping[str, str]
    peer: str
    id: str
    has_body: bool
    length: int | None
    body: BinaryIO
    understands_chunks: bool
    client: socket.socket

    @classmethod
    def from_environ(cls, environ: Mapping[str, Any]) -> "Request":
        """Read gunicorn's environment; the body is left unread."""
        headers = {_header(name): value for name, value in environ.items() if name[:5] == "HTTP_"}
        length = environ.get("CONTENT_LENGTH") or "0"
        return cls(
            method=environ["REQUEST_METHOD"],
            path=environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace"),
            plain=not _CODED.search(environ.get("RAW_URI", "").partition("?")[0]),
            query=environ.get("QUERY_STRING", ""),
            headers=headers,
            peer=peer_of(environ.get("REMOTE_ADDR", ""), environ.get("REMOTE_PORT", "")),
            id=id_of(headers),
            has_body=length.strip("0") != "" or "transfer-encoding" in headers,
            length=int(length) if length.isascii() and length.isdigit() else None,
            body=environ["wsgi.input"],
            understands_chunks=environ.get("SERVER_PROTOCOL", "HTTP/1.0") not in ("HTTP/0.9", "HTTP/1.0"),
            client=environ["gunicorn.socket"],
        )

    @property
    def bearer(self) -> str | None:
        """The token of `Authorization: Bearer …`, None without one."""
        scheme, _, given = self.headers.get("authorization", "").partition(" ")
        return given.strip() if scheme.lower() == "bearer" else None

    @property
    def is_local(self) -> bool:
        """Whether it comes from this machine, and no proxy says that it has passed it on."""
        if any(name in self.headers for name in _PASSED_ON):
            return False
        host = self.peer.rpartition(":")[0].strip("[]")
        if not host or host == "::1" or host.removeprefix("::ffff:").startswith("127."):
            return True
        try:
            # A client on this machine that connects to an address of this machine has that address itself.
            return self.client is not None and str(self.client.getsockname()[0]) == host
        except OSError:
            return False

    def read_body(self, most: int, deadline_s: float) -> bytes:
        """The body, of at most so many bytes. Yields.

        Raises TooLargeError, BodyTooSlowError if it has not come within the deadline, and MalformedBodyError if it
        ends too early, or its chunks are none.
        """
        try:
            with gevent.Timeout(deadline_s, BodyTooSlowError):
                body = self.body.read(most + 1)
        except (ParseException, NoMoreData, OSError) as error:
            raise MalformedBodyError() from error
        if len(body) > most:
            raise TooLargeError(f"the body is above {most} bytes; send less")
        if self.length is not None and "transfer-encoding" not in self.headers and len(body) < self.length:
            raise MalformedBodyError()
        return body

    def arguments(self) -> Mapping[str, Sequence[str]]:
        """The values of each argument of the query, in order; none if it cannot be read."""
        try:
            return parse_qs(self.query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
        except ValueError:
            return {}

    def argument(self, name: str) -> str:
        """The first value of a query argument, "" if there is none or the query cannot be read."""
        return self.arguments().get(name, [""])[0]


@lru_cache(maxsize=256)
def _header(name: str) -> str:
    """A header's name from that of its variable: few names make up nearly all requests."""
    return name[5:].replace("_", "-").lower()


def id_of(headers: Mapping[str, str]) -> str:
    """A request's id: the client's X-Request-Id if that is sane, else random."""
    given_id = headers.get("x-request-id", "")
    return given_id if _SANE_ID.fullmatch(given_id) else secrets.token_hex(8)


def peer_of(host: str, port: str | int) -> str:
    """Who has connected, as `host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
