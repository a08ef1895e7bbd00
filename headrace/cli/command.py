"""What all subcommands share: the group with its exit statuses, the settings, connections, and tables of text."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import click
import psycopg

from headrace.environment_file import environ_with_file
from headrace.errors import HeadraceError, UsageError, one_line
from headrace.node import session
from headrace.node.deployment_identity import DeploymentIdentity
from headrace.node.directory import Directory
from headrace.node.postgres_errors import meaning, said
from headrace.node.shard_operations import ShardOperations
from headrace.schema import migrations
from headrace.settings import Settings


class Group(click.Group):
    """Turns an error of headrace or PostgreSQL into a sentence and an exit status: 2 for the user's fault, else 1."""

    def invoke(self, context: click.Context) -> Any:
        """Run the subcommand; an error ends the program with its sentence on standard error."""
        try:
            return super().invoke(context)
        except HeadraceError as error:
            click.echo(f"headrace: {one_line(error)}", err=True)
            context.exit(2 if isinstance(error, UsageError) else 1)
        except psycopg.Error as error:
            found = meaning(error)
            click.echo(f"headrace: {said(error)}; {found.advice}", err=True)
            context.exit(1 if found.status == 503 else 2)


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
    Durable, ordered event streams from PostgreSQL to browsers.

    Commands read HEADRACE_* variables, and in the directory of a running `headrace up` the file .headrace/env.
    """,
)
@click.version_option(package_name="headrace")
def main() -> None:
    """`headrace`."""


def read_settings(*required: str) -> Settings:
    """The settings of the environment and of `.headrace/env`. Raises SettingsError where one of required is unset."""
    return Settings.from_environ(environ_with_file(os.environ)).require(*required)


def connect() -> psycopg.Connection[Any]:
    """An autocommitting connection to a database whose schema is this version's.

    Raises psycopg.Error, SchemaError and SettingsError.
    """
    url_ = read_settings("database_url").database_url
    connection = session.connect(url_, "headrace command")
    migrations.require_current(connection)
    return connection


def open_operations() -> ShardOperations:
    """The operations on this deployment, whose progress goes to standard error. Raises SettingsError."""
    return ShardOperations(open_directory(), progress)


def open_directory() -> Directory:
    """The directory of this deployment. Raises SettingsError."""
    settings = read_settings("redis_url")
    deployment = DeploymentIdentity(settings)
    deployment.look()
    # A command that cannot learn the deployment, as while PostgreSQL is away, can still read the directory.
    return Directory.of(settings, lambda: deployment.known)


def progress(line: str) -> None:
    """Tell the user how far a long command is."""
    click.echo(line, err=True)


def aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """The rows of a table as lines, each column as wide as its widest cell. No cell breaks its line."""
    rows = [tuple(" ".join(cell.split()) for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
