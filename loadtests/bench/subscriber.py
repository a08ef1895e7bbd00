"""A load client that also checks the numbers of events, and that tells how many events came so far."""

import signal
import time
from pathlib import Path
from typing import Any, Final

from loadtests.bench.clients import Clients, FailedError

_ASK_INTERVAL_S: Final = 0.05
_AFTER_LAST_S: Final = 0.3
"""How long the connections stay open after the last event, to see whether one comes that should not."""


class Subscriber(Clients):
    """n connections that follow a stream each, checking what subscriber.c says. A context. Owned by the scenario."""

    def __init__(self, program: Path, address: tuple[str, int], path: str, n: int) -> None:
        super().__init__(
            program, address, path, n, "--streams", str(n), "--contiguous", "--idle", "0", "--seconds", "7200"
        )

    def received(self) -> int:
        """How many events came so far, over all connections. Raises FailedError if the program has ended."""
        self._process.send_signal(signal.SIGUSR1)
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        if not line.startswith("EVENTS "):
            raise FailedError(f"the subscriber has ended, and said {line.strip()!r}")
        return int(line.split()[1])

    def forget(self) -> None:
        """Forget the latencies so far, at the end of a warm-up."""
        self._process.send_signal(signal.SIGUSR2)

    def whole(self, count: int, timeout_s: float) -> dict[str, Any]:
        """Wait until count events came, then end; returns what the connections measured.

        Raises FailedError unless they received each of the sessions' events once, in the order in which its session
        published it, and nothing else. timeout_s is how long they may take from now on.
        """
        deadline = time.monotonic() + timeout_s
        while self.received() < count and time.monotonic() < deadline:
            time.sleep(_ASK_INTERVAL_S)
        time.sleep(_AFTER_LAST_S)
        self.leave()
        result = self.result()
        wrong = {name: result[name] for name in ("repeated", "disordered", "unnumbered", "eof") if result[name]}
        if wrong or result["numbers"] != count or result["events_total"] != count:
            raise FailedError(
                f"of {count} committed events {result['numbers']} were received within {timeout_s:g} s"
                f"{f'; moreover {wrong}' if wrong else ''}"
            )
        return result
