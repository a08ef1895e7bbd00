"""deploy/: what the units start serves clients, alone and behind nginx, and systemd finds nothing to complain about."""

import ctypes
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

import headrace
from headrace.embedded.postgres import EmbeddedPostgres
from headrace.settings import Settings
from headrace.stream import slot
from tests.fixtures.client import Client
from tests.fixtures.postgres import TEMPLATE, execute
from tests.fixtures.programs import tool
from tests.fixtures.redis import RedisServer
from tests.fixtures.shard import Database
from tests.fixtures.waiting import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = ("headrace-router.service", "headrace-shard@.service")
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
STREAMS = [f"room:{number}" for number in range(24)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def variables(lines: Sequence[str]) -> dict[str, str]:
    """NAME=value lines, as systemd reads an EnvironmentFile."""
    return {
        name: value
        for name, sign, value in (line.partition("=") for line in lines)
        if sign and not name.startswith("#")
    }


def directives(unit: str) -> dict[str, list[str]]:
    """What a unit file says, by name; the same name may stand in it several times."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / unit).read_text().splitlines():
        name, sign, value = line.partition("=")
        if sign and not line.startswith(("#", ";")):
            found.setdefault(name, []).append(value)
    return found


class Host:
    """One host of a deployment: the processes of its units, with the files of deploy/ as they would lie on it.

    What systemd does is done here: specifiers, variables, the runtime directory, the notification. Owned by the
    test thread; the processes die with it.
    """

    def __init__(self, name: str, environ: dict[str, str]) -> None:
        self.name = name
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="headrace-host-"))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (self.directory / "run" / "headrace").mkdir(mode=0o700, parents=True)  # RuntimeDirectory=
        example = variables((DEPLOY / "env.example").read_text().splitlines())
        changed = environ | {"ROUTER_BIND": f"127.0.0.1:{self.port}", "WEB_CONCURRENCY": "1"}
        assert changed.keys() <= example.keys()
        self.environ = example | changed

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.directory}>"

    def start(self, unit: str, instance: str = "") -> None:
        """What `systemctl start` executes."""
        said = directives(unit)
        specifiers = {"%H": self.name, "%i": instance, "%t": str(self.directory / "run")}

        def specified(text: str) -> str:
            return re.sub("%[Hit]", lambda match: specifiers[match.group()], text)

        environ = variables([specified(line) for line in said["Environment"]]) | self.environ
        line = re.sub(r"\$\{(\w+)\}", lambda match: environ[match.group(1)], specified(said["ExecStart"][0]))
        line = line.replace("/opt/headrace/bin/python", sys.executable).replace("/etc/headrace", str(DEPLOY))
        notified = self.directory / "notify"
        notified.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notification, self.log(unit).open("ab") as log:
            notification.bind(str(notified))
            notification.settimeout(20)
            self.processes[unit] = subprocess.Popen(
                shlex.split(line),
                cwd=self.directory,
                env=environ | {"PATH": "/usr/bin:/bin", "NOTIFY_SOCKET": str(notified)},
                stdout=log,
                stderr=log,
                preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )
            if said["Type"] == ["notify"]:
                assert b"READY=1" in notification.recv(4096)

    def log(self, unit: str) -> Path:
        return self.directory / f"{unit}.log"

    def stop(self, unit: str) -> int:
        """What `systemctl stop` does; returns the exit status."""
        said = directives(unit)
        process = self.processes.pop(unit)
        process.send_signal(signal.Signals[said["KillSignal"][0]])
        return process.wait(float(said["TimeoutStopSec"][0]))

    def serves(self) -> bool:
        with suppress(OSError), get(self.port, "/readyz") as client:
            return b" 200 " in client.recv(64)
        return False

    def placed(self) -> list[int]:
        """The slots of the clients that its router has handed over."""
        return [int(n) for n in re.findall(r"accepted: .* slot (\d+),", self.log(UNITS[0]).read_text())]

    def remove(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory)


def get(port: int, path: str) -> socket.socket:
    # HTTP/1.0, so that nginx sends the body as it is.
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(f"GET {path} HTTP/1.0\r\nHost: events.example.com\r\n\r\n".encode())
    return client


@pytest.fixture(scope="module")
def log(postgres: EmbeddedPostgres) -> Iterator[Database]:
    execute(postgres, f"create database deployed template {TEMPLATE}")
    made = Database(postgres.database_url("deployed"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def hosts(log: Database, shared_redis: RedisServer) -> Iterator[list[Host]]:
    """Two hosts with a router and a shard each."""
    environ = {
        "HEADRACE_DATABASE_URL": log.url,
        "HEADRACE_LISTEN_DATABASE_URL": log.url,
        "HEADRACE_REDIS_URL": shared_redis.url,
    }
    made = [Host("web1.example.com", environ), Host("web2.example.com", environ)]
    try:
        for host in made:
            host.start("headrace-shard@.service", "0")
        for host in made:
            host.start("headrace-router.service")
        for host in made:
            wait_until(host.serves, f"{host} serves; see its logs", 20)
        yield made
    finally:
        for host in made:
            print(host, *(file.read_text() for file in host.directory.glob("*.log")), sep="\n")  # noqa: T201
            host.remove()


class Front:
    """nginx with the file of deploy/, in front of the hosts. Owned by the test thread; it dies with it."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="headrace-nginx-"))
        self.directory.chmod(0o755)
        self.access_log = self.directory / "access.log"
        text = (DEPLOY / "nginx.conf").read_text()
        temporary = " ".join(
            f"{kind}_temp_path {self.directory}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        for old, new in {
            "10.0.0.11:8000": f"127.0.0.1:{hosts[0].port}",
            "10.0.0.12:8000": f"127.0.0.1:{hosts[1].port}",
            "listen 80 ": f"listen 127.0.0.1:{self.port} ",
            "/var/log/nginx/headrace.log": str(self.access_log),
            "/run/nginx.pid": f"{self.directory}/pid",
            # A machine for tests lets nobody have that many.
            "worker_rlimit_nofile 100000;": "",
            "worker_connections 50000;": "worker_connections 500;",
            "http {\n": f"http {{\n{temporary}\n",
        }.items():
            assert text.count(old) == 1, f"deploy/nginx.conf has not exactly one {old!r}"
            text = text.replace(old, new)
        (self.directory / "nginx.conf").write_text(text)
        command = [tool("nginx"), "-e", "stderr", "-p", str(self.directory)]
        command += ["-c", str(self.directory / "nginx.conf"), "-g", "daemon off;"]
        with (self.directory / "error.log").open("wb") as errors:
            self.process = subprocess.Popen(
                command, stderr=errors, preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            )
        wait_until(self._serves, f"nginx serves; see {self.directory}")

    def _serves(self) -> bool:
        assert self.process.poll() is None, (self.directory / "error.log").read_text()
        with suppress(OSError), get(self.port, "/healthz") as client:
            return b" 200 " in client.recv(64)
        return False

    def remove(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.directory)


@pytest.fixture
def front(hosts: list[Host]) -> Iterator[Front]:
    made = Front(hosts)
    yield made
    made.remove()


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    """Clients that are closed at the end."""
    made: list[Client] = []
    yield made
    for client in made:
        client.close()


def sign(host: Host, stream: str) -> str:
    return headrace.sign(stream, secrets=[host.environ["HEADRACE_SECRET"]])


def test_the_example_of_settings_is_valid() -> None:
    """Every name in env.example is a setting, and everything that processes need has a value."""
    example = variables((DEPLOY / "env.example").read_text().splitlines())
    settings = Settings.from_environ({n: v for n, v in example.items() if n.startswith("HEADRACE_")})
    settings.require("database_url", "listen_database_url", "redis_url", "secret")


def test_systemd_has_no_complaint(tmp_path: Path) -> None:
    """systemd-analyze finds nothing wrong with the units, whose programs are looked up in this environment."""
    program = tool("systemd-analyze")
    for unit in UNITS:
        text = (DEPLOY / unit).read_text().replace("/opt/headrace/bin/python", sys.executable)
        (tmp_path / unit.replace("@", "@0")).write_text(text)
    verified = subprocess.run(
        [program, "verify", "--man=no", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_what_the_units_start_delivers_events(hosts: list[Host], log: Database, clients: list[Client]) -> None:
    """The command lines of the units make hosts on which clients receive what is published."""
    for host in hosts:
        clients.append(Client(get(host.port, sign(host, "both"))))
        clients[-1].wait(lambda: clients[-1].last_id, "the cursor")
    log.publish("both", "hello")
    for client in clients:
        client.wait_for_data("hello")


def test_nginx_passes_events_on_as_they_come(
    hosts: list[Host], log: Database, front: Front, clients: list[Client]
) -> None:
    """Behind nginx each event arrives when it is published, and streams of one slot are all served by one host."""
    before = [len(host.placed()) for host in hosts]
    for stream in STREAMS * 2:
        clients.append(Client(get(front.port, sign(hosts[0], stream))))
        clients[-1].wait(lambda: clients[-1].last_id, "the cursor")
    for number in range(3):
        log.publish(STREAMS[0], str(number))
        for client in (clients[0], clients[len(STREAMS)]):
            client.wait_for(number + 1)
    placed = [host.placed()[start:] for host, start in zip(hosts, before, strict=True)]
    assert sorted(placed[0] + placed[1]) == sorted(map(slot, STREAMS * 2))
    assert not set(placed[0]) & set(placed[1])
    assert all(placed), "both hosts serve"


def test_nginx_goes_to_the_other_host_when_one_is_down(
    hosts: list[Host], log: Database, front: Front, clients: list[Client]
) -> None:
    """While a host's router is stopped, clients of all streams are served by the other; those that it had stay."""
    stays = Client(get(hosts[0].port, sign(hosts[0], "stays")))
    clients.append(stays)
    stays.wait(lambda: stays.last_id, "the cursor")
    assert hosts[0].stop("headrace-router.service") == 0
    try:
        for stream in STREAMS:
            clients.append(Client(get(front.port, sign(hosts[0], stream))))
            clients[-1].wait(lambda: clients[-1].last_id, "the cursor")
        log.publish("stays", "still here")
        stays.wait_for_data("still here")
    finally:
        hosts[0].start("headrace-router.service")
        wait_until(hosts[0].serves, "the router serves again", 20)


def test_nginx_does_not_log_tokens(hosts: list[Host], front: Front) -> None:
    """The access log tells the slot of a stream, never its token."""
    path = sign(hosts[0], "secret")
    client = Client(get(front.port, path))
    client.wait(lambda: client.last_id, "the cursor")
    client.close()
    line = wait_until(
        lambda: re.search(rf".* GET {slot('secret')} 200 .*", front.access_log.read_text()), "nginx logs the request"
    )
    assert line is not None
    assert path.partition(".")[2] not in front.access_log.read_text()


def test_a_shard_stops_as_systemd_asks(hosts: list[Host], clients: list[Client]) -> None:
    """On the unit's KillSignal a shard says goodbye to its clients and ends well before systemd would kill it."""
    client = Client(get(hosts[1].port, sign(hosts[1], "bye")))
    clients.append(client)
    client.wait(lambda: client.last_id, "the cursor")
    assert hosts[1].stop("headrace-shard@.service") == 0
    assert client.wait_for_sentinel("goodbye")
    client.wait_for_end()
