"""How the processes of a node show their numbers to Prometheus, so that one request gets those of all of them.

Each shard and router worker listens at a unix socket of its own, `<name>.prom` in the runtime directory:

    connect ──►
            ◄── its numbers in Prometheus' text format, then the end

A scrape reaches any one router worker; that one asks all the others and joins what they say. The names are those of
the shards and `router-<n>`, n counting a node's workers from 0: series do not multiply with restarts.
"""

import contextlib
import fcntl
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from headrace.node import socket_file
from headrace.node.process_metrics import ProcessMetrics
from headrace.node.socket_file import SocketFile

logger = logging.getLogger(__name__)

SUFFIX: Final = ".prom"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE_S: Final = 2.0
_BACKLOG: Final = 16
_MAX_PROCESSES: Final = 1000


class Labelled(Collector):
    """What other collectors have, and what the process itself uses, with the label `process` on each series."""

    def __init__(self, process: str, *collectors: Collector) -> None:
        self._process = process
        self._collectors = (*collectors, ProcessMetrics())

    def collect(self) -> Iterator[Metric]:
        """The families, as Prometheus' library wants them."""
        for collector in self._collectors:
            for family in collector.collect():
                family.samples = [_labelled(sample, self._process) for sample in family.samples]
                yield family

    def render(self) -> bytes:
        """The text of all of them."""
        return generate_latest(self)


def _labelled(sample: Sample, process: str) -> Sample:
    return sample._replace(labels={"process": process, **sample.labels})


class MetricsSocket:
    """The socket at path, which listens from now on. render returns the process's numbers.

    Owned by the greenlet or thread that calls serve(). Raises OSError if the path cannot be bound.
    """

    def __init__(self, path: Path, render: Callable[[], bytes]) -> None:
        self._render = render
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._file = SocketFile(self._listening, path, backlog=_BACKLOG)
        except BaseException:
            self._listening.close()
            raise

    def serve(self) -> None:
        """Answer each process that connects, one after the other, until close(). Yields in a patched process."""
        while True:
            try:
                asker, _ = self._listening.accept()
            except OSError:
                if self._listening.fileno() < 0:
                    return
                # As when no more files may be opened.
                time.sleep(1.0)
                continue
            with asker, contextlib.suppress(OSError):
                asker.settimeout(_PATIENCE_S)
                try:
                    text = self._render()
                except Exception:
                    # The asker gets nothing and says so; nothing else of the process depends on its numbers.
                    logger.exception("could not render the metrics")
                    continue
                asker.sendall(text)

    def close(self) -> None:
        """Listen no more, and remove the file unless another process has put its own in its place."""
        self._listening.close()
        self._file.remove()


def ask(path: Path, deadline_s: float = _PATIENCE_S) -> bytes:
    """The numbers of the process that listens at path. Yields in a patched process. Raises OSError."""
    deadline = time.monotonic() + deadline_s
    pieces = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(deadline_s)
        asking.connect(str(path))
        socket_file.require_trusted(asking, path)
        while piece := asking.recv(1 << 16):
            pieces.append(piece)
            asking.settimeout(max(0.001, deadline - time.monotonic()))
    return b"".join(pieces)


def joined(texts: Iterable[bytes]) -> bytes:
    """Several processes' texts as one: the series of each metric stand together under one heading, as they must."""
    families: dict[bytes, list[bytes]] = {}
    for text in texts:
        series: list[bytes] = []
        for line in text.splitlines(keepends=True):
            if line.startswith(b"# HELP "):
                series = families.setdefault(line.split(b" ", 3)[2], [])
                if not series:
                    series.append(line)
            elif not line.startswith(b"# TYPE ") or len(series) == 1:
                series.append(line)
    return b"".join(line for series in families.values() for line in series)


def claim_name(runtime_dir: Path, kind: str) -> tuple[str, IO[bytes]]:
    """The first `<kind>-<n>` that no living process of this node has; it is ours until the file is closed.

    Raises OSError if the directory cannot be written.
    """
    runtime_dir.mkdir(parents=True, exist_ok=True)
    for number in range(_MAX_PROCESSES):
        name = f"{kind}-{number}"
        file = (runtime_dir / f"{name}.lock").open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        return name, file
    raise OSError(f"{_MAX_PROCESSES} processes have a name in {runtime_dir} already")
