"""`python -P -m headrace.shard --id NODE-0`: runs one shard with the settings of the environment."""

from headrace.node import server_extra

server_extra.require()

from gevent import monkey

monkey.patch_all()

import logging
import os
import sys

import click
import gevent

from headrace.environment_file import environ_with_file
from headrace.errors import (
    DatabaseUnavailableError,
    DirectoryForeignError,
    DirectoryUnavailableError,
    HeadraceError,
    SettingsError,
)
from headrace.node import logs, runtime_directory
from headrace.node.deployment_identity import DeploymentIdentity
from headrace.node.directory import Directory
from headrace.schema import migrations
from headrace.settings import Settings
from headrace.shard.node import succession
from headrace.shard.process import Process

logger = logging.getLogger(__name__)


@click.command(epilog="Example: HEADRACE_DATABASE_URL=… HEADRACE_REDIS_URL=… python -P -m headrace.shard --id web1-0")
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
        if not runtime_directory.is_plain(shard_id):
            raise SettingsError(f"--id is {shard_id!r}; allowed is a file's name that does not begin with a dot")
        logs.set_up(settings, shard_id)
        runtime_directory.prepare(settings.runtime_dir, shard_id)
        _check_schema(settings)
        settings.require("redis_url")
        deployment = DeploymentIdentity(settings, limit=lambda: gevent.Timeout(settings.read_deadline_s, False))  # type: ignore[arg-type]
        deployment.look()
        directory = Directory.of(settings, deployment.required, resident=True)
        if predecessor:
            path = settings.runtime_dir / f"{shard_id}.sock"
            succession.replace(shard_id, path, predecessor, directory.read)
            return
        _require_own_directory(directory)
        process = Process(settings, shard_id, deployment, directory, lambda: succession.announce(os.environ))
    except HeadraceError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(process.run())


def _check_schema(settings: Settings) -> None:
    """Raise SchemaError where this shard could read nothing, before it takes clients from one that can. Yields.

    A shard starts also where PostgreSQL is away.
    """
    try:
        with gevent.Timeout(settings.read_deadline_s):
            migrations.check(settings.database_url)
    except (DatabaseUnavailableError, gevent.Timeout) as error:
        logger.warning("starting without having seen the schema: %s", error)


def _require_own_directory(directory: Directory) -> None:
    """Raise DirectoryForeignError where the shards of another deployment would be mixed with this one. Yields.

    A shard starts also where Redis is away.
    """
    try:
        directory.require_ours()
    except DirectoryForeignError:
        raise
    except DirectoryUnavailableError as error:
        logger.warning("starting without having seen the directory: %s", error)


if __name__ == "__main__":
    main()
