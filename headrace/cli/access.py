"""`headrace disconnect` closes connections; `headrace publisher` signs tokens for publishing over HTTP."""

import click

import headrace
from headrace.cli.command import connect, main, read_settings
from headrace.disconnect import DEFAULT_REASON
from headrace.errors import UsageError


@main.command(
    short_help="Close the connections of a user or to a stream.",
    epilog="Example: headrace disconnect --user ada --reason 'signed out'",
    help="""
    Close the connections of a user, or those to a stream, on every node within a second.

    Give --user or --stream. An application does the same, in its own transaction, with headrace.disconnect.
    """,
)
@click.option("--user", default=None, help="Close this user's connections, and refuse its tokens issued until now.")
@click.option("--stream", default=None, help="Close the connections to this stream; their clients may come back.")
@click.option("--reason", default=DEFAULT_REASON, show_default=True, help="What the clients are told.")
@click.option(
    "--skew",
    default=0.0,
    metavar="SECONDS",
    type=click.FloatRange(0, 86_400),
    help="Refuse the user's tokens issued in the next SECONDS, too, for hosts whose clock is ahead.",
)
def disconnect(user: str | None, stream: str | None, reason: str, skew: float) -> None:
    """`headrace disconnect`."""
    if user == "":
        raise UsageError("the user must not be empty; perhaps a variable of the shell is not set")
    with connect() as connection:
        headrace.disconnect(connection, user=user, stream=stream, reason=reason, skew_s=skew)


@main.command(
    short_help="Print a token for POST /publish.",
    epilog="Example: headrace publisher 'room:*' --ttl 3600",
    help="""
    Print a token with which a program may POST /publish to the streams that match one of PATTERNS.

    In a pattern * is any text, and ? any one character.
    """,
)
@click.argument("patterns", nargs=-1, required=True)
@click.option(
    "--ttl",
    default=None,
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="The token's life in seconds.  [default: for ever]",
)
def publisher(patterns: tuple[str, ...], ttl: float | None) -> None:
    """`headrace publisher`."""
    click.echo(headrace.sign_publisher(patterns, ttl_s=ttl, secrets=read_settings("secret").secret))
