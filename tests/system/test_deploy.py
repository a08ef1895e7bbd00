"""deploy/: what the units start serves clients, and systemd finds nothing to complain about."""

import subprocess
import sys
from pathlib import Path

import pytest

import headrace
from headrace.errors import SettingsError
from headrace.settings import Settings
from tests.fixtures.client import Client
from tests.fixtures.deployment import DEPLOY, ROUTER, SHARD, Host, get, sign, variables
from tests.fixtures.programs import tool
from tests.fixtures.shard import Database
from tests.fixtures.up import lives
from tests.fixtures.waiting import DEADLINE_S, wait_until

FILTERS = """
from headrace import predicate

@predicate("staff")
def is_staff(context, stream):
    return context.user == "ann"
"""


def test_the_example_of_settings_is_valid() -> None:
    """Every name in env.example is a setting, and everything that processes need has a value.

    The secret is one's own to choose: with the example's nothing starts.
    """
    example = variables((DEPLOY / "env.example").read_text().splitlines())
    values = {n: v for n, v in example.items() if n.startswith("HEADRACE_")}
    with pytest.raises(SettingsError, match=r"HEADRACE_SECRET .* not the example's"):
        Settings.from_environ(values)
    settings = Settings.from_environ(values | {"HEADRACE_SECRET": "a-secret-of-your-own"})
    settings.require("database_url", "listen_database_url", "redis_url", "secret")


def test_systemd_has_no_complaint(tmp_path: Path) -> None:
    """systemd-analyze finds nothing wrong with the units, whose programs are looked up in this environment."""
    program = tool("systemd-analyze")
    for unit in (ROUTER, SHARD):
        text = (DEPLOY / unit).read_text().replace("/opt/headrace/bin/python", sys.executable)
        (tmp_path / unit.replace("@", "@0")).write_text(text)
    verified = subprocess.run(
        [program, "verify", "--man=no", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_the_units_are_confined() -> None:
    """systemd-analyze finds little that the processes could do to the host: an exposure of at most 2.0 of 10."""
    for unit in (ROUTER, SHARD):
        judged = subprocess.run(
            [tool("systemd-analyze"), "security", "--offline=true", "--threshold=20", "--no-pager", DEPLOY / unit],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert judged.returncode == 0, judged.stdout + judged.stderr
        assert "Overall exposure level" in judged.stdout


def test_the_kernel_knows_what_sysctl_sets() -> None:
    """Each line of sysctl.conf names a parameter of the kernel, with as many numbers as it has."""
    lines = [line.partition("=") for line in (DEPLOY / "sysctl.conf").read_text().splitlines() if line[:1].isalpha()]
    assert len(lines) > 4
    for name, _, value in lines:
        parameter = Path("/proc/sys", *name.strip().split("."))
        # Some belong to the host alone, and are not seen in a container's network.
        if parameter.exists() or not name.startswith("net.core."):
            assert len(parameter.read_text().split()) == len(value.split())


def test_what_the_units_start_delivers_events(hosts: list[Host], deployed: Database, clients: list[Client]) -> None:
    """The command lines of the units make hosts on which clients receive what is published."""
    for host in hosts:
        clients.append(Client(get(host.port, sign(host, "both"))))
        clients[-1].wait(lambda: clients[-1].last_id, "the cursor")
    deployed.publish("both", "hello")
    for client in clients:
        client.wait_for_data("hello")


def test_predicates_are_found_in_the_unit_s_directory(
    hosts: list[Host], deployed: Database, clients: list[Client], tmp_path: Path
) -> None:
    """A shard whose unit has a working directory finds the module of HEADRACE_FILTERS there, and runs no other."""
    host = hosts[0]
    (tmp_path / "filters.py").write_text(FILTERS)
    for name in ("click", "redis", "shard", "headrace"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError\n")
    host.working_directory[SHARD] = tmp_path
    host.environ["HEADRACE_FILTERS"] = "filters"
    try:
        assert host.reload(SHARD, "0")
        for user in ("ann", "bob"):
            path = headrace.sign("staffed", user=user, secrets=[host.environ["HEADRACE_SECRET"]])
            clients.append(Client(get(host.port, path)))
            clients[-1].wait(lambda: clients[-1].last_id, "the cursor")
        deployed.publish("staffed", "for the staff", visible_to="staff")
        deployed.publish("staffed", "for all")
        for client in clients:
            client.wait_for_data("for all")
        assert [client.data for client in clients] == [["for the staff", "for all"], ["for all"]]
    finally:
        del host.environ["HEADRACE_FILTERS"], host.working_directory[SHARD]
        assert host.reload(SHARD, "0")


def test_a_reload_replaces_a_shard_or_leaves_it(hosts: list[Host], deployed: Database, clients: list[Client]) -> None:
    """A successor that cannot start fails the reload and changes nothing; one that can has every client afterwards."""
    host = hosts[0]
    client = Client(get(host.port, sign(host, "kept")))
    clients.append(client)
    client.wait(lambda: client.last_id, "the cursor")
    old = host.main[SHARD + "0"]
    host.environ["HEADRACE_FILTERS"] = "no.such.module"
    assert host.reload(SHARD, "0") == 0
    del host.environ["HEADRACE_FILTERS"]
    deployed.publish("kept", "still with the old one")
    client.wait_for_data("still with the old one")
    assert host.main[SHARD + "0"] == old and lives(old)
    assert host.reload(SHARD, "0") not in (0, old)
    wait_until(lambda: not lives(old), "the old one has ended")
    deployed.publish("kept", "with the new one")
    client.wait_for_data("with the new one")
    assert not client.sentinels and not client.ended


def test_a_shard_stops_as_systemd_asks(hosts: list[Host], clients: list[Client]) -> None:
    """On the unit's KillSignal a shard says goodbye to its clients and ends well before systemd would kill it."""
    client = Client(get(hosts[1].port, sign(hosts[1], "bye")))
    clients.append(client)
    client.wait(lambda: client.last_id, "the cursor")
    assert hosts[1].stop(SHARD, "0") == 0
    assert client.wait_for_sentinel("goodbye")
    client.wait_for_end()
