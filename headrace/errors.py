"""Every error that headrace raises, each with a sentence that also tells the fix.

The base class says whose fault it is. `UsageError` is the caller's fault, and becomes an HTTP status 4xx or exit code
2. `UnavailableError` means that a server is away, and becomes status 503 or exit code 1.
"""

from typing import ClassVar


def one_line(error: object) -> str:
    """Return the text of an error in one line, for a log, a table or a field; its repr if it has no text.

    The errors of libpq have several lines.
    """
    return " ".join(str(error).split()) or repr(error)


class HeadraceError(Exception):
    """headrace could not do what was asked.

    `sentence` is the message where none is given. It is no docstring, since `python -OO` drops these.
    """

    sentence: ClassVar[str] = "headrace could not do what was asked; see the log"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.sentence)


class UsageError(HeadraceError):
    """The caller's fault: trying again does not mend it."""

    sentence = "the request is wrong and will stay wrong; correct it before trying again."


class SettingsError(UsageError):
    """A setting that is wrong or missing."""

    sentence = "a setting has a value that is not allowed; set the named variable to an allowed one."


class StreamNameError(UsageError):
    """A text that cannot be the name of a stream."""

    sentence = "a stream name must have 1 to 512 bytes of UTF-8 without NUL; choose another name."


class CursorError(UsageError):
    """A text that is no cursor, or one for another number of streams."""

    sentence = (
        "a cursor must be `now`, `all` or, joined with dots, one part per stream, such as 17 or 17-81-3; send back the"
        " last `id:` received."
    )


class EventError(UsageError):
    """An event that cannot be published."""

    sentence = "an event was refused; correct its data, type or label before publishing it again."


class TokenError(UsageError):
    """A token that none of the secrets has signed, or that cannot be signed."""

    sentence = "the token is unknown or was changed; ask the application for a fresh stream URL."


class TokenExpiredError(TokenError):
    """A token past its expiry."""

    sentence = "the token has expired; ask the application for a fresh stream URL."


class TokenDateError(TokenError):
    """A token whose time of issue is ahead of the server's clock."""

    sentence = "the token is dated ahead; correct the clock of the host that signs."


class HandoffError(HeadraceError):
    """A hand-off message that cannot be read."""

    sentence = "a hand-off message could not be understood; run routers and shards of the same version."


class HandoffVersionError(HandoffError):
    """A hand-off message in the format of another version."""

    sentence = (
        "a hand-off message is of another version; restart the older of the two processes with the newer program."
    )


class UnavailableError(HeadraceError):
    """A server that headrace needs is away: trying again may help."""

    sentence = "a server that headrace needs is away; start it or correct its URL, then try again."


class DatabaseUnavailableError(UnavailableError):
    """PostgreSQL cannot be reached."""

    sentence = "PostgreSQL cannot be reached; start it or correct HEADRACE_DATABASE_URL."


class DatabaseVersionError(UsageError):
    """PostgreSQL is older than version 14."""

    sentence = "PostgreSQL is too old; headrace needs PostgreSQL 14 or newer."


class SchemaError(UsageError):
    """The schema is missing, or is of another version."""

    sentence = "the database does not have this version's schema; run `headrace migrate`."


class OwnershipError(SchemaError):
    """Something in the schema belongs to a role that the current one does not trust."""

    sentence = "something in the schema headrace belongs to a stranger; connect as its owner, or have it dropped."


class MigrationBlockedError(UnavailableError):
    """Open transactions hold the locks that a migration needs."""

    sentence = "an open transaction kept the migration from its locks; end it, or try again, nothing was changed."


class ListenError(UnavailableError):
    """A database connection on which LISTEN delivers no notifications."""

    sentence = "LISTEN delivers nothing here, as behind a pooler; set HEADRACE_LISTEN_DATABASE_URL to a direct URL."


class DirectoryUnavailableError(UnavailableError):
    """Redis cannot be reached."""

    sentence = "Redis cannot be reached; start it or correct HEADRACE_REDIS_URL."

    condition = "away"
    """The word with which /readyz describes Redis."""


class DirectoryReadOnlyError(DirectoryUnavailableError):
    """Redis refuses writes, so that the entries of living shards expire."""

    sentence = "Redis refuses writes; see what it says, and give it memory, or a primary, that takes them."

    condition = "read-only"


class DirectoryForeignError(DirectoryUnavailableError):
    """The Redis database holds the directory of another deployment."""

    sentence = (
        "this Redis database holds the directory of another deployment; set HEADRACE_REDIS_PREFIX or use another one."
    )

    condition = "foreign"


class EmbeddedServerError(UnavailableError):
    """A server that `headrace up` starts did not start."""

    sentence = "an embedded server could not be started; see the log that is named, or set the URL of your own server."


class AlreadyRunningError(UsageError):
    """A second `headrace up` in the same directory."""

    sentence = "another `headrace up` runs in this directory; stop it first or use another directory."
