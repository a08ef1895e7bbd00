"""The Django application, for its template tags. Its label is `headrace`; by default it would be `django`."""

from django.apps import AppConfig


class HeadraceConfig(AppConfig):  # type: ignore[misc]
    """headrace's template tags."""

    name = "headrace.django"
    label = "headrace"
    verbose_name = "headrace"
