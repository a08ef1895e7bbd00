"""`headrace up` as a user runs it: a command, its output, signals, and what is left behind."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import sysconfig
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import psycopg
import pytest

from headrace.tokens import sign
from tests.fixtures.client import Client
from tests.fixtures.ports import free_port
from tests.fixtures.up import (
    READY_S,
    REDIS,
    Up,
    children,
    lives,
    searchable_directory,
)
from tests.fixtures.waiting import DEADLINE_S, wait_until


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
        return response.status, response.read().decode()


def is_ready(address: str) -> bool:
    try:
        return get(f"{address}/readyz")[0] == 200
    except (URLError, OSError):
        return False


def shard_states(address: str) -> dict[str, bool]:
    return {entry["id"]: entry["reachable"] for entry in json.loads(get(f"{address}/readyz")[1])["shards"]}


def publish(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SELECT headrace.publish_now('room:1', 'hello')").fetchone()
    assert row is not None
    return int(row[0])


def published(url: str) -> bool:
    try:
        return publish(url) > 0
    except psycopg.OperationalError:
        return False


# The tests of this file share one directory and its data, one after another; each starts and ends its own `up`.
@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    path = searchable_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def up(directory: Path) -> Iterator[Up]:
    # What would give gunicorn another kind of worker stays outside.
    up = Up(directory, "--port", "0", "--shards", "2", environ={"GUNICORN_CMD_ARGS": "--worker-class gthread"})
    yield up
    up.close()


def test_up_serves_and_leaves_nothing(up: Up) -> None:
    """It serves the demo, refuses a second one beside it, and after Ctrl-C no process, socket or port is left."""
    address = up.ready()
    status, page = get(f"{address}/")
    assert (status, "<html" in page) == (200, True)
    assert f"demo page: {address}/" in up.text
    wait_until(lambda: shard_states(address) == {"n-0": True, "n-1": True}, "both shards are reachable")
    file = up.directory / ".headrace" / "env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert up.environ["HEADRACE_PUBLIC_URL"] == address
    assert up.environ["HEADRACE_NODE"] == "n"
    runtime_dir = Path(up.environ["HEADRACE_RUNTIME_DIR"])
    kept = [
        "deployment",
        "n-0.prom",
        "n-0.sock",
        "n-1.prom",
        "n-1.sock",
        "router-0.lock",
        "router-0.prom",
        "up.control",
    ]
    wait_until(lambda: sorted(path.name for path in runtime_dir.iterdir()) == kept, f"there is {kept}")

    second = Up(up.directory, "--port", "0")
    assert second.process.wait(DEADLINE_S) == 2
    second.close()
    assert f"(pid {up.process.pid})" in second.text

    all_children = children(up.process.pid)
    assert len(all_children) > 6
    assert up.end(signal.SIGINT) == 0
    assert not [pid for pid in all_children if lives(pid)]
    assert not list(runtime_dir.iterdir())
    assert not (up.directory / ".headrace" / "lock").exists()
    for url in (address, up.environ["HEADRACE_DATABASE_URL"], up.environ["HEADRACE_REDIS_URL"]):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(re.findall(r":(\d+)", url)[-1]))) != 0


def test_what_is_kept(up: Up) -> None:
    """The next `up` in the directory has the events, the secret and the addresses of the last one.

    It is started by a shell that has read what the last one wrote into `.headrace/env`, and takes nothing of it for the
    user's own servers. Where others reach it, it has no demo.
    """
    up.ready()
    before = up.environ
    first = publish(before["HEADRACE_DATABASE_URL"])
    assert up.end(signal.SIGTERM) == 0
    again = Up(up.directory, "--port", "0", "--host", "0.0.0.0", environ=before)
    try:
        address = again.ready()
        assert address == again.environ["HEADRACE_PUBLIC_URL"]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{address}/")
        assert "demo page" not in again.text
        changed = {name for name, value in again.environ.items() if before[name] != value}
        assert changed <= {"HEADRACE_PUBLIC_URL"}
        assert publish(before["HEADRACE_DATABASE_URL"]) == first + 1
        assert again.end() == 0
    finally:
        again.close()


HIDING = ("router", "shard", "headrace", "gunicorn", "redis", "psycopg", "click", "gevent", "settings", "json", "ssl")


def test_nothing_in_the_directory_is_run(directory: Path) -> None:
    """Files of the user's that are called like modules are not imported; the module of predicates there is.

    What is set for libpq, which is about some other server of the user's, is not taken for the embedded PostgreSQL.
    """
    for name in HIDING:
        (directory / f"{name}.py").write_text(f"open({str(directory / 'hiding')!r}, 'a').write('{name} ')\n")
    (directory / "ours.py").write_text(f"open({str(directory / 'ours')!r}, 'a')\n")
    environ = {
        "HEADRACE_FILTERS": "ours",
        "PGSSLMODE": "verify-full",
        "PGSERVICE": "elsewhere",
        "PGHOSTADDR": "192.0.2.1",
        "PGOPTIONS": "-c nonsense=on",
    }
    program = (str(Path(sysconfig.get_path("scripts")) / "headrace"),)
    up = Up(directory, "--port", "0", "--shards", "1", environ=environ, program=program)
    try:
        address = up.ready()
        wait_until(lambda: shard_states(address) == {"n-0": True}, "the shard is reachable")
        up.says("without PGHOSTADDR, PGOPTIONS, PGSERVICE, PGSSLMODE: the embedded PostgreSQL is another server")
        assert publish(up.environ["HEADRACE_DATABASE_URL"])
        assert up.end() == 0
    finally:
        up.close()
    assert not (directory / "hiding").exists(), (directory / "hiding").read_text()
    assert (directory / "ours").exists()
    for name in (*HIDING, "ours"):
        (directory / f"{name}.py").unlink()


def test_what_dies_comes_back(up: Up) -> None:
    """A killed shard, router, Redis or PostgreSQL is started again, which is said, and clients are served again."""
    address = up.ready()
    for name, part in (
        ("n-0", "shard --id n-0"),
        ("router", "gunicorn"),
        ("redis", REDIS),
        ("postgres", "postgres"),
    ):
        pid = up.pid(part)
        os.kill(pid, signal.SIGKILL)
        up.says(rf"^up +\| {name} \(pid {pid}\) ended with SIGKILL; starting it again in 0\.\d s$")
        wait_until(lambda part=part, pid=pid: up.pids(part) not in ([], [pid]), f"{name} runs again")
    wait_until(lambda: is_ready(address), "the router is ready again")
    wait_until(lambda: shard_states(address) == {"n-0": True, "n-1": True}, "both shards are reachable again")
    wait_until(lambda: published(up.environ["HEADRACE_DATABASE_URL"]), "events are published again")
    assert up.end() == 0


def test_hang_up_reloads_the_router(up: Up) -> None:
    """SIGHUP replaces the router's workers, not their master."""
    address = up.ready()
    router = up.pid("gunicorn")
    workers = children(router)
    up.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not [pid for pid in workers if lives(pid)], "the workers are replaced")
    wait_until(lambda: is_ready(address), "the router is ready")
    assert up.pid("gunicorn") == router


