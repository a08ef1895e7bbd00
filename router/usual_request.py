r"""The usual request: a strict reader for the head that nearly every client of a stream sends.

    GET /streams/<slot>.<token>[?<query>] HTTP/1.1\r\n
    <name>: <value>\r\n        each header on one line, each name once and one of NAMES, each value in printable ASCII
    \r\n                       and nothing behind it

gunicorn's parser and the environment of WSGI would cost a router more than all that it decides about the client. What
is read here is the same `Request` that they make of these bytes (a test with generated heads shows it), so there is one
set of rules for both, in `headrace.router.app`.

Any other head is gunicorn's to read, and to refuse: one that is in pieces, has a body, is of another method or version,
has a header that is not known here, or a header that may change how the request is read.
"""

import io
import re
import socket
from typing import Final

from headrace.router.request import Request, id_of, peer_of

NAMES: Final = frozenset(
    (
        *("accept", "accept-charset", "accept-encoding", "accept-language", "authorization", "cache-control"),
        *("connection", "cookie", "dnt", "host", "if-modified-since", "if-none-match", "last-event-id", "origin"),
        *("pragma", "priority", "referer", "save-data", "user-agent"),
        *("sec-ch-ua", "sec-ch-ua-mobile", "sec-ch-ua-platform", "sec-fetch-dest", "sec-fetch-mode", "sec-fetch-site"),
        *("sec-fetch-storage-access", "sec-fetch-user", "sec-gpc"),
        # What proxies and tracers add. Of the names that may tell gunicorn the scheme, only one: two might differ.
        *("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto"),
        *("x-forwarded-server", "x-real-ip", "x-request-id", "traceparent", "tracestate", "baggage", "x-amzn-trace-id"),
        *("cdn-loop", "cf-connecting-ip", "cf-ipcountry", "cf-ray", "cf-visitor"),
    )
)
"""The headers that a usual request may have. None of them says where the request ends, or how it is to be answered."""
_CONNECTION: Final = frozenset(("close", "keep-alive"))
_HEAD: Final = re.compile(
    rb"GET /streams/[0-9]{1,4}\.[A-Za-z0-9._-]+(?:\?[A-Za-z0-9._~%+&=/:,-]*)? HTTP/1\.1\r\n"
    rb"(?:[A-Za-z0-9-]+:[ -~]*\r\n)*\r\n"
)


def read_usual(head: bytes, address: object, client: socket.socket, most_headers: int) -> Request | None:
    """The request of these bytes, None unless they are one usual request from its first byte to its last.

    address is that of who has connected, as accept(2) gives it. Whoever calls this MUST have looked to the lengths: no
    line of the head may be above a limit of gunicorn's.
    """
    if not _HEAD.fullmatch(head):
        return None
    line, *lines = head[:-4].decode("ascii").split("\r\n")
    if len(lines) > most_headers:
        return None
    headers: dict[str, str] = {}
    for text in lines:
        written, _, value = text.partition(":")
        name = written.lower()
        if name not in NAMES or name in headers:
            return None
        headers[name] = value.strip(" ")
    if headers.get("connection", "close").lower() not in _CONNECTION:
        return None
    if isinstance(address, tuple):
        peer = peer_of(str(address[0]), address[1])
    elif address == "":
        peer = peer_of("", "")  # of a unix socket
    else:
        return None
    path, _, query = line.split(" ")[1].partition("?")
    return Request(
        method="GET",
        path=path,
        plain=True,
        query=query,
        headers=headers,
        peer=peer,
        id=id_of(headers),
        has_body=False,
        length=0,
        body=io.BytesIO(),
        understands_chunks=True,
        client=client,
    )
