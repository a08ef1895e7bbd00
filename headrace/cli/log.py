"""`headrace migrate` and `headrace publish`: what is done to the log."""

import sys

import click
import psycopg

import headrace
from headrace import schema
from headrace.cli.command import connect, main, progress, read_settings
from headrace.errors import DatabaseUnavailableError, EventError
from headrace.stream import check_name


@main.command(epilog="Example: HEADRACE_DATABASE_URL=postgresql://… headrace migrate")
def migrate() -> None:
    """Create or upgrade the SQL schema. Safe to repeat, to run twice at once, and beside publishers and shards.

    In an upgrade it comes first, before processes are replaced: those of the version before go on working. A lock that
    open transactions hold up is tried for again and again for a minute; publishers never wait longer than 0.5 s for it.
    """
    applied = schema.migrate(read_settings("database_url").database_url, say=progress)
    click.echo(f"applied {', '.join(map(str, applied))}" if applied else "the schema is up to date")


@main.command(epilog="Example: headrace publish room:1 'hello'    or: seq 3 | headrace publish room:1 -")
@click.argument("stream")
@click.argument("data")
@click.option("--event", default="message", show_default=True, help="The event's type.")
@click.option("--visible-to", default=None, help="Audience label; without it everybody sees the event.")
def publish(stream: str, data: str, event: str, visible_to: str | None) -> None:
    """Publish DATA to STREAM and print its id. DATA `-` publishes each line of stdin as an event of its own."""
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
        except psycopg.OperationalError as error:
            raise DatabaseUnavailableError(f"PostgreSQL went away: {str(error).strip()}") from error
