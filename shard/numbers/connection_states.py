"""How many connections are in which state, counted without looking at each connection.

    live      every subscription has all there is
    blocked   the socket is full
    opening   a subscription waits for its first read
    behind    the others: a subscription is being caught up, or a predicate is asked

Nearly all clients follow one stream and are live. A stream keeps these in dictionaries, whose lengths are counted. To
walk over thousands of them would be most of what a scrape costs, in time that deliveries need.
"""

from collections.abc import Callable
from typing import Final

from headrace.shard.connection import SubscriptionState
from headrace.shard.delivery import Delivery

SUBSCRIPTIONS_A_BREATH: Final = 2000
"""How many are looked at before the dispatcher gets its turn again."""


def connection_states(delivery: Delivery, breathe: Callable[[], None] = lambda: None) -> dict[str, int]:
    """How many connections are in which state. breathe is called now and then, and may yield."""
    live = looked_at = 0
    for stream in delivery.registry.streams:
        for subscription in list(stream.shared):
            # A connection with several streams counts with its first.
            if subscription.index == 0:
                live += all(other.state is SubscriptionState.LIVE for other in subscription.connection.subscriptions)
            looked_at += 1
            if looked_at % SUBSCRIPTIONS_A_BREATH == 0:
                breathe()
    # Nothing yields from here on, so that the rest adds up.
    streams = delivery.registry.streams
    live += sum(len(sole) for stream in streams for sole in stream.sole)
    blocked = len(delivery.writer.full_sockets)
    waiting = {
        subscription.connection for stream in streams for subscription in (*stream.opening, *stream.awaiting_read)
    }
    opening = sum(not connection.dead and connection.blocked_at is None for connection in waiting)
    behind = max(0, len(delivery.registry) - live - blocked - opening)
    return {"opening": opening, "behind": behind, "blocked": blocked, "live": live}
