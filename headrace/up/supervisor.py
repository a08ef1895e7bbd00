"""`headrace up`: one node's processes, from the first to the last. The composition root of that command.

    postgres, redis (embedded, unless their URLs are set) ─► migrate ─► shards, router ─► "headrace ready"

They end in the opposite order: the router, so that no new client arrives, then the shards, which say goodbye to their
clients, then the embedded servers.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from headrace.embedded import EmbeddedPostgres, EmbeddedRedis
from headrace.embedded.server import EmbeddedServer
from headrace.errors import DirectoryForeignError, DirectoryUnavailableError, UsageError
from headrace.node import metrics_sockets, session
from headrace.node.deployment_identity import FILE_NAME as DEPLOYMENT_FILE
from headrace.node.deployment_identity import DeploymentIdentity
from headrace.node.directory import Directory
from headrace.publish import set_retention
from headrace.schema.migrations import migrate
from headrace.settings import Settings
from headrace.up.address import Address
from headrace.up.console import Console, takes_colours
from headrace.up.control import FILE_NAME as CONTROL_FILE
from headrace.up.control import Control
from headrace.up.home import Home
from headrace.up.program import Program
from headrace.up.restart_policy import Unit
from headrace.up.shards import Shards, listens
from headrace.up.supervision_loop import Supervision

logger = logging.getLogger(__name__)

DEMO_STREAMS = "demo:*"

# How long the processes of an `up` that was killed may take to leave its port.
_LEAVING_S = 15.0
_POSTGRES, _REDIS, _SHARDS, _ROUTER = range(4)


def up(
    environ: MutableMapping[str, str],
    *,
    port: int,
    host: str = "127.0.0.1",
    shards: int,
    router_workers: int,
    directory: Path | None = None,
    node: str | None = None,
) -> int:
    """Run a whole node until SIGINT or SIGTERM, then stop it in order and return 0.

    environ MUST be the process's own environment: where PostgreSQL is embedded, libpq's variables (PGSSLMODE,
    PGSERVICE …), which are about some other server, are removed from it. Variables that an earlier `up` made, and that
    a shell has read from its `.headrace/env`, count as unset. All files are in `.headrace` below directory (the current
    one). Port 0 takes a free one. MUST be called by the main thread. A second signal hurries the stop. SIGHUP makes the
    router load its program anew and replaces the shards one by one, without a client noticing.

    No file of the directory is run in place of a module of Python's or headrace's, whatever it is called. All processes
    start with `python -P`. Shards run in the directory, where they look last for the module of HEADRACE_FILTERS. The
    router runs in the runtime directory, since gunicorn looks for modules first in its working directory.

    Prints `headrace ready http://HOST:PORT` as soon as clients are served. A process or a server that dies later is
    started again.

    Raises UsageError if the port is taken or a setting wrong, AlreadyRunningError if another `up` runs in this
    directory, UnavailableError if a server or process cannot be started; by then nothing runs any more.
    """
    home = Home((directory or _working_directory()) / ".headrace")
    given = home.without_made(environ)
    own = Settings.from_environ({**given, **({"HEADRACE_NODE": node} if node else {})})
    with home.locked() as abandoned:
        address = Address.claim(host, port, _LEAVING_S if abandoned else 0.0)
        runtime_dir = home.runtime_dir(f"{own.node}-999", given.get("HEADRACE_RUNTIME_DIR", ""))
        libpq_names = [] if own.database_url else sorted(name for name in environ if name.startswith("PG"))
        for name in libpq_names:
            del environ[name]

        names = ["up", "router", *(f"{own.node}-{index}" for index in range(shards))]
        console = Console(
            sys.stdout, names, coloured=takes_colours(sys.stdout, environ), structured=own.log_format == "json"
        )
        try:
            with (
                _logging_to(console),
                Supervision(partial(console.of, "up")) as supervision,
                contextlib.ExitStack() as closing,
            ):
                if libpq_names:
                    supervision.say(f"without {', '.join(libpq_names)}: the embedded PostgreSQL is another server")
                servers = _embedded(supervision, own, home)
                if not supervision.run_until_ready():
                    return 0
                kept = _kept_environ(given, own, servers, home, runtime_dir, address)
                Settings.from_environ(kept)
                demo_default = {"HEADRACE_DEMO": "on" if address.is_local else "off"}
                children = {**demo_default, **_set(given), **kept, "PYTHONUNBUFFERED": "1"}
                children = {name: value for name, value in children.items() if name not in libpq_names}
                # gunicorn takes options from this variable, too; with another class of workers it is no router.
                children.pop("GUNICORN_CMD_ARGS", None)
                # People read the lines of these processes here, each behind its process's name.
                children["HEADRACE_LOG_FORMAT"] = "json" if own.log_format == "json" else "text"
                theirs = Settings.from_environ(children)
                deployment = DeploymentIdentity(theirs)
                meeting = Directory.of(theirs, deployment.required)

                def prepare() -> None:
                    _migrate(theirs.database_url, theirs.demo)
                    deployment.look()
                    try:
                        meeting.require_ours()
                    except DirectoryForeignError:
                        raise
                    except DirectoryUnavailableError as error:
                        logger.warning("starting without having seen the directory: %s", error)

                if not supervision.interruptibly(prepare):
                    return 0
                made = {name: value for name, value in kept.items() if not given.get(name)}
                home.write_environ(made, {name: value for name, value in kept.items() if name not in made})

                def program(name: str, arguments: list[str], place: Path, is_ready: Callable[[int], bool]) -> Program:
                    return Program(
                        [sys.executable, "-P", "-m", *arguments],
                        environ=children,
                        directory=place,
                        selector=supervision.selector,
                        on_line=partial(console.of, name),
                        is_ready=is_ready,
                    )

                def shard_unit(id_: str) -> Unit:
                    is_ready = partial(listens, runtime_dir / f"{id_}.sock")
                    program_ = program(id_, ["headrace.shard", "--id", id_], home.path.parent, is_ready)
                    # Beyond its dispatcher's deadline a shard ends its other parts.
                    return Unit(id_, program_, say=supervision.say, stop_deadline_s=own.stop_deadline_s + 5)

                running = Shards(supervision, own.node, _SHARDS, shard_unit, meeting.read)
                running.begin(shards)
                arguments = ["gunicorn", "-c", "python:headrace.router.gunicorn_conf", "--bind", address.bind]
                arguments += ["--workers", str(router_workers), "headrace.router.app:create_application()"]
                router = program("router", arguments, runtime_dir, lambda _: address.is_ready())
                supervision.add(Unit("router", router, say=supervision.say), _ROUTER, reloads=router)

                if not supervision.run_until_ready():
                    return 0
                control = Control(runtime_dir / CONTROL_FILE, supervision.selector, running)
                closing.callback(control.close)
                supervision.extra = partial(control.step, supervision.say)
                supervision.reload = lambda: control.ask(running.restart([]))
                if theirs.demo:
                    supervision.say(f"demo page: {address.url}/")
                if own.ops_token:
                    supervision.say(f"operations page: {address.url}/ops")
                console.line(f"headrace ready {address.url}")
                supervision.run()
                return 0
        finally:
            home.remove_sockets(_sockets(runtime_dir, own.node))
            console.close()


def _embedded(supervision: Supervision, own: Settings, home: Home) -> list[EmbeddedServer]:
    """Add the servers whose URL the user has not set."""
    servers: list[tuple[EmbeddedServer, int]] = []
    if not own.database_url:
        servers.append((EmbeddedPostgres(home.path), _POSTGRES))
    if not own.redis_url:
        servers.append((EmbeddedRedis(home.path), _REDIS))
    for server, stage in servers:
        supervision.say(f"starting {server.name} below {server.directory}")
        unit = Unit(
            server.name,
            server,
            say=supervision.say,
            start_deadline_s=server.ready_deadline_s,
            stop_deadline_s=server.stop_deadline_s,
        )
        supervision.add(unit, stage)
    return [server for server, _ in servers]


def _sockets(runtime_dir: Path, node: str) -> list[Path]:
    """The files of shards and router workers in the runtime directory, which stay there when these are killed."""
    patterns = (
        DEPLOYMENT_FILE,
        f"{node}-*.sock",
        f"{node}-*{metrics_sockets.SUFFIX}",
        f"router-*{metrics_sockets.SUFFIX}",
        "router-*.lock",
    )
    return sorted(path for pattern in patterns for path in runtime_dir.glob(pattern))


def _kept_environ(
    environ: Mapping[str, str],
    own: Settings,
    servers: Sequence[EmbeddedServer],
    home: Home,
    runtime_dir: Path,
    address: Address,
) -> dict[str, str]:
    """The variables that every process of this node, and commands run beside it, have in common."""
    urls = {server.name: server.url for server in servers}
    database_url = urls.get("postgres", own.database_url)
    return {
        "HEADRACE_DATABASE_URL": database_url,
        "HEADRACE_LISTEN_DATABASE_URL": own.listen_database_url or database_url,
        "HEADRACE_REDIS_URL": urls.get("redis", own.redis_url),
        "HEADRACE_REDIS_PREFIX": own.redis_prefix,
        "HEADRACE_SECRET": environ.get("HEADRACE_SECRET") or home.secret(),
        "HEADRACE_RUNTIME_DIR": str(runtime_dir),
        "HEADRACE_NODE": own.node,
        "HEADRACE_PUBLIC_URL": environ.get("HEADRACE_PUBLIC_URL") or address.url,
    }


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise UsageError(f"the working directory is gone ({error.strerror}); run headrace in another one") from error


def _set(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without empty settings, which count as unset."""
    return {name: value for name, value in environ.items() if value or not name.startswith("HEADRACE_")}


def _migrate(database_url: str, demo: bool) -> None:
    for version in migrate(database_url):
        logger.info("applied migration %d", version)
    if demo:
        # A chat that forgets after five minutes would not look durable.
        with session.connect(database_url, "headrace up") as connection:
            set_retention(connection, DEMO_STREAMS, timedelta(days=30), 1000)


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._console.of("up", line)


@contextlib.contextmanager
def _logging_to(console: Console) -> Iterator[None]:
    """Show what headrace's own loggers say as lines of `up`."""
    handler = _ConsoleHandler(console)
    root = logging.getLogger("headrace")
    level, propagate = root.level, root.propagate
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        root.propagate = propagate
