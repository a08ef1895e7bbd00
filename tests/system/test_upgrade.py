"""A rolling upgrade from each released version, a schema change included: nothing is lost and nobody disconnected.

The processes run as systemd's units run them (deploy/), on one host: two shards and a router.

The way back is free for clients of HTTP/1.0 alone. The released versions know no chunks, in which those of HTTP/1.1 are
sent their body by now: a shard of theirs would write between the chunks. So it refuses such a connection, and the new
shard, which is to be empty, tells the client goodbye with its cursor. It comes back and misses nothing.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

import headrace
from headrace.embedded.postgres import EmbeddedPostgres
from headrace.node.directory import Directory
from headrace.node.shard_entry import ShardEntry
from headrace.node.shard_operations import ShardOperations
from headrace.schema.migrations import Migration, migrate, migrations
from tests.fixtures.client import Client, wait_all
from tests.fixtures.deployment import ROUTER, SHARD, Host, get, sign
from tests.fixtures.redis import RedisServer
from tests.fixtures.releases import RELEASES, Release
from tests.fixtures.up import lives
from tests.fixtures.waiting import DEADLINE_S, wait_until

STREAMS = [f"room:{number}" for number in range(12)]
# On top of what is pending, so that there is a change of the schema, and one that no process here knows.
NEXT = b"""
    alter table headrace.event add column later int;
    create table headrace.later (x int);
"""


class Publisher:
    """Publishes to all streams until it is ended, in transactions. Owned by the test thread, but for its own thread."""

    def __init__(self, url: str) -> None:
        self.rounds = 0
        self.error: BaseException | None = None
        self._url = url
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with psycopg.connect(self._url) as connection:
                while not self._ending.wait(0.03):
                    for stream in STREAMS:
                        headrace.publish(connection, stream, f"round {self.rounds + 1}")
                    connection.commit()
                    self.rounds += 1
        except BaseException as error:
            self.error = error

    def end(self) -> int:
        """How many rounds were committed."""
        self._ending.set()
        self._thread.join(DEADLINE_S)
        assert self.error is None
        return self.rounds


class Upgrade:
    """The host under load, with what a test asks about it. Owned by the test thread."""

    def __init__(self, host: Host, old: Path, directory: Directory) -> None:
        self.host = host
        self.old = old
        self.clients: dict[Client, str] = {}
        self.publisher = Publisher(host.environ["HEADRACE_DATABASE_URL"])
        self._directory = directory
        self.operations = ShardOperations(directory, lambda line: None)

    def subscribe(self, version: str = "1.0") -> list[Client]:
        """A client more of each stream, by a version of HTTP, that has everything from the beginning."""
        new: dict[Client, str] = {}
        for stream in STREAMS:
            path = sign(self.host, stream) + "?since=all"
            new[Client(get(self.host.port, path, version), older=True)] = stream
        wait_all(new, lambda client: client.events, "the first events")
        self.clients |= new
        return list(new)

    def come_back(self, ended: Client) -> None:
        """A client whose connection has ended goes on after its last id."""
        stream = self.clients.pop(ended)
        again = Client(get(self.host.port, f"{sign(self.host, stream)}?since={ended.last_id}", "1.1"), older=True)
        again.frames += ended.events
        self.clients[again] = stream
        ended.close()

    def flows(self) -> None:
        """Wait until everybody has what was published until now."""
        wanted = self.publisher.rounds
        wait_all(self.clients, lambda client: len(client.events) >= wanted, "what was published")

    def whole(self, rounds: int) -> None:
        """Everybody has every event once, in order, and nobody was disconnected or told anything else."""
        wait_all(self.clients, lambda client: len(client.events) >= rounds, "what was published")
        for client in self.clients:
            assert client.data == [f"round {number}" for number in range(1, rounds + 1)]
            assert client.ids == list(range(1, rounds + 1))
            assert not client.sentinels
            assert not client.ended

    def shards(self) -> dict[str, ShardEntry]:
        return {entry.id: entry for entry in self._directory.read().shards}

    def connections(self) -> list[int]:
        """Of each shard, as soon as the directory accounts for all clients."""

        def counted() -> list[int]:
            counts = [entry.connections for _, entry in sorted(self.shards().items())]
            return counts if sum(counts) == len(self.clients) else []

        return wait_until(counted, "the shards count all clients")


@pytest.fixture
def start(
    postgres: EmbeddedPostgres, empty_database_url: str, own_redis: RedisServer, tmp_path: Path
) -> Iterator[Callable[[Release], Upgrade]]:
    made: list[Upgrade] = []
    names = ("HEADRACE_DATABASE_URL", "HEADRACE_LISTEN_DATABASE_URL")
    environ = dict.fromkeys(names, empty_database_url) | {"HEADRACE_REDIS_URL": own_redis.url}
    quick = {"HEADRACE_DIRECTORY_INTERVAL_S": "0.2", "HEADRACE_DIRECTORY_EXPIRY_S": "10"}
    quick |= {"HEADRACE_HANDOFF_DEADLINE_S": "10"}
    host = Host("web1", environ, **quick)
    directory = Directory(own_redis.url, expiry_s=1)

    def start(release: Release) -> Upgrade:
        old = release.unpack(tmp_path)
        release.migrate(empty_database_url)
        for instance in ("0", "1"):
            host.start(SHARD, instance, old)
        host.start(ROUTER, program=old)
        wait_until(host.serves, "the old version serves")
        made.append(Upgrade(host, old, directory))
        return made[-1]

    yield start
    for upgrade in made:
        upgrade.publisher.end()
        for client in upgrade.clients:
            client.close()
    print(host, *(file.read_text() for file in host.directory.glob("*.log")), sep="\n")  # noqa: T201
    host.remove()
    directory.close()


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
def test_a_rolling_upgrade(
    start: Callable[[Release], Upgrade], release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schema, then a shard, the router and the other shard are replaced under load, and at last one goes back."""
    upgrade = start(release)
    host, operations = upgrade.host, upgrade.operations
    upgrade.subscribe()

    with monkeypatch.context() as patch:
        pending = [*migrations(), Migration(migrations()[-1].version + 1, NEXT)]
        patch.setattr("headrace.schema.migrations.migrations", lambda: pending)
        assert migrate(host.environ["HEADRACE_DATABASE_URL"])[-1] == pending[-1].version
    upgrade.flows()

    successor = host.reload(SHARD, "0")
    now = upgrade.shards()
    assert now["web1-0"].pid == successor
    assert now["web1-1"].version == release.version != now["web1-0"].version
    upgrade.subscribe()  # over the old router, to both
    assert all(upgrade.connections())

    operations.drain("web1-0")  # the new shard gives all it has to the old one
    assert upgrade.connections() == [0, len(upgrade.clients)]
    operations.undrain("web1-0")
    operations.rebalance()  # and gets its share back
    assert all(upgrade.connections())
    upgrade.flows()

    assert host.stop(ROUTER) == 0
    host.start(ROUTER)
    wait_until(host.serves, "the new router serves")
    upgrade.subscribe()  # over the new router, to both
    mixed = upgrade.subscribe("1.1")
    chunked = [client for client in mixed if "transfer-encoding" in client.headers]
    assert 0 < len(chunked) < len(mixed), "the new shard alone sends chunks"
    operations.drain("web1-1")  # the old shard gives all it has to the new one
    operations.undrain("web1-1")
    operations.rebalance()  # and gets its share back, but for those in chunks
    assert all(upgrade.connections())
    upgrade.flows()

    assert host.reload(SHARD, "1")
    assert upgrade.shards()["web1-1"].version == now["web1-0"].version
    upgrade.flows()

    host.start(SHARD, "0", upgrade.old)
    wait_until(lambda: not lives(successor), "the old version has taken everything back")
    assert upgrade.shards()["web1-0"].version == release.version
    for client in chunked:
        client.wait_for_end()
        assert client.complete
        assert client.sentinels == [("goodbye", {"reason": "drain"})]
        upgrade.come_back(client)
    assert all(upgrade.connections())
    upgrade.flows()
    upgrade.whole(upgrade.publisher.end())


