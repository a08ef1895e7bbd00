"""headrace/element.py"""

import re
from pathlib import Path

import pytest

from headrace.element import element
from headrace.errors import UsageError

GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "element.md").read_text()


def test_what_the_element_sets_is_refused() -> None:
    """No page gives an attribute that the guide calls the element's own, however it is written."""
    rows = re.findall(r"^\| (`.*?) \| \*set by the element", GUIDE, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert {"state", "cursor", "error"} <= names
    for name in names | {"Error", "state_"}:
        with pytest.raises(UsageError, match="attribute"):
            element("/streams/1.x", **{name: "x"})


def test_what_the_element_does_not_have_is_refused() -> None:
    """What was meant for the token is neither dropped nor written into the page; what libraries read, is written."""
    for name, meant in (
        ("audience", "'audiences'"),
        ("ttl", "'ttl_s'"),
        ("with_credential", "'with_credentials'"),
        ("secrets", "as `data_…`"),
        ("since", "no argument of its token"),
        ("ttl_seconds", "."),
        ("a b", "."),
        ("data-x onload", "."),
    ):
        with pytest.raises(UsageError, match=f"attribute.*{meant}"):
            element("/streams/1.x", **{name: "x"})
    given = {
        "refresh": "/token",
        "class_": "live",
        "data_room": 7,
        "hx_get": "/x",
        "aria_live": "polite",
        "onclick": "a()",
    }
    assert element("/s", **given) == (
        '<headrace-stream src="/s" refresh="/token" class="live" data-room="7" hx-get="/x" aria-live="polite" '
        'onclick="a()"></headrace-stream>'
    )


def test_every_attribute_that_the_guide_names_can_be_given() -> None:
    """The table's first column, but for what the element sets and `src`, which has an argument of its own."""
    table = GUIDE.partition("| attribute | |")[2].partition("\n\n")[0]
    names = re.findall(r"^\| `([a-z-]+)` \| (?!\*set by)", table, re.MULTILINE)
    assert "with-credentials" in names
    for name in set(names) - {"src"}:
        assert f' {name}="x"' in element("/s", **{name.replace("-", "_"): "x"})
