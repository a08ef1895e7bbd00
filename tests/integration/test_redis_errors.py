"""What goes wrong with Redis, each kind made by a real server, and what is said to do about it."""

import http.server
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis

from headrace.errors import DirectoryReadOnlyError, DirectoryUnavailableError
from headrace.node.directory import Directory
from headrace.node.shard_report import ShardReport
from tests.fixtures.directory import entry
from tests.fixtures.ports import free_port
from tests.fixtures.redis import RedisServer
from tests.fixtures.waiting import DEADLINE_S, wait_until


def told(url: str) -> str:
    """The error of reading a directory there."""
    with closing(Directory(url, expiry_s=30)) as directory, pytest.raises(DirectoryUnavailableError) as caught:
        directory.read()
    return str(caught.value)


@pytest.fixture
def admin(own_redis: RedisServer) -> Iterator["redis.Redis"]:
    """A client that the server of the test obeys."""
    with redis.Redis(unix_socket_path=str(own_redis.socket)) as client:
        client.config_set("port", free_port())
        yield client


def tcp_url(admin: "redis.Redis", login: str = "", scheme: str = "redis") -> str:
    return f"{scheme}://{login}127.0.0.1:{admin.config_get('port')['port']}"


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("maxmemory", "1", "raise its maxmemory"),
        ("replicaof", "", "let HEADRACE_REDIS_URL lead to the primary, or promote it"),
        ("save", "3600 1", "free its disk, or switch saving off"),
    ],
)
def test_a_redis_that_refuses_writes_is_not_believed(
    own_redis: RedisServer, admin: "redis.Redis", setting: str, value: str, advice: str
) -> None:
    """While it reads and does not write, where living shards' entries expire, a reading fails and says what to do."""
    directory = Directory(own_redis.url, expiry_s=30)
    directory.register(entry("s1"))
    before = directory.read()
    if setting == "replicaof":
        # Of itself, whose dataset it never gets, as after a fail-over.
        admin.execute_command("REPLICAOF", "127.0.0.1", admin.config_get("port")["port"])
    else:
        admin.config_set(setting, value)
    taken = own_redis.directory / "dump.rdb"
    if setting == "save":
        # In the place of the file that is saved; its name is a setting that newer servers protect.
        (taken / "x").mkdir(parents=True)
        admin.bgsave()
        wait_until(lambda: admin.info()["rdb_last_bgsave_status"] == "err", "the save has failed")
    for call in (directory.read, lambda: directory.register(entry("s1"))):
        with pytest.raises(DirectoryReadOnlyError, match=advice) as caught:
            call()
        assert "refuses writes" in str(caught.value)
    if setting == "replicaof":
        admin.execute_command("REPLICAOF", "NO", "ONE")
    else:
        admin.config_set(setting, "" if setting == "save" else "0")
    if setting == "save":
        shutil.rmtree(taken)
        admin.bgsave()
        wait_until(lambda: admin.info()["rdb_last_bgsave_status"] == "ok", "the save is done")
    assert directory.read() == before
    directory.close()


def test_passwords_and_users_are_told_apart(admin: "redis.Redis") -> None:
    """A password that is missing, wrong, or not asked for, and a user without rights, have a hint each."""
    admin.execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~headrace:*", "+@read", "+@scripting")
    admin.execute_command("ACL", "SETUSER", "elsewhere", "on", ">pw", "~other:*", "+@all")
    assert "correct the user and the password" in told(tcp_url(admin, "nobody:pw@"))
    assert "ACL SETUSER" in told(tcp_url(admin, "poor:pw@"))
    assert "ACL SETUSER" in told(tcp_url(admin, "elsewhere:pw@"))
    admin.config_set("requirepass", "secret-of-the-test")
    assert "put its password into HEADRACE_REDIS_URL" in told(tcp_url(admin))
    wrong = told(tcp_url(admin, ":wrong-guess@"))
    assert "correct the user and the password" in wrong
    assert "wrong-guess" not in wrong


def test_the_rights_that_are_named_are_enough(admin: "redis.Redis") -> None:
    """A user with what the hint gives it can do all that a directory does."""
    rights = ("~headrace:*", "resetchannels", "&headrace:*", "+@all", "-@dangerous")
    admin.execute_command("ACL", "SETUSER", "headrace", "on", ">pw", *rights)
    with closing(Directory(tcp_url(admin, "headrace:pw@"), expiry_s=30, deployment=lambda: "a")) as directory:
        changes = directory.changes(timeout_s=DEADLINE_S)
        next(changes)
        directory.register(entry("s1"))
        assert next(changes)
        changes.close()
        directory.claim("n1", settle_s=0)
        directory.report(entry("s1"), ShardReport(1, {"a": 500}, 100, 50, True, {"user:ada": 1}, []))
        assert directory.admit("r1", {"user:ada": 5}) == ""
        directory.release("r1", ["user:ada"])
        directory.drain("s1")
        directory.undrain("s1")
        directory.drain_node("n1", 1)
        directory.undrain_node("n1")
        directory.assign("n1", {7: "s1"})
        assert directory.turn("overview", 1)
        directory.require_ours()
        assert len(directory.read().shards) == 1
        assert directory.leave("s1", 1)
        directory.bury("s1", 1)


def test_what_is_no_redis_or_speaks_otherwise_is_told_apart(
    admin: "redis.Redis", own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS on one side alone, a certificate nobody knows, another protocol, a wrong number, host, path or port."""
    monkeypatch.setattr("headrace.node.directory_script._TIMEOUT_S", 2.0)
    assert "use redis:// for rediss://" in told(tcp_url(admin, scheme="rediss"))
    assert "number of the database" in told(f"{own_redis.url}?db=99")
    assert "correct the host" in told("redis://nowhere.invalid:6379/0")
    assert "start it or correct HEADRACE_REDIS_URL" in told("redis://127.0.0.1:1/0")
    assert "start it or correct HEADRACE_REDIS_URL" in told(f"unix://{tmp_path}/none.sock")
    with speaking(lambda client: client.sendall(b"SSH-2.0-OpenSSH_9\r\n")) as port:
        assert "something else than Redis" in told(f"redis://127.0.0.1:{port}")
    with speaking(lambda client: client.recv(1)) as port:
        assert "may want TLS, that is rediss://, or be no Redis" in told(f"redis://127.0.0.1:{port}")
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.handle_request, daemon=True)
    thread.start()
    assert "HEADRACE_REDIS_URL" in told(f"redis://127.0.0.1:{server.server_port}")
    server.server_close()
    certificate, key = tmp_path / "cert", tmp_path / "key"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command = [*made.split(), "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def shake_hands(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as wrapped:
            wrapped.recv(1)

    with speaking(shake_hands) as port:
        assert "a certificate that this machine trusts" in told(f"rediss://127.0.0.1:{port}")
        assert "may want TLS, that is rediss://" in told(f"redis://127.0.0.1:{port}")


@contextmanager
def speaking(speak: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server that does this with each connection and then closes it; yields its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with client:
                try:
                    client.settimeout(DEADLINE_S)
                    speak(client)
                except OSError:
                    """What it is sent is none of its protocol."""

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(DEADLINE_S)
