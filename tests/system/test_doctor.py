"""`headrace doctor`, each of whose checks is made to fail by what it is there to find."""

import json
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from headrace.doctor import capacity, front, listening, machine, postgresql, redis_server, secret, shards
from headrace.doctor.finding import Level
from headrace.embedded.postgres import EmbeddedPostgres
from headrace.node.shard_entry import ShardEntry
from headrace.publish import publish_now
from headrace.settings import Settings
from tests.fixtures.pooler import pooler
from tests.fixtures.ports import free_port
from tests.fixtures.postgres import execute
from tests.fixtures.programs import tool
from tests.fixtures.redis import RedisServer
from tests.fixtures.router import SECRET
from tests.fixtures.stack import StartStack
from tests.fixtures.waiting import DEADLINE_S, wait_until

ROOT = Path(__file__).parents[2]


def connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True)


def test_a_pooler_in_transaction_mode_is_found_out(database_url: str) -> None:
    """Behind it LISTEN is accepted and nothing arrives, which is said; publishing through it is fine."""
    with pooler(database_url) as behind:
        assert listening.listen(database_url, behind, DEADLINE_S).level is Level.OK
        finding = listening.listen(behind, behind, 0.5)
        assert finding.level is Level.FAIL
        assert "HEADRACE_LISTEN_DATABASE_URL" in finding.advice


def test_two_urls_of_different_databases_are_found_out(database_url: str, empty_database_url: str) -> None:
    """A notification that is sent in another database does not arrive."""
    assert listening.listen(database_url, empty_database_url, 0.5).level is Level.FAIL


def test_a_database_that_headrace_cannot_use_is_named(postgres: EmbeddedPostgres, database_url: str) -> None:
    """Another encoding than UTF8, and a schema that is not there, fail with what to do."""
    execute(postgres, "create database ascii encoding 'SQL_ASCII' template template0")
    try:
        with connect(postgres.database_url("ascii")) as connection:
            assert "encoding" in postgresql.version(connection).advice
            assert "headrace migrate" in postgresql.schema_version(connection).advice
    finally:
        execute(postgres, "drop database ascii")
    with connect(database_url) as connection:
        assert postgresql.version(connection).level is Level.OK
        assert postgresql.schema_version(connection).level is Level.OK


def test_a_transaction_that_holds_up_a_stream_is_named(database_url: str) -> None:
    """Its process, age and query are shown as soon as somebody waits for it; another that only stages is not."""
    with connect(database_url) as connection, connect(database_url) as holder, connect(database_url) as calm:
        with calm.transaction():
            calm.execute("select headrace.publish('held', 'staged')")
            time.sleep(postgresql.HELD_WARN_S)
            assert postgresql.open_transactions(connection).level is Level.OK
        with holder.transaction():
            publish_now(holder, "held", "one")
            holder.execute("select 'what it does now'")
            wait_until(lambda: postgresql.open_transactions(connection).level is Level.WARN, "it is noticed")
            finding = postgresql.open_transactions(connection)
            assert f"pid {holder.info.backend_pid} " in finding.found
            assert "what it does now" in finding.found
            assert str(holder.info.backend_pid) in finding.advice
        assert postgresql.open_transactions(connection).level is Level.OK


def test_too_few_connections_are_foreseen(database_url: str) -> None:
    """What the shards need is compared with what PostgreSQL allows, before it refuses the next one."""
    with connect(database_url) as connection:
        assert postgresql.room(connection, 2, 2).level is Level.OK
        finding = postgresql.room(connection, 1000, 2)
        assert finding.level is Level.FAIL
        assert "max_connections" in finding.advice
        used = int(postgresql.room(connection, 2, 2).found.split()[0])
        allowed = int(connection.execute("select current_setting('max_connections')").fetchone()[0])  # type: ignore[index]
        shards_at_most = next(n for n in range(allowed) if postgresql.room(connection, n, 2).level is Level.FAIL) - 1
        assert 10 * shards_at_most <= allowed - used
        assert postgresql.room(connection, shards_at_most, 2).level is Level.WARN, "no shard can be replaced"


