"""What a shard decides about how it hears of new events: by LISTEN, or over the bus.

    listening ──(many notifications, another shard on duty)──► joining ──(all channels heard)──► on the bus
        ▲ └────(many notifications, nobody on duty)──► on duty ──(few notifications)──┐              │
        └──────────────(few notifications, or the bus is not fresh)───────────────────┴──────────────┘

While notifications are few, LISTEN costs PostgreSQL little, and an event takes the shortest way. A shard that joins
listens as well, and ends its LISTEN only when it is sure to hear the bus. Notifications are few below FEW_SHARE of what
is many, so that nobody goes back and forth.
"""

import enum
from dataclasses import dataclass
from typing import Final

FEW_SHARE: Final = 0.4


class HearingMode(enum.Enum):
    """How a shard hears of new events."""

    LISTENING = "listening"
    JOINING = "joining"
    ON_BUS = "on the bus"
    ON_DUTY = "on duty"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the decision depends on.

    many is how many notifications a second are many, 0 for never. rate is what this shard hears of, or what the shard
    on duty tells. companions tells that there are other shards. fresh tells that the bus is heard well, joined that all
    wanted channels of it are.
    """

    many: float
    rate: float
    companions: bool
    fresh: bool
    joined: bool


def next_mode(mode: HearingMode, facts: Facts) -> HearingMode:
    """The mode that follows. ON_DUTY follows only if this shard is given the duty; else the mode stays."""
    if not facts.companions or not facts.many:
        return HearingMode.LISTENING
    if mode is HearingMode.LISTENING:
        if facts.rate < facts.many:
            return mode
        return HearingMode.JOINING if facts.fresh else HearingMode.ON_DUTY
    if facts.rate < facts.many * FEW_SHARE:
        return HearingMode.LISTENING
    if mode is HearingMode.ON_DUTY:
        return mode
    if not facts.fresh:
        return HearingMode.LISTENING
    return HearingMode.ON_BUS if facts.joined else mode
