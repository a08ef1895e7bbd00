"""The Django application, for its template tags. Its label is `headrace`, as `django` would be anybody's guess."""

from django.apps import AppConfig


class HeadraceConfig(AppConfig):  # type: ignore[misc]
    """headrace's template tags."""

    name = "headrace.django"
    label = "headrace"
    verbose_name = "headrace"
