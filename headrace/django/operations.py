"""Operations for migrations: headrace's schema, and the changes of a model's table.

from headrace.django.operations import PublishChanges

class Migration(migrations.Migration):
    dependencies = [("todos", "0001_initial"), ("headrace", "0001_schema")]
    operations = [PublishChanges("Todo", "todolist:{todolist_id}")]
"""

from collections.abc import Sequence
from typing import Any

from django.db import router
from django.db.migrations.operations.base import Operation

from headrace.errors import UsageError
from headrace.schema_upgrade import upgrade_schema
from headrace.sql_calls import Call, publish_changes, unpublish_changes
from headrace.sql_execution import fetch


class UpgradeSchema(Operation):  # type: ignore[misc]
    """Bring headrace's schema up to this version of headrace, as `headrace.upgrade_schema`.

    Does nothing in a database that is not PostgreSQL, and where a router does not allow `headrace` to migrate. Undoing
    it leaves the schema as it is, with its events: `drop schema headrace cascade` removes it.

    to is the version of the schema that the migration is for. A later version of headrace brings up its own at once.
    """

    atomic = True
    reduces_to_sql = False
    reversible = True

    def __init__(self, to: int) -> None:
        self.to = to

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing: headrace has no models."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Bring up the schema over the schema editor's connection."""
        connection = schema_editor.connection
        if connection.vendor == "postgresql" and router.allow_migrate(connection.alias, app_label):
            upgrade_schema(connection)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Leave the schema, which other programs may use."""

    def describe(self) -> str:
        """What `migrate --plan` shows."""
        return f"Bring the schema headrace up to version {self.to}"


class _TableChanges(Operation):  # type: ignore[misc]
    """What the two operations have in common: the model, the stream and the options."""

    reversible = True

    def __init__(
        self,
        model: str,
        stream: str,
        *,
        columns: Sequence[str] | None = None,
        old: bool = False,
        visible_to: str | None = None,
    ) -> None:
        self.model = model
        self.stream = stream
        self.columns = columns
        self.old = old
        self.visible_to = visible_to
        publish_changes(model, stream, columns, old, visible_to)  # raises for arguments that no table allows

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """The name, the positional arguments and the options that are not the defaults, as migrations are written."""
        defaults = {"columns": None, "old": False, "visible_to": None}
        options = {name: getattr(self, name) for name, value in defaults.items() if getattr(self, name) != value}
        return type(self).__name__, [self.model, self.stream], options

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing: triggers are no part of a model."""

    def references_model(self, name: str, app_label: str) -> bool:
        """Whether the operation is about this model, so that squashing does not move it past the model's changes."""
        return name.lower() == self.model.lower()

    def _publish(self, app_label: str, schema_editor: Any, state: Any) -> None:
        table = self._table(app_label, schema_editor, state)
        if table is not None:
            if not schema_editor.collect_sql and not _has_schema(schema_editor.connection):
                # Where a migration forgets to depend on headrace's.
                upgrade_schema(schema_editor.connection)
            _run(schema_editor, publish_changes(table, self.stream, self.columns, self.old, self.visible_to))

    def _unpublish(self, app_label: str, schema_editor: Any, state: Any) -> None:
        table = self._table(app_label, schema_editor, state)
        if table is not None:
            _run(schema_editor, unpublish_changes(table, self.stream))

    def _table(self, app_label: str, schema_editor: Any, state: Any) -> str | None:
        """The table's name in SQL; None where the model is not in the database of the schema editor."""
        model = state.apps.get_model(app_label, self.model)
        connection = schema_editor.connection
        if not self.allow_migrate_model(connection.alias, model):
            return None
        if connection.vendor != "postgresql":
            raise UsageError(
                f"the database {connection.alias!r} is {connection.vendor}; triggers that publish are in PostgreSQL"
            )
        return str(schema_editor.quote_name(model._meta.db_table))


class PublishChanges(_TableChanges):
    """Publish every change of the rows of a model's table, as `headrace.publish_changes`; undoing it ends that.

    model is the name of a model of the migration's application. stream is the template, in which `{column}` stands for
    a column of the table: that of the foreign key `todolist` is `todolist_id`. columns, old and visible_to are those of
    `headrace.publish_changes`. To change the options of a stream, end it with `UnpublishChanges` and the old options
    first: then undoing brings the old options back.
    """

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Make the triggers."""
        self._publish(app_label, schema_editor, to_state)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Remove the triggers."""
        self._unpublish(app_label, schema_editor, from_state)

    def describe(self) -> str:
        """What `migrate --plan` shows."""
        return f"Publish changes of {self.model} to {self.stream}"

    @property
    def migration_name_fragment(self) -> str:
        """What `makemigrations` and `squashmigrations` put into a file's name."""
        return f"publish_{self.model.lower()}"


class UnpublishChanges(_TableChanges):
    """End what `PublishChanges` began with the same model and stream; undoing it publishes again, with the options."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Remove the triggers."""
        self._unpublish(app_label, schema_editor, from_state)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Make the triggers again."""
        self._publish(app_label, schema_editor, to_state)

    def describe(self) -> str:
        """What `migrate --plan` shows."""
        return f"No longer publish changes of {self.model} to {self.stream}"

    @property
    def migration_name_fragment(self) -> str:
        """What `makemigrations` and `squashmigrations` put into a file's name."""
        return f"unpublish_{self.model.lower()}"


def _has_schema(connection: Any) -> bool:
    found = (
        "select exists (select from pg_catalog.pg_class c where c.relname operator(pg_catalog.=) 'migration'"
        " and c.relnamespace operator(pg_catalog.=) pg_catalog.to_regnamespace('headrace')) as id"
    )
    return bool(fetch(connection, Call(found, ())))


def _run(schema_editor: Any, call: Call) -> None:
    """Execute the call over the schema editor, which only writes it down for `sqlmigrate`."""
    schema_editor.execute(call.sql, list(call.parameters))
