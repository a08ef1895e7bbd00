"""The API, and the page of a list."""

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import ModelSerializer
from rest_framework.viewsets import ModelViewSet

from headrace.django import publish, snapshot
from todos.models import Todo, TodoList


class TodoListSerializer(ModelSerializer):
    """A list as JSON."""

    class Meta:  # noqa: D106
        model = TodoList
        fields = ("id", "name")


class TodoSerializer(ModelSerializer):
    """A todo as JSON."""

    class Meta:  # noqa: D106
        model = Todo
        fields = ("id", "todolist", "text", "done")


class TodoViewSet(ModelViewSet):
    """Todos: the triggers of the table publish what this changes."""

    queryset = Todo.objects.all()
    serializer_class = TodoSerializer


class TodoListViewSet(ModelViewSet):
    """Lists, and what is done to a whole list."""

    queryset = TodoList.objects.all()
    serializer_class = TodoListSerializer

    @action(detail=True, methods=["post"])
    def rename(self, request: Request, pk: str) -> Response:
        """Give the list another name, and tell its pages."""
        with transaction.atomic():
            todolist = self.get_object()
            todolist.name = request.data["name"]
            todolist.save()
            publish(f"todolist:{todolist.pk}", {"name": todolist.name}, event="rename")
        return Response({"name": todolist.name})


@snapshot
def board(request: HttpRequest, pk: int) -> HttpResponse:
    """The page of a list; its stream goes on where the page ends."""
    todolist = get_object_or_404(TodoList, pk=pk)
    stream = f"todolist:{todolist.pk}"
    return render(request, "board.html", {"todolist": todolist, "todos": todolist.todo_set.all(), "stream": stream})
