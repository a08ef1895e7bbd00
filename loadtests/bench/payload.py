"""The data of the bench's events: the time of publishing, for the latency, and padding."""

import time
from typing import Final

DATA_BYTES: Final = 200
"""The size of an event's data; the floor's events have the same."""


def payload() -> str:
    """The data of an event that is published now."""
    return f"t={time.monotonic_ns()} ".ljust(DATA_BYTES, "x")
