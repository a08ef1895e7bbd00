"""The command `headrace`: what an operator and a curious developer type. Each subcommand is thin over a module."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import click
import psycopg

import headrace
from headrace import cursor, schema, sse
from headrace.directory import Directory, Snapshot
from headrace.errors import DatabaseUnavailableError, EventError, HeadraceError, UsageError
from headrace.operations import Operations
from headrace.settings import Settings, environ_with_file
from headrace.stream import check_name
from headrace.up import control, supervisor


class _Group(click.Group):
    """Turns headrace's errors into one sentence and an exit status: 2 for the user's, 1 for the world's."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except HeadraceError as error:
            click.echo(f"headrace: {' '.join(str(error).split())}", err=True)
            context.exit(2 if isinstance(error, UsageError) else 1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace")
def main() -> None:
    """Durable, ordered event streams from PostgreSQL to browsers.

    Commands read HEADRACE_* variables, and in the directory of a running `headrace up` the file .headrace/env.
    """


@main.command(epilog="Example: headrace up --port 8000 --shards 2")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve at.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--shards", default=2, show_default=True, type=click.IntRange(1, 64), help="Shard processes.")
@click.option("--router-workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Router processes.")
@click.option("--node", default=None, help="This node's name; unique among nodes.  [default: the host's name]")
def up(host: str, port: int, shards: int, router_workers: int, node: str | None) -> None:
    """Run everything on one node, supervised, until Ctrl-C."""
    sys.exit(supervisor.up(os.environ, host=host, port=port, shards=shards, router_workers=router_workers, node=node))


@main.command(epilog="Example: HEADRACE_DATABASE_URL=postgresql://… headrace migrate")
def migrate() -> None:
    """Create or upgrade the SQL schema. Safe to repeat, and to run twice at once."""
    applied = schema.migrate(_settings("database_url").database_url)
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
    with _connect() as connection:
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


@main.command(epilog="Example: curl -N http://127.0.0.1:8000$(headrace url room:1 --since all)")
@click.argument("streams", nargs=-1, required=True)
@click.option("--since", default=None, help="An id, `now`, `all`, or a cursor of several ids.  [default: now]")
@click.option("--user", default=None, help="Who the connection is.")
@click.option("--audience", "audiences", multiple=True, help="An audience of the connection; repeatable.")
@click.option(
    "--ttl", default=None, type=click.FloatRange(min=0, min_open=True), help="Life in seconds.  [default: for ever]"
)
def url(
    streams: tuple[str, ...], since: str | None, user: str | None, audiences: tuple[str, ...], ttl: float | None
) -> None:
    """Print the signed path that subscribes to STREAMS."""
    click.echo(_path(streams, since, user, audiences, ttl))


@main.command(epilog="Example: headrace tail room:1 --since all")
@click.argument("streams", nargs=-1, required=True)
@click.option("--since", default=None, help="Where to begin: an id, `now` or `all`.  [default: now]")
@click.option("--audience", "audiences", multiple=True, help="An audience of the connection; repeatable.")
def tail(streams: tuple[str, ...], since: str | None, audiences: tuple[str, ...]) -> None:
    """Subscribe to STREAMS over HTTP and print the events: id, type and data, one a line.

    Reconnects by itself and goes on after the last event it printed.
    """
    settings = _settings("secret")
    base = settings.public_url.rstrip("/")
    path = _path(streams, None, None, audiences, None)
    sse.check_reachable(base + "/healthz")
    try:
        for message in sse.follow(base + path, since=since):
            click.echo(f"{message.id}\t{message.type}\t{message.data}")
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)


@main.command(epilog="Example: headrace status --json | jq '.shards[].connections'")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(as_json: bool) -> None:
    """Show nodes, shards, connections, slots, and how far the shards are behind the log."""
    settings = _settings("redis_url")
    directory = Directory(settings.redis_url, expiry_s=settings.directory_expiry_s)
    snapshot = directory.read()
    if as_json:
        click.echo(json.dumps(_status(snapshot), indent=2))
    else:
        click.echo("\n".join(_table(snapshot)))


@main.command(epilog="Example: headrace drain web1-0")
@click.argument("shard")
def drain(shard: str) -> None:
    """Move all connections of SHARD to other shards of its node, and send it no new ones.

    No client reconnects. The shard stays up, and `rebalance` passes it over, until `undrain`.
    """
    _operations().drain(shard)
    click.echo(f"{shard} is drained")


@main.command(epilog="Example: headrace undrain web1-0")
@click.argument("shard")
def undrain(shard: str) -> None:
    """Let a drained SHARD serve again, and move its share of the slots to it."""
    _operations().undrain(shard)
    click.echo(f"{shard} is up")


