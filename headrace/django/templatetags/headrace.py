"""`{% load headrace %}`: the element, its URL and its script. The element and the URL need a snapshot, else UsageError.

{% headrace_script %}
{% headrace_stream "notes" user=request.user.pk refresh="/token" %}
{% headrace_stream "room:1" "user:7" using="replica" %}
{% headrace_url "notes" as src %}
"""

from typing import Any

from django import template

from headrace import signing
from headrace.element import Attribute, Html, script
from headrace.snapshot import current

register = template.Library()


@register.simple_tag  # type: ignore[untyped-decorator]
def headrace_stream(*streams: str, using: str | None = None, **token_and_attributes: Any) -> Html:
    """Return the element for one stream or several, as `Snapshot.element`.

    The snapshot is the innermost one, or the innermost of the database whose alias is using.
    """
    return current(using).element(streams, **token_and_attributes)


@register.simple_tag  # type: ignore[untyped-decorator]
def headrace_url(*streams: str, using: str | None = None, **token: Any) -> str:
    """Return the signed URL alone, as `Snapshot.url` of the same snapshot."""
    return current(using).url(streams, **token)


@register.simple_tag  # type: ignore[untyped-decorator]
def headrace_script(**attributes: Attribute) -> Html:
    """Return the `<script>` that defines the element."""
    return script(signing.origin(), **attributes)
