"""What the head and the body of a request may cost before anybody has looked at the request."""

import itertools
from collections.abc import Iterable

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import InvalidChunkSize, InvalidHeader, LimitRequestHeaders, LimitRequestLine, NoMoreData
from gunicorn.http.parser import RequestParser

from headrace.router import worker
from headrace.router.bounded_request import MOST_DRAINED, BoundedRequest
from tests.fixtures.growth import grows_in_proportion

HEADER_BYTES = 1 << 20


def parsed(pieces: Iterable[bytes], header_bytes: int = HEADER_BYTES) -> BoundedRequest:
    return next(parser(pieces, header_bytes))  # type: ignore[no-any-return]


def parser(pieces: Iterable[bytes], header_bytes: int = HEADER_BYTES) -> RequestParser:
    cfg = Config()
    for name, value in {
        "limit_request_line": worker.gunicorn.http.message.MAX_REQUEST_LINE,
        "limit_request_field_size": header_bytes,
    }.items():
        cfg.set(name, value)
    return RequestParser(cfg, pieces, ("192.0.2.7", 4711))


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize("name", ["line", "headers", "chunk"])
def test_a_head_that_trickles_costs_its_length(name: str) -> None:
    """A head and a chunk's line that come byte by byte cost twice as much when they are twice as long."""
    whole = {
        "line": lambda n: b"GET /" + b"a" * (n // 2) + b" HTTP/1.1\r\n\r\n",
        "headers": lambda n: b"GET / HTTP/1.1\r\nX: " + b"a" * n + b"\r\n\r\n",
        "chunk": lambda n: (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * n + b"\r\nx\r\n0\r\n\r\n"
        ),
    }[name]
    grows_in_proportion(lambda pieces: parsed(pieces).body.read(), lambda n: bytewise(whole(n)), 1 << 14)


def test_a_head_is_as_it_was_sent() -> None:
    """However it is cut, a head gives the same request, and what comes behind it is the next one."""
    data = b"\r\nGET /a?b HTTP/1.1\r\nHost: h\r\nX: 1\r\n\r\n"
    data += b"POST /c HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /d HTTP/1.0\r\n\r\n"
    for pieces in ([data], bytewise(data), [data[:20], data[20:]]):
        requests = []
        for request in itertools.islice(parser(pieces), 3):
            requests.append((request.method, request.uri, request.headers, request.body.read()))
        assert requests == [
            ("GET", "/a?b", [("HOST", "h"), ("X", "1")], b""),
            ("POST", "/c", [("CONTENT-LENGTH", "3")], b"abc"),
            ("GET", "/d", [], b""),
        ]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET /" + b"a" * (1 << 20), LimitRequestLine),
        (b"GET /" + b"a" * (57 << 10) + b" HTTP/1.1\r\n\r\n", LimitRequestLine),
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * (1 << 20), LimitRequestHeaders),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 4000) for n in range(50)), LimitRequestHeaders),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 300 + b"\r\n", LimitRequestHeaders),
        (b"GET / HTTP/1.1\r\nHost: h\n", InvalidHeader),
        (b"GET / HTTP/1.1\r\nHost: h\r\n", NoMoreData),
    ],
)
@pytest.mark.parametrize("size", [8192, 100, 1 << 30])
def test_a_head_above_a_limit_is_refused(data: bytes, error: type[Exception], size: int) -> None:
    """A line, a header, or all headers that are too long, too many headers and a bare line feed are refused."""
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    with pytest.raises(error):
        parsed(pieces, 16 << 10)


def test_trailers_are_short() -> None:
    """What comes behind the last chunk has an end."""
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
    assert parsed(bytewise(head + b"a" * 1000 + b"\r\n\r\n")).body.read() == b""
    with pytest.raises(LimitRequestHeaders):
        parsed(bytewise(head + b"a" * 5000 + b"\r\n\r\n")).body.read()


def chunked(*sizes: int) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (size, b"x" * size) for size in sizes)
    return b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def test_small_chunks_are_few() -> None:
    """A body may have a thousand chunks of any size; of more, each has to be worth its cost."""
    assert len(parsed([chunked(*[1] * 900)]).body.read()) == 900
    assert len(parsed([chunked(*[100] * 5000)]).body.read()) == 500_000
    with pytest.raises(InvalidChunkSize):
        parsed([chunked(*[1] * 2000)]).body.read()


def test_a_body_that_nobody_reads_ends_the_connection() -> None:
    """No further request is read where reaching it would cost too much; a short body of known length is passed over."""
    unread = parsed([chunked(1)])
    assert unread.body_left
    assert unread.should_close()
    read = parsed([chunked(1)])
    read.body.read()
    assert not read.should_close()
    for length, closes in ((MOST_DRAINED, False), (MOST_DRAINED + 1, True)):
        assert parsed([b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % length]).should_close() is closes
    assert not parsed([b"GET / HTTP/1.1\r\n\r\n"]).should_close()
