"""SIGTERM to a run: its processes, some of which a fault may have stopped, are ended before it ends itself."""

import signal
from types import FrameType


def end_in_order() -> None:
    """Have SIGTERM end this process as Ctrl-C does. MUST be called by the main thread."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Further signals are ignored: they would interrupt the code that ends the processes.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
