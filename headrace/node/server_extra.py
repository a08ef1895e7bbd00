"""Whether the packages of the extra `server` are installed, which commands, shards and routers need.

An entry point calls `require` before it imports anything else, so that a missing package is told in one sentence.
"""

import sys
from importlib.util import find_spec
from typing import Final

PACKAGES: Final = ("click", "gevent", "gunicorn", "prometheus_client", "psycopg", "redis")
"""What the extra installs, by import name."""


def require() -> None:
    """Return if every package of the extra is installed. Imports none of them.

    Raises SystemExit otherwise: Python then prints the sentence, without a traceback, and exits with 1.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        sys.exit(
            f"headrace: commands, shards and routers need pip install 'headrace[server]' (not found: {names}); "
            "`headrace up` without a PostgreSQL or a Redis of your own needs pip install 'headrace[embedded]'"
        )
