"""`headrace url` and `headrace tail`: the URL of streams, and their events, as a client sees them."""

import sys

import click

import headrace
from headrace import cursor
from headrace.cli.command import main, read_settings
from headrace.node import sse_client


@main.command(
    epilog="Example: curl -N http://127.0.0.1:8000$(headrace url room:1 --since all)",
    short_help="Print the signed URL path of streams.",
    help="Print the signed URL path with which a client follows STREAMS, up to 64, on one connection.",
)
@click.argument("streams", nargs=-1, required=True)
@click.option(
    "--since", default=None, help="Where to begin: after an id, at now, at all, or after a cursor.  [default: now]"
)
@click.option("--user", default=None, help="The user of the connection.")
@click.option(
    "--audience", "audiences", multiple=True, help="An audience of the connection; may be given several times."
)
@click.option(
    "--ttl",
    default=None,
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="The token's life in seconds.  [default: for ever]",
)
@click.option("--presence", is_flag=True, help="Make the user present on the streams while connected.")
def url(
    streams: tuple[str, ...],
    since: str | None,
    user: str | None,
    audiences: tuple[str, ...],
    ttl: float | None,
    presence: bool,
) -> None:
    """`headrace url`."""
    click.echo(_path(streams, since, user, audiences, ttl, presence))


@main.command(
    short_help="Print the events of streams as they come.",
    epilog="Example: headrace tail room:1 --since all",
    help="""
    Follow STREAMS over HTTP, and print each event on a line: id, type and data, separated by tabs.

    When the connection ends, the command says so on standard error, reconnects, and continues after the last event that
    it has printed.
    """,
)
@click.argument("streams", nargs=-1, required=True)
@click.option("--since", default=None, help="Where to begin: after an id, at now, or at all.  [default: now]")
@click.option(
    "--audience", "audiences", multiple=True, help="An audience of the connection; may be given several times."
)
def tail(streams: tuple[str, ...], since: str | None, audiences: tuple[str, ...]) -> None:
    """`headrace tail`."""
    settings = read_settings("secret")
    base = settings.public_url.rstrip("/")
    path = _path(streams, None, None, audiences, None)
    sse_client.check_reachable(base + "/healthz")
    try:
        for message in sse_client.follow(base + path, since=since, tell=_tell):
            click.echo(f"{message.id}\t{message.type}\t{message.data}")
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)


def _tell(sentence: str) -> None:
    click.echo(f"headrace: {sentence}", err=True)


def _path(
    streams: tuple[str, ...],
    since: str | None,
    user: str | None,
    audiences: tuple[str, ...],
    ttl: float | None,
    presence: bool = False,
) -> str:
    if since is not None:
        cursor.parse(since, len(streams))
    settings = read_settings("secret")
    return headrace.sign(
        streams, since=since, user=user, audiences=audiences, ttl_s=ttl, presence=presence, secrets=settings.secret
    )
