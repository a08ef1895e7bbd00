"""The reader of usual requests makes of a head what gunicorn's parser and WSGI make of it, or leaves it to them."""

import dataclasses
import io
import socket
from typing import Any, cast

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.parser import RequestParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.router import worker
from headrace.router.request import Request
from headrace.router.usual_request import NAMES, read_usual

CLIENT = cast(socket.socket, None)
ADDRESS = ("192.0.2.7", 4711)
LINE = b"GET /streams/17.eyJ-_.c2ln?since=12-3.4 HTTP/1.1\r\n"
FIREFOX = LINE + (
    b"Host: app.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0)\r\nAccept: text/event-stream\r\n"
    b"Accept-Language: en-GB,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nLast-Event-ID: 12.4/1\r\n"
    b"Referer: https://app.example/\r\nConnection: keep-alive\r\nSec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\n"
    b"Sec-Fetch-Site: same-origin\r\nPriority: u=4\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n\r\n"
)
NGINX = LINE + (
    b"Host: app.example\r\nX-Forwarded-For: 198.51.100.1\r\nX-Forwarded-Proto: https\r\nX-Request-Id: r-1\r\n"
    b"Connection: close\r\n\r\n"
)


def as_gunicorn_does(head: bytes, address: Any) -> Request:
    """The request of gunicorn's parser and environment. Raises gunicorn's errors."""
    cfg = Config()
    for name, value in {
        "limit_request_line": worker.gunicorn.http.message.MAX_REQUEST_LINE,
        "limit_request_field_size": 16 << 10,
        "limit_request_fields": 64,
    }.items():
        cfg.set(name, value)
    parser = RequestParser(cfg, [head], address)
    parsed = next(parser)
    assert parser.unreader.read() == b"", "there is something behind the head"
    _, environ = wsgi.create(parsed, CLIENT, address, ("127.0.0.1", 8000), cfg)
    return Request.from_environ(environ)


def without_chance(request: Request) -> dict[str, Any]:
    """What a request says, but for an id by chance and for the object that reads its body."""
    value = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    if value["id"] != request.headers.get("x-request-id"):
        value["id"] = ""
    body = value.pop("body")
    return value | {"body": body.read()}


@pytest.mark.parametrize(
    "head", [FIREFOX, NGINX, LINE + b"\r\n", LINE.replace(b"?since=12-3.4", b"") + b"Host:\r\n\r\n"]
)
@pytest.mark.parametrize("address", [ADDRESS, ("2001:db8::1", 1, 0, 0), ""])
def test_a_usual_head_is_read(head: bytes, address: object) -> None:
    """What browsers and proxies send is read here, and is what gunicorn makes of it."""
    request = read_usual(head, address, CLIENT, 64)
    assert request is not None
    assert without_chance(request) == without_chance(as_gunicorn_does(head, address))


