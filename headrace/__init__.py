"""headrace: durable, ordered event streams from PostgreSQL to many browsers.

What an application imports: publish inside its own transaction, sign the URLs of its pages, disconnect.
"""

from headrace.disconnect import disconnect
from headrace.predicates import predicate
from headrace.presence import member_count, members
from headrace.publish import head, publish, publish_many, publish_now, set_retention
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
    "publish_many",
    "publish_now",
    "set_retention",
    "sign",
    "sign_publisher",
    "snapshot",
]
