"""`headrace members`: who is on a stream."""

import click

import headrace
from headrace.cli.command import connect, main


@main.command(
    short_help="Print who is present on a stream.",
    epilog="Example: headrace members room:1; follow with: headrace tail presence:room:1",
    help="""
    Print the users who are present on STREAM, one a line, in the order in which they joined.

    Present are those with a connection whose token says so: `headrace url STREAM --user ada --presence`.
    """,
)
@click.argument("stream")
@click.option("--count", is_flag=True, help="Print only how many they are.")
def members(stream: str, count: bool) -> None:
    """`headrace members`."""
    with connect() as connection:
        if count:
            click.echo(headrace.member_count(connection, stream))
        else:
            for user in headrace.members(connection, stream):
                click.echo(user)
