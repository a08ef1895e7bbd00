"""Who sees what: audiences and predicates."""

import json

import pytest

from headrace.node.directory import Directory
from headrace.node.shard_operations import ShardOperations
from headrace.shard.filters import MOST_OF_ONE, WORKERS
from tests.fixtures.shard import Database, Shard, StartShard
from tests.fixtures.stack import StartStack
from tests.fixtures.waiting import wait_until

FILTERS = """
import json
from pathlib import Path
import gevent
from headrace import predicate

def record(label, context, stream):
    with open("asked", "a") as file:
        print(json.dumps([label, context.user, sorted(context.audiences), stream]), file=file)

@predicate("owner")
def owner(context, stream):
    record("owner", context, stream)
    return stream == f"room:{context.user}"

@predicate("raising")
def raising(context, stream):
    raise LookupError("a predicate's own trouble")

@predicate("late")
def late(context, stream):
    gevent.sleep(60)
    return True

@predicate("truthy")
def truthy(context, stream):
    return "yes"

@predicate("slow")
def slow(context, stream):
    record("slow", context, stream)
    while not Path("answer").exists():
        gevent.sleep(0.01)
    return context.user == "ada"
"""


def asked(shard: Shard) -> list[list[object]]:
    """What the predicates were asked: label, user, audiences, stream."""
    path = shard.directory / "asked"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_labelled_event_reaches_those_with_the_label(calm_shard: Shard, calm_database: Database, stream: str) -> None:
    """An event for an audience reaches its members, live and replayed, and nobody else."""
    staff = calm_shard.live(stream, audiences=frozenset({"staff", "other"}))
    guest = calm_shard.live(stream, audiences=frozenset({"guests"}))
    nobody = calm_shard.live(stream)
    calm_database.publish(stream, "for staff", visible_to="staff")
    calm_database.publish(stream, "for guests", visible_to="guests")
    calm_database.publish(stream, "for all")
    late_staff = calm_shard.connect((stream, 0), audiences=frozenset({"staff"}))
    late_nobody = calm_shard.connect((stream, 0))
    for client, expected in (
        (staff, ["for staff", "for all"]),
        (guest, ["for guests", "for all"]),
        (nobody, ["for all"]),
        (late_staff, ["for staff", "for all"]),
        (late_nobody, ["for all"]),
    ):
        assert client.wait_for_data("for all") == expected
        assert client.last_id == "3"


def test_a_predicate_gets_the_context_and_the_stream(start_shard: StartShard, database: Database) -> None:
    """A predicate decides by both its arguments, and is asked once for each connection, stream and label."""
    shard = start_shard(predicates=FILTERS)
    streams = ["room:ada", "room:bob"]
    ada = shard.live(*streams, user="ada", audiences=frozenset({"x"}))
    bob = shard.live(*streams, user="bob")
    for number in range(3):
        for stream in streams:
            database.publish(stream, f"{stream} {number}", visible_to="owner")
    for stream in streams:
        database.publish(stream, "end")
    for client, name in ((ada, "ada"), (bob, "bob")):
        client.wait(lambda client=client: client.data.count("end") == 2, "both ends")  # type: ignore[misc]
        assert [text for text in client.data if text != "end"] == [f"room:{name} {number}" for number in range(3)]
    assert sorted(map(json.dumps, asked(shard))) == sorted(
        json.dumps(["owner", user, audiences, stream])
        for user, audiences in (("ada", ["x"]), ("bob", []))
        for stream in streams
    )


@pytest.mark.parametrize("label", ["unknown", "raising", "late", "truthy"])
def test_without_a_clear_and_timely_yes_an_event_is_hidden(
    start_shard: StartShard, database: Database, label: str
) -> None:
    """Unknown labels and predicates that raise, are late or answer something else hide the event; the rest arrives."""
    shard = start_shard(predicates=FILTERS, filter_deadline_s=0.1)
    live = shard.live("s")
    database.publish("s", "hidden", visible_to=label)
    database.publish("s", "shown")
    replayed = shard.connect(("s", 0))
    member = shard.connect(("s", 0), audiences=frozenset({label}))
    assert live.wait_for_data("shown") == ["shown"]
    assert replayed.wait_for_data("shown") == ["shown"]
    assert member.wait_for_data("shown") == ["hidden", "shown"]
    database.publish("s", "hidden", visible_to=label)
    database.publish("s", "end")
    assert live.wait_for_data("end") == ["shown", "end"]


