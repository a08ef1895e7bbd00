"""What the bench makes of the transactions that pgbench has written down."""

from pathlib import Path

import pytest

from loadtests.bench.clients import FailedError
from loadtests.bench.transaction_log import TransactionLog


def line(duration: int | str, end_s: float) -> bytes:
    """One line of pgbench's log: a transaction that took so many microseconds and ended then."""
    whole, part = divmod(round(end_s * 1e6), 1_000_000)
    return f"3 17 {duration} 0 {whole} {part}\n".encode()


def test_only_transactions_of_the_window_count() -> None:
    """Rate and percentiles are of the window; the number of commits and the last one are of the whole run."""
    warm = [line(900_000, 100.0 + k / 10) for k in range(10)]
    window = [line(1000 * (k + 1), 101.0 + k / 100) for k in range(200)]
    late = [line(5, 103.0), line(7, 103.25)]
    log = TransactionLog.of([*warm, *late, *window], 101.0, 103.0)
    assert log == TransactionLog(commits=212, last_commit_s=103.25, per_second=100.0, p50_ms=100.0, p99_ms=198.0)


def test_a_scheduled_transaction_has_one_more_field() -> None:
    """With a rate pgbench also writes how late each transaction was."""
    scheduled = line(2500, 10.5).rstrip() + b" 120\n"
    assert TransactionLog.of([scheduled], 10.0, 11.0).p99_ms == 2.5


def test_a_failed_transaction_is_no_commit() -> None:
    """A failed transaction ends the run: the bench has no figure of publishers who gave up."""
    with pytest.raises(FailedError, match="failed"):
        TransactionLog.of([line(10, 1.0), line("failed", 1.5)], 0.0, 2.0)


def test_a_window_without_a_commit_has_no_figures() -> None:
    """The bench says that nothing was committed instead of reporting 0."""
    with pytest.raises(FailedError, match="of 1 transactions none ended"):
        TransactionLog.of([line(10, 1.0)], 5.0, 6.0)


def test_the_files_of_all_threads_are_read(tmp_path: Path) -> None:
    """pgbench's threads write a file each."""
    (tmp_path / "log.7").write_bytes(line(1, 1.0))
    (tmp_path / "log.7.1").write_bytes(line(3, 1.5) + line(2, 1.25))
    assert TransactionLog.read(tmp_path, 0.0, 2.0) == TransactionLog(3, 1.5, 1.5, 0.002, 0.003)
