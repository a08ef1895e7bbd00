"""Many clients: one run of the load client `ssebench`."""

import json
import select
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil


class FailedError(Exception):
    """The run did not measure what it should: something was lost, too slow, or missing."""


class Clients:
    """A number of event-stream connections. A context: at its end they are closed.

    Owned by the scenario. ready_s is how long it took, in seconds, until each had its response's head.
    """

    def __init__(self, program: Path, address: tuple[str, int], path: str, n: int, *options: str) -> None:
        host, port = address
        argv = [str(program), "--raise", "-n", str(n), "--path", path, *options, host, str(port)]
        self.n = n
        self.ready_s = 0.0
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def has_spoken(self, timeout_s: float) -> bool:
        """Wait, at most timeout_s, until all are connected; returns whether they are."""
        assert self._process.stderr is not None
        return bool(select.select([self._process.stderr], [], [], timeout_s)[0])

    def ready(self) -> Self:
        """Wait until all are connected; raises FailedError if one is not."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.startswith("READY"):
                words = dict(word.split("=") for word in line.split()[1:])
                self.ready_s = float(words["connect_s"])
                if int(words["connected"]) != self.n:
                    raise FailedError(f"of {self.n} clients {words['connected']} were connected")
                return self
        raise FailedError("the load client has ended before its clients were connected")

    def ports(self) -> set[int]:
        """The local ports of the connections."""
        return {one.laddr.port for one in psutil.Process(self._process.pid).net_connections("tcp4")}

    def leave(self) -> None:
        """Disconnect all at once; returns before they are gone."""
        self._process.terminate()

    def result(self, timeout_s: float = 120) -> dict[str, Any]:
        """Wait for the end; returns what the load client measured.

        Raises FailedError if ids were missing, repeated or out of order.
        """
        try:
            said, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise FailedError(f"the load client did not end within {timeout_s:g} s") from None
        result: dict[str, Any] = json.loads(said)
        wrong = {name: result[name] for name in ("gaps", "dups", "reorders", "bad_ids", "reset") if result.get(name)}
        if wrong:
            raise FailedError(f"the clients received what they should not: {wrong}")
        return result
