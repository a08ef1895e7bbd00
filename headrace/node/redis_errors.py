"""What each kind of failure of Redis means, and what an operator does about it.

Every process and command looks here. Redis and its client tell kinds of failures apart by classes and by words, which
differ between versions and inside scripts. So this file looks for words, in the class' name and the text together.
"""

import re
from collections.abc import Iterator
from typing import Final

WRITES: Final = "refuses writes"
"""The advice about a failure has these words if Redis can be read and refuses to be written to."""

_DEPTH: Final = 4
"""How many errors of a chain of causes are looked at."""
_USER: Final = (
    "let its user do what headrace does: `ACL SETUSER NAME ~PREFIX:* resetchannels &PREFIX:* +@all -@dangerous`, "
    "PREFIX being HEADRACE_REDIS_PREFIX, `headrace` unless it is set"
)
_PRIMARY: Final = "let HEADRACE_REDIS_URL lead to the primary"
# The words of each kind, as a pattern, and the advice. The first kind whose words are found counts.
_KINDS: Final = (
    (
        r"HELLO must be called|Authentication required|NOAUTH",
        "put its password into HEADRACE_REDIS_URL, as in redis://:PASSWORD@HOST:6379/0",
    ),
    (
        r"invalid username-password|WRONGPASS|invalid password",
        "correct the user and the password in HEADRACE_REDIS_URL",
    ),
    (
        r"no password is set|without any password configured",
        "take the password out of HEADRACE_REDIS_URL, or set one in Redis",
    ),
    (r"NOPERM|no permissions|user executing the script can't", _USER),
    (r"\bOOM\b|OutOfMemory", f"it {WRITES} until it has memory: raise its maxmemory, or free some"),
    (r"READONLY|read only replica", f"it {WRITES} since it is a replica: {_PRIMARY}, or promote it"),
    (
        r"MISCONF",
        f'it {WRITES} since it cannot save: free its disk, or switch saving off (`save ""`, `appendonly no`)',
    ),
    (r"NOREPLICAS", f"it {WRITES} without its replicas: start them, or lower its min-replicas-to-write"),
    (r"LOADING|BusyLoading", "it is starting: wait"),
    (r"MASTERDOWN", f"it is a replica without its primary: {_PRIMARY}"),
    (r"\bBUSY\b", "a script of another program holds it up: see its log; `SCRIPT KILL` ends the script"),
    (r"max number of clients", "raise its maxclients, or close connections of others"),
    (
        r"CROSSSLOT|\bMOVED\b|ClusterDown|cluster",
        "it is a cluster: let HEADRACE_REDIS_URL begin with redis+cluster://, and HEADRACE_REDIS_PREFIX be a hash tag, "
        "as in {headrace}; or give headrace a single server",
    ),
    (
        r"DB index is out of range|invalid DB index",
        "correct the number of the database at the end of HEADRACE_REDIS_URL",
    ),
    (r"unknown command", "it lacks a command that headrace needs: install Redis 6.2 or newer, and rename none"),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "let it show a certificate that this machine trusts, or name its authority: rediss://…?ssl_ca_certs=FILE",
    ),
    (
        r"_ssl\.c|\[SSL|\bSSL\b",
        "it does not seem to speak TLS at this port: use redis:// for rediss://, or the port for TLS",
    ),
    (r"Protocol Error|InvalidResponse", "something else than Redis answers there: correct HEADRACE_REDIS_URL"),
    (
        r"closed by server|reset by peer|Broken pipe",
        "start it, or correct HEADRACE_REDIS_URL: a server that hangs up may want TLS, that is rediss://, or be no "
        "Redis",
    ),
    (r"Permission denied", "let the user of this process connect to its socket, or correct HEADRACE_REDIS_URL"),
    (
        r"Name or service not known|name resolution|No address associated|nodename nor servname",
        "correct the host in HEADRACE_REDIS_URL, or the machine's name resolution",
    ),
)


def advice(error: BaseException) -> str:
    """What to do about an error of Redis or its client."""
    text = " ".join(_told(error))
    found = (advice for words, advice in _KINDS if re.search(words, text, re.IGNORECASE))
    return next(found, "start it or correct HEADRACE_REDIS_URL")


def _told(error: BaseException | None) -> Iterator[str]:
    """The error and its causes in words: the errors of the client itself are too general."""
    for _ in range(_DEPTH):
        if error is None:
            return
        yield f"{type(error).__name__} {error}"
        error = error.__cause__ or error.__context__


def sentence(error: BaseException) -> str:
    """A sentence for an operator: the error, and what to do about it."""
    return f"Redis cannot be used ({' '.join(str(error).split())}); {advice(error)}"
