"""Run an example with everything that it needs: `python -m examples flask`.

Starts `headrace up` in the working directory, with the example's pages among its allowed origins, unless one runs there
already; then the example itself, with the variables of `.headrace/env`. Ctrl-C ends both.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import click

from headrace.environment_file import environ_with_file

HERE = Path(__file__).parent
NAMES = sorted(path.parent.name for path in HERE.glob("*/app.py"))
DEADLINE_S = 60.0


@click.command(epilog="Example: python -m examples flask")
@click.argument("name", type=click.Choice(NAMES))
@click.option("--port", default=5000, show_default=True, help="Port of the example, at 127.0.0.1.")
@click.option("--headrace-port", default=8000, show_default=True, help="Port of headrace, if it is started.")
def main(name: str, port: int, headrace_port: int) -> None:
    """Run the example NAME, and headrace, unless it runs here already."""
    # SIGINT as well: a job that a shell starts in the background ignores it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    address = f"http://127.0.0.1:{port}"
    started: list[subprocess.Popen[bytes]] = []
    try:
        if not headrace_answers():
            origins = ",".join([address, f"http://localhost:{port}"])
            up = [sys.executable, "-P", "-m", "headrace.cli", "up", "--port", str(headrace_port)]
            started.append(subprocess.Popen(up, env={"HEADRACE_ALLOWED_ORIGINS": origins, **os.environ}))
            wait(started, headrace_answers)
        elif not headrace_allows(address):
            raise click.ClickException(
                f"headrace runs here, but does not let pages of {address} have its streams; stop it, then this starts "
                f"it as it must be, or start it with HEADRACE_ALLOWED_ORIGINS={address}"
            )
        environ = {**environ_with_file(os.environ), "PORT": str(port), "PYTHONUNBUFFERED": "1"}
        started.append(subprocess.Popen([sys.executable, str(HERE / name / "app.py")], env=environ))
        wait(started, lambda: answers(address))
        click.echo(f"example ready {address}")
        while all(process.poll() is None for process in started):
            time.sleep(0.1)
    except KeyboardInterrupt:
        pass
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def headrace_answers() -> bool:
    """Whether headrace runs in this directory: its address is in .headrace/env, and it is ready to serve."""
    url = environ_with_file(os.environ).get("HEADRACE_PUBLIC_URL")
    return url is not None and answers(f"{url}/readyz")


def headrace_allows(origin: str) -> bool:
    """Whether the headrace that runs in this directory allows pages of the origin."""
    url = environ_with_file(os.environ)["HEADRACE_PUBLIC_URL"]
    try:
        with urlopen(Request(f"{url}/headrace.js", headers={"Origin": origin}), timeout=2) as response:
            return response.headers["Access-Control-Allow-Origin"] == origin
    except OSError:
        return False


def answers(url: str) -> bool:
    """Whether the URL answers with status 200."""
    try:
        with urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def wait(started: list[subprocess.Popen[bytes]], condition: Callable[[], bool]) -> None:
    """Wait for the condition. Raises ClickException if a started process ends, or after DEADLINE_S seconds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline or any(process.poll() is not None for process in started):
            raise click.ClickException("it did not start; what it said is above")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
