"""Strangers in the schema: whoever works on it refuses what is another's before it runs, and nobody can hold it up."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from headrace.embedded.postgres import EmbeddedPostgres
from headrace.errors import MigrationBlockedError, OwnershipError, UsageError
from headrace.schema.migrations import check, migrate, migrations
from tests.fixtures.postgres import Connection, execute, superuser_url

VERSIONS = [migration.version for migration in migrations()]
SPY = """
    create table public.ran (role text); grant all on public.ran to public;
    create function {schema}.spy() returns trigger language plpgsql as $$
    begin insert into public.ran values (current_user); return new; end $$;
    create function {schema}.spy_event() returns event_trigger language plpgsql as $$
    begin insert into public.ran values (current_user); end $$;
"""


@pytest.fixture(scope="module")
def roles(postgres: EmbeddedPostgres) -> Iterator[dict[str, str]]:
    """Roles that may log in, by name: app owns databases, team is its group, mallory is a stranger, dba a superuser."""
    for name, options in {"app": "", "team": "", "mallory": "", "dba": "superuser"}.items():
        execute(postgres, f"create role own_{name} login password 'x' {options}")
    execute(postgres, "grant own_team to own_app")
    names = {name: f"own_{name}" for name in ("app", "team", "mallory", "dba")}
    yield names
    for name in names.values():
        execute(postgres, f"drop role {name}")


@pytest.fixture
def url(postgres: EmbeddedPostgres, roles: dict[str, str], empty_database_url: str) -> str:
    """An empty database of own_app's in which own_mallory may create schemas, and anything in public; as superuser."""
    url = superuser_url(postgres, empty_database_url)
    with psycopg.connect(url, autocommit=True) as c:
        c.execute(f"alter database {c.info.dbname} owner to own_app".encode())
        c.execute(f"grant create on database {c.info.dbname} to own_mallory".encode())
        c.execute("grant create on schema public to own_mallory")
    return url


def as_role(url: str, name: str) -> str:
    return psycopg.conninfo.make_conninfo(url, user=f"own_{name}", password="x")


@contextmanager
def opened(url: str, name: str) -> Iterator[Connection]:
    with psycopg.connect(as_role(url, name), autocommit=True) as connection:
        yield connection


def trap_record(c: Connection) -> None:
    c.execute("create schema headrace")
    c.execute(SPY.format(schema="headrace").encode())
    c.execute("create table headrace.migration (version int primary key, applied_at timestamptz, oldest int)")
    c.execute("grant all on schema headrace to public; grant all on headrace.migration to public")
    c.execute("create trigger t before insert on headrace.migration for each row execute function headrace.spy()")


def trap_view(c: Connection) -> None:
    c.execute("create schema headrace; create table public.ran (role text); grant all on public.ran to public")
    c.execute(
        "create function headrace.spy() returns int language plpgsql as"
        " $$ begin insert into public.ran values (current_user); return 1; end $$"
    )
    c.execute("create view headrace.migration as select headrace.spy() as version, 0 as oldest")


@pytest.mark.parametrize("trap", [trap_record, trap_view])
@pytest.mark.parametrize("name", ["dba", "app"])
def test_a_schema_that_a_stranger_has_made(url: str, trap: Callable[[Connection], None], name: str) -> None:
    """Neither migrate nor what shards, commands and doctor ask first runs anything of it, as superuser or not."""
    with opened(url, "mallory") as c:
        trap(c)
    for call in (migrate, check):
        with pytest.raises(OwnershipError, match=f"headrace belongs to own_mallory, .* with the rights of own_{name};"):
            call(as_role(url, name))
    with opened(url, "dba") as c:
        assert c.execute("select * from public.ran").fetchall() == []


