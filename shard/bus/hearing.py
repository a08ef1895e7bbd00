"""How a shard hears of new events: by LISTEN, or over the bus while notifications are many.

`shard/bus/hearing_decisions.py` decides. Why nothing is lost when it changes: whatever is left, the other way is in use
before, and all streams are read once after.

    to the bus      the channels are subscribed to, and a pulse has come; then LISTEN ends; then Missed
    to LISTEN       LISTEN on each slot is committed; Listening then makes its streams dirty
    on duty         LISTEN on all slots is committed before the first pulse; if that connection is lost, the duty ends,
                    since other shards cannot know what was missed
    off duty        LISTEN goes on for the slots that are wanted; Missed, since notifications may have been withheld

The sequencer of a shard that does not LISTEN does not hear that commits are many, and stands by for no office. That of
the shard on duty does. When the bus is lost, that shard may be dead and may have been the one that numbers, so each
sequencer is woken, for one round.
"""

import logging
import random
import time
from collections.abc import Iterable
from typing import Final

import gevent
import redis

from headrace.node.directory_snapshot import DirectorySnapshot
from headrace.node.outage import Outage
from headrace.settings import Settings
from headrace.shard.bus.bulletin import Seal
from headrace.shard.bus.hearing_decisions import FEW_SHARE, Facts, HearingMode, next_mode
from headrace.shard.bus.herald import Herald
from headrace.shard.bus.receiver import Receiver
from headrace.shard.inbox import Inbox
from headrace.shard.messages import Message, Missed
from headrace.shard.postgres.listener import Listener
from headrace.shard.postgres.sequencer import Sequencer
from headrace.stream import SLOTS

logger = logging.getLogger(__name__)

STEP_S: Final = 0.1
SETTLE_S: Final = 3.0
"""How long a shard stays on duty before it asks whether notifications are few; longer than they are counted over."""
LOSS_SPREAD_S: Final = 1.0
"""After a loss of the bus the shards wake their sequencers within so long, not all at once."""


class Hearing:
    """Knows which slots are wanted, and by which way they are heard.

    Owned by its own greenlet; `ensure_listening` and `stop_listening` are called by the dispatcher and only record what
    is wanted.
    """

    def __init__(
        self,
        settings: Settings,
        listener: Listener,
        receiver: Receiver,
        herald: Herald,
        seal: Seal,
        inbox: Inbox[Message],
        sequencer: Sequencer,
    ) -> None:
        self.mode = HearingMode.LISTENING
        self.slots: set[int] = set()
        self.outage = Outage(logger, "this shard cannot read for others", "this shard can read for others again")
        self._many = settings.bus_above_per_s if settings.bus else 0.0
        self._listener = listener
        self._receiver = receiver
        self._herald = herald
        self._seal = seal
        self._inbox = inbox
        self._sequencer = sequencer
        self._companions = False
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def start(self) -> list["gevent.Greenlet[..., None]"]:
        """Start deciding; returns the greenlet, which ends only by `stop`."""
        self._greenlet = gevent.spawn(self._run)
        return [self._greenlet]

    def stop(self) -> None:
        """End at once; another shard may go on duty. Yields."""
        if self._greenlet is not None:
            on_duty = self.mode is HearingMode.ON_DUTY
            self._greenlet.kill()
            if on_duty:
                self._herald.give_up()

    def placed(self, snapshot: DirectorySnapshot) -> None:
        """The directory was read: whether there are other shards. Never switches greenlets."""
        self._companions = snapshot.registered > 1

    # -- the slots that are wanted; nothing here switches greenlets

    def ensure_listening(self, slot: int) -> bool:
        """True if news of the slot are heard for certain; else a Listening message follows when they are."""
        self.slots.add(slot)
        if self.mode is HearingMode.JOINING:
            self._receiver.want([slot])
        if self.mode is not HearingMode.ON_BUS:
            return self._listener.ensure_listening(slot)
        if self._receiver.hears(slot):
            return True
        self._receiver.want([slot])
        return False

    def stop_listening(self, slots: Iterable[int]) -> None:
        """These slots have had no subscriber for long."""
        gone = list(slots)
        self.slots.difference_update(gone)
        if self.mode in (HearingMode.LISTENING, HearingMode.JOINING):
            self._listener.stop_listening(gone)

    # -- the way

    def _run(self) -> None:
        while True:
            gevent.sleep(STEP_S * random.uniform(0.8, 1.2))
            self._receiver.enable(self._companions and self._many > 0 and self._seal.ready)
            self._step()

    def _step(self) -> None:
        """Change the mode if it is time. Yields."""
        before = self.mode
        wanted = next_mode(before, self._facts(before is HearingMode.ON_BUS))
        if wanted is HearingMode.ON_DUTY:
            if self._herald.hold():
                self._do_duty()
        elif wanted is not before:
            self.mode = wanted
            self._change(before)

    def _facts(self, on_bus: bool) -> Facts:
        rate = self._receiver.rate if on_bus else self._listener.rate.per_s(time.monotonic())
        receiver = self._receiver
        return Facts(self._many, rate, self._companions and self._seal.ready, receiver.fresh, receiver.joined)

    def _change(self, before: HearingMode) -> None:
        self._sequencer.excused = self.mode is HearingMode.ON_BUS
        if self.mode is HearingMode.JOINING:
            self._receiver.want(self.slots)
        elif self.mode is HearingMode.ON_BUS:
            logger.info("this shard hears of new events over the bus")
            self._listener.rest()
            self._miss()
        else:
            self._receiver.drop()
            if before is HearingMode.ON_BUS:
                logger.info("this shard listens to PostgreSQL again")
                for slot in self.slots:
                    self._listener.ensure_listening(slot)
                self._listener.resume()
                if not self._receiver.fresh:
                    gevent.spawn_later(random.uniform(0, LOSS_SPREAD_S), self._sequencer.missed)

    def _do_duty(self) -> None:
        """Listen to all slots, do the duty, and listen to what is wanted again. Yields."""
        self.mode = HearingMode.ON_DUTY
        try:
            reconnects = self._listener.reconnects
            if self._listen_to_all():
                self._sequencer.missed()
                self._herald.serve(lambda: self._is_over(reconnects))
            self.outage.ended()
        except (redis.RedisError, OSError, gevent.Timeout) as error:
            gevent.sleep(self.outage.failed(error))
        finally:
            self.mode = HearingMode.LISTENING
            self._listener.stop_listening(set(range(SLOTS)) - self.slots)
            self._miss()
        self._herald.give_up()

    def _listen_to_all(self) -> bool:
        """Whether LISTEN on all slots is committed within a while. Yields."""
        give_up = time.monotonic() + 2.0
        while sum(map(self._listener.ensure_listening, range(SLOTS))) < SLOTS:
            if time.monotonic() > give_up or not self._herald.hold():
                return False
            gevent.sleep(STEP_S / 4)
        return True

    def _is_over(self, reconnects: int) -> bool:
        """Whether the duty ends. reconnects is how often the LISTEN connection had been replaced when it began."""
        now = time.monotonic()
        few = now - self._herald.began_at > SETTLE_S and self._herald.rate.per_s(now) < self._many * FEW_SHARE
        deaf = not self._listener.connected or self._listener.reconnects != reconnects
        return few or deaf or not self._companions or not self._seal.ready

    def _miss(self) -> None:
        if self.slots:
            self._inbox.put(Missed(tuple(self.slots)))
