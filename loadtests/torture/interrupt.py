"""SIGTERM, to a run that has processes of its own, some of which may be stopped: it ends them first."""

import signal
from types import FrameType


def end_in_order() -> None:
    """Have SIGTERM end this process as Ctrl-C does. MUST be called by the main thread."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Once: a second one would cut short what ends the processes, of which some may be stopped.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
