"""The embedded servers: real processes, with data that stay and a life that ends with their parent's."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from headrace.embedded import EmbeddedPostgres, EmbeddedRedis
from headrace.embedded.server import EmbeddedServer
from headrace.errors import EmbeddedServerError
from headrace.schema.migrations import migrate
from tests.fixtures.up import lives
from tests.fixtures.waiting import wait_until

KINDS = ["postgres", "redis"]


def make(kind: str, directory: Path, binaries: Path | None = None) -> EmbeddedServer:
    if kind == "redis":
        return EmbeddedRedis(directory, binaries=binaries)
    return EmbeddedPostgres(directory, binaries=binaries, durable=False)


def answers(server: EmbeddedServer) -> bool:
    if server.name == "redis":
        with redis.Redis.from_url(server.url) as client:
            return bool(client.ping())
    with psycopg.connect(server.url) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every user can search, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    path.chmod(0o711)
    yield path / ".headrace"
    shutil.rmtree(path)


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, directory: Path) -> Iterator[EmbeddedServer]:
    server = make(request.param, directory)
    yield server
    server.stop()


def test_starts_and_stops(server: EmbeddedServer) -> None:
    """A server answers from start to stop, both of which may be called twice, and leaves no process."""
    server.start()
    pid = server.pid
    assert pid is not None
    server.start()
    assert server.pid == pid
    assert answers(server)
    server.stop()
    server.stop()
    assert server.pid is None
    assert not lives(pid)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


def test_is_not_open_to_others(server: EmbeddedServer) -> None:
    """It listens on 127.0.0.1 only, wants its password, and keeps that where its owner alone can read it."""
    server.start()
    password = server.url.split("@")[0].rpartition(":")[2]
    kept = server.directory / f"{server.name}.{'owner' if server.name == 'postgres' else 'password'}"
    assert kept.read_text().strip() == password
    url = server.url.replace(password, "wrong")
    with pytest.raises((psycopg.OperationalError, redis.AuthenticationError)):
        psycopg.connect(url) if server.name == "postgres" else redis.Redis.from_url(url).ping()
    for file in server.directory.iterdir():
        if file.is_file():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert password not in Path(f"/proc/{server.pid}/cmdline").read_text()
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == server.port]
    assert listening == [f"0100007F:{server.port:04X}"]


def test_keeps_url_and_data(directory: Path) -> None:
    """The next server in the same directory has the same URL, and PostgreSQL its data, also after a crash."""
    for kind in KINDS:
        first = make(kind, directory)
        first.start()
        url = first.url
        if kind == "postgres":
            with psycopg.connect(url) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 'grüße' AS text")
        first.kill()
        second = make(kind, directory)
        second.start()
        try:
            assert second.url == url
            if kind == "postgres":
                with psycopg.connect(url) as connection:
                    assert connection.execute("SELECT text FROM kept").fetchone() == ("grüße",)
        finally:
            second.stop()


def test_moves_from_a_taken_port(server: EmbeddedServer) -> None:
    """If another program listens at its port, the server takes another one and keeps that."""
    server.start()
    server.stop()
    port = server.port
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        server.start()
        assert server.port != port
        assert answers(server)
        server.stop()
    moved = server.port
    server.start()
    assert server.port == moved


PARENT = """
import signal, sys
from pathlib import Path
from tests.integration.test_embedded import make
server = make(sys.argv[1], Path(sys.argv[2]))
server.start()
print(server.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("kind", KINDS)
def test_ends_with_its_parent(kind: str, directory: Path) -> None:
    """A server whose parent is killed stops by itself, and the next one starts in its place without ado."""
    command = [sys.executable, "-c", PARENT, kind, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert lives(pid)
        parent.kill()
    successor = make(kind, directory)
    successor.start()  # while the first may still be shutting down
    try:
        wait_until(lambda: not lives(pid), f"the {kind} of a killed parent has ended")
        assert answers(successor)
    finally:
        successor.stop()


def test_stale_pid_file(directory: Path) -> None:
    """A pid file that names a process of another program does not keep PostgreSQL from starting."""
    server = make("postgres", directory)
    server.start()
    server.kill()
    file = server.home / "data" / "postmaster.pid"
    _, *rest = file.read_text().splitlines()
    file.write_text("\n".join([str(os.getpid()), *rest]) + "\n")
    server.start()
    assert answers(server)
    server.stop()


def test_failure_names_log(directory: Path) -> None:
    """A server that cannot start says so with its log's name and last line."""
    server = make("postgres", directory)
    server.start()
    server.stop()
    (server.home / "data" / "postgresql.conf").write_text("nonsense = on\n")
    with pytest.raises(EmbeddedServerError, match=r"postgres\.log' ends: .*nonsense|postgres\.log' ends: .*errors"):
        server.start()
    assert server.pid is None


def test_a_refusal_is_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a server that runs does not get ready is in its last words: what it, or libpq, answers."""
    server = make("postgres", directory)
    server.start()
    monkeypatch.setenv("PGSSLMODE", "require")
    assert not server.probe()
    assert "server does not support SSL" in server.last_words()
    monkeypatch.undo()
    assert server.probe()
    server.stop()


def test_a_redis_that_is_too_old_is_passed_over(directory: Path) -> None:
    """A server before 6.2, or one that does not run, is not taken, and the message has its version and its place."""
    binaries = directory.parent / "bin"
    binaries.mkdir()
    for program, answer in (("redis-server", "echo Redis server v=5.0.7 sha=0"), ("valkey-server", "exit 1")):
        (binaries / program).write_text(f"#!/bin/sh\n{answer}\n")
        (binaries / program).chmod(0o755)
    server = make("redis", directory, binaries)
    with pytest.raises(EmbeddedServerError, match=r"no Valkey or Redis 6\.2 .*5\.0 in .*none that runs in .*embedded"):
        server.start()


def test_the_reason_is_found_in_the_log(directory: Path) -> None:
    """Of a server that says why it ends, then what follows, then that it cleans up, the message has the reason."""
    server = make("postgres", directory)
    server.directory.mkdir()
    server.log.write_text(
        "running bootstrap script\nFATAL:  could not extend file: No space left on device\nHINT:  Check the disk.\n"
        "PANIC:  cannot abort transaction 1\nAborted\ninitdb: removing contents of data directory\n"
    )
    assert "No space left on device … PANIC" in server.last_words()


def test_software_of_the_data_is_taken(directory: Path) -> None:
    """Data of a major version that is not installed are refused, not touched, and the message names both versions."""
    server = make("postgres", directory)
    server.start()
    server.stop()
    version = server.home / "data" / "PG_VERSION"
    real = version.read_text()
    version.write_text("9\n")
    with pytest.raises(EmbeddedServerError, match=r"PostgreSQL 9, found is .*\d+ in"):
        server.start()
    version.write_text(real)
    server.start()
    server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as another user")
@pytest.mark.parametrize("kind", KINDS)
def test_below_directory_of_root(kind: str, directory: Path) -> None:
    """Where root keeps others out, data and programs live in a recorded directory elsewhere, found again later."""
    # Programs that only root can execute, as in a virtual environment below /root.
    server = make(kind, directory)
    server.start()
    program = Path(os.readlink(f"/proc/{server.pid}/exe"))
    server.stop()
    private = directory.parent / "private"
    site = private / "site"
    if kind == "redis":
        binaries = site / "bin"
        binaries.mkdir(parents=True)
        shutil.copy(program, binaries / program.name)
    else:
        prefix = program.parent.parent
        binaries = site / prefix.parent.name / prefix.name / "bin"
        shutil.copytree(prefix, binaries.parent)
        libraries = prefix.parent.parent / f"{prefix.parent.name}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, site / libraries.name)
    private.chmod(0o700)

    first = make(kind, private / ".headrace", binaries)
    first.start()
    try:
        assert not first.home.is_relative_to(private)
        assert (private / ".headrace" / f"{kind}.location").read_text().strip() == str(first.home)
        assert Path(os.readlink(f"/proc/{first.pid}/exe")).is_relative_to(first.home)
        assert Path(f"/proc/{first.pid}").stat().st_uid != 0
        assert answers(first)
        first.stop()
        second = make(kind, private / ".headrace", binaries)
        second.start()
        assert second.home == first.home
        assert second.url == first.url
        second.stop()
    finally:
        first.stop()
        shutil.rmtree(first.home)


BECOME_NOBODY = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("kind", KINDS)
def test_without_root(kind: str, directory: Path) -> None:
    """An ordinary user runs the servers as himself."""
    trial = BECOME_NOBODY + "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', '']).returncode)"
    if subprocess.run([sys.executable, "-c", trial], check=False, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("user nobody cannot run this Python")
    home = directory.parent / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    command = [sys.executable, "-c", BECOME_NOBODY + PARENT, kind, str(home / ".headrace")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").stat().st_uid == 65534
        parent.kill()
    wait_until(lambda: not lives(pid), f"the {kind} of a killed parent has ended")


def test_data_of_a_release_without_an_owner_are_handed_over(directory: Path) -> None:
    """What the superuser had made in the database belongs to the owner from the next start on, and can be used."""
    server = make("postgres", directory)
    server.start()
    assert isinstance(server, EmbeddedPostgres)
    migrate(server.database_url("headrace"))
    with psycopg.connect(server.database_url("headrace"), autocommit=True) as connection:
        connection.execute("create schema app")
        connection.execute("create type app.state as enum ('new')")
        connection.execute("create table app.orders (id serial, number int generated always as identity, s app.state)")
        connection.execute("create view app.kept as select * from app.orders")
        connection.execute("create function app.one() returns int language sql as 'select 1'")
        connection.execute("alter database headrace owner to headrace")
        connection.execute("drop role headrace_owner")
    server.stop()
    (directory / "postgres.owner").unlink()
    server = make("postgres", directory)
    server.start()
    try:
        with psycopg.connect(server.url, autocommit=True) as connection:
            asked = "select rolname, rolsuper from pg_roles where rolname = current_user"
            assert connection.execute(asked).fetchone() == ("headrace_owner", False)
            connection.execute("insert into app.orders (s) values ('new')")
            for kind in ("view app.kept", "table app.orders", "function app.one()", "type app.state"):
                connection.execute(f"drop {kind}".encode())
            connection.execute("select headrace.publish('room', 'x'), headrace.prune(1)")
            connection.execute("alter table headrace.event add column later int")
        assert migrate(server.url) == []
        url = server.url
    finally:
        server.stop()
    server = make("postgres", directory)
    server.start()
    assert server.url == url
    server.stop()
