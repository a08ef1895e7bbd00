"""The canary: an event that is published every few seconds and received as a browser does, through the front door.

    canary ── GET /streams/… ──► proxy, router ──► a shard, this one unless its slots have just moved
    canary ── publish_now ──► PostgreSQL ── notification, read ──► that shard ── the event ──► canary

Each shard has a stream of its own for this, in a slot that it serves, and a connection only for as long as it takes. So
what the metrics say of it is what clients of this shard see, whatever the single parts believe of themselves.

The canary does not use `headrace.node.outage`: it goes on at its own interval while something is wrong, since each try
is a measurement, and a result is one of five and not only success or failure.
"""

import http.client
import logging
import secrets as random_names
import urllib.error
from collections.abc import Callable
from contextlib import closing
from typing import Final

import gevent
import psycopg

from headrace.errors import one_line
from headrace.node import tls_errors
from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.front_door import FrontDoorClient
from headrace.node.kept_session import KeptSession
from headrace.publish import publish_now
from headrace.settings import Settings
from headrace.shard.numbers.counters import SECONDS, Histogram, Tally
from headrace.stream import CANARY_PREFIX, SLOTS, slot

logger = logging.getLogger(__name__)

DEADLINE_S: Final = 5.0
TOKEN_LIFE_S: Final = 60.0


class Canary:
    """Probes until it is stopped, and keeps what came of it: `ok`, or in a word where it failed.

    Owned by its own greenlet. Off where the setting says so, or where this process has no secret to sign with. here is
    asked whether this shard takes clients; while it does not, nothing is probed. stream is the one that is probed, ""
    for none yet, for who counts clients. last_error says why the last one failed, empty after one that arrived.
    """

    def __init__(self, settings: Settings, shard_id: str, here: Callable[[], bool]) -> None:
        self.result = ""
        self.last_error = ""
        self.stream = ""
        self.seconds = Histogram(SECONDS)
        self.results = Tally(("ok", "unreachable", "refused", "no database", "no event"))
        self._settings = settings
        self._shard_id = shard_id
        self._here = here
        self._name = f"headrace {shard_id} canary"
        self._kept = KeptSession(settings.database_url, self._name, limit_s=DEADLINE_S)
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start probing, if it is on; returns the greenlet, which ends only by `stop`."""
        if not self._settings.canary_interval_s or not self._settings.secret:
            return []
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """End. Yields."""
        if self._greenlet is not None:
            self._greenlet.kill()
        self._kept.close()

    def placed(self, snapshot: DirectorySnapshot) -> None:
        """The directory was read: find a stream in a slot of ours. The last one is kept while it is."""
        owners = snapshot.slots.get(self._settings.node, {})
        if self.stream and owners.get(slot(self.stream)) == self._shard_id:
            return
        names = (f"{CANARY_PREFIX}{self._shard_id}:{number}" for number in range(SLOTS))
        self.stream = next((name for name in names if owners.get(slot(name)) == self._shard_id), "")

    def _run(self) -> None:
        while True:
            gevent.sleep(self._settings.canary_interval_s)
            stream = self.stream
            if stream and self._here():
                self._note(stream, *self._probe(stream))
            else:
                self.result = self.last_error = ""

    def _note(self, stream: str, result: str, why: str) -> None:
        self.results.add(result)
        if result != "ok" and self.result in ("ok", ""):
            logger.warning("the canary failed", extra={"result": result, "reason": why, "stream": stream})
        elif result == "ok" and self.result not in ("ok", ""):
            logger.warning("the canary is well again")
        self.result = result
        self.last_error = f"the canary: {result}: {why}" if why else ""

    def _probe(self, stream: str) -> tuple[str, str]:
        """One event from end to end; the result and, where it failed, why. Yields.

        Meanwhile the slot of the stream may become another shard's.
        """
        base = self._settings.canary_url or self._settings.public_url
        text = random_names.token_hex(8)
        stage = "unreachable"
        try:
            with gevent.Timeout(DEADLINE_S):
                client = FrontDoorClient(base, stream, secrets=self._settings.secret, life_s=TOKEN_LIFE_S)
                with closing(client):
                    stage = "no event"
                    self.seconds.observe(client.seconds_of(text, lambda: self._publish(stream, text)))
                    return "ok", ""
        except gevent.Timeout:
            # It may have been interrupted in the middle of an answer.
            self._kept.close()
            return stage, f"not within {DEADLINE_S:g} s"
        except urllib.error.HTTPError as error:
            with error:
                return "refused", f"the answer was {error.code}"
        except psycopg.Error as error:
            self._kept.close()
            return "no database", one_line(error)
        except (OSError, http.client.HTTPException) as error:
            if distrust := tls_errors.fault(error):
                return stage, f"{base}: {distrust.found}; {distrust.advice}"
            return stage, str(error) or repr(error)
        except Exception as error:
            # Whatever a probe of the front door meets, it is no reason for clients to lose their shard.
            logger.exception("the canary met what was not foreseen")
            return stage, repr(error)

    def _publish(self, stream: str, text: str) -> None:
        self._kept.write(lambda session: publish_now(session, stream, text))
