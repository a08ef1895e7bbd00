"""Another number of shards, and nodes that serve again, while things happen beside it; in a real Redis."""

from collections.abc import Sequence
from typing import Any

import pytest
from click.testing import CliRunner

from headrace.cli import main
from headrace.errors import UnavailableError, UsageError
from headrace.node.directory import Directory
from headrace.node.shard_operations import ShardOperations
from headrace.up.scaling import scale
from tests.fixtures.directory import entry
from tests.fixtures.redis import RedisServer


def operations(directory: Directory) -> ShardOperations:
    return ShardOperations(directory, lambda line: None)


def test_a_node_that_was_started_anew_is_not_waited_for(directory: Directory) -> None:
    """Where the added shard is none of the node's any more, a scale under way says so at once and what to do."""
    directory.register(entry("n1-0"))
    answers: list[Sequence[str]] = [["n1-0"], ["n1-0", "n1-1"], ["n1-0", "n1-1"], ["n1-0"]]
    with pytest.raises(UnavailableError, match=r"without n1-1; run `headrace scale 2` again"):
        scale(2, directory, operations(directory), lambda request: answers.pop(0))
    assert not answers


def test_a_shard_that_was_not_removed_serves_again(directory: Directory) -> None:
    """Where `up` cannot remove it, it is not left drained: a shard of this id that starts later would be so too."""
    for id_ in ("n1-0", "n1-1"):
        directory.register(entry(id_))

    def ask(request: dict[str, Any]) -> list[str]:
        if "remove" in request:
            raise UnavailableError("`headrace up` ended before it was done")
        return ["n1-0", "n1-1"]

    class Obedient(Directory):
        """Its shards do at once what is wanted."""

        def drain(self, shard_id: str) -> None:
            super().drain(shard_id)
            self.register(entry(shard_id, state="drained"))

    directory.__class__ = Obedient
    with pytest.raises(UnavailableError, match="ended"):
        scale(1, directory, operations(directory), ask)
    assert directory.read().drained == frozenset()


def test_undraining_a_node_names_what_it_leaves(
    directory: Directory, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that were drained by name stay so, and the command says which, and how they serve again."""
    for id_, state in (("n1-0", "up"), ("n1-1", "drained"), ("n1-2", "drained")):
        directory.register(entry(id_, state=state))
    for id_ in ("n1-1", "n1-2"):
        directory.drain(id_)
    directory.drain_node("n1", 1)
    monkeypatch.setenv("HEADRACE_REDIS_URL", redis_server.url)
    ran = CliRunner().invoke(main, ["undrain", "--node", "n1"])
    assert ran.exit_code == 0, ran.output
    assert ran.output.splitlines() == [
        "node n1 is up",
        "n1-1 stays drained; `headrace undrain n1-1` lets it serve again",
        "n1-2 stays drained; `headrace undrain n1-2` lets it serve again",
    ]
    assert directory.read().drained == {"n1-1", "n1-2"}
    assert not directory.read().drained_nodes
    told = CliRunner().invoke(main, ["undrain", "--help"]).output
    assert "all shards" not in told
    assert "stay drained when their node serves again" in " ".join(told.split())


def test_marks_of_what_is_gone_can_be_taken_away(
    directory: Directory, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the units were stopped, as the runbook says, a shard's and a node's names are free to be used again."""
    directory.register(entry("n2-0", "n2"))
    directory.drain("n1-0")
    directory.drain_node("n1", 1)
    monkeypatch.setenv("HEADRACE_REDIS_URL", redis_server.url)
    for arguments in (["n1-0"], ["--node", "n1"]):
        ran = CliRunner().invoke(main, ["undrain", *arguments])
        assert (ran.exit_code, "is no longer drained; " in ran.output) == (0, True), ran.output
        again = CliRunner().invoke(main, ["undrain", *arguments])
        assert (again.exit_code, "there is no " in again.output) == (2, True), again.output
    assert not directory.read().drained
    assert not directory.read().drained_nodes


def test_a_shard_of_a_drained_node_is_not_waited_for(directory: Directory) -> None:
    """It would not serve: the node comes first, and nothing is changed."""
    directory.register(entry("n1-0", state="drained"))
    directory.drain("n1-0")
    directory.drain_node("n1", 1)
    with pytest.raises(UsageError, match="headrace undrain --node n1` first"):
        operations(directory).undrain("n1-0")
    assert directory.read().drained == {"n1-0"}
