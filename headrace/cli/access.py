"""`headrace disconnect` and `headrace publisher`: who may no longer be connected, and who may publish over HTTP."""

import click

import headrace
from headrace.cli.command import connect, main, read_settings
from headrace.disconnect import DEFAULT_REASON
from headrace.errors import UsageError


@main.command(
    short_help="Close a user's connections, or those to a stream.",
    epilog="Example: headrace disconnect --user ada --reason 'signed out'",
    help="""
    Close connections on every node within a second, with a reason: those of a user, or those to a stream.

    The same as headrace.disconnect in your application's own transaction.
    """,
)
@click.option("--user", default=None, help="Close the user's connections and refuse its tokens issued until now.")
@click.option("--stream", default=None, help="Close the connections to the stream, which may come back.")
@click.option("--reason", default=DEFAULT_REASON, show_default=True, help="What the clients are told.")
@click.option(
    "--skew", default=0.0, type=click.FloatRange(0, 86_400), help="Refuse tokens of the next SKEW seconds too."
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
    help="Print a token with which POST /publish takes events for the streams that match PATTERNS (`*` and `?`).",
)
@click.argument("patterns", nargs=-1, required=True)
@click.option(
    "--ttl", default=None, type=click.FloatRange(min=0, min_open=True), help="Life in seconds.  [default: for ever]"
)
def publisher(patterns: tuple[str, ...], ttl: float | None) -> None:
    """`headrace publisher`."""
    click.echo(headrace.sign_publisher(patterns, ttl_s=ttl, secrets=read_settings("secret").secret))
