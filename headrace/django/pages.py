"""One snapshot around a view's queries and its template."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from inspect import iscoroutinefunction
from types import TracebackType
from typing import Any, TypeVar, overload

from django.db import DEFAULT_DB_ALIAS, connections, transaction

from headrace.errors import UsageError
from headrace.snapshot import REPEATABLE_READ, Snapshot, within
from headrace.statement import execute

View = TypeVar("View", bound=Callable[..., Any])


@overload
def snapshot(using: str = DEFAULT_DB_ALIAS) -> "Block":
    """For `with`, or as a decorator with an alias."""


@overload
def snapshot(using: View) -> View:
    """As a decorator."""


def snapshot(using: Any = DEFAULT_DB_ALIAS) -> Any:
    """Hold one snapshot of the database `using` around a view or a block, whose template tags go on from it.

        @snapshot                                       @method_decorator(snapshot, name="dispatch")
        def board(request): …                           class Board(ListView): …

        with snapshot("replica") as page:
            return render(request, "board.html", {"notes": list(Note.objects.using("replica")), "src": page.url("n")})

    Outside of atomic blocks this is one: REPEATABLE READ, committed at its end, rolled back if it raises. A decorated
    view is not put into an atomic block by ATOMIC_REQUESTS for this alias, and a TemplateResponse is rendered before
    the view returns; middleware that would change its context afterwards comes too late.

    In an atomic block that is open already (a TestCase is one) nothing can become REPEATABLE READ any more. Heads are
    then those at the begin of the snapshot: an event that commits before the page's queries may arrive though the page
    shows it already; none is lost. Queries made before the snapshot are not covered.

    Raises UsageError for an asynchronous view (Django's transactions are synchronous: decorate what sync_to_async
    calls) and for a database that is not PostgreSQL.
    """
    return Block(DEFAULT_DB_ALIAS)(using) if callable(using) else Block(using)


class Block(AbstractContextManager[Snapshot]):
    """What `snapshot` returns: for `with`, and to decorate views. Owned by who made it; not to be entered twice."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._held = _held(alias)

    def __enter__(self) -> Snapshot:
        return self._held.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._held.__exit__(kind, error, trace)

    def __call__(self, view: View) -> View:
        """Decorate a view: each request gets a snapshot of its own."""
        if iscoroutinefunction(view):
            raise UsageError(f"{view!r} is asynchronous; hold the snapshot in what it calls with sync_to_async")

        @wraps(view)
        def within_snapshot(*args: Any, **kwargs: Any) -> Any:
            with _held(self._alias):
                response = view(*args, **kwargs)
                if callable(getattr(response, "render", None)):
                    response = response.render()
                return response

        return transaction.non_atomic_requests(using=self._alias)(within_snapshot)  # type: ignore[no-any-return]


@contextmanager
def _held(alias: str) -> Iterator[Snapshot]:
    connection = connections[alias]
    if connection.vendor != "postgresql":
        raise UsageError(f"the database {alias!r} is {connection.vendor}; headrace's streams are in PostgreSQL")
    if connection.in_atomic_block or not connection.get_autocommit():
        with within(connection, alias) as page:
            yield page
    else:
        with transaction.atomic(using=alias):
            execute(connection, REPEATABLE_READ)
            with within(connection, alias) as page:
                yield page
