"""Functions for Jinja's templates, as Flask and Starlette or FastAPI use them.

    headrace.jinja.install(app.jinja_env)                      Flask
    headrace.jinja.install(templates.env)                      Starlette's Jinja2Templates

    {{ headrace_script() }}
    {{ headrace_stream("notes", user=user.id, refresh="/token") }}
    new EventSource({{ headrace_url("notes") | tojson }})

`headrace_stream` and `headrace_url` take the heads from the snapshot that is held where the template is rendered
(`headrace.snapshot`, `headrace.sqlalchemy.snapshot`), and raise UsageError where none is held. Asynchronous code awaits
`page.element(…)` instead and gives the result to the template.
"""

from collections.abc import Sequence
from typing import Any

from headrace import signing
from headrace.element import Attribute, Html, script
from headrace.snapshot import current


def install(environment: Any) -> None:
    """Make `headrace_stream`, `headrace_url` and `headrace_script` global functions of a jinja2.Environment."""
    environment.globals.update(
        headrace_stream=headrace_stream, headrace_url=headrace_url, headrace_script=headrace_script
    )


def headrace_stream(streams: str | Sequence[str], **token_and_attributes: Any) -> Html:
    """Return the element `<headrace-stream>`, as `Snapshot.element` of the innermost snapshot."""
    return current().element(streams, **token_and_attributes)


def headrace_url(streams: str | Sequence[str], **token: Any) -> str:
    """Return the signed URL alone, as `Snapshot.url` of the innermost snapshot; Jinja escapes it."""
    return current().url(streams, **token)


def headrace_script(**attributes: Attribute) -> Html:
    """Return the `<script>` that defines the element."""
    return script(signing.origin(), **attributes)
