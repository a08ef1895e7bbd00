"""Every error that headrace raises, each with the sentence that also tells the fix.

The base class says whose fault it is: `UsageError` is the caller's and becomes a 4xx or exit code 2;
`UnavailableError` is the world's (a server that is away) and becomes a 503 or exit code 1.
"""


class HeadraceError(Exception):
    """headrace could not do what was asked; the message says why and what to do."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class UsageError(HeadraceError):
    """the request is wrong and will stay wrong; correct it before trying again."""


class SettingsError(UsageError):
    """a setting has a value that is not allowed; set the named variable to an allowed one."""


class StreamNameError(UsageError):
    """a stream name must have 1 to 512 bytes of UTF-8 without NUL; choose another name."""


class CursorError(UsageError):
    """a cursor must be `now`, `all` or one id per stream joined with dots; send back the last id received."""


class EventError(UsageError):
    """an event was refused; correct its data, type or label before publishing it again."""


class TokenError(UsageError):
    """the token is unknown or was changed; ask the application for a fresh stream URL."""


class TokenExpiredError(TokenError):
    """the token has expired; ask the application for a fresh stream URL."""


class HandoffError(HeadraceError):
    """a hand-off message could not be understood; run routers and shards of the same version."""


class HandoffVersionError(HandoffError):
    """a hand-off message is of another version; restart the older of the two processes with the newer program."""


class UnavailableError(HeadraceError):
    """a server that headrace needs is away; start it or correct its URL, then try again."""


class DatabaseUnavailableError(UnavailableError):
    """PostgreSQL cannot be reached; start it or correct HEADRACE_DATABASE_URL."""


class DatabaseVersionError(UsageError):
    """PostgreSQL is too old; headrace needs PostgreSQL 14 or newer."""


class SchemaError(UsageError):
    """the database does not have this version's schema; run `headrace migrate`."""


class OwnershipError(SchemaError):
    """something in the schema headrace belongs to a stranger; connect as its owner, or have it dropped."""


class MigrationBlockedError(UnavailableError):
    """an open transaction kept the migration from its locks; end it, or try again, nothing was changed."""


class ListenError(UnavailableError):
    """LISTEN delivers nothing here, as behind a pooler; set HEADRACE_LISTEN_DATABASE_URL to a direct URL."""


class DirectoryUnavailableError(UnavailableError):
    """Redis cannot be reached; start it or correct HEADRACE_REDIS_URL."""


class EmbeddedServerError(UnavailableError):
    """an embedded server could not be started; see the log that is named, or set the URL of your own server."""


class AlreadyRunningError(UsageError):
    """another `headrace up` runs in this directory; stop it first or use another directory."""
