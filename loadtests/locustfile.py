"""`locust -f loadtests/locustfile.py`, in the directory of a running `headrace up`: see README.md beside this file."""

import os
import sys
from pathlib import Path
from typing import Any

# locust puts this file's own directory on the path, not the one that the package is in.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from locust import events
from locust.runners import WorkerRunner

from headrace.environment_file import environ_with_file
from headrace.errors import HeadraceError
from headrace.settings import Settings
from loadtests.load_run import LoadRun
from loadtests.publishers import Publisher
from loadtests.subscribers import Chat, FanOut, ManyStreams, Slow, Storm

__all__ = ["Chat", "FanOut", "ManyStreams", "Publisher", "Slow", "Storm"]


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add the load test's own options to locust's."""
    parser.add_argument(
        "--events-per-s",
        type=float,
        default=100.0,
        env_var="LOCUST_EVENTS_PER_S",
        help="Events that all publishers of one locust process publish together. (default: 100)",
    )


@events.init.add_listener
def build(environment: Any, **_: Any) -> None:
    """Make the LoadRun that all users share. Where a setting is missing, end locust with a sentence that says so."""
    try:
        environment.headrace = LoadRun(Settings.from_environ(environ_with_file(os.environ)))
    except HeadraceError as error:
        sys.exit(f"locust: {error}")
    environment.host = environment.host or environment.headrace.settings.public_url


@events.quitting.add_listener
def judge(environment: Any, **_: Any) -> None:
    """Say how many events were checked. A run that has checked none fails, since it proves nothing."""
    if environment.runner is None or isinstance(environment.runner, WorkerRunner):
        return
    # After a signal locust would choose the exit status before its users have checked the last events.
    environment.runner.stop()
    entries = environment.stats.entries.items()
    checked = sum(entry.num_requests for (_, method), entry in entries if method == "EVENT")
    broken = sum(entry.num_failures for (_, method), entry in entries if method == "CHECK")
    sys.stderr.write(f"checked {checked} events: {broken} problems\n")
    if not checked:
        environment.process_exit_code = 1
