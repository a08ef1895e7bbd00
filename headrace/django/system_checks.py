"""Checks for `manage.py check`: what keeps pages, publishing or the schema from working, before a user notices it.

    headrace.E001   a setting is wrong                         headrace.W003   the schema is missing, or older
    headrace.W001   no secret: no page can sign                headrace.E002   the schema cannot be used
    headrace.W002   no public URL                              headrace.W004   ATOMIC_REQUESTS weakens snapshots

Those of the schema ask the database, so `check --database default` and `migrate` make them alone.
"""

from collections.abc import Sequence
from typing import Any

from django.core import checks
from django.db import Error, connections, router, transaction

from headrace import signing
from headrace.errors import HeadraceError, SettingsError
from headrace.schema_upgrade import schema_state
from headrace.settings import Settings


def check_settings(app_configs: Any, **options: Any) -> list[Any]:
    """The secret, the public URL and the spelling of settings."""
    try:
        environ = signing.environ()
        found = Settings.from_environ(environ)
    except SettingsError as error:
        return [checks.Error(str(error), hint="correct settings.HEADRACE, or the variable", id="headrace.E001")]
    messages = []
    if not found.secret:
        messages.append(
            checks.Warning(
                "headrace has no secret, without which no page can sign the URL of a stream",
                hint='set HEADRACE = {"SECRET": …}, or HEADRACE_SECRET, to the secret of the routers and shards',
                id="headrace.W001",
            )
        )
    if "HEADRACE_PUBLIC_URL" not in environ:
        messages.append(
            checks.Warning(
                "headrace has no public URL, so pages ask their own origin for streams",
                hint='set HEADRACE = {"PUBLIC_URL": …} to the URL of the routers, or to "" where a proxy serves both',
                id="headrace.W002",
            )
        )
    return messages


def check_atomic_requests(app_configs: Any, **options: Any) -> list[Any]:
    """ATOMIC_REQUESTS, in whose transactions a block `with snapshot()` is READ COMMITTED."""
    return [
        checks.Warning(
            f"ATOMIC_REQUESTS of the database {alias!r} begins each view's transaction before its snapshot, so that an "
            "event may arrive though the page shows it already",
            hint="decorate views with @snapshot, which ATOMIC_REQUESTS leaves alone; a view with a block `with "
            "snapshot()` needs @transaction.non_atomic_requests. If all views have it, silence headrace.W004",
            id="headrace.W004",
            obj=alias,
        )
        for alias, database in connections.settings.items()
        if database.get("ATOMIC_REQUESTS")
    ]


def check_schema(app_configs: Any, databases: Sequence[str] | None = None, **options: Any) -> list[Any]:
    """The schema of each database that is asked for and that headrace may be in."""
    messages = []
    for alias in databases or ():
        if connections[alias].vendor == "postgresql" and router.allow_migrate(alias, "headrace"):
            messages += _check_schema(alias)
    return messages


def _check_schema(alias: str) -> list[Any]:
    try:
        with transaction.atomic(using=alias):
            state = schema_state(connections[alias])
    except HeadraceError as error:
        return [checks.Error(f"the database {alias!r}: {error}", id="headrace.E002", obj=alias)]
    except Error:
        return []  # the database is away, or its user may not look; the command says so itself
    if state == "current":
        return []
    return [
        checks.Warning(
            f"headrace's schema is {state}{' than the package' if state == 'older' else ''} in the database {alias!r}",
            hint=f"run `manage.py migrate --database {alias}`, or `headrace migrate`",
            id="headrace.W003",
            obj=alias,
        )
    ]


def register() -> None:
    """Have Django make these checks."""
    checks.register(check_settings, checks.Tags.security)
    checks.register(check_atomic_requests, checks.Tags.compatibility)
    checks.register(check_schema, checks.Tags.database)
