"""headrace/node/redaction.py, by itself; test_logs.py has what it does to whole lines."""

from collections.abc import Callable

import pytest

from headrace.node.redaction import Redaction
from tests.fixtures.growth import grows_in_proportion

SECRETS = ["first-secret-of-sixteen", "second/secret=with\"signs'", "redispassword", "p@ss/word"]
REDACTION = Redaction(SECRETS)


@pytest.mark.parametrize(
    "text", ["headrace.shard.delivery wrote 1.5 s late", "5 clients at 100 %", "a/b=c d.e-f", "room:1 = 17"]
)
def test_other_text_stays_as_it_is(text: str) -> None:
    """What is no secret is not touched."""
    assert REDACTION(text) == text


HOSTILE: dict[str, Callable[[int], str]] = {
    # By the pattern that looks at it, what gives it the most to do.
    "a token's claims": lambda n: "/." + "b" * 43 + "/" + "a-" * (n // 2),
    "a token's dots": lambda n: ("." + "a" * 42) * (n // 43),
    "many tokens": lambda n: ("1..eyJabcdefg." + "s" * 43 + " ") * (n // 58),
    "tokens in a row": lambda n: ("eyJabcdefg." + "s" * 43 + ".") * (n // 55),
    "letters that are not ASCII": lambda n: "é" * n + "." + "b" * 43,
    "a URL's user": lambda n: "a://" * (n // 4) + "@",
    "a URL's password": lambda n: "a://b:" * (n // 6) + "@",
    "a password's spaces": lambda n: "password" + " " * (n // 2) + "=" + " " * (n // 2) + "&",
    "a password's quotes": lambda n: "password='" * (n // 10) + "password=\\'",
    "a header's quotes": lambda n: "cookie:" + "'" * n,
    "a header's name": lambda n: "cookie'" * (n // 7),
    "a header's line breaks": lambda n: "cookie:" + "\n" * n,
    "a path": lambda n: "/streams/" * (n // 9),
    "percent signs": lambda n: "%2e" * (n // 3),
    "words with percent signs": lambda n: "%2e " * (n // 4),
    "encoded percent signs": lambda n: "%25" * (n // 3),
    "a secret's beginning": lambda n: "first-secret-of-" * (n // 16),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_redaction_takes_time_in_proportion(name: str) -> None:
    """Whatever a client has had logged, twice as much of it takes about twice as long."""
    grows_in_proportion(REDACTION, HOSTILE[name])
