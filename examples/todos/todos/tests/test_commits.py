"""What the API publishes, in transactions that commit."""

from django.db import connection
from django.test import TransactionTestCase

import headrace
from headrace.testing import ResetStreams, assert_published, published
from todos.models import Todo, TodoList


class CommitTests(ResetStreams, TransactionTestCase):
    """Each test begins without events, and with ids from 1."""

    reset_sequences = True

    def test_the_first_event_has_the_first_id(self) -> None:
        """A todo of a list with the key 1 is the first event of its stream."""
        Todo.objects.create(todolist=TodoList.objects.create(name="Groceries"), text="Milk")
        assert headrace.head(connection, "todolist:1") == 1

    def test_so_it_has_in_every_test(self) -> None:
        """What the other test has published is gone."""
        assert_published("todolist:1", count=0)
        todolist = TodoList.objects.create(name="Groceries")
        with published() as events:
            self.client.post(f"/api/lists/{todolist.pk}/rename/", {"name": "Shopping"})
        assert_published("todolist:1", count=1, type="rename", events=events)
        assert headrace.head(connection, "todolist:1") == 1
