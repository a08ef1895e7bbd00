"""`{% load headrace %}`: the element, its URL and its script. The first two need a snapshot, and raise without one.

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
    """The element for one stream or several, as `Snapshot.element` of the innermost snapshot, or of the alias's."""
    return current(using).element(streams, **token_and_attributes)


@register.simple_tag  # type: ignore[untyped-decorator]
def headrace_url(*streams: str, using: str | None = None, **token: Any) -> str:
    """The URL alone, as `Snapshot.url`."""
    return current(using).url(streams, **token)


@register.simple_tag  # type: ignore[untyped-decorator]
def headrace_script(**attributes: Attribute) -> Html:
    """The script that defines the element."""
    return script(signing.origin(), **attributes)
