"""`python -m shard --id NODE-0`: runs one shard with the settings of the environment."""

from gevent import monkey

monkey.patch_all()

import logging
import os
import sys

import click

from headrace.errors import HeadraceError
from headrace.settings import Settings, environ_with_file
from shard.process import Process


@click.command(epilog="Example: HEADRACE_DATABASE_URL=… HEADRACE_REDIS_URL=… python -m shard --id web1-0")
@click.option("--id", "shard_id", required=True, help="Unique over all nodes, kept over restarts.")
def main(shard_id: str) -> None:
    """Serve event streams to the clients that routers hand over, until SIGTERM."""
    try:
        settings = Settings.from_environ(environ_with_file(os.environ))
        logging.basicConfig(
            level=settings.log_level.upper(),
            format=f"%(asctime)s %(levelname)s {shard_id} %(name)s: %(message)s",
            stream=sys.stderr,
        )
        process = Process(settings, shard_id)
    except HeadraceError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(process.run())


if __name__ == "__main__":
    main()
