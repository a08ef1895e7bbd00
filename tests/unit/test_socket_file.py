"""Who listens at a socket of this node."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from headrace.node import metrics_sockets, runtime_directory, socket_file
from headrace.node.socket_passing import Channels, Outcome
from tests.fixtures.waiting import DEADLINE_S

LISTEN = """
import os, socket, sys
listening = []
for path, kind in ((sys.argv[1], socket.SOCK_SEQPACKET), (sys.argv[2], socket.SOCK_STREAM)):
    listening.append(socket.socket(socket.AF_UNIX, kind))
    listening[-1].bind(path)
    os.chmod(path, 0o777)
if os.geteuid() == 0:
    os.setuid(65534)
for each in listening:
    each.listen()
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stranger(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A shard's two sockets in our runtime directory, at which another user listens."""
    paths = runtime_dir / "s.sock", runtime_dir / "s.prom"
    program = [sys.executable, "-c", LISTEN, *map(str, paths)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"listening\n"
            if os.geteuid() != 0:
                # Without the right to become somebody else in the other process, we are somebody else here.
                status = os.stat(runtime_dir)
                monkeypatch.setattr(os, "geteuid", lambda: 12345)
                monkeypatch.setattr(os, "stat", lambda path: os.stat_result([*status[:4], 12345, *status[5:10]]))
            yield paths
        finally:
            process.kill()
            for path in paths:
                path.unlink()


def test_no_client_is_given_to_another_user(stranger: tuple[Path, Path]) -> None:
    """Nothing is sent to who listens in a shard's place as another user, and no numbers are taken from it."""
    channels = Channels(deadline_s=DEADLINE_S)
    near, far = socket.socketpair()
    with near, far, closing(channels):
        passed = channels.give(str(stranger[0]), [b"{}"], far)
        assert passed.outcome is Outcome.UNREACHABLE
        assert "neither this process's nor root" in passed.reason
        assert not channels.reachable(str(stranger[0]))
    with pytest.raises(PermissionError, match="listens at"):
        metrics_sockets.ask(stranger[1], DEADLINE_S)


def test_our_own_are_trusted(runtime_dir: Path) -> None:
    """Who listens as this user is, and its process is known."""
    path = runtime_dir / "own.sock"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as asking:
        listening.bind(str(path))
        listening.listen()
        asking.connect(str(path))
        socket_file.require_trusted(asking, path)
        assert socket_file.listener(asking) == (os.getpid(), os.geteuid())
    path.unlink()


@pytest.mark.parametrize("shard_id", ["n-0", "Zürich:1", "a.b", "x" * 200])
def test_an_id_names_a_socket_in_the_directory_itself(shard_id: str) -> None:
    """Any file's name may be a shard's id."""
    assert runtime_directory.is_plain(shard_id)


@pytest.mark.parametrize("shard_id", ["", ".", "..", ".hidden", "a/b", "/etc/x", "../x", "a\0b", "x" * 201])
def test_an_id_does_not_lead_elsewhere(shard_id: str) -> None:
    """What would lead out of the runtime directory, or to a hidden file, is no shard's id."""
    assert not runtime_directory.is_plain(shard_id)
