"""A request, as read from the WSGI environment."""

import pytest

from headrace.router.request import Request
from tests.fixtures.requests import environ, request


def test_the_path_is_text() -> None:
    """WSGI gives the percent-decoded bytes as Latin-1; they are UTF-8, and what is not is replaced."""
    assert request("/stra\u00c3\u009fe").path == "/straße"
    assert request("/\u00ff").path == "/\ufffd"


@pytest.mark.parametrize(
    ("headers", "has_body"),
    [
        ({}, False),
        ({"CONTENT_LENGTH": "0"}, False),
        ({"CONTENT_LENGTH": "00"}, False),
        ({"CONTENT_LENGTH": ""}, False),
        ({"CONTENT_LENGTH": "10"}, True),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, True),
    ],
)
def test_a_body_is_seen_by_its_headers(headers: dict[str, str], has_body: bool) -> None:
    """A request has a body if its length is above zero or unknown."""
    assert Request.from_environ(environ() | headers).has_body is has_body


def test_a_sane_request_id_is_kept() -> None:
    """The client's X-Request-Id is used in logs unless it could forge a line or fill it."""
    assert request(x_request_id="01HZ-abc.def").id == "01HZ-abc.def"
    for bad in ("", "two words", "a\tb", "x" * 129, "é"):
        made = request(x_request_id=bad).id
        assert made != bad
        assert len(made) == 16
    assert request().id != request().id


def test_the_peer_is_host_and_port() -> None:
    """IPv6 addresses are in brackets, so that the last colon is before the port."""
    assert request().peer == "192.0.2.7:4711"
    assert Request.from_environ(environ() | {"REMOTE_ADDR": "2001:db8::1"}).peer == "[2001:db8::1]:4711"


def test_an_argument_is_its_first_value() -> None:
    """Arguments are percent-decoded; a missing one and a query that cannot be read give nothing."""
    assert request(query="since=1%2E2&since=3").argument("since") == "1.2"
    assert request(query="other=1").argument("since") == ""
    assert request(query="&".join(f"a{n}=1" for n in range(100)) + "&since=1").argument("since") == ""


@pytest.mark.parametrize(
    ("host", "headers", "local"),
    [
        *((host, {}, True) for host in ("127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1", "")),
        *((host, {}, False) for host in ("192.0.2.7", "2001:db8::1", "::ffff:192.0.2.7", "12.7.0.1", "::127.0.0.1")),
        *(("127.0.0.1", {f"HTTP_{name}": "x"}, False) for name in ("X_FORWARDED_FOR", "FORWARDED", "VIA", "X_REAL_IP")),
    ],
)
def test_what_a_proxy_passes_on_is_not_local(host: str, headers: dict[str, str], local: bool) -> None:
    """Local is who connects from this machine in person."""
    assert Request.from_environ(environ() | {"REMOTE_ADDR": host} | headers).is_local is local
