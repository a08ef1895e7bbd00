"""Hostile roles of the database against a node under traffic: no right is gained, no event lost, doctor names them."""

import pytest
from click.testing import CliRunner

import headrace
from headrace.cli import main
from headrace.embedded.postgres import EmbeddedPostgres
from loadtests import attacks
from tests.fixtures.postgres import superuser_url
from tests.fixtures.router import SECRET
from tests.fixtures.shard import Database
from tests.fixtures.stack import Stack, StartStack
from tests.fixtures.waiting import wait_until
from tests.system.test_sequencer import Writers


@pytest.fixture
def stack(start_stack: StartStack) -> Stack:
    """A node of two shards whose parts all do something every second or so."""
    return start_stack(
        2, sweep_interval_s=0.5, prune_interval_s=0.5, presence_interval_s=0.1, presence_expiry_s=20, log_level="info"
    )


OTHERS = [pytest.param(role, marks=pytest.mark.slow) for role in attacks.ROLES[:-1]]


@pytest.mark.parametrize("role", [*OTHERS, attacks.ROLES[-1]])
def test_a_hostile_role(postgres: EmbeddedPostgres, stack: Stack, database: Database, role: str) -> None:
    """Beside everything that a role can do, what others publish arrives, once and in order, and users join."""
    client = stack.subscribe("s")
    attack = attacks.Attack(superuser_url(postgres, database.url), role)
    with attack:
        with Writers(database.url) as writers:
            wait_until(lambda: writers.published > 100 and attack.statements > 20, "both are at work")
            wait_until(lambda: any("is at the lock of the office" in s.log for s in stack.shards), "it is noticed")
        assert not writers.faults
        head = database.head("s")
        client.wait_for(head)
        assert client.ids == list(range(1, head + 1))
        stack.subscribe("room", user="ada", presence=True)
        wait_until(lambda: headrace.members(database.connection, "room") == ["ada"], "a user joins")
        said = CliRunner().invoke(
            main,
            ["doctor"],
            env={
                "HEADRACE_TEST_POSTGRES": None,
                "HEADRACE_DATABASE_URL": database.url,
                "HEADRACE_REDIS_URL": stack.redis.url,
                "HEADRACE_SECRET": SECRET,
                "HEADRACE_PUBLIC_URL": "http://127.0.0.1:1",
            },
        )
        assert f"role {role} (pid " in said.output
        assert "schema parts" in said.output
    assert attack.gained == []
    assert all(shard.running for shard in stack.shards)
    database.publish("s", "after all")
    client.wait_for_data("after all")
