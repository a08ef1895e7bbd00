"""Tables that are made of the code when the documentation is built: settings, commands, metrics, SQL functions.

A line `<!-- generated: NAME -->` in a page is replaced by what `NAME.markdown()` returns, before Markdown is read. The
paragraph right after that line is replaced too: it says where to look in a page that is read without building the site.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from sphinx.application import Sphinx

from generated import commands, element, metrics, settings, sql

MAKERS: Final[dict[str, Callable[[], str]]] = {
    "commands": commands.markdown,
    "element": element.markdown,
    "metrics": metrics.markdown,
    "settings": settings.markdown,
    "sql": sql.markdown,
}
_LINE: Final = re.compile(r"^<!-- generated: (\w+) -->$(?:\n.+)*", re.MULTILINE)


def _replace(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = _LINE.sub(lambda line: MAKERS[line[1]](), source[0])


def _changed(app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """The pages that are read again though their files have not changed: the code may have."""
    return [page for page in env.found_docs if _LINE.search(env.doc2path(page).read_text())]


def _literal(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """An indented block of a docstring is code, though no `::` says so."""
    result: list[str] = []
    before = ""
    for line in lines:
        deeper = len(line) - len(line.lstrip()) > len(before) - len(before.lstrip())
        if line.strip() and deeper and result and not result[-1].strip() and not before.endswith("::"):
            result += ["::", ""]
        result.append(line)
        before = line if line.strip() else before
    lines[:] = result


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _replace)
    app.connect("autodoc-process-docstring", _literal)
    app.connect("env-get-outdated", _changed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
