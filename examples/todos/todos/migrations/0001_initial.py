"""The tables."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """Makes both models."""

    initial = True
    operations = (
        migrations.CreateModel(
            name="TodoList",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100)),
            ],
        ),
        migrations.CreateModel(
            name="Todo",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("text", models.TextField()),
                ("done", models.BooleanField(default=False)),
                (
                    "todolist",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to="todos.todolist"),
                ),
            ],
        ),
    )
