"""What is published: the time, for the latency, and padding."""

import time
from typing import Final

DATA_BYTES: Final = 200
"""As the floor's events have."""


def payload() -> str:
    """Data of an event that is published now."""
    return f"t={time.monotonic_ns()} ".ljust(DATA_BYTES, "x")
