"""How Prometheus gets the metrics of all processes of a node with one request.

Each shard and each router worker listens at a unix socket of its own, `<name>.prom` in the runtime directory:

    connect ──►
            ◄── its metrics in Prometheus' text format, then the end

A scrape reaches one of the router workers. That worker asks all other processes and joins their answers. A shard's name
is its id; a worker's is `router-<n>`, with the smallest n from 0 that is free on the node, so that a restart brings no
new series.
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
    """The metrics of other collectors, and those of the process itself, with the label `process` on each series."""

    def __init__(self, process: str, *collectors: Collector) -> None:
        self._process = process
        self._collectors = (*collectors, ProcessMetrics())

    def collect(self) -> Iterator[Metric]:
        """The metric families, for Prometheus' client library."""
        for collector in self._collectors:
            for family in collector.collect():
                family.samples = [_labelled(sample, self._process) for sample in family.samples]
                yield family

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self)


def _labelled(sample: Sample, process: str) -> Sample:
    return sample._replace(labels={"process": process, **sample.labels})


class MetricsSocket:
    """A process's socket, which listens at path from now on. render returns the process's metrics as text.

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
                # For example, this process may open no more files.
                time.sleep(1.0)
                continue
            with asker, contextlib.suppress(OSError):
                asker.settimeout(_PATIENCE_S)
                try:
                    text = self._render()
                except Exception:
                    # The asker gets nothing, and logs that. Nothing else in this process depends on its metrics.
                    logger.exception("could not render the metrics")
                    continue
                asker.sendall(text)

    def close(self) -> None:
        """Listen no more, and remove the file unless another process has put its own in its place."""
        self._listening.close()
        self._file.remove()


def ask(path: Path, deadline_s: float = _PATIENCE_S) -> bytes:
    """The metrics, as text, of the process that listens at path. Yields in a patched process. Raises OSError."""
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
    """The metrics of several processes as one text. All series of a metric follow one heading, as they must."""
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
    """The first name `<kind>-<n>` that no living process of this node has, and the file that keeps it for this process.

    Another process can get the name once the file is closed. Raises OSError if the directory cannot be written.
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
