"""Lists and what is on them."""

from django.db import models


class TodoList(models.Model):
    """A list, which has a stream of its own: `todolist:` and its key."""

    name = models.CharField(max_length=100)


class Todo(models.Model):
    """One thing to do. Every change of it is published by triggers, which a migration makes."""

    todolist = models.ForeignKey(TodoList, on_delete=models.CASCADE)
    text = models.TextField()
    done = models.BooleanField(default=False)
