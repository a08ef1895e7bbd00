"""The copy that metrics are measured beside: nothing counts in it, and all else is as it is."""

from pathlib import Path

import pytest

from loadtests.bench import uncounted

COUNTING = {
    "shard/delivery.py": "self.counters.",
    "shard/dispatcher.py": "delivery.counters.",
    "shard/clock.py": ".observe(",
    "shard/postgres/listener.py": "notifications +=",
    "shard/writer.py": "self.counters.",
    "shard/postgres/readers.py": "self.reads[read.kind]",
    "shard/postgres/sql_functions.py": "[row[-1]",
}


def test_what_counts_is_taken_out(tmp_path: Path) -> None:
    """Only what counts differs, each such line has become a `pass`, and the result is still a program."""
    assert COUNTING.keys() == {*uncounted.STATEMENTS, "shard/postgres/sql_functions.py"}
    uncounted.copy(tmp_path)
    for file, text in COUNTING.items():
        before, after = ((root / file).read_text() for root in (uncounted.ROOT, tmp_path))
        compile(after, file, "exec")
        assert text in before
        assert text not in after
        pairs = zip(before.splitlines(), after.splitlines(), strict=True)
        assert {new.strip() for old, new in pairs if old != new} <= {"pass", "ages = []"}


def test_other_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is nothing left to take out, that is said, and not measured as if it were gone."""
    monkeypatch.setattr(uncounted, "STATEMENTS", {"shard/delivery.py": "nothing like this"})
    with pytest.raises(LookupError, match="delivery"):
        uncounted.copy(tmp_path)
