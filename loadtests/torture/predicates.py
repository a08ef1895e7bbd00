"""Audience predicates for the tortured shards (HEADRACE_FILTERS), and what the judge expects of each."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from headrace import predicate
from headrace.tokens import Context
from loadtests.torture.footprint import count_greenlets

EXPECTED: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "even": lambda user, stream: _number(user) % 2 == 0,
    "slow": lambda user, stream: True,
    "raises": lambda user, stream: False,
    "late": lambda user, stream: False,
}
"""By label: whether a user sees the events of a stream that have it."""


@predicate("even")
def even(context: Context, stream: str) -> bool:
    """True for every other user: a predicate as it should be."""
    return EXPECTED["even"](context.user or "", stream)


@predicate("slow")
def slow(context: Context, stream: str) -> bool:
    """True, after a wait that is well below the deadline."""
    time.sleep(0.03)
    return True


@predicate("raises")
def raises(context: Context, stream: str) -> bool:
    """Raises an error, which hides the event."""
    raise LookupError("a predicate of the torture that always fails")


@predicate("late")
def late(context: Context, stream: str) -> bool:
    """Would be True, long after the deadline, which hides the event."""
    time.sleep(3600)
    return True


count_greenlets()


def _number(user: str) -> int:
    return int(user.removeprefix("u"))
