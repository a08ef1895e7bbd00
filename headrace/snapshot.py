"""Pages and their streams from one snapshot: the page shows the database at one moment, the stream goes on from there.

    with headrace.snapshot(connection) as page:
        notes = connection.execute("select text from note").fetchall()
        html = render(notes, page.element("notes"))

Theory. A page and its stream meet if the watermark that the page hands over is of the snapshot that its queries saw. A
watermark tells what that snapshot shows of a stream: all events up to the head, and the *pending* events, which are
committed and have no id yet. The client is sent everything else.

    the block begins the transaction    It is REPEATABLE READ: all queries see one snapshot, and watermarks are read in
                                        it, at any time. Page and stream meet exactly. The same holds in an open
                                        transaction that is REPEATABLE READ or SERIALIZABLE.
    a READ COMMITTED transaction is     Its isolation level cannot change any more. Each query sees what is committed
    open already                        when the query begins, so watermarks MUST be older than every query in the
                                        block: an event between a query and a later watermark would be lost. The block
                                        does not know yet for which streams the page will ask. So it begins by declaring
                                        a database cursor over `headrace.watermark`: whenever a row is fetched from it,
                                        the row is of the snapshot in which the cursor was declared. What that snapshot
                                        shows, each later query shows as well, so the pending events may be left out
                                        here, too. At worst an event arrives that the page shows already; none is lost.

Queries before the block are not covered. A watermark that is asked for after the block, or after its transaction was
ended from within, is an error, never a guess.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import iscoroutinefunction
from itertools import count
from typing import Any, Final

from headrace import cursor, signing
from headrace.database_connection import refuse
from headrace.element import Attribute, Html, element
from headrace.errors import UsageError
from headrace.sql_calls import Call
from headrace.sql_execution import execute, fetch
from headrace.stream import check_name, check_names

REPEATABLE_READ: Final = Call("set transaction isolation level repeatable read", ())
"""What a block sends first in a transaction that it has begun."""

_IDLE = 0  # libpq's PQTRANS_IDLE, which psycopg and psycopg2 report as it is
_NUMBERS = count(1)
_current: ContextVar[tuple["Snapshot", ...]] = ContextVar("headrace.snapshot", default=())


class Snapshot:
    """The database as one page shows it. `headrace.snapshot` and its counterparts for libraries yield it.

    Owned by the block that yields it; it queries the block's connection.
    """

    def __init__(self, connection: Any, name: str | None) -> None:
        self.name = name
        self._connection = connection
        self._cursor: str | None = None
        self._seen: str | None = None
        self._ended = False

    def __repr__(self) -> str:
        return f"<Snapshot {'ended' if self._ended else self._cursor or self._seen} of {self._connection!r}>"

    def head(self, stream: str) -> int:
        """Return the head of the stream in the snapshot: the last id that the page can show, or where it would begin.

        It is the number with which the watermark begins. Raises like `watermark`.
        """
        return int(self.watermark(stream).partition("-")[0])

    def watermark(self, stream: str) -> str:
        """Return the watermark of the stream in the snapshot, as `headrace.watermark`: what `sign` takes as since.

        Raises UsageError when the block or its transaction has ended, StreamNameError for a name that cannot be a
        stream.
        """
        check_name(stream)
        if self._ended:
            raise UsageError("the snapshot has ended; render the page, with its streams, inside of the block")
        if self._cursor is not None:
            fetch(self._connection, Call("select pg_catalog.set_config('headrace.asked', %s, true) as id", (stream,)))
            return str(fetch(self._connection, Call(f"fetch next from {self._cursor}", ())))
        # Equal snapshots show the same rows, whatever transactions they belong to.
        watermark = fetch(
            self._connection,
            Call(
                "select case when pg_catalog.pg_current_snapshot()::pg_catalog.text operator(pg_catalog.=) %s"
                " then headrace.watermark(%s) end as id",
                (self._seen, stream),
            ),
        )
        if watermark is None:
            raise UsageError("the snapshot's transaction was ended inside of its block; commit after the block")
        return str(watermark)

    def url(
        self,
        streams: str | Sequence[str],
        *,
        user: object = None,
        audiences: Sequence[str] = (),
        ttl_s: float | None = None,
        presence: bool | Sequence[str] = False,
    ) -> str:
        """Return the signed URL of a stream, or of several on one connection, which continues where the page ends.

        user, audiences, ttl_s and presence are those of `headrace.sign`. The URL is a path, where application and
        headrace have one origin; it begins with HEADRACE_PUBLIC_URL where that is set. Where so many events are pending
        that the URL would become too long, the streams with the most begin at their heads, and their pending events are
        sent though the page shows them. Raises like `watermark` and `headrace.sign`.
        """
        names = check_names(streams)
        since = cursor.join([self.watermark(name) for name in names])
        path = signing.sign(names, since=since, user=user, audiences=audiences, ttl_s=ttl_s, presence=presence)
        return signing.origin() + path

    def element(
        self,
        streams: str | Sequence[str],
        *,
        user: object = None,
        audiences: Sequence[str] = (),
        ttl_s: float | None = None,
        presence: bool | Sequence[str] = False,
        **attributes: Attribute,
    ) -> Html:
        """Return the HTML `<headrace-stream src="…">` with the URL of `url` and these attributes, escaped.

        In the names of attributes an underscore stands for a dash: `refresh="/token"`, `with_credentials=True`. Raises
        like `url`, and UsageError for an attribute that the element does not take.
        """
        src = self.url(streams, user=user, audiences=audiences, ttl_s=ttl_s, presence=presence)
        return element(src, **attributes)

    def begin(self) -> None:
        """Hold the watermarks of all streams as they are now, in the open transaction."""
        isolation = fetch(
            self._connection, Call("select pg_catalog.current_setting('transaction_isolation') as id", ())
        )
        if isolation in ("repeatable read", "serializable"):
            self._seen = fetch(
                self._connection, Call("select pg_catalog.pg_current_snapshot()::pg_catalog.text as id", ())
            )
            return
        name = f"headrace_snapshot_{next(_NUMBERS)}"
        watermarks = (
            "select headrace.watermark(pg_catalog.current_setting('headrace.asked')) as id"
            " from (select pg_catalog.generate_series(1, 2147483647)) as askings"
        )
        execute(self._connection, Call(f"declare {name} no scroll cursor for {watermarks}", ()))
        self._cursor = name

    def end(self) -> None:
        """Refuse all questions from now on. The database cursor ends with the transaction."""
        self._ended = True


@contextmanager
def within(connection: Any, name: str | None = None) -> Iterator[Snapshot]:
    """Hold a snapshot in the transaction that is open on the connection; `current` finds it, by its name if it has one.

    A caller that has begun that transaction itself MUST have sent REPEATABLE_READ first.
    """
    snapshot = Snapshot(connection, name)
    snapshot.begin()
    outer = _current.get()
    _current.set((*outer, snapshot))
    try:
        yield snapshot
    finally:
        snapshot.end()
        # ContextVar.reset would raise where a framework leaves a block in another context than it entered it in.
        _current.set(outer)


def current(name: str | None = None) -> Snapshot:
    """Return the innermost snapshot that is held here, of that name if one is given. Raises UsageError without one."""
    for snapshot in reversed(_current.get()):
        if name in (None, snapshot.name):
            return snapshot
    which = "snapshot" if name is None else f"snapshot of {name!r}"
    raise UsageError(
        f"no {which} is held here, and without one events could be lost; query and render inside of a block "
        "`with snapshot(…)`"
    )


@contextmanager
def snapshot(connection: Any) -> Iterator[Snapshot]:
    """Hold one snapshot of a psycopg or psycopg2 connection for a `with` block, and yield it as a `Snapshot`.

    The block queries and renders a page. Where no transaction is open, the block is one: REPEATABLE READ, committed at
    its end, rolled back if it raises. In an open transaction the block commits nothing; if that transaction is READ
    COMMITTED, watermarks are those at the beginning of the block, and an event that commits before the page's queries
    may arrive though the page shows it already. For other libraries there are `headrace.sqlalchemy` and
    `headrace.django`.

    Raises UsageError for an object that is no such connection.
    """
    refuse(connection)
    status = getattr(getattr(connection, "info", None), "transaction_status", None)
    if status is None or not hasattr(connection, "autocommit"):
        raise UsageError(
            f"{connection!r} is no connection of psycopg or psycopg2; for others use `headrace.sqlalchemy` "
            "or `headrace.django`"
        )
    if iscoroutinefunction(connection.commit):
        raise UsageError(
            f"{connection!r} is asynchronous; in a REPEATABLE READ transaction of it await "
            "`headrace.asyncio.watermark`, and give that to `headrace.sign`"
        )
    if status == _IDLE:
        with _transaction(connection), within(connection) as page:
            yield page
    else:
        with within(connection) as page:
            yield page


@contextmanager
def _transaction(connection: Any) -> Iterator[None]:
    """A REPEATABLE READ transaction on a connection that is in none."""
    if not connection.autocommit:
        execute(connection, REPEATABLE_READ)  # the driver sends BEGIN before it
        commit, rollback = connection.commit, connection.rollback
    else:
        execute(connection, Call("begin isolation level repeatable read", ()))

        def commit() -> None:
            execute(connection, Call("commit", ()))

        def rollback() -> None:
            execute(connection, Call("rollback", ()))

    try:
        yield
    except BaseException:
        rollback()
        raise
    commit()
