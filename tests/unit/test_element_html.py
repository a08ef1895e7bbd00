"""headrace/element.py"""

import re
from pathlib import Path

import pytest

from headrace.element import element
from headrace.errors import UsageError

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_what_the_element_sets_is_refused() -> None:
    """No page gives an attribute that README calls the element's own, however it is written."""
    rows = re.findall(r"^\| (`.*?) \| \*set by the element", README, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert {"state", "cursor", "error"} <= names
    for name in names | {"Error", "state_"}:
        with pytest.raises(UsageError, match="attribute"):
            element("/streams/1.x", **{name: "x"})