def test_a_run_of_hidden_events_does_not_starve_what_follows(
    calm_shard: Shard, calm_database: Database, stream: str
) -> None:
    """Behind and among thousands of hidden events, public ones arrive, live and replayed."""
    live = calm_shard.live(stream)
    for number in range(1, 4):
        calm_database.publish(stream, *["hidden"] * 1100, visible_to="nobody")
        calm_database.publish(stream, f"public {number}")
    live.wait_for(3)
    replayed = calm_shard.connect((stream, 0))
    replayed.wait_for(3)
    assert live.ids == replayed.ids == [1101, 2202, 3303]


def test_the_cursor_moves_past_hidden_events(start_shard: StartShard, database: Database) -> None:
    """A client from which events were hidden is told its cursor with a frame that dispatches nothing."""
    shard = start_shard(heartbeat_interval_s=0.2)
    live, several = shard.live("s"), shard.live("t", "s")
    database.publish("s", *["hidden"] * 10, visible_to="nobody")
    live.wait_for_cursor(10)
    several.wait_for_cursor(0, 10)
    behind = shard.connect(("s", 0))
    behind.wait_for_cursor(10)
    assert not (live.events or several.events or behind.events)


def test_events_wait_in_order_for_a_verdict(start_shard: StartShard, database: Database) -> None:
    """While a predicate has not answered, what follows waits behind it for that client only; then all come in order."""
    shard = start_shard(predicates=FILTERS, filter_deadline_s=30)
    ada, eve, member = shard.live("s", user="ada"), shard.live("s", user="eve"), shard.live("s", audiences={"slow"})
    database.publish("s", "first", visible_to="slow")
    database.publish("s", "second")
    assert member.wait_for_data("second") == ["first", "second"]
    wait_until(lambda: len(asked(shard)) == 2, "both predicates run")
    for number in range(700):
        database.publish("s", f"more {number}")
    member.wait_for(702)
    ada.pump()
    eve.pump()
    assert not ada.events
    assert not eve.events
    shard.write("answer", "")
    for client, skipped in ((ada, 0), (eve, 1)):
        client.wait_for(702 - skipped)
        assert client.data == member.data[skipped:]
    assert len(asked(shard)) == 2


def test_clients_that_leave_while_a_predicate_runs(start_shard: StartShard, database: Database) -> None:
    """A verdict for a client that is gone hurts nobody, also when its descriptor serves another client by then."""
    shard = start_shard(predicates=FILTERS, filter_deadline_s=30)
    leaving = [shard.live("s", user="ada") for _ in range(10)]
    database.publish("s", "first", visible_to="slow")
    wait_until(lambda: len(asked(shard)) == 1, "the predicate runs, for all of them")
    for client in leaving:
        client.close()
    wait_until(lambda: all(map(shard.closed, leaving)), "the shard has let them go")
    others = [shard.live("s", user="eve") for _ in range(10)]
    shard.write("answer", "")
    database.publish("s", "second", visible_to="slow")
    database.publish("s", "end")
    for client in others:
        assert client.wait_for_data("end") == ["end"]


def test_connections_with_equal_contexts_share_an_answer(start_shard: StartShard, database: Database) -> None:
    """However many there are, the predicate is asked once while it has not answered, and each goes by the answer."""
    shard = start_shard(predicates=FILTERS, filter_deadline_s=30)
    clients = [shard.live("s", user="ada") for _ in range(40)]
    database.publish("s", "first", visible_to="slow")
    wait_until(lambda: asked(shard), "the predicate runs")
    late = shard.connect(("s", 0), user="ada")
    database.publish("s", "second")
    shard.write("answer", "")
    for client in (*clients, late):
        assert client.wait_for_data("second") == ["first", "second"]
    # The late one may have come after the answer.
    assert len(asked(shard)) <= 2


