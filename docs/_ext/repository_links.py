"""Links from the documentation to files of the repository outside of docs/.

In the source such a link is a relative path, which an editor and the page of the repository follow. In the built site
it leads to the file on the page of the repository. A link to a file that does not exist fails the build.
"""

import os
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

REPOSITORY = "https://github.com/headrace/headrace/blob/main/"


class RepositoryLinks(SphinxTransform):
    """Replaces what MyST makes of a link to a file that is no page, a copy of it to download, by a link to its page."""

    default_priority = 100
    """Before Sphinx collects the files that are to be copied."""

    def apply(self, **kwargs: Any) -> None:
        """Replace each of them in one document."""
        docs = Path(self.env.srcdir).resolve()
        for node in list(self.document.findall(addnodes.download_reference)):
            folder = (docs / self.env.docname).parent
            target = Path(os.path.normpath(folder / node["reftarget"].partition("#")[0]))
            if docs in target.parents or not target.exists():
                continue
            node.replace_self(_link(node, target.relative_to(docs.parent), node["reftarget"].partition("#")[2]))
        # A Markdown file is taken for a page, whose name has no suffix.
        for node in list(self.document.findall(addnodes.pending_xref)):
            target = Path(f"{node.get('reftarget')}.md")
            if node.get("refdomain") == "doc" and target.is_absolute() and target.exists():
                node.replace_self(_link(node, target.relative_to(docs.parent), node.get("reftargetid") or ""))


def _link(node: nodes.Element, path: Path, anchor: str) -> nodes.reference:
    """A link with the node's text to a file, at a heading of it if anchor is one."""
    address = f"{REPOSITORY}{path}#{anchor}".removesuffix("#")
    return nodes.reference("", "", *node.children, refuri=address)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx: the extension changes one document at a time."""
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
