"""Roles of the database that attack a node, at a capped rate: `python -m loadtests.attacks`.

    attack_connect   may connect, and no more
    attack_create    may also create in the schema public
    attack_publish   has headrace_publisher

Each role holds in open transactions every lock that it can take, tries every right of the owner once, and repeats
statements that cost the others time. In the directory of a running `headrace up` the program publishes events and
follows them over HTTP, undisturbed and beside each role in turn, and prints the percentiles from publishing to receipt.
It exits with 1 if an event was lost, a right was gained, or the p99 rose to more than LIMIT times that of the
undisturbed runs before and after.
"""

import argparse
import contextlib
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Final

import psycopg
from psycopg import errors

import headrace
from headrace.embedded.postgres import USER
from headrace.environment_file import environ_with_file
from headrace.node.sse_client import Parser
from headrace.settings import Settings

LIMIT: Final = 3.0
RATE_PER_S: Final = 20.0
"""Statements a second of each role that repeat."""
EVENTS_PER_S: Final = 50.0
PASSWORD: Final = "attack"
STREAM: Final = "attacks:traffic"

_KEYS: Final = ("x'6865616472616361'", "x'6865616472616364'", "x'6865616472616365'", "x'686561647261636d'")
HELD: Final = tuple(f"select pg_advisory_lock({key}::bigint)" for key in _KEYS)
"""Locks that a session of its own takes and keeps: the office's, the publishers', and two that nothing uses now."""
REPEATED: Final = (
    "select pg_try_advisory_lock(x'6865616472616361'::bigint), pg_advisory_unlock(x'6865616472616361'::bigint)",
    "select pg_notify('headrace_slot_' || n, '9 ' || repeat('x', n)) from generate_series(1, 1000, 100) n",
    "select pg_notify('headrace_slot_' || n, payload) from generate_series(1, 999, 50) n, (values (''), ('x'),"
    " ('-1 s'), (' '), ('99999999999999999999999 s'), (repeat('9', 7000)), (E'1 \\n')) v (payload)",
    "select pg_notify('headrace_rate', payload)"
    " from (values (''), ('office'), ('turn'), (repeat('x', 7000))) v (payload)",
    "listen headrace_rate",
    "select count(*) from generate_series(1, 50000)",
)
FORBIDDEN: Final = (
    "select * from headrace.event",
    "select * from headrace.deployment",
    "insert into headrace.payload (xid, stream, data, rings) values ('1', 's', 'x', true)",
    "select * from headrace.turn",
    "update headrace.limits set max_payload_bytes = 60000000",
    "do $$ begin lock table headrace.stream in access share mode; end $$",
    "do $$ begin lock table headrace.migration in share row exclusive mode; end $$",
    "select headrace.set_max_payload_bytes(60000000)",
    "select headrace.begin_block()",
    "select headrace.take_office()",
    "select headrace.sequence()",
    "select headrace.prune(1000)",
    "select headrace.read_after(array['s'], array[0::bigint], 1, 1)",
    "select headrace.read_after(array['s'], array[0::bigint], 1, 1, 1)",
    "select headrace.read_events(array['s'], array[0::bigint], 1, 1, 1)",
    "select headrace.set_retention('*', interval '1 second')",
    "create function headrace.read_after(x text) returns int language sql as 'select 1'",
    "create trigger t before insert on headrace.event for each row execute function headrace.publish_change()",
    "create schema headrace_shadow",
    "set session authorization postgres",
    "alter role current_user superuser",
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'headrace %'",
)
CREATED: Final = (
    "create or replace function public.pg_relation_size(text) returns bigint language plpgsql as"
    " $$ begin execute 'alter role attack_create superuser'; return 0; end $$",
    "create or replace function public.to_regclass(text) returns regclass language plpgsql as"
    " $$ begin execute 'alter role attack_create superuser'; return null; end $$",
    "create temporary table if not exists stream (name text)",
)
HELD_BY_PUBLISHERS: Final = (
    "select headrace.publish_now('presence:attacks:room', 'x')",
    "select headrace.publish_now('attacks:own', 'x')",
    "set constraints all immediate; select headrace.publish('attacks:other', 'x')",
)
REPEATED_BY_PUBLISHERS: Final = (
    "select headrace.publish_many(array_fill('attacks:many'::text, array[100]), array_fill('x'::text, array[100]))",
    "set headrace.max_payload_bytes = 1000000000",
    "select headrace.disconnect('attacks:nobody')",
    "select headrace.watermark('attacks:traffic'), headrace.member_count('attacks:room')",
)
REFUSED_BY_VALUE: Final = "select headrace.publish('attacks:large', repeat('x', 2000000))"
ROLES: Final = ("attack_connect", "attack_create", "attack_publish")


