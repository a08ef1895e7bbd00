"""headrace/signing.py"""

import pytest

import headrace
from headrace.errors import CursorError

SECRETS = ("a-secret-of-the-tests",)


@pytest.mark.parametrize(
    ("streams", "since"),
    [
        ("a", 0),
        ("a", 17),
        ("a", "now"),
        (["a", "b"], "17.4"),
        (["a", "b"], "17.4/1"),
        ("a", "all"),
        ("a", "17-81-3-1"),
        (["a", "b"], "17.4-7"),
        (["a", "b", "c"], "17-81-3.4.9-7"),
    ],
)
def test_since_is_in_the_path(streams: str | list[str], since: int | str) -> None:
    """Whatever a server takes as the place to begin is passed on as it is; None leaves it to the server."""
    assert headrace.sign(streams, since=since, secrets=SECRETS).endswith(f"?since={since}")
    assert "?" not in headrace.sign(streams, secrets=SECRETS)


@pytest.mark.parametrize(
    ("streams", "since"),
    [
        ("a", "yesterday"),
        ("a", -1),
        (["a", "b"], 17),
        ("a", "1&user=eve"),
        ("a", "17-"),
        ("a", "17-81-0"),
        (["a", "b"], "17-81"),
    ],
)
def test_a_since_that_servers_refuse_is_not_signed(streams: str | list[str], since: int | str) -> None:
    """The page's application is told, and not each of its browsers."""
    with pytest.raises(CursorError):
        headrace.sign(streams, since=since, secrets=SECRETS)
