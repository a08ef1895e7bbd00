"""headrace/doctor/numbering.py: what the doctor says of events that wait for their ids."""

import time

import psycopg
import pytest

import headrace
from headrace.doctor.finding import Level
from headrace.doctor.numbering import numbering
from tests.fixtures.postgres import Connection


def leave_turns(database_url: str, *streams: str) -> None:
    """Publish to each stream in a transaction that numbers nothing, while no shard runs."""
    with psycopg.connect(database_url) as publisher:
        publisher.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for stream in streams:
            headrace.publish(publisher, stream, "x")
            publisher.commit()


def test_events_that_nobody_numbers(connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted, and the first one's stream is named, until somebody numbers them."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert numbering(connection).level is Level.OK
    leave_turns(database_url, "first", "second")
    finding = numbering(connection)
    assert finding.level is Level.FAIL
    assert "2 transactions" in finding.found
    assert "'first'" in finding.found
    connection.execute("select headrace.sequence()")
    assert numbering(connection).level is Level.OK


def test_events_that_are_numbered_meanwhile(
    connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is well where between the two looks the waiting events got their ids and others came."""

    def others_come(_: float) -> None:
        connection.execute("select headrace.sequence()")
        leave_turns(database_url, "first")

    leave_turns(database_url, "first")
    monkeypatch.setattr(time, "sleep", others_come)
    assert numbering(connection).level is Level.OK
