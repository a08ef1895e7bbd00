"""headrace/sql/schema.sql shows the schema that the migrations make: all of it, and nothing else."""

import re
from collections.abc import Iterator

import psycopg
import pytest

from headrace.embedded.postgres import OWNER, EmbeddedPostgres
from headrace.schema.migrations import check, migrate, migrations
from tests.fixtures.postgres import Connection, execute
from tests.fixtures.schema_file import FILE, render

# Catalogs without oids, and without what differs between two databases of the same kind.
CATALOGS = {
    "tables": """
        select c.relkind, c.relname, c.relpersistence, c.reloptions, c.relreplident, c.relrowsecurity, a.rights,
                obj_description(c.oid, 'pg_class')
            from pg_class c left join lateral (
                select array_agg((x.grantee::regrole, x.privilege_type)::text order by 1) from aclexplode(c.relacl) x
            ) a (rights) on true
            where c.relnamespace = 'headrace'::regnamespace""",
    "columns": """
        select c.relname, a.attnum, a.attname, a.atttypid::regtype, a.atttypmod, a.attnotnull, a.attidentity,
                a.attgenerated, a.attcollation::regcollation, a.attstorage, pg_get_expr(d.adbin, d.adrelid),
                col_description(c.oid, a.attnum)
            from pg_attribute a join pg_class c on c.oid = a.attrelid
                left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
            where c.relnamespace = 'headrace'::regnamespace and a.attnum > 0 and not a.attisdropped""",
    "sequences": """
        select c.relname, s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcycle
            from pg_sequence s join pg_class c on c.oid = s.seqrelid""",
    "constraints": """
        select c.conrelid::regclass, c.conname, c.contype, pg_get_constraintdef(c.oid), c.condeferrable, c.condeferred
            from pg_constraint c where c.connamespace = 'headrace'::regnamespace""",
    "indexes": "select indexname, indexdef from pg_indexes where schemaname = 'headrace'",
    "triggers": """
        select t.tgrelid::regclass, t.tgname, t.tgenabled, pg_get_triggerdef(t.oid) from pg_trigger t
            where not t.tgisinternal""",
    "functions": """
        select p.oid::regprocedure, pg_get_functiondef(p.oid), p.prosrc, p.proconfig, p.procost, p.prorows, a.rights,
                obj_description(p.oid, 'pg_proc')
            from pg_proc p left join lateral (
                select array_agg((x.grantee::regrole, x.privilege_type)::text order by 1) from aclexplode(p.proacl) x
            ) a (rights) on true
            where p.pronamespace = 'headrace'::regnamespace""",
    "schema": """
        select n.nspname, a.rights from pg_namespace n left join lateral (
                select array_agg((x.grantee::regrole, x.privilege_type)::text order by 1) from aclexplode(n.nspacl) x
            ) a (rights) on true
            where n.nspname = 'headrace'""",
    "types": """
        select t.typname, t.typtype from pg_type t
            where t.typnamespace = 'headrace'::regnamespace and t.typrelid = 0 and t.typelem = 0""",
    "deployment": "select single, start, timeline, file is null, writer from headrace.deployment",
    "tick": "select n from headrace.tick",
    "migrations": "select version, oldest from headrace.migration",
    **{
        table: f"select t::text from headrace.{table} t"
        for table in (
            "epoch",
            "slot_floor",
            "limits",
            "retention",
            "fence",
            "stream",
            "event",
            "jump",
            "trimmed",
            "stage",
            "payload",
            "turn",
            "behind",
            "round",
        )
    },
}


_EMPTY = ("types", "stream", "event", "jump", "trimmed", "stage", "payload", "turn", "behind")


def catalogs(connection: Connection) -> dict[str, list[str]]:
    return {name: sorted(map(str, connection.execute(query.encode()))) for name, query in CATALOGS.items()}


@pytest.fixture(scope="module")
def urls(postgres: EmbeddedPostgres) -> Iterator[dict[str, str]]:
    """Two databases in which nobody has done anything yet: one that was migrated, one in which the file was run."""
    found = {}
    for name in ("by_migrations", "by_file"):
        execute(postgres, f"create database {name} owner {OWNER}")
        execute(postgres, f"grant create on database {name} to {OWNER}")
        found[name] = postgres.owned_url(name)
    migrate(found["by_migrations"])
    with psycopg.connect(found["by_file"]) as connection:
        connection.execute(FILE.read_bytes())
    yield found
    for name in found:
        execute(postgres, f"drop database {name} with (force)")


@pytest.fixture(scope="module")
def found(urls: dict[str, str]) -> dict[str, dict[str, list[str]]]:
    """What each of the two has in its catalogs."""
    both = {}
    for name, url in urls.items():
        with psycopg.connect(url) as connection:
            both[name] = catalogs(connection)
    return both


@pytest.mark.parametrize("catalog", CATALOGS)
def test_the_file_makes_what_the_migrations_make(catalog: str, found: dict[str, dict[str, list[str]]]) -> None:
    """Every catalog has the same in a database that the file has made as in one that was migrated."""
    assert found["by_file"][catalog] == found["by_migrations"][catalog]
    assert found["by_file"][catalog] or catalog in _EMPTY


def test_the_file_is_what_the_catalogs_say(urls: dict[str, str]) -> None:
    """After a change of a migration, `make schema` was run: the file is what it writes."""
    with psycopg.connect(urls["by_migrations"]) as connection:
        if connection.info.server_version < 180000:
            pytest.skip("an older PostgreSQL writes some definitions in other words")
        assert render(connection) == FILE.read_text()


def test_a_database_of_the_file_needs_no_migration(urls: dict[str, str]) -> None:
    """`headrace migrate` finds nothing to do in it, and publishing works."""
    assert migrate(urls["by_file"]) == []
    check(urls["by_file"])
    with psycopg.connect(urls["by_file"]) as connection:
        assert connection.execute("select headrace.publish_now('s', 'x')").fetchone() == (1,)
        connection.rollback()


def test_the_file_is_no_migration() -> None:
    """The migrations are the numbered files alone."""
    assert len(migrations()) == len([file for file in FILE.parent.iterdir() if re.match(r"\d{4}_", file.name)])
