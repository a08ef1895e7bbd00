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
from headrace.sql_execution import execute

View = TypeVar("View", bound=Callable[..., Any])


@overload
def snapshot(using: str = DEFAULT_DB_ALIAS) -> "Block":
    """Hold a snapshot of the database with the alias, for `with` or as a decorator."""


@overload
def snapshot(using: View) -> View:
    """Decorate a view, with the default database."""


def snapshot(using: Any = DEFAULT_DB_ALIAS) -> Any:
    """Hold one snapshot of the database `using` around a view or a block. Template tags in it take their watermarks
    from it.

        @snapshot                                       @method_decorator(snapshot, name="dispatch")
        def board(request): …                           class Board(ListView): …

        with snapshot("replica") as page:
            return render(request, "board.html", {"notes": list(Note.objects.using("replica")), "src": page.url("n")})

    Outside of atomic blocks this is an atomic block: REPEATABLE READ, committed at its end, rolled back if it raises. A
    decorated view is not put into an atomic block by ATOMIC_REQUESTS for this alias. A TemplateResponse is rendered
    before the view returns, so middleware that changes its context afterwards has no effect.

    An atomic block that is open already (a TestCase has one) cannot become REPEATABLE READ any more. Watermarks are
    then those at the beginning of the snapshot: an event that commits before the page's queries may arrive though the
    page shows it already; none is lost. Queries made before the snapshot are not covered.

    Returns a context manager that yields a `Snapshot`, or the decorated view. Raises UsageError for an asynchronous
    view (Django's transactions are synchronous: decorate the function that sync_to_async calls) and for a database that
    is not PostgreSQL.
    """
    return Block(DEFAULT_DB_ALIAS)(using) if callable(using) else Block(using)


class Block(AbstractContextManager[Snapshot]):
    """What `snapshot` returns: a context manager, and a decorator of views. Owned by its maker, who enters it once."""

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
