"""headrace/testing/stream_server.py"""

import pytest

import headrace
from headrace import signing
from headrace.errors import EmbeddedServerError
from headrace.testing import serve


def test_a_server_that_does_not_start_says_why() -> None:
    """Where `headrace up` ends, the error has what it said, and the application signs as before."""
    before = signing.environ()
    with (
        pytest.raises(EmbeddedServerError, match="PostgreSQL cannot be reached"),
        serve("postgresql://127.0.0.1:1/none"),
    ):
        pass
    assert signing.environ() == before


def test_an_application_signs_for_the_server(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a secret of its own, the application has the server's within the block, and none after it."""
    monkeypatch.delenv("HEADRACE_SECRET", raising=False)
    before = signing.environ()
    with serve(database_url) as address:
        assert signing.origin() == address
        assert headrace.sign("s", user="ada").startswith("/streams/")
    assert signing.environ() == before
