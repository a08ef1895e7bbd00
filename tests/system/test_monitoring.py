"""deploy/prometheus/: rules that promtool accepts and fires, a dashboard, and nothing in them that no process tells."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.fixtures.deployment import DEPLOY, Host, get
from tests.fixtures.programs import tool
from tests.fixtures.waiting import wait_until

PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD = json.loads((PROMETHEUS / "grafana.json").read_text())
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: str | Path) -> None:
    ran = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def scrape(host: Host) -> dict[str, set[str]]:
    """The names of the node's metrics, as samples have them, each with its labels."""
    with get(host.port, "/metrics") as client:
        data = b""
        while piece := client.recv(65536):
            data += piece
    text = data.decode().partition("\r\n\r\n")[2]
    names: dict[str, set[str]] = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE):
        for suffix in ("_bucket", "_count", "_sum") if kind == "histogram" else ("",):
            names[name + suffix] = {"instance", "job"}
    for name, labels in re.findall(r"^(\w+)\{(.*)\} ", text, re.MULTILINE):
        names[name] |= set(re.findall(r'(\w+)="', labels))
    return names


def whole(names: dict[str, set[str]]) -> dict[str, set[str]]:
    return names if "headrace_connections" in names else {}


def expressions() -> list[str]:
    targets: list[dict[str, Any]] = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    variables = [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    annotations = [each["expr"] for each in DASHBOARD["annotations"]["list"]]
    return [rule["expr"] for rule in RULES] + [target["expr"] for target in targets] + variables + annotations


def test_promtool_accepts_the_rules() -> None:
    """The rules are well formed."""
    promtool("check", "rules", PROMETHEUS / "rules.yaml")


def test_the_rules_fire_when_they_should() -> None:
    """Series of an outage, a dead shard, a full node, late events and half an upgrade raise their alerts alone."""
    promtool("test", "rules", PROMETHEUS / "rules-test.yaml")


def test_what_the_rules_and_the_dashboard_name_is_told(hosts: list[Host]) -> None:
    """Every metric, and every label that is asked of it, is in the scrape of a real node."""
    names = wait_until(lambda: whole(scrape(hosts[0])), "a shard tells its numbers, too")
    asked = [(name, labels) for text in expressions() for name, labels in re.findall(r"(\w+)\{([^}]*)\}", text)]
    bare = {name for text in expressions() for name in re.findall(r"\b(?:headrace|process)_\w+", text)}
    assert len(asked) > 40 and bare - names.keys() == set()
    for name, labels in asked:
        if name != "up":  # Prometheus's own
            unknown = set(re.findall(r"(\w+)[!=]~?", labels)) - names[name]
            # Of these there is a sample for each outcome that there was.
            assert unknown <= ({"outcome", "process"} if name.startswith("headrace_router_handoffs") else set()), name


def test_every_alert_has_its_chapter() -> None:
    """What an alert's runbook_url refers to, at one address that the head of the file says how to change, is there."""
    runbook = (DEPLOY.parent / "docs" / "operate" / "runbook.md").read_text()
    chapters = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", runbook, re.M)
    }
    (command,) = re.findall(r"^# +(sed .*)$", (PROMETHEUS / "rules.yaml").read_text(), re.MULTILINE)
    changed = subprocess.run(
        ["sh", "-c", command.replace("-i ", "")], cwd=PROMETHEUS, capture_output=True, text=True, check=True
    ).stdout
    for rule in (rule for group in yaml.safe_load(changed)["groups"] for rule in group["rules"]):
        address, _, chapter = rule["annotations"]["runbook_url"].partition("#")
        assert address == "https://wiki.example.com/headrace"
        assert chapter in chapters, f"{rule['alert']} refers to {chapter!r}"
    assert set(RULES[0]["annotations"]) == {"summary", "runbook_url"}


def test_the_dashboard_is_whole() -> None:
    """Panels have ids and places of their own, and a target each."""
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["targets"] and panel["title"] for panel in panels)