def test_killed_up_leaves_nothing(up: Up) -> None:
    """When `up` itself is killed, its processes end by themselves, and the next `up` at the same port succeeds."""
    address = up.ready()
    all_children = children(up.process.pid)
    up.process.kill()
    up.process.wait()
    again = Up(up.directory, "--port", address.rsplit(":", 1)[1])
    try:
        assert again.ready() == address
        wait_until(lambda: not [pid for pid in all_children if lives(pid)], "the old processes have ended")
        assert again.end() == 0
    finally:
        again.close()


def test_taken_port_is_refused_first(directory: Path) -> None:
    """A port that another program uses ends `up` with status 2 before it starts anything."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port()))
        other.listen()
        port = str(other.getsockname()[1])
        up = Up(directory, "--port", port)
        assert up.process.wait(DEADLINE_S) == 2
        up.close()
    assert re.search(rf"headrace: cannot serve at port {port} ", up.text)
    assert "starting" not in up.text


def test_redis_that_does_not_answer(directory: Path) -> None:
    """With a Redis of the user's that is silent `up` gets ready, degraded, says which setting it is, and delivers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        up = Up(
            directory, "--port", "0", environ={"HEADRACE_REDIS_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}"}
        )
        try:
            address = up.ready()
            wait_until(lambda: shard_states(address) == {"n-0": True, "n-1": True}, "both shards are reachable")
            status, text = get(f"{address}/readyz")
            ready = json.loads(text)
            assert (status, ready["status"], ready["redis"]["status"]) == (200, "degraded", "away")
            up.says("HEADRACE_REDIS_URL")
            path = f"/streams/{sign('room:1', secrets=[up.environ['HEADRACE_SECRET']])}?since=now"
            connection = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            client = Client(connection)
            client.wait(lambda: client.last_id, "the cursor")
            publish(up.environ["HEADRACE_DATABASE_URL"])
            client.wait_for_data("hello")
            client.close()
            assert up.end() == 0
        finally:
            up.close()


def test_shard_that_cannot_start(directory: Path) -> None:
    """When a shard fails again and again, `up` gives up, says why with the shard's last lines, and cleans up."""
    up = Up(directory, "--port", "0", environ={"HEADRACE_FILTERS": "no_such_module"})
    status = up.process.wait(READY_S)
    up.close()
    assert status == 1, up.text
    assert re.search(r"headrace: n-\d \(pid \d+\) ended with exit status 1; its last lines:", up.text)
    assert "no_such_module" in up.text.rsplit("its last lines:", 1)[1]
    assert not (directory / ".headrace" / "lock").exists()
    assert not list((directory / ".headrace" / "run").iterdir())


def test_wrong_setting_is_refused_first(directory: Path) -> None:
    """A wrong setting ends `up` with status 2 before it starts anything."""
    up = Up(directory, "--port", "0", environ={"HEADRACE_RETRY_MS": "soon"})
    assert up.process.wait(DEADLINE_S) == 2
    up.close()
    assert "HEADRACE_RETRY_MS" in up.text
    assert "starting" not in up.text


def test_signal_during_start(directory: Path) -> None:
    """Ctrl-C while everything is still starting ends it as orderly."""
    # Its shards never get ready, however late the signal comes.
    (directory / "slow_filters.py").write_text("import time\ntime.sleep(3600)\n")
    environ = {"HEADRACE_FILTERS": "slow_filters"}
    up = Up(directory, "--port", "0", environ=environ)
    up.says(r"starting postgres")
    assert up.end(signal.SIGINT) == 0
    up.close()
    assert "headrace ready" not in up.text
    assert not (directory / ".headrace" / "lock").exists()
