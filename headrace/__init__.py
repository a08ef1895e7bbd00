"""headrace: durable, ordered event streams from PostgreSQL to many browsers.

What an application imports: functions that publish inside the application's own transaction, sign the URLs of its
pages, hold a snapshot for a page, disconnect users, and bring up the schema in the application's own migrations.
`headrace.asyncio`, `headrace.django`, `headrace.jinja`, `headrace.sqlalchemy` and `headrace.testing` are imported by
their own names, since the libraries that they serve are not in every application.

`headrace.errors` has the errors that these raise, `headrace.element` the HTML of the element, and
`headrace.tokens.Context` is what a predicate is given. All other modules are for these and for headrace's own
processes: they change without notice.
"""

from typing import Final

from headrace.disconnect import disconnect
from headrace.predicates import predicate
from headrace.presence import member_count, members
from headrace.publish import head, publish, publish_many, publish_now, set_retention, watermark
from headrace.schema_upgrade import publish_changes, unpublish_changes, upgrade_schema
from headrace.signing import sign, sign_publisher
from headrace.snapshot import snapshot
from headrace.stream import presence_stream

__all__ = [
    "disconnect",
    "head",
    "member_count",
    "members",
    "predicate",
    "presence_stream",
    "publish",
    "publish_changes",
    "publish_many",
    "publish_now",
    "set_retention",
    "sign",
    "sign_publisher",
    "snapshot",
    "unpublish_changes",
    "upgrade_schema",
    "watermark",
]

_BY_NAME: Final = ("asyncio", "django", "jinja", "sqlalchemy", "testing")


def __getattr__(name: str) -> object:
    """Called for a name that this module does not have: raises AttributeError, which says which import is missing."""
    if name in _BY_NAME:
        raise AttributeError(f"headrace.{name} is not imported; write `import headrace.{name}` first")
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
