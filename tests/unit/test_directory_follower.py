"""Following the directory through outages, with a directory that follows a script."""

import logging
from collections.abc import Generator
from pathlib import Path

import pytest

from headrace.errors import DirectoryUnavailableError
from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.shard_entry import ShardEntry
from headrace.router.client_placement import ClientPlacement
from headrace.router.directory_follower import DirectoryFollower, sockets_in

KNOWN = DirectorySnapshot(("g", 1), (ShardEntry("a", "n1", 1, "/a.sock", "up", 1, 0, 0, "0"),), {})


class Enough(Exception):
    """Ends a follower's run, which has no end of its own."""


class ScriptedDirectory:
    """Each run of changes() takes the next script: a list of snapshots or errors for read() to give."""

    def __init__(self, *scripts: list[DirectorySnapshot | Exception]) -> None:
        self.scripts = [*scripts]
        self.script: list[DirectorySnapshot | Exception] = []
        self.known: list[DirectorySnapshot | None] = []

    def read(self, known: DirectorySnapshot | None = None, node: str = "") -> DirectorySnapshot:
        assert node == "n1"
        self.known.append(known)
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def changes(self, *, timeout_s: float) -> Generator[bool, None, None]:
        if not self.scripts:
            raise Enough
        self.script = self.scripts.pop(0)
        while self.script:
            yield True
        raise DirectoryUnavailableError()


def run(directory: ScriptedDirectory) -> tuple[ClientPlacement, list[float]]:
    placement = ClientPlacement("n1", hold_s=3, found=list)
    slept: list[float] = []
    learned: list[None] = []
    follower = DirectoryFollower(
        directory,
        placement,
        node="n1",
        interval_s=1,
        learned=lambda: learned.append(None),
        sleep=slept.append,
    )
    with pytest.raises(Enough):
        follower.run()
    return placement, slept


def test_what_is_read_is_learnt_and_survives_the_outage(caplog: pytest.LogCaptureFixture) -> None:
    """After Redis is lost the shards stay known, the loss is said once, and trying goes on."""
    error = DirectoryUnavailableError()
    with caplog.at_level(logging.WARNING):
        placement, slept = run(ScriptedDirectory([KNOWN], [error], [error]))
    assert [shard.id for shard in placement.shards()] == ["a"]
    assert placement.directory_away
    assert caplog.text.count("going on with the shards last known") == 1
    assert len(slept) == 3
    assert all(0.5 <= pause <= 1.5 for pause in slept)


def test_the_return_of_redis_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """When Redis answers again it is said once, and a second outage is said again."""
    with caplog.at_level(logging.WARNING):
        run(ScriptedDirectory([DirectoryUnavailableError()], [KNOWN, KNOWN], [KNOWN]))
    assert caplog.text.count("Redis is back") == 2
    assert caplog.text.count("going on with the shards last known") == 3


def test_the_last_snapshot_is_given_to_the_next_read() -> None:
    """Reading again passes the last snapshot, but not one from before an outage."""
    directory = ScriptedDirectory([KNOWN, KNOWN], [KNOWN])
    run(directory)
    assert directory.known == [None, KNOWN, None]


def test_sockets_are_found_by_name(tmp_path: Path) -> None:
    """Only `<shard id>.sock` counts; a directory that does not exist has none."""
    for name in ("b.sock", "a.sock", "a.pid"):
        (tmp_path / name).touch()
    assert [(found.id, found.path) for found in sockets_in(tmp_path)] == [
        ("a", f"{tmp_path}/a.sock"),
        ("b", f"{tmp_path}/b.sock"),
    ]
    assert sockets_in(tmp_path / "none") == []
