"""`headrace status`: the nodes, shards and streams in the directory, as tables and as JSON."""

import json
import urllib.error
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import click

from headrace.cli.command import aligned, main, open_directory, read_settings
from headrace.errors import DirectoryForeignError, DirectoryUnavailableError
from headrace.node import http_client
from headrace.node.overview import overview
from headrace.node.sse_client import BROKEN
from headrace.settings import Settings

_COLUMNS: Final = (
    "id", "node", "pid", "state", "connections", "streams", "slots", "events_s", "deliveries_s", "lag_s", "epoch",
    "last_error",
)  # fmt: skip
_NODE_COLUMNS: Final = ("name", "state", "shards", "connections", "capacity")
_PATIENCE_S: Final = 3.0


@main.command(
    short_help="Show nodes, shards, streams and moves.",
    epilog="Example: headrace status --json | jq '.shards[].connections'",
    help="""
    Show nodes, shards, connections, slots, hot streams and moves, and how far the shards are behind the log.

    Of each shard, events_s is the number of events that it has read each second, deliveries_s the number that it has
    written to clients, lag_s how many seconds it is behind the log, and epoch the last change of the assignments that
    it has carried out. While Redis is away, the command shows what the router at HEADRACE_PUBLIC_URL knew last, and the
    exit status is 1.
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """`headrace status`."""
    settings = read_settings("redis_url")
    try:
        found = overview(open_directory().read())
    except DirectoryForeignError:
        raise
    except DirectoryUnavailableError as error:
        last = _last_known(settings)
        if last is None:
            raise
        click.echo(json.dumps(last, indent=2) if as_json else "\n".join(_text(last)))
        click.echo(
            f"headrace: {error}. Until then everything goes on with these assignments, which are what the router at "
            f"{settings.public_url} knew last",
            err=True,
        )
        context.exit(1)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_text(found)))


def _last_known(settings: Settings) -> dict[str, Any] | None:
    """What the router at HEADRACE_PUBLIC_URL knew last, as `redis` and `shards`; None if it cannot be asked."""
    request = urllib.request.Request(f"{settings.public_url.rstrip('/')}/readyz")  # noqa: S310  # http or https: see settings
    if settings.ops_token:
        # Without the token, the router tells its shards only to clients of its own host that come without a proxy.
        request.add_header("Authorization", f"Bearer {settings.ops_token}")
    try:
        with http_client.open_direct(request, timeout=_PATIENCE_S) as response:
            ready = json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            try:
                ready = json.load(error)
            except (*BROKEN, ValueError):
                return None
    except (*BROKEN, ValueError):
        return None
    if not isinstance(ready, dict) or not isinstance(ready.get("shards"), list):
        return None
    return {"redis": "away", "shards": ready["shards"]}


def _row(value: Mapping[str, Any], columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(value.get(column, "?")) for column in columns)


def _text(found: Mapping[str, Any]) -> Iterator[str]:
    if nodes := found.get("nodes"):
        yield from aligned([("node", *_NODE_COLUMNS[1:]), *(_row(node, _NODE_COLUMNS) for node in nodes)])
        yield ""
    yield from aligned([_COLUMNS, *(_row(shard, _COLUMNS) for shard in found["shards"])])
    if not found["shards"]:
        yield "no shard is registered"
    if hot := found.get("hot_streams"):
        yield ""
        yield from aligned(
            [("node", "hot stream", "connections"), *(_row(one, ("node", "stream", "connections")) for one in hot)]
        )
    if moves := found.get("moves"):
        yield ""
        rows = [_row(move, ("from", "to", "connections")) for move in moves]
        yield from aligned([("moving from", "to", "connections"), *rows])
    yield ""
    epoch = "epoch {} {}, ".format(*found["epoch"]) if "epoch" in found else "Redis is away, "
    yield f"{epoch}{datetime.now():%H:%M:%S}"
