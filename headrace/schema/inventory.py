"""What the migrations make: the parts that a database must have, and the rights of the role headrace_publisher.

A database that was restored from a part of a dump, or from a dump without rights, is recognised by this list. It is
read from the migrations themselves, whose statements `create …` and `grant …` begin a line.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

from headrace.errors import SchemaError
from headrace.sql_calls import Call
from headrace.sql_execution import execute_script, fetch_all

PUBLISHER: Final = "headrace_publisher"

_PART: Final = re.compile(
    r"^(create|drop) (?:or replace )?(?:unlogged |constraint |unique )?(table|function|trigger|index) (?:if exists )?"
    r"(?:headrace\.)?(\w+)(?:[^;$]*? on headrace\.(\w+))?",
    re.MULTILINE,
)
_GRANT: Final = re.compile(r"^grant execute on function([^;]*?)\s+to headrace_publisher;", re.MULTILINE)
_DROPPED: Final = re.compile(r"^drop function (headrace\.\w+\([^)]*\));", re.MULTILINE)
_SIGNATURE: Final = re.compile(r"headrace\.\w+\([^)]*\)")

_MISSING: Final = """
    select p.kind || ' headrace.' || p.name
      from unnest(%s::text[], %s::text[], %s::text[]) with ordinality as p (kind, name, of_table, place)
     where not case p.kind
        when 'function' then exists (
            select from pg_catalog.pg_proc f
             where f.pronamespace = pg_catalog.to_regnamespace('headrace') and f.proname = p.name)
        when 'trigger' then exists (
            select from pg_catalog.pg_trigger t
             where t.tgrelid = pg_catalog.to_regclass('headrace.' || p.of_table) and t.tgname = p.name
                and t.tgenabled <> 'D')
        else pg_catalog.to_regclass('headrace.' || p.name) is not null end
     order by p.place"""
_ROWS: Final = {
    "slot_floor": "select count(*) = 1024 from headrace.slot_floor",
    "deployment": "select count(*) = 1 from headrace.deployment",
    "fence": "select count(*) = 1 from headrace.fence",
    "forgetting": "select count(*) = 1 from headrace.forgetting",
    "epoch": "select count(*) = 1 from headrace.epoch",
    "tick": "select count(*) > 0 from headrace.tick",
    "round": "select count(*) = 1 from headrace.round",
}
"""Tables whose migration fills them, and the query that tells whether they have their rows."""

# Whether the role has all its rights, and everybody else none of those that a dump without rights gives to everybody.
_RIGHTS: Final = """
    select pg_catalog.has_schema_privilege(r.oid, 'headrace', 'USAGE')
            and (select bool_and(pg_catalog.has_function_privilege(r.oid, f.oid, 'EXECUTE'))
                   from unnest(%s::oid[]) f (oid))
            and not exists (
                select from pg_catalog.pg_proc p
                 cross join pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
                 where p.pronamespace = pg_catalog.to_regnamespace('headrace') and a.grantee = 0)
      from pg_catalog.pg_roles r where r.rolname = 'headrace_publisher'"""
_MAKE_ROLE: Final = """
    do $$
    begin
        if not exists (select from pg_catalog.pg_roles where rolname = 'headrace_publisher') then
            create role headrace_publisher nologin;
        end if;
    end $$"""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The parts of a schema, each as (kind, name, table of a trigger), and what headrace_publisher may call."""

    parts: tuple[tuple[str, str, str], ...]
    granted: tuple[str, ...]

    @classmethod
    def of(cls, files: Iterable[bytes]) -> Self:
        """The parts and rights that these migrations, in order, leave behind."""
        parts: dict[tuple[str, str, str], None] = {}
        granted: dict[str, None] = {}
        for text in (file.decode() for file in files):
            for verb, kind, name, table in _PART.findall(text):
                part = (kind, name, table if kind == "trigger" else "")
                if verb == "create":
                    parts[part] = None
                else:
                    parts.pop(part, None)
            for signature in _DROPPED.findall(text):
                granted.pop(signature, None)
            for functions in _GRANT.findall(text):
                granted.update(dict.fromkeys(_SIGNATURE.findall(functions)))
        names = {name for kind, name, _ in parts if kind == "function"}
        kept = [signature for signature in granted if signature[len("headrace.") :].partition("(")[0] in names]
        return cls(tuple(parts), tuple(kept))

    def missing(self, connection: Any) -> list[str]:
        """The parts that the database lacks, in words, as its catalogs tell any role; rows are not looked at."""
        kinds, names, tables = zip(*self.parts, strict=True)
        return [str(part) for part in _column(connection, _MISSING, list(kinds), list(names), list(tables))]

    def require(self, connection: Any) -> None:
        """Raise SchemaError unless the database has all the parts, and the rows that tables have from the start."""
        missing = self.missing(connection)
        if not missing:
            missing = [
                f"rows of headrace.{table}"
                for table, query in _ROWS.items()
                if ("table", table, "") in self.parts and _column(connection, query) != [True]
            ]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise SchemaError(
                f"the schema lacks the {', the '.join(missing[:3])}{more}, as after a part of a dump was restored; "
                "restore all of it, or run `drop schema headrace cascade`, which forgets all events, then migrate"
            )

    def has_rights(self, connection: Any) -> bool:
        """Whether headrace_publisher may call its functions, and PUBLIC none. MUST be called after `require`."""
        return _column(connection, _RIGHTS, [oid for oid, _ in self._callable(connection)]) == [True]

    def restore_rights(self, connection: Any) -> None:
        """Give the rights as the migrations do. Raises the driver's error, as for a missing right."""
        execute_script(connection, _MAKE_ROLE)
        for statement in (
            "revoke all on all tables in schema headrace from public",
            "revoke all on all functions in schema headrace from public",
            f"grant usage on schema headrace to {PUBLISHER}",
            f"grant execute on function {', '.join(name for _, name in self._callable(connection))} to {PUBLISHER}",
        ):
            execute_script(connection, statement)

    def _callable(self, connection: Any) -> list[tuple[int, str]]:
        """The functions that headrace_publisher may call, if they exist: a later migration may change a signature."""
        query = (
            "select f.oid, s.signature from unnest(%s::text[]) s (signature)"
            " cross join lateral (select pg_catalog.to_regprocedure(s.signature)::oid) f (oid) where f.oid is not null"
        )
        return [(oid, name) for oid, name in fetch_all(connection, Call(query, (list(self.granted),)))]


def _column(connection: Any, query: str, *parameters: object) -> list[Any]:
    return [value for (value,) in fetch_all(connection, Call(query, parameters))]