def test_a_connection_with_pending_events_stays_with_the_shard_that_knows_them(
    start: Callable[[Release], Upgrade],
) -> None:
    """An older shard refuses it, and gets it when the events have their ids; the client notices nothing."""
    upgrade = start(RELEASES[-1])
    host, operations = upgrade.host, upgrade.operations
    upgrade.publisher.end()
    migrate(host.environ["HEADRACE_DATABASE_URL"])
    assert host.reload(SHARD, "0")
    assert host.stop(ROUTER) == 0
    host.start(ROUTER)
    wait_until(host.serves, "the new router serves")
    operations.move("page", "web1-0")
    url = host.environ["HEADRACE_DATABASE_URL"]
    with (
        psycopg.connect(url, autocommit=True) as office,
        psycopg.connect(url, autocommit=True) as writer,
        psycopg.connect(url) as holder,
    ):
        assert office.execute("select headrace.take_office()").fetchone() == (True,)
        headrace.publish(writer, "page", "before")
        assert office.execute("select skipped from headrace.sequence()").fetchone() == (0,)
        # Rounds, also those of the shards, pass over the stream.
        assert holder.execute("select 1 from headrace.stream where name = 'page' for no key update").fetchone()
        headrace.publish(writer, "page", "shown")
        watermark = headrace.watermark(writer, "page")
        assert watermark.startswith("1-")
        client = Client(get(host.port, f"{sign(host, 'page')}?since={watermark}", "1.0"), older=True)
        upgrade.clients = {client: "page"}
        assert upgrade.connections() == [1, 0]

        operations.move("page", "web1-1")
        refused = "hand-off message of version 3"
        wait_until(lambda: refused in host.log(SHARD).read_text(), "the older shard refuses the connection")
        headrace.publish(writer, "page", "new")
        assert upgrade.connections() == [1, 0]

        holder.rollback()
        assert office.execute("select skipped from headrace.sequence()").fetchone() == (0,)
        client.wait_for(1)
        wait_until(lambda: upgrade.connections() == [0, 1], "the older shard has the connection")
        headrace.publish(writer, "page", "last")
        office.execute("select headrace.sequence()")
        client.wait_for(2)
    assert client.data == ["new", "last"]
    assert not client.ended
