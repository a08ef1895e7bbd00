"""The HTML that a page needs: the element `<headrace-stream>` and the script that defines it.

Both are escaped, and safe for the template engines that ask an object for its `__html__` (Jinja, Django and others).
"""

import re
from html import escape

from headrace.errors import UsageError

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
_SET_BY_THE_ELEMENT = frozenset({"state", "cursor", "gap", "reset", "goodbye", "error"})
Attribute = str | int | float | bool | None


class Html(str):
    """Markup that is escaped already."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)


def element(src: str, **attributes: Attribute) -> Html:
    """`<headrace-stream src="…">` with these attributes.

    An underscore in a name stands for a dash; True gives an attribute without a value, None and False give none. A
    trailing underscore is dropped, as for `class_`. Raises UsageError for a name that cannot be an attribute, and for
    those that the element sets itself: a page that began with `cursor` or `gap` would say what has not happened.
    """
    return Html(f"<headrace-stream{_rendered({'src': src, **attributes})}></headrace-stream>")


def script(origin: str = "", **attributes: Attribute) -> Html:
    """`<script type="module" src="…/headrace.js">`, with further attributes such as `nonce`."""
    return Html(f"<script{_rendered({'type': 'module', 'src': f'{origin}/headrace.js', **attributes})}></script>")


def _rendered(attributes: dict[str, Attribute]) -> str:
    return "".join(_attribute(name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())


def _attribute(name: str, value: Attribute) -> str:
    if not _NAME.fullmatch(name) or name.lower() in _SET_BY_THE_ELEMENT:
        raise UsageError(f"{name!r} cannot be given as an attribute of the element; leave it out")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
