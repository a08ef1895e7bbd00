"""The demo's endpoints, with a publisher that only notes what it is given."""

import json

import psycopg
import pytest

from headrace.errors import EventError
from headrace.router.demo_page import MAX_BODY_BYTES, MAX_DATA_CHARS, DemoPage
from headrace.tokens import verify
from tests.fixtures.requests import request

SECRETS = ("a-secret-of-the-tests",)


class Publisher:
    """Notes what is published, or fails as told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.published: list[tuple[str, str, str]] = []
        self.error = error

    def __call__(self, stream: str, data: str, event: str) -> None:
        if self.error:
            raise self.error
        self.published.append((stream, data, event))


def post(publisher: Publisher, value: object, **headers: str) -> tuple[int, str]:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    demo = DemoPage(secrets=SECRETS, publish_one=publisher, body_deadline_s=1)
    response = demo.publish(request("/demo/publish", method="POST", body=body, **headers), ())
    return response.status, json.loads(response.body)["error"] if response.body else ""


def test_the_configuration_has_a_signed_url_for_each_stream() -> None:
    """The page gets paths that this router admits, each for the stream of its name."""
    response = DemoPage(secrets=SECRETS, publish_one=Publisher(), body_deadline_s=1).config(request(), ())
    streams = json.loads(response.body)["streams"]
    assert set(streams) == {"chat", "board", "likes"}
    for name, path in streams.items():
        segment, _, query = path.removeprefix("/streams/").partition("?")
        assert verify(segment, secrets=SECRETS).streams == (f"demo:{name}",)
        assert query.startswith("since=")


def test_an_event_is_published_into_the_demo_stream() -> None:
    """Publishing answers 204, and the event type is message unless another is named."""
    publisher = Publisher()
    assert post(publisher, {"stream": "chat", "data": "hi"}) == (204, "")
    assert post(publisher, {"stream": "board", "data": "", "event": "stroke"}) == (204, "")
    assert publisher.published == [("demo:chat", "hi", "message"), ("demo:board", "", "stroke")]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"not json",
        b"\xff",
        [],
        {"data": "x"},
        {"stream": "other", "data": "x"},
        {"stream": ["chat"], "data": "x"},
        {"stream": "chat"},
        {"stream": "chat", "data": 5},
        {"stream": "chat", "data": "x", "event": None},
    ],
)
def test_what_is_not_an_event_is_refused(value: object) -> None:
    """A body that is not an object with the fields is 400 with what to send, and publishes nothing."""
    publisher = Publisher()
    status, error = post(publisher, value)
    assert status == 400
    assert error
    assert publisher.published == []


def test_an_event_that_headrace_refuses_is_the_clients_error() -> None:
    """The reason that publishing gives is passed on."""
    assert post(Publisher(EventError("no such type")), {"stream": "chat", "data": "x"}) == (400, "no such type")


def test_too_much_is_refused() -> None:
    """A body or a text above the limits is 413."""
    assert post(Publisher(), b" " * (MAX_BODY_BYTES + 1))[0] == 413
    assert post(Publisher(), {"stream": "chat", "data": "x" * (MAX_DATA_CHARS + 1)})[0] == 413


def test_a_database_that_is_away_is_not_the_clients_error() -> None:
    """While PostgreSQL is away the answer is 503, without the connection's details."""
    status, error = post(Publisher(psycopg.OperationalError("host=secret")), {"stream": "chat", "data": "x"})
    assert status == 503
    assert "secret" not in error


def test_other_sites_cannot_publish() -> None:
    """A page of another site cannot make its visitors publish."""
    assert post(Publisher(), {"stream": "chat", "data": "x"}, sec_fetch_site="cross-site")[0] == 403
