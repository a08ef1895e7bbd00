"""Whom a router lets in; what the directory counts for that is tested with a real Redis."""

from pathlib import Path

from headrace.directory import Directory, ShardEntry, Snapshot
from headrace.settings import Settings
from router.limits import Limits
from router.placement import Placement


def test_without_redis_nobody_is_counted_who_may_have_left(tmp_path: Path) -> None:
    """A node's limit holds while Redis tells how many there are; in an outage those given away only add up."""
    settings = Settings(node="n", max_node_connections=3)
    placement = Placement("n", hold_s=3, found=list)
    limits = Limits(Directory("redis://127.0.0.1:1/0", expiry_s=3), placement, settings)
    placement.learn(Snapshot(("g", 1), (ShardEntry("n-0", "n", 1, str(tmp_path / "n-0.sock"), "up", 9, 1, 0, "0"),)))
    placement.gave("n-0")
    assert limits.refusal("r1", {}) == ""
    placement.gave("n-0")
    assert limits.refusal("r2", {}) == "this node has its 3 connections"
    placement.lose_directory()
    assert limits.refusal("r2", {}) == ""
