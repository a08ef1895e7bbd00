"""The page and its stream, with a live server and headrace beside it."""

import json
import re
import urllib.request

from django.test import LiveServerTestCase

from headrace.testing import ResetStreams, follow, serve
from todos.models import Todo, TodoList


class LiveTests(ResetStreams, LiveServerTestCase):
    """headrace runs on the test database, once for the class."""

    @classmethod
    def setUpClass(cls) -> None:
        """Start headrace; Django ends it with the class."""
        super().setUpClass()
        cls.enterClassContext(serve(origins=[cls.live_server_url]))

    def test_a_page_is_told_of_what_comes_after_it(self) -> None:
        """The stream of the page begins after what the page shows, and the API's events arrive in order."""
        todolist = TodoList.objects.create(name="Groceries")
        todo = Todo.objects.create(todolist=todolist, text="Milk")
        with urllib.request.urlopen(f"{self.live_server_url}/lists/{todolist.pk}/") as response:
            page = response.read().decode()
        assert "Milk" in page
        with follow(re.search(r'<headrace-stream src="([^"]+)"', page)[1]) as client:
            self.send("PATCH", f"/api/todos/{todo.pk}/", {"done": True})
            self.send("POST", f"/api/lists/{todolist.pk}/rename/", {"name": "Shopping"})
            first, second = client.next(), client.next()
        assert (first.type, json.loads(first.data)["row"]["done"]) == ("update", True)
        assert (second.type, second.data) == ("rename", '{"name": "Shopping"}')
        assert int(second.id) == int(first.id) + 1

    def send(self, method: str, path: str, data: dict[str, object]) -> None:
        """Call the API over HTTP, as another program does."""
        headers = {"Content-Type": "application/json"}
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.live_server_url + path, body, headers, method=method)
        urllib.request.urlopen(request).close()
