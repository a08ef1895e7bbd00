"""`python -m shard --id NODE-0`: runs one shard with the settings of the environment."""

from gevent import monkey

monkey.patch_all()

import logging
import os
import sys

import click
import gevent

from headrace import logs, runtime_directory, schema
from headrace.directory import Directory
from headrace.errors import DatabaseUnavailableError, HeadraceError
from headrace.settings import Settings, environ_with_file
from shard import succession
from shard.process import Process

logger = logging.getLogger(__name__)


@click.command(epilog="Example: HEADRACE_DATABASE_URL=… HEADRACE_REDIS_URL=… python -m shard --id web1-0")
@click.option("--id", "shard_id", required=True, help="Unique over all nodes, kept over restarts.")
@click.option(
    "--replace",
    "predecessor",
    type=click.IntRange(1),
    metavar="PID",
    help="Start this shard as the successor of process PID, and return when it has all connections of that one.",
)
def main(shard_id: str, predecessor: int | None) -> None:
    """Serve event streams to the clients that routers hand over, until SIGTERM."""
    try:
        settings = Settings.from_environ(environ_with_file(os.environ))
        logs.set_up(settings, shard_id)
        runtime_directory.prepare(settings.runtime_dir, shard_id)
        _check_schema(settings)
        if predecessor:
            settings.require("redis_url")
            directory = Directory(settings.redis_url, expiry_s=settings.directory_expiry_s)
            path = settings.runtime_dir / f"{shard_id}.sock"
            succession.replace(shard_id, path, predecessor, directory.read)
            return
        process = Process(settings, shard_id, lambda: succession.announce(os.environ))
    except HeadraceError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(process.run())


def _check_schema(settings: Settings) -> None:
    """Raise SchemaError where this shard could read nothing, before it takes clients from one that can. Yields.

    A server that is away is none of a shard's reasons not to start.
    """
    try:
        with gevent.Timeout(settings.read_deadline_s):
            schema.check(settings.database_url)
    except (DatabaseUnavailableError, gevent.Timeout) as error:
        logger.warning("starting without having seen the schema: %s", error)


if __name__ == "__main__":
    main()
