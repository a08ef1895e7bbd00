"""docs/operate/runbook.md: its table names, for every fault, what a node really shows; its SQL runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

from loadtests.torture import runbook
from loadtests.torture.faults import FAULTS
from tests.fixtures.deployment import DEPLOY
from tests.fixtures.programs import tool
from tests.fixtures.shard import Database

ROOT = Path(__file__).parents[2]
RUNBOOK = runbook.PATH.read_text()
ROWS = runbook.read(RUNBOOK)
QUICK = {"DIRECTORY_INTERVAL_S": 0.2, "DIRECTORY_EXPIRY_S": 3, "SWEEP_INTERVAL_S": 0.5, "READ_DEADLINE_S": 1}
QUICK |= {"PING_INTERVAL_S": 0.3, "PING_DEADLINE_S": 0.3, "HANDOFF_DEADLINE_S": 0.5, "CANARY_INTERVAL_S": 1}


def test_the_table_has_every_fault() -> None:
    """Each fault of the torture run has its row, and those of the run below are among them."""
    assert ROWS.keys() == FAULTS.keys()
    assert sum(row.marked for row in ROWS.values()) >= 10


def test_the_table_names_alerts_and_chapters_that_there_are() -> None:
    """Alerts in the runbook are among the rules, and its links lead to chapters."""
    rules = (DEPLOY / "prometheus" / "rules.yaml").read_text()
    for alert in re.findall(r"`(Headrace\w+)`", RUNBOOK):
        assert f"alert: {alert}\n" in rules
    chapters = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", RUNBOOK, re.MULTILINE)}
    assert set(re.findall(r"\(#([\w-]+)\)", RUNBOOK)) <= chapters


def test_faults_are_seen_where_the_table_says() -> None:
    """Of the rows with a *, nothing shows before the fault, all does while it lasts, and the node gets well."""
    tool("promtool")  # for the alerts
    argv = [sys.executable, "-m", "loadtests.torture.symptoms", "--faults", "marked", "--quiet", "0.4"]
    argv += [word for name, value in QUICK.items() for word in ("--set", f"{name}={value}")]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    ran = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=400, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "every row is true" in ran.stdout


def test_the_runbooks_sql_runs(database: Database) -> None:
    """Every statement that the runbook gives runs on a database of this version."""
    statements = re.findall(r"```sql\n(.*?)```", RUNBOOK, re.DOTALL)
    assert len(statements) == 3
    for statement in statements:
        assert database.connection.execute(statement.encode()).fetchall()
