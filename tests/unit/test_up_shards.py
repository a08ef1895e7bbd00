"""How the supervisor sees that a shard takes connections."""

import os
import socket
from pathlib import Path

from headrace.up.shards import listens


def test_listens(tmp_path: Path) -> None:
    """Only the process that listens counts, not another at the same path, nor the file of one that is gone."""
    path = tmp_path / "n-0.sock"
    assert not listens(path, os.getpid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        assert not listens(path, os.getpid())
        listening.listen()
        assert listens(path, os.getpid())
        assert not listens(path, os.getppid())
    assert path.exists()
    assert not listens(path, os.getpid())
