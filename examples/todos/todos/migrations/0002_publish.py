"""What the tables publish."""

from django.db import migrations

from headrace.django.operations import PublishChanges


class Migration(migrations.Migration):
    """Publishes each change of a todo to the stream of its list."""

    dependencies = (("todos", "0001_initial"), ("headrace", "0001_schema"))
    operations = (PublishChanges("Todo", "todolist:{todolist_id}", columns=["id", "text", "done"]),)
