"""`headrace disconnect`: who may no longer be connected."""

import click

import headrace
from headrace.cli.command import connect, main
from headrace.disconnect import DEFAULT_REASON


@main.command(epilog="Example: headrace disconnect --user ada --reason 'signed out'")
@click.option("--user", default=None, help="Close the user's connections and refuse its tokens issued until now.")
@click.option("--stream", default=None, help="Close the connections to the stream, which may come back.")
@click.option("--reason", default=DEFAULT_REASON, show_default=True, help="What the clients are told.")
@click.option(
    "--skew", default=0.0, type=click.FloatRange(0, 86_400), help="Refuse tokens of the next SKEW seconds too."
)
def disconnect(user: str | None, stream: str | None, reason: str, skew: float) -> None:
    """Close connections on every node within a second, with a reason: those of a user, or those to a stream.

    The same as headrace.disconnect in your application's own transaction.
    """
    with connect() as connection:
        headrace.disconnect(connection, user=user, stream=stream, reason=reason, skew_s=skew)