def test_one_users_slow_predicate_delays_nobody_else(start_shard: StartShard, database: Database) -> None:
    """A user with more questions than there are workers has a few asked at a time; another user's are answered."""
    shard = start_shard(predicates=FILTERS, filter_deadline_s=30)
    many = [shard.live("s", user="ada", issued_ms=number) for number in range(2 * WORKERS)]
    nameless = [shard.live("s", issued_ms=number) for number in range(2 * WORKERS)]
    owner = shard.live("room:bob", user="bob")
    database.publish("s", "first", visible_to="slow")
    database.publish("s", "end")
    wait_until(lambda: len(asked(shard)) == 2 * MOST_OF_ONE, "as many as may be are under way")
    database.publish("room:bob", "for bob", visible_to="owner")
    assert owner.wait_for_data("for bob") == ["for bob"]
    assert len([question for question in asked(shard) if question[0] == "slow"]) == 2 * MOST_OF_ONE
    shard.write("answer", "")
    for client in many:
        assert client.wait_for_data("end") == ["first", "end"]
    for client in nameless:
        assert client.wait_for_data("end")[-1] == "end"


def test_a_move_carries_who_a_client_is_and_no_verdict(start_stack: StartStack, database: Database) -> None:
    """After a move its audiences count as before, and the predicates are those of the shard that it is on now."""
    stack = start_stack(2, predicates=[FILTERS, FILTERS.replace('"owner"', '"another"')])
    knowing, ignorant = stack.shards
    client = stack.subscribe("room:ada", "other", user="ada", audiences=["staff"])
    operations = ShardOperations(Directory(stack.redis.url, expiry_s=1), lambda line: None)
    expected = []
    for number, shard in enumerate((knowing, ignorant, knowing)):
        operations.move("room:ada", shard.id)
        assert stack.holder(client) is shard
        for label in ("owner", "staff", "raising", "nobody", None):
            database.publish("room:ada", f"{number} {label}", visible_to=label)
        database.publish("other", f"{number} owner", visible_to="owner")
        expected += [f"{number} owner"] * (shard is knowing) + [f"{number} staff", f"{number} None"]
        assert client.wait_for_data(f"{number} None") == expected
    assert not client.ended


def test_what_was_hidden_and_is_removed_is_no_gap(start_shard: StartShard, database: Database) -> None:
    """Where retention has taken only what others may see, nobody is told of a gap who has missed nothing."""
    shard = start_shard(predicates=FILTERS)
    database.publish("room:ada", "seen by all")
    for label in ("staff", "owner", "unknown"):
        database.publish("room:ada", label, visible_to=label)
    database.publish("room:ada", "kept", "kept as well", visible_to="unknown")
    database.publish("room:ada", "seen by all")
    database.trim("room:ada", 2)
    eve = shard.connect(("room:ada", 1), user="eve", audiences=frozenset({"guests"}))
    ada = shard.connect(("room:ada", 1), user="ada")
    staff = shard.connect(("room:ada", 1), user="eve", audiences=frozenset({"staff"}))
    several = shard.connect(("room:ada", 1), ("other", 0), user="eve")
    before = shard.connect(("room:ada", 0), user="eve")
    told = ("gap", {"stream": "room:ada", "missed_from": 2, "missed_to": 5})
    for client, sentinels in (
        (eve, []),
        (ada, [told]),
        (staff, [told]),
        (several, []),
        (before, [("gap", {"stream": "room:ada", "missed_from": 1, "missed_to": 5})]),
    ):
        client.wait_for(1)
        assert client.data == ["seen by all"]
        assert client.sentinels == sentinels
        assert client.cursor[0] == 7
