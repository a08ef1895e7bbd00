"""The settings, from the fields of `headrace.settings.Settings` and their metadata."""

import dataclasses
import re
from itertools import groupby
from typing import Any

from generated.tables import table
from headrace.settings import Settings


def markdown() -> str:
    """A heading and a table for each group of settings, in the order of the code."""
    parts = []
    for title, fields in groupby(dataclasses.fields(Settings), lambda field: field.metadata["group"]):
        rows = [
            (
                f"`{_variable(each.name)}`",
                _default(each.default),
                _help(each.metadata["help"]),
                each.metadata["parse"].allowed,
            )
            for each in fields
        ]
        parts.append(f"## {title}\n\n{table(('variable', 'default', 'meaning', 'allowed'), rows)}")
    return "\n".join(parts)


def _variable(name: str) -> str:
    return f"HEADRACE_{name.upper()}"


def _default(value: Any) -> str:
    """As it is written in the environment."""
    if isinstance(value, bool):
        return "`on`" if value else "`off`"
    if isinstance(value, float):
        return f"`{value:.10g}`"
    return f"`{value}`" if value not in ("", ()) else ""


def _help(text: str) -> str:
    """The sentences, with the names of other settings as they are set."""
    names = sorted((field.name.upper() for field in dataclasses.fields(Settings)), key=len, reverse=True)
    pattern = rf"(?<![\w`])(?:HEADRACE_)?({'|'.join(name for name in names if '_' in name)})(?![\w`])"
    return re.sub(pattern, r"`HEADRACE_\1`", text)
