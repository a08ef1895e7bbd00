"""Events that no client can be sent: they never hold up those behind them."""

import json
import re

from tests.fixtures.postgres import Connection
from tests.fixtures.shard import Database, Shard
from tests.fixtures.stack import StartStack
from tests.fixtures.waiting import wait_until
from tests.system.test_history import Pages


def gap(id_: int) -> tuple[str, dict[str, object]]:
    return "headrace:gap", {"stream": "room", "missed_from": id_, "missed_to": id_}


PLACED = "from headrace.event e where e.xid = p.xid and e.seq = p.seq and e.id = %s"
"""The payloads of the events with this id, in all streams."""


def damage(superuser: Connection, *ids: int) -> None:
    """Make the data of these events of the stream what PostgreSQL would never have stored."""
    superuser.autocommit = True
    superuser.execute("create cast (bytea as text) without function")
    for id_ in ids:
        superuser.execute(f"update headrace.payload p set data = '\\xfffe'::bytea::text {PLACED}".encode(), [id_])
    superuser.execute("drop cast (bytea as text)")


def counted(shard: Shard) -> int:
    return shard.counted("unsendable_events")


def test_an_event_that_cannot_be_sent_is_told_as_a_gap(
    start_stack: StartStack, database: Database, superuser: Connection
) -> None:
    """Whoever needs it, live, resuming, over several streams or as a page, is told that it is missed, and gets what is
    behind it; the metric and the log have it once."""
    stack = start_stack(shards=1, log_level="info")
    (shard,) = stack.shards
    database.publish("room", *"12345")
    database.publish("other", "a", "b")
    damage(superuser, 2)
    database.connection.execute(
        f"update headrace.payload p set data = 'b' {PLACED} and p.stream = 'other'".encode(), [2]
    )
    database.connection.execute(f"update headrace.payload p set type = E'a\\nb' {PLACED}".encode(), [4])
    expected = [("message", 1), gap(2), ("message", 3), gap(4), ("message", 5), ("message", 6)]
    resumed = stack.subscribe("room", last_event_id="0")
    several = stack.connect(stack.path("room", "other", since="0.0"))
    database.publish("room", "6")
    for client in (resumed, several):
        client.wait_for_data("6")
    told = [(frame.event, frame.value) for frame in resumed.frames if frame.data]
    assert told == expected
    assert [frame.id for frame in resumed.frames if frame.data] == ["1", "2", "3", "4", "5", "6"]
    assert [frame.value for frame in several.frames if frame.event == "headrace:gap"] == [gap(2)[1], gap(4)[1]]
    page = Pages(stack).page("room", query={"since": 0})
    assert [(event["id"], event["type"]) for event in page["events"] if event["type"] != "message"] == [
        (2, "headrace:gap"),
        (4, "headrace:gap"),
    ]
    assert json.loads(page["events"][1]["data"]) == gap(2)[1]
    wait_until(lambda: counted(shard) == 2, "two events are counted")
    assert len(re.findall("cannot be sent, and is told as a gap", shard.log)) == 2
    assert shard.running
