"""The command `headrace`: what an operator and a curious developer type. Each subcommand is thin over a module."""

from headrace.cli import access, doctor, log, node, placement, presence, status, subscribe
from headrace.cli.command import main

__all__ = ["access", "doctor", "log", "main", "node", "placement", "presence", "status", "subscribe"]
