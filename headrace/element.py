"""The HTML that a page needs: the element `<headrace-stream>` and the script that defines it.

Both are escaped. Template engines that ask an object for its `__html__` (Jinja, Django and others) leave them as they
are.
"""

import difflib
import re
from html import escape

from headrace.errors import UsageError

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
_SET_BY_THE_ELEMENT = frozenset({"state", "cursor", "gap", "reset", "goodbye", "error"})
_ITS_OWN = frozenset({"src", "refresh", "share", "turbo", "resume", "streams", "silence", "with-credentials"})
_OF_HTML = frozenset({"class", "dir", "hidden", "id", "inert", "is", "lang", "nonce", "part", "role", "slot", "style"})
_OF_A_TOKEN = ("user", "audiences", "ttl_s", "presence", "using")
_FAMILIES = re.compile(r"(?:aria|data|hx|ng|sse|up|v|ws|x)-.|on[a-z]")
"""Attributes of accessibility, of applications, of libraries for HTML, and handlers."""
Attribute = str | int | float | bool | None


class Html(str):
    """Markup that is escaped already, so that template engines do not escape it again."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)


def element(src: str, **attributes: Attribute) -> Html:
    """Return the HTML `<headrace-stream src="…">` with these attributes.

    In a name an underscore stands for a dash, and a trailing underscore is dropped, as in `class_`. The value True
    gives an attribute without a value; None and False give no attribute. Allowed are the element's own attributes,
    those that every element of HTML has, `data-…`, `aria-…`, and those of libraries such as `hx-…`.

    Raises UsageError for any other name: an argument that was meant for the token (`audience`, `ttl`, `secrets`) would
    be dropped, or shown to everybody. Raises it, too, for an attribute that the element itself sets: a page that begins
    with `cursor` or `gap` would report something that has not happened.
    """
    for name in attributes:
        _check(name)
    return Html(f"<headrace-stream{_rendered({'src': src, **attributes})}></headrace-stream>")


def script(origin: str = "", **attributes: Attribute) -> Html:
    """Return the HTML `<script type="module" src="ORIGIN/headrace.js">`, with further attributes such as `nonce`."""
    return Html(f"<script{_rendered({'type': 'module', 'src': f'{origin}/headrace.js', **attributes})}></script>")


def _check(name: str) -> None:
    written = _written(name)
    if written.lower() in _SET_BY_THE_ELEMENT:
        raise UsageError(f"{name!r} cannot be given as an attribute of the element, which sets it itself; leave it out")
    if written not in _ITS_OWN | _OF_HTML and not _FAMILIES.match(written):
        near = difflib.get_close_matches(name, [*_OF_A_TOKEN, *(own.replace("-", "_") for own in _ITS_OWN)], n=1)
        meant = f"perhaps {near[0]!r} is meant" if near else "give what is for the page as `data_…`"
        raise UsageError(f"{name!r} is no attribute of the element, and no argument of its token; {meant}")


def _written(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _rendered(attributes: dict[str, Attribute]) -> str:
    return "".join(_attribute(_written(name), value) for name, value in attributes.items())


def _attribute(name: str, value: Attribute) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be given as an attribute; leave it out")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
