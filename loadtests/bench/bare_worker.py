"""The least that a gunicorn worker can do for a client: it reads the request, and answers 200 with one line."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import psutil

from loadtests.bench.clients import FailedError

READY_S: Final = 30.0
_ROOT: Final = Path(__file__).parents[2]
_BODY: Final = b"retry: 1000\n\n"
_HEADERS: Final = [("Content-Type", "text/event-stream"), ("Content-Length", str(len(_BODY))), ("Connection", "close")]


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application: the answer is the same whatever is asked for."""
    start_response("200 OK", _HEADERS)
    return [_BODY]


class BareWorker:
    """gunicorn with one worker of its own gevent class, and without a line in any log. A context. Owned by the
    scenario."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address: tuple[str, int] = probe.getsockname()
        argv = [sys.executable, "-P", "-m", "gunicorn", "-k", "gevent", "-b", f"127.0.0.1:{self.address[1]}"]
        argv += ["--workers", "1", "--worker-connections", "10000", "--backlog", "4096", "--log-level", "critical"]
        self._master = subprocess.Popen([*argv, "loadtests.bench.bare_worker:application"], cwd=_ROOT)

    @property
    def pids(self) -> list[int]:
        """The processes: the master, and its worker."""
        return [self._master.pid, *(child.pid for child in psutil.Process(self._master.pid).children())]

    def __enter__(self) -> "BareWorker":
        deadline = time.monotonic() + READY_S
        while True:
            try:
                with socket.create_connection(self.address, timeout=1) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
                    if client.recv(100):
                        return self
            except OSError:
                if time.monotonic() > deadline or self._master.poll() is not None:
                    self.__exit__(None, None, None)
                    raise FailedError("the bare gunicorn worker did not get ready") from None
                time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._master.terminate()
        self._master.wait()
