"""The Django application: template tags, migrations and checks. Its label is `headrace`; else it would be `django`."""

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
        pre_migrate.connect(make_schema_without_migrations, sender=self)


def make_schema_without_migrations(using: str, **signal: Any) -> None:
    """Make the schema where migrations are turned off, as by `"TEST": {"MIGRATE": False}` and pytest's --nomigrations.

    Django then makes the tables of all models, and runs no operation.
    """
    module, _ = MigrationLoader.migrations_module("headrace")
    connection = connections[using]
    if module is None and connection.vendor == "postgresql" and router.allow_migrate(using, "headrace"):
        with transaction.atomic(using=using):
            upgrade_schema(connection)
