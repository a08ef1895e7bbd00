"""`headrace migrate`, `headrace new-block` and `headrace publish`: commands that change the database."""

import sys

import click
import psycopg

import headrace
from headrace.cli.command import connect, main, progress, read_settings
from headrace.errors import EventError
from headrace.schema import identity, migrations
from headrace.stream import check_name


@main.command(
    short_help="Create or upgrade the SQL schema.",
    epilog="Example: HEADRACE_DATABASE_URL=postgresql://… headrace migrate",
    help="""
    Create or upgrade the SQL schema. Safe to repeat, to run twice at once, and to run beside publishers and shards.

    In an upgrade run it first, before you replace processes: those of the version before go on working. Where open
    transactions hold up a lock that it needs, it tries for a minute; publishers wait for it no longer than 0.5 s.
    """,
)
def migrate() -> None:
    """`headrace migrate`."""
    applied = migrations.migrate(read_settings("database_url").database_url, say=progress)
    click.echo(f"applied {', '.join(map(str, applied))}" if applied else "the schema is up to date")


@main.command(
    "new-block",
    short_help="Make ids continue above all that clients have seen.",
    epilog="Example: headrace new-block    or, for a copy beside its original: headrace new-block --new-identity",
    help="""
    Make the ids of all streams continue above all ids that clients can have seen.

    Run it after a disk, or a snapshot of one, was restored. A restored dump, a clone and a promoted standby need it
    not: headrace recognises them. Clients that have seen events which are lost get headrace:reset. With --new-identity
    the database is another deployment than its original from now on: restart its processes.
    """,
)
@click.option("--new-identity", is_flag=True, help="This database is a copy that runs beside its original.")
def new_block(new_identity: bool) -> None:
    """`headrace new-block`."""
    with connect() as connection:
        connection.execute("select headrace.begin_block(%s)", [new_identity])
        click.echo(f"ids go on in a new block; the deployment is {identity.identity(connection)}")


@main.command(
    epilog="Example: headrace publish room:1 'hello'    or: seq 3 | headrace publish room:1 -",
    short_help="Publish an event to a stream.",
    help="""
    Publish an event with DATA to STREAM, and print its id.

    With - as DATA, publish each line of standard input as an event of its own.
    """,
)
@click.argument("stream")
@click.argument("data")
@click.option("--event", default="message", show_default=True, help="Type of the event.")
@click.option(
    "--visible-to", default=None, help="Label of the audience that sees the event; without it everybody does."
)
def publish(stream: str, data: str, event: str, visible_to: str | None) -> None:
    """`headrace publish`."""
    check_name(stream)
    lines = (line.rstrip("\n") for line in sys.stdin) if data == "-" else iter((data,))
    with connect() as connection:
        try:
            for line in lines:
                click.echo(headrace.publish_now(connection, stream, line, event=event, visible_to=visible_to))
                sys.stdout.flush()
        except UnicodeDecodeError as error:
            raise EventError(f"the input is not UTF-8 ({error}); events are text") from error
        except psycopg.DataError as error:
            raise EventError(f"the event was refused: {error.diag.message_primary}") from error
