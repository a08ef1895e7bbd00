"""The element, from its TypeScript declarations, `headrace/static/headrace.d.ts`."""

import re
from pathlib import Path
from typing import Final

import headrace
from generated.tables import table

_SOURCE: Final = Path(headrace.__file__).parent / "static" / "headrace.d.ts"
_INTERFACE: Final = re.compile(r"/\*\*((?:(?!\*/).)*?)\*/\nexport interface (\w+) \{\n(.*?)^\}", re.M | re.S)
_FIELD: Final = re.compile(r"(?:^  /\*\*((?:(?!\*/).)*)\*/\n)?^  (\w+\??): ([^;]+);", re.M | re.S)
_CLASS: Final = re.compile(r"/\*\*((?:(?!\*/).)*?)\*/\nexport class HeadraceStream", re.S)


def _prose(comment: str) -> str:
    """What a comment says, as Markdown."""
    return re.sub(r"^ *\* ?", "", comment, flags=re.M).strip()


def markdown() -> str:
    """The class with its attributes, the table of its events, and a table of fields for each kind of detail."""
    source = _SOURCE.read_text()
    interfaces = {name: (_prose(said), body) for said, name, body in _INTERFACE.findall(source)}
    (about,) = _CLASS.findall(source)
    parts = [_prose(about), "\n## Events\n"]
    said, body = interfaces.pop("HeadraceStreamEventMap")
    events = [(f"`{name}`", f"`{kind[12:-1]}`", _prose(text)) for text, name, kind in _FIELD.findall(body)]
    parts += [f"{said}\n", table(("DOM event", "`detail`", ""), events)]
    for name, (said, body) in interfaces.items():
        fields = [(f"`{field}`", f"`{kind}`", _prose(text)) for text, field, kind in _FIELD.findall(body)]
        parts += [f"\n### {name}\n\n{said}\n", table(("field", "type", ""), fields)]
    return "\n".join(parts)
