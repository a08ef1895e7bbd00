"""TCP ports for servers that are given none: embedded ones, and a router at port 0."""

import random
import socket
from collections.abc import Sequence
from typing import Final

HOST = "127.0.0.1"

# Below what Linux hands out to outgoing connections (32768 and up): a port that is kept for months must not be
# taken now and then by a browser.
_RANGE: Final = range(20_000, 32_000)
ROUTERS: Final = range(15_000, 20_000)
"""Apart from the others: between the choice and the server's start, nothing keeps the port for it."""


def is_free(port: int, host: str = HOST) -> bool:
    """Whether a server could listen there now; connections of an earlier server that still linger do not count."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def choose(host: str = HOST, among: Sequence[int] = _RANGE) -> int:
    """A port that is free now. Nothing reserves it, so a server started later may still find it taken."""
    for port in random.sample(among, 50):
        if is_free(port, host):
            return port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
