"""Whether a notification that is sent over one URL arrives at LISTEN on the other."""

import contextlib
import secrets

from headrace.doctor.finding import Finding, fail, ok
from headrace.node.session import connect

_CHECK = "listen"


def listen(listen_database_url: str, database_url: str, deadline_s: float) -> Finding:
    """A pooler in transaction mode accepts LISTEN and delivers nothing; two URLs may lead to two databases."""
    channel = f"headrace_doctor_{secrets.token_hex(8)}"
    with contextlib.ExitStack() as opened:
        hearing, speaking = (
            opened.enter_context(connect(url, "headrace doctor")) for url in (listen_database_url, database_url)
        )
        hearing.execute(f"listen {channel}".encode())
        speaking.execute("select pg_notify(%s, '')", [channel])
        for notification in hearing.notifies(timeout=deadline_s, stop_after=1):
            if notification.channel == channel:
                return ok(_CHECK, "a notification arrives")
    return fail(
        _CHECK,
        f"a notification did not arrive within {deadline_s:g} s",
        "set HEADRACE_LISTEN_DATABASE_URL to PostgreSQL itself, not to a pooler in transaction mode, and to the same "
        "database as HEADRACE_DATABASE_URL",
    )
