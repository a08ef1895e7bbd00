"""A client's program of its own process, and what it has printed."""

import json
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.fixtures.deployment import LIBC, PR_SET_PDEATHSIG
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import DEADLINE_S


class Follower:
    """One client that follows one stream through a TCP proxy of its own. Owned by the test; it dies with it.

    A thread reads what the program prints into lines; errors has what it wrote to standard error.
    """

    def __init__(self, name: str, command: list[str], router_port: int, path: str, errors: Path) -> None:
        self.name = name
        self.proxy = Proxy("127.0.0.1", router_port)
        self.lines: list[dict[str, Any]] = []
        self.errors = errors
        with errors.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, name, f"http://127.0.0.1:{self.proxy.port}{path}"],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __repr__(self) -> str:
        return f"<Follower {self.name!r} status={self.process.poll()} {len(self.data)} events, last {self.lines[-4:]}>"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # sseclient prints its exceptions.
            if line.startswith("{"):
                self.lines.append(json.loads(line))

    @property
    def events(self) -> list[tuple[str | None, str]]:
        """What an application sees, as (id, data): without headrace's own types and without empty events."""
        return [(each["id"], each["data"]) for each in self._dispatched if each["data"]]

    @property
    def data(self) -> list[str]:
        return [data for _, data in self.events]

    @property
    def empty(self) -> int:
        """How many events without data it was handed."""
        return sum(not each["data"] for each in self._dispatched)

    @property
    def _dispatched(self) -> list[dict[str, Any]]:
        return [each for each in list(self.lines) if "data" in each and not each["type"].startswith("headrace:")]

    @property
    def connections(self) -> int:
        """How often it has connected so far."""
        return self.proxy.accepted

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.proxy.close()
