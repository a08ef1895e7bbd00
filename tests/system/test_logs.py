"""What processes log, as an operator reads it."""

import json
from pathlib import Path
from typing import Any

import headrace
from tests.fixtures.stack import StartStack
from tests.fixtures.waiting import wait_until


def whole(log: Path) -> str:
    """What is in a log by now, without a line that is being written."""
    return log.read_text().rpartition("\n")[0]


def events(log: str) -> list[dict[str, Any]]:
    """The lines as events; fails for a line that is none."""
    return [json.loads(line) for line in log.splitlines()]


def test_a_request_is_followed_from_router_to_shard(start_stack: StartStack) -> None:
    """Every line of every process is an event; a client's has its request id on both sides, and nowhere its token."""
    stack = start_stack(shards=1, log_format="json", log_level="info")
    assert stack.router is not None
    path = stack.path("room:1", user="ada")
    client = stack.connect(path, "X-Request-Id: follow-me")
    client.wait(lambda: client.last_id, "the cursor")
    headrace.disconnect(stack.database.connection, user="ada")
    client.wait_for_sentinel("goodbye")
    assert stack.connect("/streams/1.tampered-" + path.partition(".")[2]).answered() == 404

    shard = stack.shards[0]
    wait_until(lambda: "client closed" in shard.log, "the end is logged")
    wait_until(lambda: "hand-off" in whole(stack.router.log), "the hand-off is logged")  # type: ignore[union-attr]
    handed, taken, closed = (
        [event for event in events(log) if event["event"] == what]
        for log, what in (
            (whole(stack.router.log), "hand-off"),
            (shard.log, "client taken"),
            (shard.log, "client closed"),
        )
    )
    assert [(e["request_id"], e["outcome"], e["shard"]) for e in handed] == [("follow-me", "accepted", shard.id)]
    assert [(e["request_id"], e["peer"], e["streams"]) for e in taken] == [("follow-me", handed[0]["peer"], 1)]
    assert [(e["request_id"], e["reason"]) for e in closed] == [("follow-me", "disconnected")]
    assert taken[0]["process"] == shard.id
    assert {"timestamp", "level", "logger", "process", "pid", "event"} <= set(handed[0]) & set(taken[0]) & set(
        closed[0]
    )
    token = path.partition(".")[2].partition("?")[0]
    assert token not in whole(stack.router.log) + shard.log
    assert not any(event["logger"] == "gunicorn.access" for event in events(whole(stack.router.log)))
