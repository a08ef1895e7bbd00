"""What the API publishes, in transactions that are rolled back."""

from django.db import transaction
from django.test import TestCase

from headrace.testing import assert_published, published
from todos.models import TodoList


class PublishingTests(TestCase):
    """Nothing of these commits, and no event gets an id."""

    @classmethod
    def setUpTestData(cls) -> None:
        """One list, which all tests begin with."""
        cls.todolist = TodoList.objects.create(name="Groceries")
        cls.stream = f"todolist:{cls.todolist.pk}"

    def test_a_new_todo_is_published_by_the_trigger(self) -> None:
        """The event has the columns that the migration names."""
        with published() as events:
            self.client.post("/api/todos/", {"todolist": self.todolist.pk, "text": "Milk"})
        (event,) = assert_published(self.stream, count=1, type="insert", events=events)
        assert event.json()["row"] | {"id": 0} == {"id": 0, "text": "Milk", "done": False}

    def test_a_rename_is_published_by_the_view(self) -> None:
        """The event has the new name."""
        self.client.post(f"/api/lists/{self.todolist.pk}/rename/", {"name": "Shopping"})
        assert_published(self.stream, count=1, type="rename", data={"name": "Shopping"})

    def test_what_is_rolled_back_is_not_published(self) -> None:
        """A savepoint takes its events along."""
        with published() as events, transaction.atomic():
            self.client.post(f"/api/lists/{self.todolist.pk}/rename/", {"name": "Shopping"})
            transaction.set_rollback(True)
        assert events == []
