"""One real shard of the fleet, on a node of its own, and the clients that are handed over to it as a router would."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from headrace.node.child_process import spawn
from headrace.node.handoff import Handoff, forms
from headrace.node.socket_passing import Channels, Outcome
from headrace.tokens import Context
from loadtests.fleet import processor_time
from loadtests.fleet.servers import Servers

READY_S: Final = 120.0
HANDOFF_S: Final = 20.0
STOP_S: Final = 20.0
_NUMBERS: Final = itertools.count(1)


class FleetShard:
    """A process of `python -P -m headrace.shard`. Owned by the main thread, except for `connect`.

    A node has one shard, so that each stream's slot is its own, and no client is moved.
    """

    def __init__(self, servers: Servers, number: int, settings: Mapping[str, str]) -> None:
        self.id = f"host{number}-0"
        self._directory = servers.directory / f"run{number}"
        self._directory.mkdir(mode=0o700)
        self._log = servers.directory / f"shard{number}.log"
        self._channels = Channels(deadline_s=HANDOFF_S)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        ours = {
            "HEADRACE_DATABASE_URL": servers.database_url,
            "HEADRACE_REDIS_URL": servers.redis_url,
            "HEADRACE_RUNTIME_DIR": str(self._directory),
            "HEADRACE_NODE": f"host{number}",
            "HEADRACE_LOG_LEVEL": "warning",
        }
        argv = [sys.executable, "-P", "-m", "headrace.shard", "--id", self.id]
        environ = {**kept, **ours, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **settings}
        with self._log.open("wb") as output:
            self._process = spawn(
                argv, death_signal=signal.SIGKILL, environ=environ, directory=self._directory, output=output
            )

    def wait_until_ready(self) -> None:
        """Return when the shard takes clients. Raises RuntimeError, with its log, if it ends or takes too long."""
        deadline = time.monotonic() + READY_S
        while not self._channels.reachable(self._path):
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.id} takes no clients: {self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def check(self) -> None:
        """Raises RuntimeError, with the log, if the process has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.id} has ended: {self._log.read_text()[-2000:]}")

    def connect(self, stream: str) -> socket.socket:
        """A new client of the stream, from now on. Called by one thread at a time."""
        near, far = _pair()
        number = next(_NUMBERS)
        with far:
            handoff = Handoff(((stream, "now"),), Context(), f"fleet{number}", f"127.0.0.1:{number % 60_000 + 1}")
            passed = self._channels.give(self._path, forms(handoff), far)
        if passed.outcome is not Outcome.ACCEPTED:
            raise RuntimeError(f"{self.id} does not take a client: {passed}")
        return near

    def seconds(self) -> float:
        """The processor time of the process since its start."""
        return processor_time.seconds(self._process.pid)

    def ask_to_stop(self) -> None:
        """Ask the process to end, without waiting for it."""
        self._process.terminate()

    def stop(self) -> None:
        """End the process."""
        self._channels.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _path(self) -> str:
        return str(Path(self._directory) / f"{self.id}.sock")


def _pair() -> tuple[socket.socket, socket.socket]:
    """A TCP connection over the loopback interface: the client's end and the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
        return near, far
