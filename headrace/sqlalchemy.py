"""Snapshots of SQLAlchemy's sessions and connections, for Flask, FastAPI and other frameworks.

    with snapshot(session) as page:                          async with async_snapshot(session) as page:
        notes = session.scalars(select(Note)).all()              notes = (await session.scalars(select(Note))).all()
        return render(notes, page.element("notes"))              return render(notes, await page.element("notes"))

`headrace.snapshot` tells what a snapshot is and promises. To publish, give the session to `headrace.publish`, and an
asynchronous session to `headrace.asyncio.publish`.
"""

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.orm import Session, scoped_session

from headrace.database_connection import is_of, refuse, synchronous
from headrace.element import Attribute, Html
from headrace.errors import UsageError
from headrace.snapshot import REPEATABLE_READ, Snapshot, within
from headrace.sql_execution import execute

if TYPE_CHECKING:
    # Without greenlet, which SQLAlchemy 2.1 installs for asynchronous applications alone, this import fails.
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

T = TypeVar("T")


@contextmanager
def snapshot(session: "Session | scoped_session[Any] | Connection") -> Iterator[Snapshot]:
    """Hold one snapshot of a session or connection for a `with` block, and yield it as a `Snapshot`.

    The block queries and renders a page. Where no transaction has begun, the block is one: REPEATABLE READ, committed
    at its end, rolled back if it raises. In a transaction that has begun, the block commits nothing; if that
    transaction is READ COMMITTED, watermarks are those at the beginning of the block, and an event that commits before
    the page's queries may arrive though the page shows it already.

    The block begins with flushing the session and expiring its objects, since an object loaded earlier would show the
    page a state older than its stream. Objects MUST be used inside the block, unless the session is made with
    `expire_on_commit=False`: at the end of the block's transaction SQLAlchemy expires them, and an object that has lost
    its session, or whose session is asynchronous, raises when it is used.

    Raises UsageError for an object that is no session or connection of SQLAlchemy, for an asynchronous one, for one in
    AUTOCOMMIT, and for another database than PostgreSQL.
    """
    connection: Session | Connection = session() if isinstance(session, scoped_session) else session
    if not isinstance(connection, Session | Connection):
        refuse(connection)
        raise UsageError(
            f"{connection!r} is no session or connection of SQLAlchemy; for asynchronous ones there is "
            "`async_snapshot`, for others `headrace.snapshot` and `headrace.django`"
        )
    if connection.in_transaction():
        _refuse_autocommit(connection)
        _forget(connection)
        with within(connection) as page:
            yield page
    else:
        with connection.begin():
            _refuse_autocommit(connection)
            execute(connection, REPEATABLE_READ)
            _forget(connection)
            with within(connection) as page:
                yield page


class AsyncSnapshot:
    """A `Snapshot` whose methods are awaited. Owned by the block that yields it."""

    def __init__(self, connection: "AsyncSession | AsyncConnection", snapshot: Snapshot) -> None:
        self._connection = connection
        self._snapshot = snapshot

    async def head(self, stream: str) -> int:
        """Return the head of the stream in the snapshot, as `Snapshot.head`."""
        return await _run(self._connection, lambda: self._snapshot.head(stream))

    async def watermark(self, stream: str) -> str:
        """Return the watermark of the stream in the snapshot, as `Snapshot.watermark`."""
        return await _run(self._connection, lambda: self._snapshot.watermark(stream))

    async def url(self, streams: str | Sequence[str], **token: Any) -> str:
        """Return the signed URL of a stream, or of several, which continues where the page ends, as `Snapshot.url`."""
        return await _run(self._connection, lambda: self._snapshot.url(streams, **token))

    async def element(self, streams: str | Sequence[str], **token_and_attributes: Attribute | Sequence[str]) -> Html:
        """Return `<headrace-stream src="…">` with that URL and these attributes, as `Snapshot.element`."""
        options: dict[str, Any] = token_and_attributes
        return await _run(self._connection, lambda: self._snapshot.element(streams, **options))


@asynccontextmanager
async def async_snapshot(
    session: "AsyncSession | async_scoped_session[Any] | AsyncConnection",
) -> AsyncIterator[AsyncSnapshot]:
    """Hold one snapshot of an asynchronous session or connection for a block, and yield it as an `AsyncSnapshot`.

    All that `snapshot` says holds here, too. Objects that the session has loaded before are expired: refresh those that
    are still needed, and use objects inside the block. Raises UsageError like `snapshot`, and for a connection that was
    not entered.
    """
    connection: Any = session() if _is_a("async_scoped_session", session) else session  # type: ignore[operator]
    if not _is_a("AsyncSession", connection) and not _is_a("AsyncConnection", connection):
        refuse(connection)
        raise UsageError(f"{connection!r} is no asynchronous session or connection of SQLAlchemy; there is `snapshot`")
    sync = connection.sync_session if _is_a("AsyncSession", connection) else connection.sync_connection
    if sync is None:
        raise UsageError(f"{connection!r} is not connected; enter it first, as in `async with engine.connect()`")
    block = snapshot(sync)
    page = await _run(connection, block.__enter__)
    try:
        yield AsyncSnapshot(connection, page)
    except BaseException:
        error = sys.exc_info()
        if not await _run(connection, lambda: block.__exit__(*error)):
            raise
    else:
        await _run(connection, lambda: block.__exit__(None, None, None))


async def _run(connection: "AsyncSession | AsyncConnection", function: Callable[[], T]) -> T:
    return await connection.run_sync(lambda _: function())


def _is_a(name: str, given: object) -> bool:
    """Whether the object's class, or one that it derives from, is SQLAlchemy's class of this name."""
    return is_of("sqlalchemy", given) and any(kind.__name__ == name for kind in type(given).__mro__)


def _refuse_autocommit(session: Session | Connection) -> None:
    connection = synchronous(session)
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise UsageError(
            f"{session!r} is in AUTOCOMMIT, where each query has a snapshot of its own; take it from "
            "`engine.execution_options(isolation_level='REPEATABLE READ')`"
        )


def _forget(session: Session | Connection) -> None:
    if isinstance(session, Session):
        session.flush()
        session.expire_all()
