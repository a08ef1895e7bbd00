"""`/metrics`: the numbers of the whole node, whichever router worker is asked.

    Prometheus ──► one worker ──► every shard of the node, every other worker     each at its socket, all at once

A shard that is registered and does not answer is named by `headrace_scrape_up{process="…"} 0`, so that it is missed.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import gevent
from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headrace.node import metrics_sockets
from headrace.router.client_placement import ClientPlacement
from headrace.router.metrics import RouterMetrics
from headrace.router.request import Request
from headrace.router.response import Headers, Response

logger = logging.getLogger(__name__)


class MetricsEndpoint:
    """The endpoint, and the socket at which other workers ask this one.

    Called by any request greenlet. start() MUST be called once, in the worker: without it this worker's numbers are
    in its own answers only.
    """

    def __init__(self, metrics: RouterMetrics, placement: ClientPlacement, runtime_dir: Path) -> None:
        self._metrics = metrics
        self._placement = placement
        self._runtime_dir = runtime_dir
        self._name = "router"
        self._labelled = metrics_sockets.Labelled(self._name, metrics)
        self._claim: IO[bytes] | None = None
        self._socket: metrics_sockets.MetricsSocket | None = None
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> None:
        """Take the first name that no other worker has, and answer the other workers. Logs a warning if that fails."""
        try:
            self._name, self._claim = metrics_sockets.claim_name(self._runtime_dir, "router")
            # A worker that stops in order removes its socket.
            self._metrics.after_death = self._path.exists()
            self._labelled = metrics_sockets.Labelled(self._name, self._metrics)
            self._socket = metrics_sockets.MetricsSocket(self._path, self._labelled.render)
        except OSError as error:
            logger.warning("other workers cannot ask this one for its metrics: %s", error)
            return
        self._greenlet = gevent.spawn(self._socket.serve)

    def stop(self) -> None:
        """End, and leave the name to another worker. Yields."""
        if self._greenlet is None or self._socket is None or self._claim is None:
            return
        self._greenlet.kill()
        self._socket.close()
        self._claim.close()

    def __call__(self, request: Request, headers: Headers) -> Response:
        """The numbers of all processes of the node. Yields."""
        shards = {entry.id: Path(entry.path) for entry in self._placement.shards()}
        if self._placement.directory_away or not shards:
            shards = {shard.id: Path(shard.path) for shard in self._placement.order(0)} | shards
        asked = {id_: gevent.spawn(_ask, path.with_suffix(metrics_sockets.SUFFIX)) for id_, path in shards.items()}
        workers = [
            gevent.spawn(_ask, path)
            for path in sorted(self._runtime_dir.glob(f"router-*{metrics_sockets.SUFFIX}"))
            if path != self._path
        ]
        texts = [self._labelled.render()]
        gevent.joinall([*asked.values(), *workers])
        answers = {id_: greenlet.value for id_, greenlet in asked.items()}
        texts += [text for text in (*answers.values(), *(worker.value for worker in workers)) if text]
        texts.append(
            generate_latest(_Answered({self._name: True} | {id_: bool(text) for id_, text in answers.items()}))
        )
        return Response(200, metrics_sockets.joined(texts), (("Content-Type", metrics_sockets.CONTENT_TYPE),))

    @property
    def _path(self) -> Path:
        return self._runtime_dir / f"{self._name}{metrics_sockets.SUFFIX}"


class _Answered(Collector):
    def __init__(self, answered: dict[str, bool]) -> None:
        self._answered = answered

    def collect(self) -> Iterator[Metric]:
        help_ = "1 for a process of this node that has told its numbers, 0 for a shard that is known and has not."
        family = GaugeMetricFamily("headrace_scrape_up", help_, labels=["process"])
        for process, answered in self._answered.items():
            family.add_metric([process], float(answered))
        yield family


def _ask(path: Path) -> bytes:
    try:
        return metrics_sockets.ask(path)
    except OSError as error:
        logger.info("no metrics from %s: %s", path.name, error)
        return b""
