"""The observer: looks at the tortured system as an operator does, with what headrace itself has for that."""

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
"""What opens the operations page of the tortured system."""
_PATIENCE_S: Final = 5.0
_DOOR: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Observer:
    """Looks from outside; keeps nothing."""

    def __init__(self, system: System) -> None:
        self._system = system

    def look(self, since: float) -> Sight:
        """What is to be seen now, without the doctor, and what was written since then (monotonic). Takes moments."""
        metrics = self._metrics()
        readyz, ops = self._json("/readyz"), self._json("/ops/status")
        return Sight(metrics, readyz, ops, lines=tuple(line for said, line in self._system.lines if said >= since))

    def ask_doctor(self) -> tuple[Finding, ...]:
        """What the doctor finds. Takes seconds."""
        told = json.loads(self._system.run("doctor", "--json").stdout)
        return tuple(Finding(one["check"], one["level"], " ".join(one["found"].split())) for one in told)

    def well(self) -> bool:
        """Whether nothing is away and all shards, as many as there are to be, take clients."""
        ready = self._json("/readyz") or {"status": "", "shards": []}
        up = [shard for shard in ready["shards"] if shard.get("state") == "up" and shard["reachable"]]
        return ready["status"] == "ok" and len(up) == len(ready["shards"]) == self._system.plan.shards

    def _metrics(self) -> dict[Series, float]:
        text = self._get("/metrics")
        # As Prometheus does for a target.
        found: dict[Series, float] = {("up", frozenset()): float(text is not None)}
        for family in text_string_to_metric_families((text or b"").decode()):
            for sample in family.samples:
                found[sample.name, frozenset(sample.labels.items())] = sample.value
        return found

    def _json(self, path: str) -> Any:
        with contextlib.suppress(ValueError):
            return json.loads(self._get(path) or b"")

    def _get(self, path: str) -> bytes | None:
        """The body, also of an error; None without an answer."""
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