@main.command(epilog="Example: headrace move room:1 web1-0    or: headrace move 517 web1-0")
@click.argument("what", metavar="STREAM|SLOT")
@click.argument("shard")
def move(what: str, shard: str) -> None:
    """Move a slot, given by number or by a stream in it, to SHARD with all its connections. No client reconnects."""
    number = _operations().move(what, shard)
    click.echo(f"slot {number} is served by {shard}")


@main.command(epilog="Example: headrace rebalance --dry-run")
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
def rebalance(dry_run: bool) -> None:
    """Spread the slots evenly over the shards that are up, with their connections. No client reconnects."""
    operations = _operations()
    plans = operations.plans()
    rows = [("node", "shard", "slots now", "slots then")]
    for plan in plans:
        rows += [(plan.node, shard, str(plan.before[shard]), str(plan.after[shard])) for shard in plan.before]
    click.echo("\n".join(_aligned(rows)))
    if not dry_run:
        operations.rebalance()
        click.echo(f"moved {sum(plan.moves for plan in plans)} slots")


@main.command(epilog="Example: headrace restart web1-0    or, all shards of this node: headrace restart")
@click.argument("shards", nargs=-1)
def restart(shards: tuple[str, ...]) -> None:
    """Replace the processes of SHARDS, or of all, one after the other. No client reconnects.

    Run it where `headrace up` runs. A successor takes over all connections of the old process, then that one ends.
    """
    settings = _settings("redis_url")
    done = control.ask(settings.runtime_dir, {"restart": list(shards)}, _progress)
    click.echo(f"restarted {', '.join(shards or done)}")


@main.command(epilog="Example: headrace scale 4")
@click.argument("count", type=click.IntRange(1, 64))
def scale(count: int) -> None:
    """Have COUNT shards on this node, adding some or removing the last ones. No client reconnects.

    Run it where `headrace up` runs. New shards get their share of the slots; those to be removed are drained first.
    """
    settings = _settings("redis_url")
    directory = Directory(settings.redis_url, expiry_s=settings.directory_expiry_s)
    operations = _operations()
    shards = control.ask(settings.runtime_dir, {"list": True}, _progress)
    if count > len(shards):
        added = control.ask(settings.runtime_dir, {"add": count - len(shards)}, _progress)
        operations.join(added)
        operations.rebalance()
    for shard in shards[count:]:
        operations.drain(shard)
        control.ask(settings.runtime_dir, {"remove": [shard]}, _progress)
        directory.undrain(shard)
    click.echo(f"{count} shards")


def _progress(line: str) -> None:
    click.echo(line, err=True)


def _operations() -> Operations:
    settings = _settings("redis_url")
    directory = Directory(settings.redis_url, expiry_s=settings.directory_expiry_s)
    return Operations(directory, _progress)


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _status(snapshot: Snapshot) -> dict[str, Any]:
    owned: dict[str, int] = {}
    for slots in snapshot.slots.values():
        for owner in slots.values():
            owned[owner] = owned.get(owner, 0) + 1
    shards = [
        {
            "id": shard.id,
            "node": shard.node,
            "pid": shard.pid,
            "state": shard.state,
            "connections": shard.connections,
            "capacity": shard.capacity,
            "streams": shard.streams,
            "slots": owned.get(shard.id, 0),
            "lag_s": shard.lag_s,
            "last_error": shard.last_error,
            "version": shard.version,
        }
        for shard in snapshot.shards
    ]
    return {"epoch": list(snapshot.epoch), "nodes": sorted({shard.node for shard in snapshot.shards}), "shards": shards}


def _table(snapshot: Snapshot) -> Iterator[str]:
    columns = ("id", "node", "pid", "state", "connections", "streams", "slots", "lag_s", "last_error")
    rows = [
        columns,
        *(
            tuple(f"{shard[c]:.1f}" if c == "lag_s" else str(shard[c]) for c in columns)
            for shard in _status(snapshot)["shards"]
        ),
    ]
    yield from _aligned(rows)
    if len(rows) == 1:
        yield "no shard is registered"
    yield f"epoch {snapshot.epoch[0]} {snapshot.epoch[1]}, {datetime.now():%H:%M:%S}"


def _path(
    streams: tuple[str, ...], since: str | None, user: str | None, audiences: tuple[str, ...], ttl: float | None
) -> str:
    if since is not None:
        cursor.parse(since, len(streams))
    settings = _settings("secret")
    return headrace.sign(streams, since=since, user=user, audiences=audiences, ttl_s=ttl, secrets=settings.secret)


def _settings(*required: str) -> Settings:
    return Settings.from_environ(environ_with_file(os.environ)).require(*required)


def _connect() -> psycopg.Connection[Any]:
    url_ = _settings("database_url").database_url
    try:
        connection = psycopg.connect(url_, autocommit=True, connect_timeout=5, prepare_threshold=None)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailableError(f"PostgreSQL cannot be reached: {str(error).strip()}") from error
    schema.require_current(connection)
    return connection


if __name__ == "__main__":
    main()