@pytest.mark.parametrize("whose", ["role headrace_owner", "database"])
def test_connection_limits_of_role_and_database_count(
    superuser: psycopg.Connection[Any], database_url: str, whose: str
) -> None:
    """A limit of the shards' role, or of the database, that is tighter than the server's is told of."""
    superuser.autocommit = True
    with connect(database_url) as connection:
        name = connection.info.dbname if whose == "database" else ""
        superuser.execute(f"alter {whose} {name} connection limit 25".encode())
        try:
            assert postgresql.room(connection, 1, 2).level is Level.OK
            finding = postgresql.room(connection, 3, 2)
            assert finding.level is Level.FAIL
            assert f"the connection limit of {whose}" in finding.advice
        finally:
            superuser.execute(f"alter {whose} {name} connection limit -1".encode())


def test_a_session_that_blocks_the_notification_queue_is_named(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that listens and has a transaction open keeps the queue from being emptied; its process is shown."""
    with connect(database_url) as connection, connect(database_url) as deaf:
        # The queue is the server's; what other tests have left in it stays until it is full pages.
        row = connection.execute("select pg_notification_queue_usage()").fetchone()
        assert row is not None
        for name in ("QUEUE_WARN", "QUEUE_FAIL"):
            monkeypatch.setattr(postgresql, name, row[0] + 1e-9)
        assert postgresql.notification_queue(connection).level is Level.OK
        deaf.execute("listen somewhere")
        with deaf.transaction():
            deaf.execute("select 1")
            connection.execute("select pg_notify('somewhere', repeat('x', 7000) || n) from generate_series(1, 200) n")
            finding = postgresql.notification_queue(connection)
            assert finding.level is Level.FAIL
            assert f"pid {deaf.info.backend_pid} " in finding.advice


def test_clocks_apart_are_measured(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of ours that is wrong by ten seconds shows as such."""
    with connect(database_url) as connection:
        assert postgresql.clock(connection).level is Level.OK
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() - 10)
        # The middle of an answer that takes long is half of that off.
        finding = wait_until(
            lambda: "10.0" in (found := postgresql.clock(connection)).found and found, "the ten seconds are seen"
        )
        assert finding and finding.level is Level.FAIL


def test_redis_that_cannot_save_or_must_evict_is_named(own_redis: RedisServer) -> None:
    """A failed save, which makes Redis refuse writes, and a memory limit that evicts keys, are told of."""
    with redis.Redis(unix_socket_path=str(own_redis.socket)) as client:
        info = redis_server.information(client)
        assert {
            check(info).level for check in (redis_server.version, redis_server.persistence, redis_server.memory)
        } == {Level.OK}
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert redis_server.memory(redis_server.information(client)).level is Level.WARN
        client.config_set("maxmemory", str(info["used_memory"]))
        assert redis_server.memory(redis_server.information(client)).level is Level.FAIL
        client.config_set("maxmemory", "0")
        # In the place of the file that is saved.
        (own_redis.directory / "dump.rdb").mkdir()
        (own_redis.directory / "dump.rdb" / "x").touch()
        client.set("key", "value")
        client.bgsave()
        wait_until(
            lambda: redis_server.persistence(redis_server.information(client)).level is Level.FAIL,
            "the save has failed",
        )
    assert redis_server.version({"redis_version": "4.0.14"}).level is Level.FAIL
    assert redis_server.version({"redis_version": "7.2.4", "valkey_version": "9.1.2"}).found == "Valkey 9.1.2"


def test_redis_that_cuts_subscribers_off_is_named(own_redis: RedisServer) -> None:
    """Buffers in which two pages of events do not fit, and hardly any room for connections, are told of."""
    page_bytes = Settings().page_bytes
    with redis.Redis(unix_socket_path=str(own_redis.socket)) as client:
        assert redis_server.output_buffers(redis_server.pubsub_limits(client), page_bytes).level is Level.OK
        client.config_set(redis_server.LIMITS, "pubsub 4mb 2mb 60")
        finding = redis_server.output_buffers(redis_server.pubsub_limits(client), page_bytes)
        assert (finding.level, finding.found) == (Level.WARN, "pubsub 4194304 2097152")
        client.config_set(redis_server.LIMITS, "pubsub 0 0 0")
        assert redis_server.output_buffers(redis_server.pubsub_limits(client), page_bytes).level is Level.OK
        assert redis_server.clients(redis_server.information(client)).level is Level.OK
        client.config_set("maxclients", "1")
        assert redis_server.clients(redis_server.information(client)).level is Level.WARN
        client.execute_command("ACL", "SETUSER", "default", "-config")
        assert redis_server.pubsub_limits(client) is None
    assert redis_server.output_buffers(None, page_bytes).level is Level.OK


