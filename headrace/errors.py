"""Every error that headrace raises, each with the sentence that also tells the fix.

The base class says whose fault it is: `UsageError` is the caller's and becomes a 4xx or exit code 2;
`UnavailableError` is the world's (a server that is away) and becomes a 503 or exit code 1.
"""

from typing import ClassVar


def one_line(error: object) -> str:
    """The text of an error, or what it is if it has none, in one line: for a log, a table or a field.

    libpq's own have several lines.
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
    """The caller's fault, which trying again does not mend."""

    sentence = "the request is wrong and will stay wrong; correct it before trying again."


class SettingsError(UsageError):
    """A setting that is wrong or missing."""

    sentence = "a setting has a value that is not allowed; set the named variable to an allowed one."


class StreamNameError(UsageError):
    """A text that can name no stream."""

    sentence = "a stream name must have 1 to 512 bytes of UTF-8 without NUL; choose another name."


class CursorError(UsageError):
    """A cursor that none of our ids make up."""

    sentence = "a cursor must be `now`, `all` or one id per stream joined with dots; send back the last id received."


class EventError(UsageError):
    """An event that cannot be published."""

    sentence = "an event was refused; correct its data, type or label before publishing it again."


class TokenError(UsageError):
    """A token that is not ours, or cannot be signed."""

    sentence = "the token is unknown or was changed; ask the application for a fresh stream URL."


class TokenExpiredError(TokenError):
    """A token whose time is over."""

    sentence = "the token has expired; ask the application for a fresh stream URL."


class TokenDateError(TokenError):
    """A token that is dated ahead."""

    sentence = "the token is dated ahead; correct the clock of the host that signs."


class HandoffError(HeadraceError):
    """A hand-off message that makes no sense."""

    sentence = "a hand-off message could not be understood; run routers and shards of the same version."


class HandoffVersionError(HandoffError):
    """A hand-off message of another version."""

    sentence = (
        "a hand-off message is of another version; restart the older of the two processes with the newer program."
    )


class UnavailableError(HeadraceError):
    """The world's fault: trying again may help."""

    sentence = "a server that headrace needs is away; start it or correct its URL, then try again."


class DatabaseUnavailableError(UnavailableError):
    """PostgreSQL is away."""

    sentence = "PostgreSQL cannot be reached; start it or correct HEADRACE_DATABASE_URL."


class DatabaseVersionError(UsageError):
    """PostgreSQL is too old."""

    sentence = "PostgreSQL is too old; headrace needs PostgreSQL 14 or newer."


class SchemaError(UsageError):
    """The schema is missing, or is of another version."""

    sentence = "the database does not have this version's schema; run `headrace migrate`."


class OwnershipError(SchemaError):
    """Something in the schema is a stranger's."""

    sentence = "something in the schema headrace belongs to a stranger; connect as its owner, or have it dropped."


class MigrationBlockedError(UnavailableError):
    """Others hold what a migration has to lock."""

    sentence = "an open transaction kept the migration from its locks; end it, or try again, nothing was changed."


class ListenError(UnavailableError):
    """A connection on which LISTEN does nothing."""

    sentence = "LISTEN delivers nothing here, as behind a pooler; set HEADRACE_LISTEN_DATABASE_URL to a direct URL."


class DirectoryUnavailableError(UnavailableError):
    """Redis is away."""

    sentence = "Redis cannot be reached; start it or correct HEADRACE_REDIS_URL."

    condition = "away"
    """What /readyz says of Redis then, in a word."""


class DirectoryReadOnlyError(DirectoryUnavailableError):
    """Redis refuses writes, so that the entries of living shards expire."""

    sentence = "Redis refuses writes; see what it says, and give it memory, or a primary, that takes them."

    condition = "read-only"


class DirectoryForeignError(DirectoryUnavailableError):
    """Another deployment's directory."""

    sentence = (
        "this Redis database holds the directory of another deployment; set HEADRACE_REDIS_PREFIX or use another one."
    )

    condition = "foreign"


class EmbeddedServerError(UnavailableError):
    """A server that `headrace up` starts did not start."""

    sentence = "an embedded server could not be started; see the log that is named, or set the URL of your own server."


class AlreadyRunningError(UsageError):
    """A second `headrace up` in one directory."""

    sentence = "another `headrace up` runs in this directory; stop it first or use another directory."
