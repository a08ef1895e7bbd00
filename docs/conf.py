"""How Sphinx builds the documentation: `make docs`, into docs/_build/html. A warning fails the build."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "headrace"
author = "the headrace authors"
copyright = "the headrace authors"
release = version = metadata.version("headrace")

extensions = ["myst_parser", "sphinx.ext.autodoc", "repository_links", "generated"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 4

# Docstrings say `name`; their types are of libraries that are not described here.
default_role = "code"
nitpick_ignore_regex = [("py:.*", ".*")]
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"headrace {release}"
html_theme_options = {
    "source_repository": "https://github.com/headrace/headrace/",
    "source_branch": "main",
    "source_directory": "docs/",
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