@pytest.mark.parametrize(
    "head",
    [
        FIREFOX[:-1],
        FIREFOX[:-2],
        FIREFOX + b"G",
        FIREFOX + FIREFOX,
        b"\r\n" + FIREFOX,
        FIREFOX.replace(b"\r\n", b"\n"),
        FIREFOX.replace(b"no-cache\r\n\r\n", b"no-cache\n\r\n"),
        *(FIREFOX.replace(b"GET", method) for method in (b"HEAD", b"OPTIONS", b"POST", b"get", b"GET ")),
        *(FIREFOX.replace(b"HTTP/1.1", version) for version in (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1")),
        *(FIREFOX.replace(b"/streams/17.", path) for path in (b"/streams/", b"//streams/17.", b"/%73treams/17.")),
        *(FIREFOX.replace(b"c2ln", b"c2ln" + text) for text in (b"/events", b"%2e", b"#", b"\x00", b"\xe9", b" ")),
        *(
            FIREFOX.replace(b"Host: app.example", line)
            for line in (b"Host : a", b" Host: a", b"Host: a\r\n b", b"Host")
        ),
        *(FIREFOX.replace(b"app.example", text) for text in (b"a\tb", b"a\rb", b"a\x00b", b"\xe9", b"\x7f")),
        *(FIREFOX.replace(b"Pragma", name) for name in (b"Host", b"Expect", b"Upgrade", b"X-Unknown", b"X_Request_Id")),
        *(FIREFOX.replace(b"Pragma: no-cache", line) for line in (b"Content-Length: 0", b"Transfer-Encoding: chunked")),
        *(FIREFOX.replace(b": keep-alive", b": " + value) for value in (b"upgrade", b"keep-alive, te", b"")),
        LINE + b"".join(b"%s: 1\r\n" % name.encode() for name in sorted(NAMES - {"connection"})[:21]) + b"\r\n",
    ],
)
def test_any_other_head_is_gunicorns(head: bytes) -> None:
    """A head that is not usual to the letter, or has more headers than are allowed, is left to gunicorn."""
    assert head != FIREFOX
    assert read_usual(head, ADDRESS, CLIENT, 20) is None


def test_an_address_of_another_kind_is_gunicorns() -> None:
    """Who has connected from a named unix socket is left to gunicorn."""
    assert read_usual(FIREFOX, b"\0named", CLIENT, 64) is None


_NAME = st.one_of(
    st.sampled_from(sorted(NAMES)).map(str.title),
    st.sampled_from(sorted(NAMES)),
    st.sampled_from(["Content-Length", "Transfer-Encoding", "Expect", "X_Real_Ip", "TE", "X-Forwarded-Ssl", "X-Odd"]),
)
_VALUE = st.one_of(
    st.sampled_from(["close", "keep-alive", "Keep-Alive", "https", "0", "", " ", "  a  ", "chunked", "100-continue"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
    st.text(st.characters(max_codepoint=255), max_size=4),
)
_HEADER = st.tuples(_NAME, st.sampled_from([": ", ":", ":  ", " : "]), _VALUE, st.sampled_from(["\r\n"] * 30 + ["\n"]))
_PATH = st.one_of(
    st.just("/streams/17.eyJ-_.c2ln"),
    st.from_regex(r"/streams/[0-9]{1,5}\.[A-Za-z0-9._/%-]{1,12}", fullmatch=True),
    st.text(st.characters(max_codepoint=255), max_size=6).map("/streams/1.".__add__),
)
_QUERY = st.one_of(st.just(""), st.just("?"), st.from_regex(r"\?[a-zA-Z0-9=&%./+;\[\]#?-]{0,12}", fullmatch=True))


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head that is usual, or nearly so; sometimes with a byte that was changed, left out or put in."""
    method = draw(st.sampled_from(["GET"] * 10 + ["HEAD", "POST"]))
    version = draw(st.sampled_from(["HTTP/1.1"] * 10 + ["HTTP/1.0"]))
    text = f"{method} {draw(_PATH)}{draw(_QUERY)} {version}\r\n"
    text += "".join("".join(parts) for parts in draw(st.lists(_HEADER, max_size=6))) + "\r\n"
    head = text.encode("latin-1")
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(head)))
        head = head[:at] + bytes(draw(st.lists(st.integers(0, 255), max_size=2))) + head[at + draw(st.integers(0, 2)) :]
    return head


@settings(max_examples=400)
@given(heads(), st.sampled_from([ADDRESS, ("::1", 1, 0, 0), ""]))
@example(FIREFOX, ADDRESS)
def test_both_ways_of_reading_agree(head: bytes, address: object) -> None:
    """Of every head that is read here, gunicorn and WSGI make the same request, and neither refuses it."""
    request = read_usual(head, address, CLIENT, 64)
    if request is not None:
        assert without_chance(request) == without_chance(as_gunicorn_does(head, address))
        assert isinstance(request.body, io.BytesIO)