@dataclass
class Attack:
    """One role at work, as a context. Owned by the thread that enters it; `gained` lists rights that it should lack."""

    superuser_url: str
    role: str
    rate_per_s: float = RATE_PER_S
    gained: list[str] = field(default_factory=list)
    statements: int = 0

    def __enter__(self) -> "Attack":
        self._over = threading.Event()
        with psycopg.connect(self.superuser_url, autocommit=True) as owner:
            with contextlib.suppress(errors.DuplicateObject):
                owner.execute(f"create role {self.role} login password '{PASSWORD}'".encode())
            if self.role == "attack_create":
                owner.execute(f"grant create on schema public to {self.role}".encode())
            if self.role == "attack_publish":
                owner.execute(f"grant headrace_publisher to {self.role}".encode())
        held = HELD + (HELD_BY_PUBLISHERS if self.role == "attack_publish" else ())
        with self._connect() as connection:
            for statement in FORBIDDEN:
                self._must_fail(connection, statement)
            if self.role == "attack_publish":
                connection.execute(b"set headrace.max_payload_bytes = 1000000000")
                self._must_fail(connection, REFUSED_BY_VALUE)
            if self.role == "attack_create":
                for statement in CREATED:
                    connection.execute(statement.encode())
        work = [(self._hold, (statement,)) for statement in held]
        threads = [threading.Thread(target=target, args=arguments) for target, arguments in work]
        self._threads = [*threads, threading.Thread(target=self._repeat)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        with psycopg.connect(self.superuser_url, autocommit=True) as owner:
            row = owner.execute(
                "select rolsuper or rolcreaterole or rolcreatedb from pg_roles where rolname = %s", [self.role]
            ).fetchone()
            if row != (False,):
                self.gained.append("rights of the server")
            owner.execute(f"drop owned by {self.role}".encode())
            owner.execute(f"drop role {self.role}".encode())

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        url = psycopg.conninfo.make_conninfo(self.superuser_url, user=self.role, password=PASSWORD)
        return psycopg.connect(url, autocommit=True, application_name="attack")

    def _must_fail(self, connection: "psycopg.Connection[tuple[object, ...]]", statement: str) -> None:
        try:
            connection.execute(statement.encode())
        except (errors.InsufficientPrivilege, errors.InvalidParameterValue, errors.UndefinedObject):
            return
        self.gained.append(statement)

    def _hold(self, statement: str) -> None:
        """Take the statement's lock, waiting if need be, and keep it in a transaction until the attack is over."""
        with contextlib.closing(self._connect()) as connection:
            connection.execute(b"begin; set local lock_timeout = '200ms'")
            while not self._over.is_set():
                with contextlib.suppress(errors.LockNotAvailable):
                    connection.execute(b"savepoint s")
                    connection.execute(statement.encode())
                    self._over.wait()
                    return
                connection.execute(b"rollback to savepoint s")

    def _repeat(self) -> None:
        statements = REPEATED + (REPEATED_BY_PUBLISHERS if self.role == "attack_publish" else ())
        with contextlib.closing(self._connect()) as connection:
            while not self._over.wait(1 / self.rate_per_s):
                connection.execute(statements[self.statements % len(statements)].encode())
                self.statements += 1


def said(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def measure(settings: Settings, base: str, seconds: float) -> tuple[int, list[float]]:
    """Publish to STREAM and follow it; returns how many events did not come within 10 s, and the others' ages in ms."""
    published: dict[str, float] = {}
    ages: list[float] = []
    path = headrace.sign([STREAM], secrets=settings.secret)
    with (
        psycopg.connect(settings.database_url, autocommit=True) as connection,
        urllib.request.urlopen(f"{base}{path}?since=now", timeout=10) as response,
    ):
        parser = Parser()
        over = threading.Event()

        def follow() -> None:
            while not over.is_set() and (more := response.read1()):
                now = time.monotonic()
                ages.extend(1000 * (now - published[m.data]) for m in parser.feed(more) if m.data in published)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        time.sleep(0.5)  # until the connection is live
        end = time.monotonic() + seconds
        number = 0
        while (now := time.monotonic()) < end:
            data = f"{now} {number}"
            number += 1
            published[data] = time.monotonic()
            headrace.publish(connection, STREAM, data)
            time.sleep(max(0.0, 1 / EVENTS_PER_S - (time.monotonic() - now)))
        patience = time.monotonic() + 10
        while len(ages) < number and time.monotonic() < patience:
            time.sleep(0.05)
        over.set()
        headrace.publish(connection, STREAM, "over")
        thread.join(5)
    return number - len(ages), ages


def main(arguments: Sequence[str]) -> int:
    """Attack a running `headrace up`, role by role; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.attacks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run (default 15)")
    parser.add_argument("--base", default="http://127.0.0.1:8000", help="where the node answers")
    parser.add_argument("--superuser", help="the URL of who makes the roles (default: the embedded server's here)")
    options = parser.parse_args(arguments)
    settings = Settings.from_environ(environ_with_file(os.environ)).require("database_url", "secret")
    superuser = options.superuser or psycopg.conninfo.make_conninfo(
        settings.database_url, user=USER, password=Path(".headrace/postgres.password").read_text().strip()
    )
    calm: list[float] = []
    worst, lost, gained = 0.0, 0, []
    for role in ("", *ROLES, ""):
        attack = Attack(superuser, role) if role else None
        with attack or contextlib.nullcontext():
            if role:
                time.sleep(7)  # until a sweep has noticed the roles that hold locks
            missing, ages = measure(settings, options.base, options.seconds)
        percentiles = quantiles(ages, n=100)
        lost += missing
        if attack is None:
            calm.append(percentiles[98])
        else:
            worst = max(worst, percentiles[98])
            gained += attack.gained
        said(
            f"{role or 'undisturbed'}: {len(ages)} events, {missing} lost, p50 {percentiles[49]:.1f} ms,"
            f" p99 {percentiles[98]:.1f} ms"
            + (f", {attack.statements} statements, gained {attack.gained or 'nothing'}" if attack else "")
        )
    ratio = worst / (sum(calm) / len(calm))
    said(f"the worst p99 is {ratio:.1f} times the undisturbed one")
    return int(bool(lost or gained) or ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
