"""Removing the events of a test that has committed, so that the next test begins without them."""

from importlib.resources import files
from typing import Any

from headrace.sql_execution import execute_script
from headrace.testing.watched_connection import connection_of


def reset(connection: Any = None, *, using: str | None = None) -> None:
    """Remove all streams, events, presence and revocations of a test's database; rules of retention stay.

    Ids begin at 1 again, unless a process of headrace is connected to the database: ids that it may have delivered
    never come back, so each stream then goes on above its last id, and presence and revocations stay, too. A test that
    runs beside such a process compares ids with each other, never with numbers.

    connection and using are those of `headrace.testing.published`; in autocommit the reset commits, in a transaction it
    is done when that commits. The role MUST own the schema. An open transaction that has published is waited for, and
    is the driver's error with SQLSTATE 55P03 after 5 seconds.
    """
    script = files("headrace.testing").joinpath("reset.sql").read_text(encoding="utf-8")
    execute_script(connection_of(connection, using).given, script)


class ResetStreams:
    """Has a TransactionTestCase or LiveServerTestCase of Django begin each test with `reset`, on its `databases`.

        class OrderTests(ResetStreams, TransactionTestCase): …

    It stands first among the classes. A `setUp` of the test's own MUST call `super().setUp()`.
    """

    databases: Any

    def setUp(self) -> None:
        """Called by unittest before each test."""
        super().setUp()  # type: ignore[misc]
        for alias in sorted(self.databases):
            reset(using=alias)
