"""The pages and the API."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter
from todos.views import TodoListViewSet, TodoViewSet, board

router = SimpleRouter()
router.register("lists", TodoListViewSet)
router.register("todos", TodoViewSet)

urlpatterns = [path("lists/<int:pk>/", board), path("api/", include(router.urls))]
