"""`/healthz` and `/readyz`."""

from collections.abc import Callable
from typing import Any

from headrace.node.socket_passing import Channels
from headrace.router.client_placement import ClientPlacement
from headrace.router.request import Request
from headrace.router.response import Headers, Response, as_json


class Health:
    """Tells how this process and what it needs are. Called by any request greenlet; keeps nothing.

    may_see_all tells whose request gets more than a word for each part: not everybody's, since that has names, numbers
    of processes and errors in it.
    """

    def __init__(self, placement: ClientPlacement, channels: Channels, may_see_all: Callable[[Request], bool]) -> None:
        self._placement = placement
        self._channels = channels
        self._may_see_all = may_see_all

    def healthz(self, request: Request, headers: Headers) -> Response:
        """200 as long as this process serves requests."""
        return Response(200, b"ok\n", (("Content-Type", "text/plain"), ("Cache-Control", "no-store")))

    def readyz(self, request: Request, headers: Headers) -> Response:
        """200 while some shard of this node can be reached, else 503, with the state of each part; 503 too in a drain.

        The status is "ok", "degraded" (something is away, clients are served), "draining" or "unavailable".
        """
        entries = self._placement.shards()
        paths = {entry.id: entry.path for entry in entries if entry.state == "up"}
        if self._placement.directory_away or not entries:
            paths.update((shard.id, shard.path) for shard in self._placement.order(0))
        reached = {id_ for id_, path in paths.items() if self._channels.reachable(path)}
        shards: list[dict[str, Any]] = [
            {
                "id": entry.id,
                "node": entry.node,
                "pid": entry.pid,
                "state": entry.state,
                "reachable": entry.id in reached,
                "connections": entry.connections,
                "capacity": entry.capacity,
                "streams": entry.streams,
                "lag_s": entry.lag_s,
                "canary": entry.canary,
                "last_error": entry.last_error,
            }
            for entry in entries
        ]
        named = {entry.id for entry in entries}
        shards += [{"id": id_, "reachable": id_ in reached} for id_ in sorted(paths.keys() - named)]
        errors = sorted({entry.database_error for entry in entries if entry.database_error})
        lag_s = max((entry.lag_s for entry in entries), default=0.0)
        canaries = sorted({entry.canary for entry in entries if entry.canary})
        parts: dict[str, Any] = {
            "redis": {"status": self._placement.directory_condition},
            # A router never asks PostgreSQL anything: the shards tell how it is.
            "postgresql": {
                "status": "away" if lag_s else "degraded" if errors else "ok" if reached else "unknown",
                "lag_s": lag_s,
                "errors": errors,
            },
            # What came of the last canaries: whether an event goes all the way.
            "canary": {
                "status": "off" if not canaries else "ok" if canaries == ["ok"] else "failing",
                "found": canaries,
            },
            "shards": shards,
        }
        well = not errors and not lag_s and not self._placement.directory_away and len(reached) == len(paths)
        well = well and canaries in ([], ["ok"])
        status = "unavailable" if not reached else "ok" if well else "degraded"
        if self._placement.drained:
            status = "draining"
        if not self._may_see_all(request):
            parts = {name: {"status": part["status"]} for name, part in parts.items() if isinstance(part, dict)}
        return as_json(200 if status in ("ok", "degraded") else 503, {"status": status, **parts})
