"""headrace beside a test: `headrace up` on the test's own database, for tests that need the streams themselves."""

import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote, urlencode

from headrace import signing
from headrace.errors import EmbeddedServerError
from headrace.testing.watched_connection import DEFAULT_ALIAS

READY_S: Final = 60.0
STOP_S: Final = 20.0
_READY: Final = re.compile(r"^headrace ready (http://\S+)$")


@contextmanager
def serve(database_url: str | None = None, *, using: str = DEFAULT_ALIAS, origins: Sequence[str] = ()) -> Iterator[str]:
    """Run `headrace up` on the test's database within the block, and yield its URL.

    In the block the application signs for it: URLs of pages begin with the URL that is yielded, and are signed with the
    application's secret, or with one of the block's own if it has none. database_url is the database; without it, it is
    the test database of Django's alias using. origins are those whose pages may read the streams, as a live server's.

    It takes a second or two, so a class of tests does it once. Needs `headrace[server]` and a Redis, or
    `headrace[embedded]`, which brings one. Raises EmbeddedServerError, with what the command said, if it does not start
    within a minute.
    """
    variables = {name: value for name, value in signing.environ().items() if name.startswith("HEADRACE_")}
    secret = variables.get("HEADRACE_SECRET") or secrets.token_hex(32)
    directory = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    directory.chmod(0o711)  # servers that root starts run as another user
    environ = {name: value for name, value in signing.environ().items() if not name.startswith("HEADRACE_")}
    environ["HEADRACE_DATABASE_URL"] = database_url or _url_of(using)
    environ["HEADRACE_SECRET"] = secret
    environ["HEADRACE_ALLOWED_ORIGINS"] = ",".join(origins)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "headrace.cli", "up", "--port", "0", "--node", "test"],
        cwd=directory,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = _Output(process)
    try:
        url = output.address()
        with signing.replaced({"HEADRACE_PUBLIC_URL": url, "HEADRACE_SECRET": secret}):
            yield url
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.close()
        shutil.rmtree(directory, ignore_errors=True)


class _Output:
    """What a process says, read by a thread, so that its pipe never fills. Owned by the block `serve`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self._stdout: IO[str] = process.stdout
        self._lines: list[str] = []
        self._address: str | None = None
        self._known = threading.Event()
        self._thread = threading.Thread(target=self._read, name="headrace test server", daemon=True)
        self._thread.start()

    def address(self) -> str:
        """Wait for the address. Raises EmbeddedServerError."""
        self._known.wait(READY_S)
        if self._address is None:
            said = " ".join(self._lines[-10:]) or "nothing"
            raise EmbeddedServerError(f"`headrace up` did not start for the test; it said: {said}")
        return self._address

    def close(self) -> None:
        """Read to the end, which comes with the end of the process."""
        self._thread.join(STOP_S)
        self._stdout.close()

    def _read(self) -> None:
        for line in self._stdout:
            self._lines.append(line.rstrip("\n"))
            del self._lines[:-100]
            if found := _READY.match(self._lines[-1]):
                self._address = found.group(1)
                self._known.set()
        self._known.set()


def _url_of(alias: str) -> str:
    """The URL of the database of one of Django's connections, as it is now: in a test, the test database."""
    settings: dict[str, Any] = import_module("django.db").connections[alias].settings_dict
    options = {"host": settings.get("HOST"), "port": settings.get("PORT")}
    query = urlencode({name: value for name, value in options.items() if value})
    user = quote(settings.get("USER") or "", safe="")
    password = quote(settings.get("PASSWORD") or "", safe="")
    account = f"{user}:{password}@" if password else f"{user}@" if user else ""
    return f"postgresql://{account}/{quote(settings['NAME'], safe='')}{'?' if query else ''}{query}"
