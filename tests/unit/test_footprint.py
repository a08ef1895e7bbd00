"""What the torture notes of its processes, taken from this one."""

import os
import socket
from pathlib import Path

from loadtests.torture.footprint import Footprints


def test_growth(tmp_path: Path) -> None:
    """A descriptor that is left open at each sample shows; what does not grow does not; one that ended is left out."""
    footprints = Footprints(tmp_path)
    (tmp_path / f"greenlets-{os.getpid()}").write_text("7")
    kept = []
    for _ in range(30):
        kept.append(socket.socket())
        footprints.take({"n-0": os.getpid(), "gone": 2**22 + 1}, 3)
    for one in kept:
        one.close()
    found = {(one.process, one.quantity): (one.early, one.late) for one in footprints.growth()}
    early, late = found[f"n-0 ({os.getpid()})", "descriptors"]
    assert late - early == 18
    assert found[f"n-0 ({os.getpid()})", "greenlets"] == (7, 7)
    assert found["PostgreSQL", "connections of shards"] == (3, 3)
    assert not [process for process, _ in found if process.startswith("gone")]
