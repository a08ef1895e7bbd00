"""The SQL functions and tables, from their definitions, comments and grants in `headrace/sql/`."""

import re
from pathlib import Path
from typing import Final

import headrace
from generated.tables import table

_SQL: Final = Path(headrace.__file__).parent / "sql"
_NAME: Final = r"headrace\.(\w+)"
_FUNCTION: Final = re.compile(
    rf"^create (?:or replace )?function {_NAME}\s*\((.*?)\)\s*(returns .*?)?\s+language ", re.M | re.S | re.I
)
_DROPPED: Final = re.compile(rf"^\s*drop (function|table)(?: if exists)? {_NAME}", re.M | re.I)
_COMMENT: Final = re.compile(
    rf"^comment on (function|table|column) {_NAME}(\.\w+)?(?:\([^)]*\))? is\s+'((?:[^']|'')*)'", re.M | re.I
)
_GRANT: Final = re.compile(r"^\s*grant execute on function\s+([^;]*?)\s+to headrace_publisher", re.M | re.I)
_LEADING: Final = re.compile(r"((?:^--[^\n]*\n)+)$", re.M)

FOR_APPLICATIONS: Final = (
    *("publish", "publish_now", "publish_many", "publish_many_now", "watermark", "head"),
    *("publish_changes", "unpublish_changes", "disconnect", "members", "member_count", "identity", "max_payload_bytes"),
)
"""What applications call, in the order in which a reader asks for it. The publisher's role may execute each."""
FOR_OWNERS: Final = ("set_retention", "set_max_payload_bytes", "begin_block", "slot")


def _source() -> str:
    """The whole schema in one text: the file that shows it, or all migrations, of which a later one wins."""
    whole = _SQL / "schema.sql"
    if whole.exists():
        return whole.read_text()
    return "\n".join(path.read_text() for path in sorted(_SQL.glob("0*.sql")))


def _comments(source: str) -> dict[tuple[str, str], str]:
    """By kind and name; of a column the name is that of its table, a dot and its own."""
    found = {}
    for kind, name, column, text in _COMMENT.findall(source):
        found[kind.lower(), name + column] = re.sub(r"([*<])", r"\\\1", text.replace("''", "'"))
    return found


def functions() -> dict[str, tuple[str, str, str]]:
    """Each function by name: arguments, what it returns, and its comment. Triggers are left out."""
    source = _source()
    comments = _comments(source)
    found = {}
    for match in _FUNCTION.finditer(source):
        name, arguments, returns = match[1], " ".join(match[2].split()), " ".join((match[3] or "").split())
        if returns.lower() != "returns trigger":
            found[name] = (arguments, returns, comments.get(("function", name), ""))
    for kind, name in _DROPPED.findall(source):
        if kind.lower() == "function" and not re.search(
            rf"^create (?:or replace )?function headrace\.{name}\b", source, re.M | re.I
        ):
            found.pop(name, None)
    return found


def granted() -> set[str]:
    """The functions that members of headrace_publisher may execute."""
    return {name for block in _GRANT.findall(_source()) for name in re.findall(rf"{_NAME}\s*\(", block)}


def markdown() -> str:
    """Headings and tables: for applications, for the owner, and the parts that only headrace's processes use."""
    known = functions()
    parts = ["## For applications\n", "A role with `headrace_publisher` may call these.\n"]
    parts += [_one(name, known[name]) for name in FOR_APPLICATIONS]
    parts += ["## For the schema's owner\n"]
    parts += [_one(name, known[name]) for name in FOR_OWNERS if name in known]
    rest = sorted(known.keys() - set(FOR_APPLICATIONS) - set(FOR_OWNERS))
    parts += [
        "## Internal functions\n",
        "headrace's own processes and functions call these. They change without notice.\n",
    ]
    parts += [table(("function", ""), [(f"`{name}`", known[name][2]) for name in rest])]
    comments = _comments(_source())
    tables = [(name, text) for (kind, name), text in comments.items() if kind == "table"]
    parts += ["\n## Tables\n", "The owner reads and writes them; nobody else has any right on them.\n"]
    for name, text in tables:
        columns = [
            (f"`{key.partition('.')[2]}`", said)
            for (kind, key), said in comments.items()
            if kind == "column" and key.startswith(f"{name}.")
        ]
        parts += [f"### headrace.{name}\n\n{text}\n", table(("column", ""), columns)]
    return "\n".join(parts)


def _one(name: str, function: tuple[str, str, str]) -> str:
    arguments, returns, comment = function
    arguments = re.sub(r"::\w+(\[\])?", "", arguments)
    # A line for an argument, or a column of the result, is an item of a list; what follows the list is a paragraph.
    comment = re.sub(r"^([a-z_]+(?:, [a-z_]+)*): ", r"- `\1`: ", comment, flags=re.M)
    comment = re.sub(r"\n(?=(Returns|Raises)\b)", r"\n\n", comment)
    if len(arguments) > 60:
        arguments = "\n" + "".join(f"    {each},\n" for each in re.split(r",\s*", arguments))
        arguments = arguments[:-2] + "\n"
    signature = f"headrace.{name}({arguments}) {returns}".strip()
    return f"### headrace.{name}\n\n```sql\n{signature}\n```\n\n{comment}\n"
