"""`headrace members`: the members of a stream."""

import click

import headrace
from headrace.cli.command import connect, main


@main.command(
    short_help="Print the users who are present on a stream.",
    epilog="Example: headrace members room:1; follow with: headrace tail presence:room:1",
    help="""
    Print the members of STREAM, one a line, in the order in which they joined.

    Members are the users with a connection whose token makes them present, as one of this command does: headrace url
    STREAM --user ada --presence.
    """,
)
@click.argument("stream")
@click.option("--count", is_flag=True, help="Print only the number of members.")
def members(stream: str, count: bool) -> None:
    """`headrace members`."""
    with connect() as connection:
        if count:
            click.echo(headrace.member_count(connection, stream))
        else:
            for user in headrace.members(connection, stream):
                click.echo(user)
