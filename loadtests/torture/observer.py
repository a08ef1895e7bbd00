"""The observer: looks at the tortured system as an operator does: /metrics, /readyz, /ops/status and the doctor."""

import contextlib
import http.client
import json
import secrets
import urllib.error
import urllib.request
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from loadtests.torture.condition import Finding, Series, Sight
from loadtests.torture.system import System

OPS_TOKEN: Final = secrets.token_urlsafe(24)
"""The token of the tortured system's operations page."""
_PATIENCE_S: Final = 5.0
_DOOR: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Observer:
    """Looks at the system from outside; it has no state."""

    def __init__(self, system: System) -> None:
        self._system = system

    def look(self, since: float) -> Sight:
        """What is to be seen now, without the doctor, and the log lines since a monotonic time.

        Takes less than a second.
        """
        metrics = self._metrics()
        readyz, ops = self._json("/readyz"), self._json("/ops/status")
        return Sight(metrics, readyz, ops, lines=tuple(line for said, line in self._system.lines if said >= since))

    def ask_doctor(self) -> tuple[Finding, ...]:
        """The findings of `headrace doctor`. Takes seconds."""
        told = json.loads(self._system.run("doctor", "--json").stdout)
        return tuple(Finding(one["check"], one["level"], " ".join(one["found"].split())) for one in told)

    def well(self) -> bool:
        """Whether PostgreSQL, Redis and the canary are well and as many shards as planned take clients."""
        ready = self._json("/readyz") or {"status": "", "shards": []}
        up = [shard for shard in ready["shards"] if shard.get("state") == "up" and shard["reachable"]]
        return ready["status"] == "ok" and len(up) == len(ready["shards"]) == self._system.plan.shards

    def _metrics(self) -> dict[Series, float]:
        text = self._get("/metrics")
        # Prometheus makes this series for each target.
        found: dict[Series, float] = {("up", frozenset()): float(text is not None)}
        for family in text_string_to_metric_families((text or b"").decode()):
            for sample in family.samples:
                found[sample.name, frozenset(sample.labels.items())] = sample.value
        return found

    def _json(self, path: str) -> Any:
        with contextlib.suppress(ValueError):
            return json.loads(self._get(path) or b"")

    def _get(self, path: str) -> bytes | None:
        """The body of the answer, whatever its status; None if there is no answer."""
        host, port = self._system.address
        headers = {"Authorization": f"Bearer {OPS_TOKEN}"}
        request = urllib.request.Request(f"http://{host}:{port}{path}", headers=headers)
        try:
            with _DOOR.open(request, timeout=_PATIENCE_S) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.read()
        except (OSError, http.client.HTTPException):
            return None
