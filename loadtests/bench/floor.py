"""The floor: one run of `rawfan`, which does the least that a fan-out server can do."""

import json
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from loadtests.bench import cores
from loadtests.bench.payload import DATA_BYTES


class Floor:
    """The server `rawfan`, on a core of its own. A context. Owned by the scenario."""

    def __init__(self, program: Path, core: frozenset[int] = cores.SERVER) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address: tuple[str, int] = probe.getsockname()
        argv = [str(program), str(self.address[1]), "send", str(DATA_BYTES)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        cores.pin(self._process.pid, core)

    def __enter__(self) -> "Floor":
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(self.address).close()
                return self
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def publish(self, count: int, rate: float = 0, batch: int = 1) -> dict[str, Any]:
        """Write count events, rate a second (0: without a pause), batch of them with one call; what it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"go {max(1, count)} {rate:g} {batch}\n")
        self._process.stdin.flush()
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        return said
