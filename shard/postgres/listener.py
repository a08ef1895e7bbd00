"""The listener: sole owner of the LISTEN connection. It turns notifications into Wake messages.

    channel `headrace_slot_<n>`, payload `<head> <stream>`   ──►   Wake(stream, head), or the herald on duty
    channel `headrace_rate`                                  ──►   the sequencer, whose business it is

Notifications are hints. What makes them safe to rely on: LISTEN is committed before the first read of a slot's
streams; after any loss of the connection all slots are listened to again, and Relistened tells the dispatcher to read
what came meanwhile; a server that is silent is asked `select 1` under a short deadline.

While the shard hears of new events over the bus, the listener rests: it keeps its connection and listens to nothing, so
that PostgreSQL does not wake the connection's server process for any notification.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import gevent
import psycopg
from gevent import get_hub
from gevent.event import Event

from headrace.errors import ListenError
from headrace.node.outage import Outage
from headrace.node.session import connect
from headrace.settings import Settings
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Listening, Message, Relistened, Wake
from headrace.shard.postgres.sequencer_decisions import SAMPLE
from headrace.shard.recent_rate import RecentRate

logger = logging.getLogger(__name__)

CHANNEL_PREFIX: Final = "headrace_slot_"
RATE_CHANNEL: Final = "headrace_rate"
MAX_HEAD_DIGITS: Final = 19
"""Of a bigint."""
OFFICE_S: Final = 2.0
"""How often a shard in office says so on RATE_CHANNEL; then at least OFFICE_PER_S transactions commit a second."""
OFFICE_PER_S: Final = 25.0
_RATE: Final = -1
"""Stands for RATE_CHANNEL among the slots that are listened to."""


class Listener:
    """Keeps LISTEN on the slots that are wanted, over any number of connections.

    Owned by its own greenlet; `ensure_listening`, `stop_listening`, `rest` and `resume` only record what is wanted and
    wake it. A slot is confirmed once LISTEN on it was committed; it stays so while the connection is away, because
    Relistened follows. rate is about how many notifications PostgreSQL has for this shard or for others.

    on_wake is asked first whether it takes a notification in the dispatcher's place.
    """

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox[Message],
        shard_id: str,
        on_rate: Callable[[str], None],
        on_wake: Callable[[str, int], bool] = lambda stream, head: False,
    ) -> None:
        self.rate = RecentRate()
        self.reconnects = 0
        self.notifications = 0
        self.connected = False
        self.outage = Outage(logger, "LISTEN connection lost, trying again", "LISTEN connection is back")
        self._settings = settings
        self._inbox = inbox
        self._on_rate = on_rate
        self._on_wake = on_wake
        self._name = f"headrace {shard_id} listener"
        self._wanted: set[int] = set()
        self._confirmed: set[int] = set()
        self._stirred = Event()
        self.resume()
        self._proof = ""
        self._proven = False
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start listening; returns the greenlet, which ends by `stop`, or with ListenError."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """Close the connection and end. Yields."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def ensure_listening(self, slot: int) -> bool:
        """True if LISTEN on the slot is committed; else a Listening message follows. Never switches greenlets."""
        if slot in self._confirmed:
            return True
        if slot not in self._wanted:
            self._wanted.add(slot)
            self._stirred.set()
        return False

    def stop_listening(self, slots: Iterable[int]) -> None:
        """These slots need no LISTEN any more. Never switches greenlets."""
        for slot in slots:
            self._wanted.discard(slot)
            self._confirmed.discard(slot)
            self._stirred.set()

    def rest(self) -> None:
        """Listen to nothing. Never switches greenlets."""
        self._wanted.clear()
        self._confirmed.clear()
        self._stirred.set()

    def resume(self) -> None:
        """Listen to how many transactions commit, too, as from the beginning. Never switches greenlets."""
        if self._settings.announce_above_per_s:
            self._wanted.add(_RATE)
            self._stirred.set()

    def _run(self) -> None:
        while True:
            try:
                self._serve()
            except (psycopg.Error, gevent.Timeout) as error:
                # Any error: a standby that is not promoted yet refuses LISTEN as if the statement was wrong.
                gevent.sleep(self.outage.failed(error))

    def _serve(self) -> None:
        """Follow one connection until it fails. Yields."""
        connection = connect(self._settings.listen_database_url, self._name, lasting=True)
        watcher = get_hub().loop.io(connection.fileno(), 1)
        try:
            connection.add_notify_handler(lambda notify: self._notified(notify.channel, notify.payload))
            watcher.start(self._stirred.set)
            listened: set[int] = set()
            self._apply(connection, listened)
            if not self._proven:
                self._prove(connection)
            if self.outage.ended():
                self.reconnects += 1
                self._inbox.put(Relistened())
            self.connected = True
            self._follow(connection, listened)
        finally:
            self.connected = False
            watcher.stop()
            watcher.close()
            connection.close()

    def _follow(self, connection: psycopg.Connection[Any], listened: set[int]) -> None:
        settings = self._settings
        heard = time.monotonic()
        self._stirred.set()  # `_prove` may have cleared it though there is something to do here
        while True:
            self._stirred.wait(max(0.0, heard + settings.ping_interval_s - time.monotonic()))
            self._stirred.clear()
            if self._receive(connection):
                heard = time.monotonic()
            # What is confirmed is wanted and listened to, so that equal numbers mean equal sets.
            if not len(self._wanted) == len(self._confirmed) == len(listened):
                self._apply(connection, listened)
                heard = time.monotonic()
            if time.monotonic() - heard >= settings.ping_interval_s:
                # Keepalives do not notice a server process that is stopped: the kernel answers for it.
                with gevent.Timeout(settings.ping_deadline_s):
                    connection.execute("select 1")
                heard = time.monotonic()

    def _receive(self, connection: psycopg.Connection[Any]) -> bool:
        """Take what has arrived; whether there was anything. Raises psycopg.OperationalError at the end."""
        connection.pgconn.consume_input()
        found = False
        while notify := connection.pgconn.notifies():
            found = True
            self._notified(notify.relname.decode(), notify.extra.decode())
        return found

    def _apply(self, connection: psycopg.Connection[Any], listened: set[int]) -> None:
        """Make the connection listen to exactly the wanted slots, in one round trip. Yields."""
        wanted = set(self._wanted)
        added, dropped = wanted - listened, listened - wanted
        statements = [f"listen {_channel(slot)}" for slot in sorted(added)]
        statements += [f"unlisten {_channel(slot)}" for slot in sorted(dropped)]
        if statements:
            with gevent.Timeout(self._settings.read_deadline_s):
                connection.execute("; ".join(statements))
        listened.difference_update(dropped)
        listened.update(added)
        # A slot that stopped being wanted during the statement is dropped the next time. A slot that was dropped and is
        # wanted again before this method noticed has been listened to all the time, which the dispatcher is told.
        new = (listened & self._wanted) - self._confirmed
        if new:
            self._confirmed |= new
            self._inbox.put(Listening(tuple(sorted(new - {_RATE}))))

    def _notified(self, channel: str, payload: str) -> None:
        if channel.startswith(CHANNEL_PREFIX):
            head, space, stream = payload.partition(" ")
            # Anybody may NOTIFY, without any privilege: what int() refuses MUST NOT get there.
            if space and head.isascii() and head.isdigit() and len(head) <= MAX_HEAD_DIGITS:
                self.notifications += 1
                self.rate.add(time.monotonic())
                if not self._on_wake(stream, int(head)):
                    self._inbox.put(Wake(stream, int(head)))
        elif channel == RATE_CHANNEL:
            self.rate.add(time.monotonic(), OFFICE_PER_S * OFFICE_S if payload else SAMPLE)
            self._on_rate(payload)
        elif channel == self._proof:
            self._proven = True

    def _prove(self, connection: psycopg.Connection[Any]) -> None:
        """Send a notification to ourselves over the other URL: it arrives only if LISTEN really works here.

        Raises ListenError if it does not, as behind a pooler in transaction mode or when the two URLs lead to
        different databases; a server that is silent proves nothing, and is tried again. Yields.
        """
        settings = self._settings
        self._proof = f"headrace_proof_{secrets.token_hex(8)}"
        with gevent.Timeout(settings.read_deadline_s):
            connection.execute(f"listen {self._proof}")
        with (
            connect(settings.database_url, self._name) as other,
            gevent.Timeout(settings.read_deadline_s),
        ):
            other.execute("select pg_notify(%s, '')", (self._proof,))
        deadline = time.monotonic() + settings.listen_proof_deadline_s
        while not self._proven and (left := deadline - time.monotonic()) > 0:
            self._stirred.wait(left)
            self._stirred.clear()
            self._receive(connection)
        with gevent.Timeout(settings.ping_deadline_s):
            connection.execute(f"unlisten {self._proof}")
        if not self._proven:
            raise ListenError()


def _channel(slot: int) -> str:
    return RATE_CHANNEL if slot == _RATE else f"{CHANNEL_PREFIX}{slot}"
