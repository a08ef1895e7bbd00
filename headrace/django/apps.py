"""The Django application: template tags, migrations and checks. Its label is `headrace`; else it would be `django`."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.db import connections, router, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.models.signals import pre_migrate

from headrace.django import system_checks
from headrace.schema_upgrade import upgrade_schema


class HeadraceConfig(AppConfig):  # type: ignore[misc]
    """headrace's template tags, migrations and checks."""

    name = "headrace.django"
    label = "headrace"
    verbose_name = "headrace"

    def ready(self) -> None:
        """Called by Django when all applications are loaded."""
        system_checks.register()
        pre_migrate.connect(make_schema_first, sender=self)


def make_schema_first(using: str, plan: Sequence[tuple[Any, bool]] = (), **signal: Any) -> None:
    """Make the schema before any migration runs, where `migrate` is going to make it.

    So a migration of the application may call headrace's functions in its SQL, whichever runs first. Where migrations
    are turned off, as by `"TEST": {"MIGRATE": False}` and pytest's --nomigrations, Django runs no operation, and this
    alone makes the schema.
    """
    module, _ = MigrationLoader.migrations_module("headrace")
    planned = any(migration.app_label == "headrace" and not backwards for migration, backwards in plan)
    connection = connections[using]
    wanted = (planned or module is None) and router.allow_migrate(using, "headrace")
    if wanted and connection.vendor == "postgresql":
        with transaction.atomic(using=using):
            upgrade_schema(connection)
