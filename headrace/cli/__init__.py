"""The command `headrace`, for operators and developers. Each subcommand is thin over a module of its own.

Where a package of the extra `server` is missing, importing this ends the program with a sentence that says so.
"""

from headrace.node import server_extra

server_extra.require()

from headrace.cli import (
    access,
    doctor,
    drain_and_move,
    migrate_and_publish,
    presence,
    status,
    subscribe,
    up_and_scale,
)
from headrace.cli.command import main

__all__ = [
    "access",
    "doctor",
    "drain_and_move",
    "main",
    "migrate_and_publish",
    "presence",
    "status",
    "subscribe",
    "up_and_scale",
]
