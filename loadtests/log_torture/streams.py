"""The names of the streams that the torture publishes to."""

from typing import Final

STREAMS: Final = ("alpha", "beta", "gamma")
"""The streams of every run, in the order in which the log locks them."""
ROWS: Final = 4
"""The number of rows of each stream that transactions contend for."""
NEW_STREAMS: Final = 30
"""The number of streams that come into being during a run, at most."""


def new_stream(number: int) -> str:
    """The name of a stream that comes into being during the run. They sort before, between and behind the others."""
    return f"{'abgz'[number % 4]}new-{number}"


def all_streams() -> list[str]:
    """The names of all streams that a run may publish to."""
    return [*STREAMS, *map(new_stream, range(NEW_STREAMS))]


def row(stream: str, number: int) -> str:
    """The name of the chain for which transactions contend."""
    return f"{stream}/{number}"


def queue(stream: str) -> str:
    """The name of the chain that is an advisory lock."""
    return f"{stream}/queue"


def own_row(stream: str, publisher: int) -> str:
    """The name of the chain that one publisher alone moves."""
    return f"{stream}/own-{publisher}"
