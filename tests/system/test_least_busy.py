"""Three nodes behind the proxies of deploy/: the clients of one stream are on all of them, evenly, and limits hold."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.fixtures.nodes import Node, Reader, connections, running_nodes
from tests.fixtures.redis import RedisServer
from tests.fixtures.reverse_proxy import ReverseProxy
from tests.fixtures.shard import Database
from tests.fixtures.waiting import wait_until
from tests.system.test_cli import headrace as command

NAMES = ("a", "b", "c")
CLIENTS = 150
NODE_LIMIT = 110
USER_LIMIT = 6
ADDRESS_LIMIT = 9


@pytest.fixture(scope="module")
def nodes(deployed: Database, shared_redis: RedisServer) -> Iterator[list[Node]]:
    """Three nodes of one shard, without canaries, whose connections would count."""
    environ = {
        "HEADRACE_CANARY_INTERVAL_S": "0",
        "HEADRACE_DIRECTORY_INTERVAL_S": "0.25",
        "HEADRACE_HANDOFF_DEADLINE_S": "10",
        "HEADRACE_MAX_NODE_CONNECTIONS": str(NODE_LIMIT),
        "HEADRACE_MAX_USER_CONNECTIONS": str(USER_LIMIT),
        "HEADRACE_MAX_ADDRESS_CONNECTIONS": str(ADDRESS_LIMIT),
        "HEADRACE_TRUSTED_PROXIES": "127.0.0.1",
    }
    with running_nodes(NAMES, deployed, shared_redis, 1, **environ) as made:
        yield made


class Crowd:
    """All readers of one test, behind one proxy; each is at an address of its own unless it is told one."""

    def __init__(self, front: ReverseProxy, database: Database, redis: RedisServer) -> None:
        self.readers: list[Reader] = []
        self.front = front
        self._database = database
        self._redis = redis

    def join(self, count: int, source: str = "", user: str | None = None) -> list[Reader]:
        """So many new readers, each of which is served, or refused."""
        new = []
        for number in range(len(self.readers), len(self.readers) + count):
            address = source or f"127.1.{number >> 8}.{number & 255}"
            new.append(Reader("everybody", self.front.port, source=address, user=user))
        self.readers += new
        wait_until(lambda: self.read() and all(reader.settled for reader in new), "all are served or refused")
        return new

    def read(self) -> bool:
        for reader in self.readers:
            reader.read()
        return True

    def spread(self, count: int) -> Counter[str]:
        """The connections of each node as soon as they are so many together."""

        def found() -> "Counter[str] | None":
            self.read()
            counts = connections(self._database, self._redis)
            return counts if counts.total() == count else None

        counts = wait_until(found, f"the directory has {count} connections")
        assert counts is not None
        return counts

    def leave(self) -> None:
        for reader in self.readers:
            reader.close()
        self.readers.clear()


@pytest.fixture(params=["nginx", "haproxy"])
def crowd(
    request: pytest.FixtureRequest, nodes: list[Node], deployed: Database, shared_redis: RedisServer
) -> Iterator[Crowd]:
    front = ReverseProxy(request.param, nodes)
    made = Crowd(front, deployed, shared_redis)
    yield made
    made.leave()
    made.spread(0)
    front.remove()


def even(counts: Counter[str], *names: str) -> bool:
    """Whether these nodes have all connections, and none has a fifth more than another."""
    found = [counts[name] for name in names]
    return sum(found) == counts.total() and max(found) - min(found) <= 0.2 * counts.total() / len(names)


def settled(crowd: Crowd, *names: str) -> Counter[str]:
    """The connections of each node, when those who come for others who leave have brought balance.

    On a busy machine a node may miss a health check, and clients who come meanwhile go to the others.
    """
    counts = crowd.spread(len(crowd.readers))
    for _ in range(20):
        if even(counts, *names):
            break
        for reader in crowd.readers[:15]:
            reader.close()
        del crowd.readers[:15]
        crowd.spread(len(crowd.readers))
        crowd.join(15)
        counts = crowd.spread(len(crowd.readers))
    return counts


def test_one_stream_uses_all_nodes(crowd: Crowd, nodes: list[Node], deployed: Database) -> None:
    """Clients of one stream are spread evenly; a drained node has none, and newcomers fill it when it is back."""
    readers = crowd.join(CLIENTS)
    counts = settled(crowd, *NAMES)
    assert even(counts, *NAMES), counts

    assert command("drain", "--node", "a", "--over", "1", cwd=nodes[1].up.directory).returncode == 0
    counts = crowd.spread(CLIENTS)
    assert even(counts, "b", "c"), counts
    deployed.publish("everybody", "while a node is away")
    head = str(deployed.head("everybody"))
    wait_until(
        lambda: crowd.read() and all(r.client and r.client.last_id == head for r in readers), "each has the event"
    )

    assert command("undrain", "--node", "a", cwd=nodes[1].up.directory).returncode == 0
    wait_until(lambda: crowd.front.chooses(0), "the proxy knows that node a is back")
    assert crowd.spread(CLIENTS)["a"] == 0, "nobody is moved"
    # HAProxy's slow start lets some of the first newcomers go to the others.
    counts = crowd.spread(CLIENTS)
    while not even(counts, *NAMES) and len(crowd.readers) < 2 * CLIENTS:
        crowd.join(15)
        counts = crowd.spread(len(crowd.readers))
    assert even(settled(crowd, *NAMES), *NAMES)
    assert not any(reader.refused for reader in crowd.readers)


def test_the_limit_of_nodes_holds(crowd: Crowd) -> None:
    """Where every node has as many connections as it may have, the next client is told to come back later."""
    most = NODE_LIMIT * len(NAMES)
    served = crowd.join(most)
    assert not any(reader.refused for reader in served)
    crowd.spread(most)
    # Within one interval of the directory a node may take more than its limit.
    while not crowd.join(1)[0].refused:
        assert len(crowd.readers) < 1.2 * most
    for reader in served[: most // 10]:
        reader.close()
        crowd.readers.remove(reader)
    wait_until(lambda: not crowd.join(1)[0].refused, "there is room again")


@pytest.mark.parametrize(("limit", "who"), [(USER_LIMIT, "user"), (ADDRESS_LIMIT, "address")])
def test_limits_count_over_all_nodes(crowd: Crowd, limit: int, who: str) -> None:
    """A user, and an address, has its limit on all nodes together; whoever tries for more is in nobody's way."""
    one = {"user": "ada"} if who == "user" else {"source": "127.2.0.1"}
    served = crowd.join(limit, **one)
    assert not any(reader.refused for reader in served)
    assert all(crowd.spread(limit)[name] for name in NAMES), "each node has some of them"
    for _ in range(8):
        (further,) = crowd.join(1, **one)
        assert further.refused
        (other,) = crowd.join(1)
        assert not other.refused, "a host that has refused one client is not taken for broken"
    served[0].close()
    crowd.readers.remove(served[0])

    wait_until(lambda: not crowd.join(1, **one)[0].refused, "the place of the one who left is free")
    crowd.spread(limit + 8)
