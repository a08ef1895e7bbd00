"""The limit of an event's size: the schema's owner sets it, and publishers cannot."""

import psycopg
import pytest
from psycopg import errors

from headrace.embedded.postgres import EmbeddedPostgres
from headrace.schema.migrations import Migration, migrate, migrations
from tests.fixtures.postgres import Connection, superuser_url

BEFORE_LIMITS = [migration for migration in migrations() if migration.version < 14]


def refuses(connection: Connection, size: int) -> bool:
    """Whether data of so many bytes is refused."""
    try:
        connection.execute("select headrace.publish('s', repeat('x', %s))", [size])
    except errors.InvalidParameterValue as error:
        return f"the data has {size} bytes, more than headrace.max_payload_bytes" in str(error)
    return False


def limit(connection: Connection) -> int:
    row = connection.execute("select headrace.max_payload_bytes()").fetchone()
    assert row is not None
    return int(row[0])


def test_the_owner_sets_the_limit(connection: Connection) -> None:
    """The limit is 1 MiB; what the owner sets holds for every session, also for publish_now and publish_many."""
    assert (limit(connection), refuses(connection, 1 << 20), refuses(connection, 1 + (1 << 20))) == (
        1 << 20,
        False,
        True,
    )
    connection.execute("select headrace.set_max_payload_bytes(pg_size_bytes('2 MB'))")
    assert (refuses(connection, 2 << 20), refuses(connection, 1 + (2 << 20))) == (False, True)
    connection.execute("select headrace.set_max_payload_bytes(1000)")
    assert (refuses(connection, 1000), refuses(connection, 1001)) == (False, True)
    for call in ("publish_now('s', repeat('x', 1001))", "publish_many(array['s'], array[repeat('x', 1001)])"):
        with pytest.raises(errors.InvalidParameterValue, match="more than headrace"):
            connection.execute(f"select headrace.{call}".encode())


@pytest.mark.parametrize("size", ["999", "67108865", "null", "-1"])
def test_limits_that_are_refused(connection: Connection, size: str) -> None:
    """A limit that would stop all publishing, or that shards cannot bear, is refused when it is set."""
    with pytest.raises(errors.InvalidParameterValue, match=r"must be from 1,000 bytes to 67,108,864 \(64 MiB\)"):
        connection.execute(f"select headrace.set_max_payload_bytes({size})".encode())
    with pytest.raises(errors.InvalidTextRepresentation):
        connection.execute("select headrace.set_max_payload_bytes('2MB')")
    assert limit(connection) == 1 << 20


def test_a_publisher_cannot_raise_the_limit(connection: Connection) -> None:
    """Neither the function that sets the limit, nor its table, nor a setting of its session is a publisher's to use."""
    connection.execute("set role headrace_publisher")
    connection.execute("set headrace.max_payload_bytes = 1000000000")
    assert refuses(connection, 1 + (1 << 20))
    connection.execute("set headrace.max_payload_bytes = '2MB'")
    assert not refuses(connection, 1 << 20)
    for statement in (
        "select headrace.set_max_payload_bytes(2000000)",
        "update headrace.limits set max_payload_bytes = 2000000",
        "select * from headrace.limits",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(statement.encode())


@pytest.mark.parametrize(
    ("setting", "taken"), [("2000", 2000), ("'2MB'", 2 << 20), ("3", 1000), ("'1 TB'", 1 << 20), ("'x'", 1 << 20)]
)
def test_an_upgrade_takes_the_setting_over(
    postgres: EmbeddedPostgres, empty_database_url: str, monkeypatch: pytest.MonkeyPatch, setting: str, taken: int
) -> None:
    """A database whose limit was a setting keeps it, as far as it is one that can be."""
    before: list[Migration] = BEFORE_LIMITS
    monkeypatch.setattr("headrace.schema.migrations.migrations", lambda: before)
    migrate(empty_database_url)
    monkeypatch.undo()
    with psycopg.connect(superuser_url(postgres, empty_database_url), autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"alter database {name} set headrace.max_payload_bytes = {setting}".encode())
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert limit(connection) == taken
