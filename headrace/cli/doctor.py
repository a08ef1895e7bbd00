"""`headrace doctor`: examines a deployment, and says what is wrong and what to do about it."""

import dataclasses
import json
import sys
from collections.abc import Iterator

import click

from headrace.cli.command import aligned, main, read_settings
from headrace.doctor.examination import examine
from headrace.doctor.finding import Finding, Level
from headrace.node.redaction import Redaction


@main.command(
    short_help="Examine the deployment, and say what to do.",
    epilog="Example: headrace doctor    or, in a script: headrace doctor --json | jq '.[].level'",
    help="""
    Examine PostgreSQL, Redis, the shards, this machine and the way in from outside, and say what to do.

    Publishes a few events to a stream of its own and waits for them at HEADRACE_PUBLIC_URL. The exit status is 1 if a
    check has failed, and 0 if there are only warnings.
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def doctor(as_json: bool) -> None:
    """`headrace doctor`."""
    settings = read_settings()
    redacted = Redaction.of(settings)
    findings = [
        dataclasses.replace(finding, found=redacted(finding.found), advice=redacted(finding.advice))
        for finding in examine(settings)
    ]
    if as_json:
        click.echo(json.dumps([_entry(finding) for finding in findings], indent=2))
    else:
        click.echo("\n".join(_table(findings)))
    sys.exit(any(finding.level is Level.FAIL for finding in findings))


def _entry(finding: Finding) -> dict[str, str]:
    return {**dataclasses.asdict(finding), "level": finding.level.value}


def _table(findings: list[Finding]) -> Iterator[str]:
    rows = [(finding.level.value, finding.check, finding.found) for finding in findings]
    for finding, line in zip(findings, aligned(rows), strict=True):
        yield line
        if finding.advice:
            yield f"      → {finding.advice}"
