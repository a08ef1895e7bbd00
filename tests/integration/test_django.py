"""headrace for Django: tags, the decorator, and publishing with the current atomic block of any alias."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.template import Context, Template, engines
from django.template.response import TemplateResponse
from django.utils.decorators import method_decorator
from django.views import View

import headrace
from headrace.django import publish, publish_many, snapshot
from headrace.errors import UsageError
from headrace.publish import publish_now
from tests.fixtures.django import databases
from tests.integration.test_publish import events

STREAM = Template('{% load headrace %}{% headrace_stream "notes" user="a&b" share=name with_credentials=True %}')
SINCE = re.compile(r"since=(\d+)")


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SECRET", "a secret that tests sign with")


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    with databases(default=database_url, other=database_url):
        yield database_url


def render(template: Template = STREAM, **context: Any) -> str:
    return str(template.render(Context(context)))


def test_tags(url: str) -> None:
    """The tags render the element, its URL and its script, escaped, with the watermark of the snapshot that is held."""
    with psycopg.connect(url, autocommit=True) as connection:
        publish_now(connection, "notes", "x")
    with snapshot():
        html = render(name='"<')
        assert re.fullmatch(
            r'<headrace-stream src="/streams/\d+\.[\w.-]+\?since=1" share="&quot;&lt;" with-credentials>'
            r"</headrace-stream>",
            html,
        )
        several = Template('{% load headrace %}{% headrace_url "none" "notes" as src %}<a href="{{ src }}">')
        assert "since=0.1" in render(several)
        script = Template('{% load headrace %}{% headrace_script nonce="n" %}')
        assert render(script) == '<script type="module" src="/headrace.js" nonce="n"></script>'
        with snapshot("other"):
            named = Template('{% load headrace %}{% headrace_stream "notes" using="default" %}')
            assert "since=1" in render(named)


def test_tags_know_which_events_are_pending(url: str) -> None:
    """An event that is committed and has no id yet is in the `since` of the element and of the URL."""
    with psycopg.connect(url) as connection:
        publish_now(connection, "notes", "x")
        connection.commit()
        connection.execute("set transaction isolation level repeatable read")
        headrace.publish(connection, "notes", "pending")
        connection.commit()
        (seq,) = connection.execute("select seq from headrace.payload where data = 'pending'").fetchone() or ()
    with snapshot() as page:
        assert page.watermark("notes") == f"1-{seq}"
        assert f'?since=1-{seq}"' in render()
        several = Template('{% load headrace %}{% headrace_url "notes" "none" as src %}<a href="{{ src }}">')
        assert f'?since=1-{seq}.0"' in render(several)


def test_a_tag_outside_of_a_snapshot_refuses_to_guess(url: str) -> None:
    """Without a snapshot, or without that of the alias, rendering fails with what to do."""
    with pytest.raises(UsageError, match=r"no snapshot is held here.*with snapshot"):
        render()
    with snapshot(), pytest.raises(UsageError, match="no snapshot of 'other' is held here"):
        render(Template('{% load headrace %}{% headrace_stream "notes" using="other" %}'))


def test_a_view_is_rendered_inside_of_its_snapshot(url: str) -> None:
    """A decorated view, function or class, renders a TemplateResponse too within one REPEATABLE READ transaction."""

    def respond(request: HttpRequest, note: str) -> TemplateResponse:
        with psycopg.connect(url, autocommit=True) as connection:
            publish_now(connection, "notes", note)
        with connections["default"].cursor() as cursor:
            cursor.execute("show transaction_isolation")
            assert cursor.fetchone() == ("repeatable read",)
        return TemplateResponse(request, engines["django"].from_string(str(STREAM.source)))

    @method_decorator(snapshot, name="dispatch")
    class Board(View):
        def get(self, request: HttpRequest, note: str) -> HttpResponse:
            return respond(request, note)

    request = HttpRequest()
    request.method = "GET"
    for before, view in enumerate([snapshot(respond), snapshot("default")(respond), Board.as_view()]):
        assert "default" in view._non_atomic_requests  # ATOMIC_REQUESTS leaves it alone
        response = view(request, note="x")
        assert response.is_rendered
        found = SINCE.search(response.content.decode())
        assert found is not None
        assert int(found.group(1)) == before
        assert not connections["default"].in_atomic_block


def test_an_asynchronous_view_is_refused() -> None:
    """Decorating an asynchronous view fails at once, as it could hold no transaction."""

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    with pytest.raises(UsageError, match="sync_to_async"):
        snapshot(view)
    assert asyncio.run(view(HttpRequest())).status_code == 200


def test_inside_of_an_atomic_block(url: str) -> None:
    """As in a TestCase: heads are those at the begin of the snapshot, in the block that is open."""
    with transaction.atomic(), connections["default"].cursor() as cursor:
        cursor.execute("select 1")
        with snapshot(), psycopg.connect(url, autocommit=True) as connection:
            publish_now(connection, "notes", "x")
            assert "since=0" in render()
        with snapshot():
            assert "since=1" in render()
        assert connections["default"].in_atomic_block


@pytest.mark.parametrize("alias", ["default", "other"])
def test_publishing_joins_the_atomic_block(url: str, alias: str) -> None:
    """Events commit with the block of their alias, and a savepoint that is rolled back takes its own along."""
    publish("s", "alone", using=alias)
    with transaction.atomic(alias):
        publish("s", "first", event="tick", visible_to="staff", using=alias)
        with pytest.raises(ZeroDivisionError), transaction.atomic(alias):
            raise ZeroDivisionError(publish("s", "savepoint", using=alias))
        publish_many(["s", "t"], ["second", "third"], events=["tock", None], using=alias)
        assert [event[2] for event in events(url)] == ["alone"]
    with pytest.raises(ZeroDivisionError), transaction.atomic(alias):
        raise ZeroDivisionError(publish("s", "rolled back", using=alias))
    assert events(url) == [
        ("s", 1, "alone", None, None),
        ("s", 2, "first", "tick", "staff"),
        ("s", 3, "second", "tock", None),
        ("t", 1, "third", None, None),
    ]