def test_a_busy_redis_is_named(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis that another program keeps busy is told of, and one that has nothing to do is not."""
    # A machine that is busy with other tests leaves Redis less than half of a core.
    monkeypatch.setattr(redis_server, "HALF_BUSY", 0.1)
    ending = threading.Event()

    def spin() -> None:
        with redis.Redis(unix_socket_path=str(own_redis.socket)) as other:
            while not ending.is_set():
                other.eval("for i = 1, 1000000 do end", 0)

    spinning = threading.Thread(target=spin)
    with redis.Redis(unix_socket_path=str(own_redis.socket)) as client:
        assert redis_server.processor(client).level is Level.OK
        spinning.start()
        try:
            wait_until(lambda: redis_server.processor(client).level is Level.WARN, "it is seen")
        finally:
            ending.set()
            spinning.join()


def entry(**values: Any) -> ShardEntry:
    kept = {"id": "n-0", "node": "n", "pid": 1, "path": "", "state": "up", "capacity": 30_000, "connections": 5}
    return ShardEntry(**{**kept, "streams": 0, "version": "1", **values})


def test_a_node_takes_what_its_shards_take() -> None:
    """The node's own limit counts where it is less."""
    assert capacity.clients([entry(), entry()], 0) == 60_000
    assert capacity.clients([entry(), entry()], 1000) == 1000


def test_too_few_ports_of_a_proxy_are_foreseen(tmp_path: Path) -> None:
    """A proxy on this machine has this machine's range, another one at most all ports, and each has its own."""
    ports = tmp_path / "ip_local_port_range"
    ports.write_text("32768\t60999\n")
    assert capacity.proxy_ports(28_000, ["127.0.0.1"], ports).level is Level.OK
    finding = capacity.proxy_ports(28_233, ["127.0.0.1"], ports)
    assert (finding.level, "ip_local_port_range" in finding.advice) == (Level.WARN, True)
    assert capacity.proxy_ports(64_000, ["10.0.0.1"], ports).level is Level.OK
    finding = capacity.proxy_ports(65_000, ["10.0.0.1"], ports)
    assert (finding.level, "ip_local_port_range" in finding.advice) == (Level.WARN, False)
    assert capacity.proxy_ports(65_000, ["10.0.0.1", "10.0.0.2"], ports).level is Level.OK
    assert capacity.proxy_ports(900_000, ["unix"], ports).level is Level.OK
    assert capacity.proxy_ports(900_000, ["10.0.0.0/8"], ports).level is Level.OK


def test_a_table_of_connections_that_is_too_small_is_foreseen(tmp_path: Path) -> None:
    """Where the kernel tracks connections, it has to track those of all clients."""
    table = tmp_path / "nf_conntrack_max"
    assert capacity.tracked_connections(60_000, table).level is Level.OK
    table.write_text("65536\n")
    assert capacity.tracked_connections(50_000, table).level is Level.OK
    finding = capacity.tracked_connections(60_000, table)
    assert (finding.level, "nf_conntrack_max=120000" in finding.advice) == (Level.WARN, True)


def test_more_shards_than_cores_are_told_of() -> None:
    """A shard uses one core, so the further ones gain nothing."""
    assert capacity.cores(1).level is Level.OK
    assert capacity.cores(1 + (os.cpu_count() or 1)).level is Level.WARN


@pytest.mark.parametrize("hierarchy", ["v1", "v2"])
def test_too_little_memory_is_foreseen(tmp_path: Path, hierarchy: str) -> None:
    """What shards may take is compared with the machine's memory, and with each limit of the groups they are in."""
    shard, settings = entry(pid=os.getpid()), Settings()
    need = capacity.shard_bytes(shard, settings)
    assert need > settings.ring_total_bytes + settings.unsent_total_bytes
    machine = tmp_path / "meminfo"
    machine.write_text(f"MemTotal: {4 * need >> 10} kB\n")
    groups = tmp_path / "cgroup"
    assert capacity.memory([shard] * 2, settings, machine, groups).level is Level.OK
    finding = capacity.memory([shard] * 5, settings, machine, groups)
    assert (finding.level, "cgroup" in finding.found) == (Level.WARN, False)

    root, name = (groups / "memory", "memory.limit_in_bytes") if hierarchy == "v1" else (groups, "memory.max")
    root.mkdir(parents=True)
    (root / name).write_text("max" if hierarchy == "v2" else str(1 << 62))
    assert capacity.memory([shard], settings, machine, groups).level is Level.OK
    (root / name).write_text(str(need - 1))
    finding = capacity.memory([shard], settings, machine, groups)
    assert (finding.level, "of their cgroup" in finding.found) == (Level.WARN, True)


def test_limits_of_the_machine_are_read(tmp_path: Path) -> None:
    """A process that may open few files, and a short queue of new connections, are told of."""
    child = subprocess.Popen(
        ["sh", "-c", "ulimit -S -n 1024; echo ready; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdin is not None
    with child:
        assert child.stdout.readline() == b"ready\n"
        assert machine.descriptors([child.pid], 0).level is Level.WARN
        assert machine.descriptors([child.pid], 800).level is Level.WARN
        assert "1100" in machine.descriptors([child.pid], 900).advice
        resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (machine.open_now(child.pid), 1024))
        assert machine.descriptors([child.pid], 0).level is Level.FAIL
        child.stdin.close()
    (tmp_path / "somaxconn").write_text("128\n")
    assert machine.somaxconn(tmp_path / "somaxconn").level is Level.WARN
    (tmp_path / "somaxconn").write_text("4096\n")
    assert machine.somaxconn(tmp_path / "somaxconn").level is Level.OK


@pytest.mark.parametrize(
    ("given", "level"),
    [
        (["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"], Level.FAIL),
        (["change-me-please-in-production-thanks"], Level.WARN),
        (["short-of-16-chars"], Level.WARN),
        (["Xw3kQ-9zvT0aLr7yUe2mHs8cJb5nDf1g", "short-of-16-chars"], Level.WARN),
        (["Xw3kQ-9zvT0aLr7yUe2mHs8cJb5nDf1g"], Level.OK),
    ],
)
def test_weak_secrets_are_told_of_and_not_shown(given: list[str], level: Level) -> None:
    """What could be guessed is refused or warned of, by its place alone."""
    finding = secret.strength(given)
    assert finding.level is level
    assert not any(one in finding.found + finding.advice for one in given)


def test_shards_in_trouble_are_named() -> None:
    """No shard that is up, one that waits for PostgreSQL, has an error or is nearly full, is told of."""
    assert shards.serving([]).level is Level.FAIL
    assert shards.serving([entry(state="drained")]).level is Level.FAIL
    assert shards.serving([entry(lag_s=6.0)]).level is Level.FAIL
    assert shards.serving([entry(canary="no event")]).level is Level.FAIL
    assert "no LISTEN" in shards.serving([entry(last_error="no LISTEN")]).found
    assert shards.serving([entry(connections=29_000)]).level is Level.WARN
    assert shards.serving([entry()]).level is Level.OK


@contextmanager
def buffering_proxy(upstream: int) -> Iterator[str]:
    """A real nginx that keeps responses back, whatever they ask for; yields its URL."""
    program = tool("nginx")
    port = free_port()
    directory = Path(tempfile.mkdtemp(prefix="headrace-proxy-"))
    (directory / "conf").write_text(
        f"daemon off; pid {directory}/pid; error_log {directory}/log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p;\n"
        f"fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{upstream};\n"
        "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering; } } }\n"
    )
    directory.chmod(0o755)
    process = subprocess.Popen([program, "-p", str(directory), "-c", "conf", "-e", str(directory / "log")])
    try:
        wait_until(lambda: _accepts(port), "the proxy accepts connections")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_front_door_is_tried(start_stack: StartStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events arrive at once through the router; a buffering proxy, another secret or nobody there are told apart."""
    monkeypatch.setattr(front, "PATIENCE_S", DEADLINE_S)
    monkeypatch.setattr(front, "LATE_S", DEADLINE_S)
    stack = start_stack(shards=1)
    assert stack.router is not None
    url = f"http://127.0.0.1:{stack.router.port}"

    def publish(stream: str, data: str) -> None:
        stack.database.publish(stream, data)

    assert front.delivery(url, [SECRET], publish).level is Level.OK
    monkeypatch.setattr(front, "PATIENCE_S", 1.5)
    with buffering_proxy(stack.router.port) as behind:
        finding = front.delivery(behind, [SECRET], publish)
    assert (finding.level, "buffering" in finding.advice) == (Level.FAIL, True)
    monkeypatch.setattr(front, "PATIENCE_S", DEADLINE_S)
    other = front.delivery(url, ["another-secret-of-32-characters!"], publish)
    assert (other.level, "HEADRACE_SECRET" in other.advice) == (Level.FAIL, True)
    assert front.delivery("http://127.0.0.1:1", [SECRET], publish).level is Level.FAIL


def _doctor(**settings: object) -> "subprocess.CompletedProcess[str]":
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environ |= {f"HEADRACE_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-P", "-m", "headrace.cli", "doctor"]
    return subprocess.run(
        [*command, "--json"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tempfile.gettempdir(),
    )


def test_a_redis_user_without_info_is_no_failure(own_redis: RedisServer) -> None:
    """Where its user has no more rights than headrace needs, Redis is found well; a wrong password is told."""
    with redis.Redis(unix_socket_path=str(own_redis.socket)) as client:
        rights = ("~headrace:*", "resetchannels", "&headrace:*", "+@all", "-@dangerous")
        client.execute_command("ACL", "SETUSER", "headrace", "on", ">pw", *rights)
    ran = _doctor(redis_url=f"unix://headrace:pw@{own_redis.socket}", secret=SECRET)
    findings = {finding["check"]: finding for finding in json.loads(ran.stdout)}
    assert findings["redis"]["level"] == "ok"
    assert "may not ask for INFO" in findings["redis"]["found"]
    assert findings["shards"]["found"] == "0 are registered, none is up"
    ran = _doctor(redis_url=f"unix://headrace:wrong@{own_redis.socket}", secret=SECRET)
    findings = {finding["check"]: finding for finding in json.loads(ran.stdout)}
    assert findings["redis"]["level"] == "fail"
    assert "correct the user and the password" in findings["redis"]["advice"]


def test_the_command_says_what_is_wrong_and_exits_so(start_stack: StartStack) -> None:
    """On a healthy node nothing fails and it exits with 0; without its servers it names them, exits with 1, and shows
    no password."""
    stack = start_stack(shards=2)
    assert stack.router is not None
    well = {"database_url": stack.database.url, "redis_url": stack.redis.url, "secret": SECRET, "node": "n1"}
    ran = _doctor(**well, public_url=f"http://127.0.0.1:{stack.router.port}")
    findings = {finding["check"]: finding for finding in json.loads(ran.stdout)}
    assert ran.returncode == 0, ran.stdout
    assert all(finding["advice"] for finding in findings.values() if finding["level"] != "ok")

    # The page on watching shows what such a node's examination looks like.
    sample = (
        (ROOT / "docs" / "operate" / "watch.md").read_text().partition("$ headrace doctor\n")[2].partition("```")[0]
    )
    shown = dict(re.findall(r"^(?:ok|warn|fail) +(.*?)  +(.*)$", sample, re.MULTILINE))
    assert list(shown) == list(findings)
    assert shown["schema"] == findings["schema"]["found"]

    away = {"database_url": "postgresql://a:hidden-pw@127.0.0.1:1/x", "redis_url": "redis://:hidden-pw@127.0.0.1:1/0"}
    ran = _doctor(**away, secret=SECRET)
    assert ran.returncode == 1
    failed = {finding["check"] for finding in json.loads(ran.stdout) if finding["level"] == "fail"}
    assert {"redis", "postgresql", "front door"} <= failed
    assert "hidden-pw" not in ran.stdout + ran.stderr
