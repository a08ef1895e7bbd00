"""Events on their whole way: application, PostgreSQL, shard, socket; clients that come through a router over HTTP."""

import threading

from headrace.stream import slot
from tests.fixtures.client import wait_all
from tests.fixtures.shard import Database
from tests.fixtures.stack import StartStack
from tests.fixtures.waiting import DEADLINE_S, wait_until


def test_clients_of_all_shards_get_every_event_once(start_stack: StartStack, database: Database) -> None:
    """Streams spread over three shards, and connections of several streams, get all events in order."""
    stack = start_stack(3)
    names = [f"room:{number}" for number in range(12)]
    singles = [stack.subscribe(name) for name in names]
    several = stack.subscribe(*names)
    assert len({stack.holder(client).id for client in singles}) == 3
    for number in range(10):
        for name in names:
            database.publish(name, f"{name} {number}")
    wait_all(singles, lambda client: len(client.events) >= 10, "10 events")
    for name, client in zip(names, singles, strict=True):
        assert client.data == [f"{name} {number}" for number in range(10)]
        assert client.ids == list(range(1, 11))
    several.wait_for(120)
    assert several.cursor == (10,) * 12


def test_a_stream_may_be_served_by_several_shards(start_stack: StartStack, database: Database) -> None:
    """One stream, subscribed through connections that different shards serve, is the same stream everywhere."""
    stack = start_stack(2)
    first = next(f"a:{n}" for n in range(100) if stack.holder(stack.subscribe(f"a:{n}")).id == "n1-0")
    second = next(f"b:{n}" for n in range(100) if stack.holder(stack.subscribe(f"b:{n}")).id == "n1-1")
    clients = [stack.subscribe(first, "hot"), stack.subscribe(second, "hot")]
    assert [stack.holder(client).id for client in clients] == ["n1-0", "n1-1"]
    for number in range(20):
        database.publish("hot", str(number))
    for client in clients:
        client.wait_for(20)
        assert client.data == [str(number) for number in range(20)]
        assert client.last_id == "0.20/1"


def test_last_event_id_wins_over_since(start_stack: StartStack, database: Database) -> None:
    """A browser's header beats the address that the page was made with; both beat the default, the head."""
    stack = start_stack(1)
    database.publish_count("s", 5)
    database.publish_count("t", 5)
    header = stack.subscribe("s", since=1, last_event_id="3")
    since = stack.subscribe("s", since=1)
    default = stack.subscribe("s")
    several = stack.subscribe("s", "t", since="all", last_event_id="4.3/1")
    database.publish("s", "6")
    for client, first in ((header, 4), (since, 2), (default, 6)):
        client.wait_for_data("6")
        assert client.ids == list(range(first, 7))
    several.wait_for(4)
    assert sorted(str(f.id).partition("/")[2] + str(f.data) for f in several.events) == ["05", "06", "14", "15"]


def test_a_killed_shards_clients_resume_on_another_without_loss_or_repeat(
    start_stack: StartStack, database: Database
) -> None:
    """While a thread publishes, a shard is killed; its clients reconnect as browsers do and miss nothing."""
    stack = start_stack(2)
    name = next(f"s:{n}" for n in range(100) if stack.holder(stack.subscribe(f"s:{n}")).id == "n1-0")
    total = 400
    publisher = Database(database.url)
    halfway, killed = threading.Event(), threading.Event()

    def publish() -> None:
        for number in range(1, total + 1):
            publisher.publish(name, str(number))
            if number == total // 2:
                halfway.set()
                killed.wait(DEADLINE_S)

    clients = [stack.subscribe(name, since=0) for _ in range(10)]
    assert {stack.holder(client).id for client in clients} == {"n1-0"}
    thread = threading.Thread(target=publish)
    thread.start()
    try:
        wait_until(halfway.is_set, "half of the events are published")
        stack.shards[0].kill()
        wait_all(clients, lambda client: client.ended, "the end")
        killed.set()
        again = [stack.subscribe(name, last_event_id=client.last_id) for client in clients]
        wait_all(again, lambda client: client.last_id == str(total), "the last event")
    finally:
        killed.set()
        thread.join()
        publisher.close()
    for before, after in zip(clients, again, strict=True):
        assert before.ids + after.ids == list(range(1, total + 1))
        assert stack.holder(after).id == "n1-1"


def test_a_node_that_is_full_lets_clients_in_when_there_is_room(start_stack: StartStack, database: Database) -> None:
    """Over capacity a client is answered 503 with Retry-After, and a later try succeeds when somebody has left."""
    stack = start_stack(1, max_connections=3)
    clients = [stack.subscribe("s") for _ in range(3)]
    refused = stack.connect(stack.path("s"))
    assert refused.answered() == 503
    assert int(refused.headers["retry-after"]) >= 1
    clients.pop().close()
    wait_until(lambda: stack.connect(stack.path("s")).answered() == 200, "there is room again")


def test_200_clients_reconnect_at_once_after_a_deploy(start_stack: StartStack, database: Database) -> None:
    """When a shard is restarted all its clients come back at their last id, and get what came meanwhile."""
    stack = start_stack(1)
    clients = [stack.connect(stack.path("s", since=0)) for _ in range(200)]
    database.publish("s", "before")
    wait_all(clients, lambda client: client.events, "the event")
    (shard,) = stack.shards
    shard.terminate()
    wait_all(clients, lambda client: client.ended, "the end")
    assert {client.last_id for client in clients} == {"1"}
    assert shard.exit_status() == 0
    database.publish("s", "meanwhile")
    shard.log_file.unlink()
    shard.start()
    assert stack.router is not None
    wait_until(lambda: stack.connect(stack.path("s")).answered() == 200, "the router finds the shard")
    again = [stack.connect(stack.path("s"), f"Last-Event-ID: {client.last_id}") for client in clients]
    wait_all(again, lambda client: client.events, "what was missed")
    database.publish("s", "after")
    wait_all(again, lambda client: client.data == ["meanwhile", "after"], "what is new")


def test_streams_in_several_slots_on_one_token(start_stack: StartStack, database: Database) -> None:
    """A token's slot is its first stream's; a resume with the composite id goes on in every stream."""
    stack = start_stack(2)
    names = ["room:1", "room:2", "room:3"]
    assert len({slot(name) for name in names}) == 3
    client = stack.subscribe(*names)
    for name in names:
        database.publish(name, "first")
    client.wait_for(3)
    client.close()
    for name in names:
        database.publish(name, "second")
    again = stack.subscribe(*names, last_event_id=client.last_id)
    again.wait_for(3)
    assert sorted(again.data) == ["second"] * 3
    assert again.cursor == (2, 2, 2)