FOREIGN = {
    "table": ("alter table headrace.limits owner to own_mallory", "the table headrace.limits belongs to own_mallory"),
    "function": (
        "create function headrace.slot(x varchar) returns int language sql as 'select 1';"
        "alter function headrace.slot(varchar) owner to own_mallory",
        "the function headrace.slot belongs to own_mallory",
    ),
    "type": (
        "create domain headrace.text as text; alter domain headrace.text owner to own_mallory",
        "the type headrace.text belongs to own_mallory",
    ),
    "trigger": (
        "grant trigger on headrace.event to own_mallory; grant usage on schema headrace to own_mallory;"
        "set role own_mallory;"
        + SPY.format(schema="public")
        + "create trigger t before insert on headrace.event for each row execute function public.spy();"
        "reset role; revoke all on headrace.event from own_mallory",
        "the trigger t on headrace.event runs a function of own_mallory, .*; drop trigger t on headrace.event",
    ),
    "create": (
        "grant create on schema headrace to own_mallory",
        "CREATE on the schema headrace was granted to own_mallory, .*; "
        "revoke create on schema headrace from own_mallory",
    ),
    "create for all": ("grant create on schema headrace to public", "revoke create on schema headrace from public"),
    "trigger right": (
        "grant all on headrace.event to own_mallory",
        "TRIGGER on headrace.event was granted to own_mallory, .*; "
        "revoke trigger on all tables in schema headrace from own_mallory",
    ),
    "event trigger": (
        "set role own_mallory;" + SPY.format(schema="public") + "reset role;"
        "create event trigger e on ddl_command_end execute function public.spy_event()",
        "the event trigger e runs a function of own_mallory, .*; drop event trigger e",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_a_stranger_s_within_the_owner_s_schema(url: str, what: str) -> None:
    """Whatever in the schema runs a stranger's code, or lets a stranger add some, is named with the remedy."""
    migrate(as_role(url, "app"))
    statement, message = FOREIGN[what]
    with opened(url, "dba") as c:
        c.execute(statement.encode())
        c.execute("delete from headrace.migration where version = 14")
    for name in ("app", "dba"):
        with pytest.raises(OwnershipError, match=message if name == "app" else "own_"):
            migrate(as_role(url, name))
    with pytest.raises(OwnershipError, match=message):
        check(as_role(url, "app"))


def test_owners_who_are_trusted(url: str) -> None:
    """A user migrates what it owns, what a role owns whose rights it has, and nobody else's; so does a superuser."""
    with opened(url, "dba") as c:
        c.execute("create schema headrace authorization own_team")
    with opened(url, "app") as c:
        c.execute(
            "set role own_team; create table headrace.migration (version int primary key, applied_at timestamptz)"
        )
    assert migrate(as_role(url, "app")) == VERSIONS
    assert migrate(as_role(url, "app")) == []
    with pytest.raises(OwnershipError, match=r"the schema headrace belongs to own_team, .* of own_dba;"):
        migrate(as_role(url, "dba"))


def test_a_superuser_s_own_schema(url: str) -> None:
    """What one superuser has made another one migrates, and a plain user may ask of it what its rights allow."""
    database_url = url
    migrate(url)
    assert migrate(as_role(database_url, "dba")) == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        check(as_role(database_url, "app"))


def test_an_owner_who_may_not_create_in_the_database(url: str) -> None:
    """The owner of the schema needs no right on the database, neither with a schema that is current nor to begin it."""
    with opened(url, "dba") as c:
        c.execute("create schema headrace authorization own_team")
    assert migrate(as_role(url, "team")) == VERSIONS
    assert migrate(as_role(url, "team")) == []


def test_the_documented_statements_make_an_owner(url: str) -> None:
    """After the statements of docs/operate/security.md a plain owner migrates, and the app publishes."""
    page = (Path(__file__).parents[2] / "docs" / "operate" / "security.md").read_text()
    (statements,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    with opened(url, "dba") as c:
        # Roles are shared by all databases: these are the test's own, and the publishers' role is there already.
        statements = statements.replace("headrace_owner", "own_documented").replace("to app;", "to own_app;")
        c.execute(re.sub(r"^create role headrace_publisher.*$", "", statements, flags=re.MULTILINE).encode())
        try:
            owner = psycopg.conninfo.make_conninfo(url, user="own_documented", password="…")
            assert migrate(owner) == VERSIONS
            with opened(url, "app") as app:
                app.execute("select headrace.publish('room:1', 'hello')")
        finally:
            c.execute("revoke headrace_publisher from own_app; drop owned by own_documented cascade")
            c.execute("drop role own_documented")


def test_a_user_who_lacks_rights_is_told_what_to_ask_for(url: str) -> None:
    """Without a schema and the right to make one, the sentence has what a superuser has to run."""
    with pytest.raises(UsageError, match="permission denied for database") as caught:
        migrate(as_role(url, "team"))
    for statement in ("CREATE SCHEMA headrace AUTHORIZATION own_team", "CREATE ROLE headrace_publisher NOLOGIN"):
        assert statement in str(caught.value)


def test_a_database_that_cannot_be_written_to(url: str) -> None:
    """With nothing pending a read-only database is up to date; with something it is said, in a sentence."""
    with opened(url, "app") as c:
        name = c.info.dbname
        c.execute(f"alter database {name} set default_transaction_read_only = on".encode())
        with pytest.raises(UsageError, match="cannot be written to; migrate on the primary"):
            migrate(as_role(url, "app"))
        c.execute(f"alter database {name} reset default_transaction_read_only".encode())
        assert migrate(as_role(url, "app")) == VERSIONS
        c.execute(f"alter database {name} set default_transaction_read_only = on".encode())
        assert migrate(as_role(url, "app")) == []
        check(as_role(url, "app"))


def test_an_event_trigger_that_forbids_ddl(url: str) -> None:
    """Its words are in the sentence, and nothing was changed; with nothing pending it is not asked."""
    with opened(url, "dba") as c:
        c.execute(
            "create function public.forbid() returns event_trigger language plpgsql as"
            " $$ begin raise exception 'ask the platform team' using errcode = 'P0042'; end $$"
        )
        c.execute("create event trigger forbid on ddl_command_start execute function public.forbid()")
        with pytest.raises(UsageError, match="nothing was changed: ask the platform team"):
            migrate(as_role(url, "app"))
        c.execute("alter event trigger forbid disable")
        assert migrate(as_role(url, "app")) == VERSIONS
        c.execute("alter event trigger forbid enable")
        assert migrate(as_role(url, "app")) == []


def test_nobody_can_hold_up_a_migration_by_an_advisory_lock(url: str) -> None:
    """The lock of releases before, which any role can take, keeps no migration waiting."""
    with opened(url, "mallory") as c:
        c.execute("select pg_advisory_lock(x'686561647261636d'::bigint)")
        assert migrate(as_role(url, "app"), patience_s=0) == VERSIONS


def test_who_creates_the_schema_meanwhile(url: str) -> None:
    """A transaction that has created a schema of the name and stays open keeps a migration for its patience at most."""
    with psycopg.connect(as_role(url, "mallory")) as c:
        c.execute("create schema headrace")
        with pytest.raises(MigrationBlockedError, match="creating a schema or role of the same name"):
            migrate(as_role(url, "app"), patience_s=0)
        c.rollback()
    assert migrate(as_role(url, "app")) == VERSIONS
