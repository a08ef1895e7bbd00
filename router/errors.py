"""The errors of the router's endpoints, and the HTTP status that each error is answered with."""

from typing import Final

from headrace.errors import HandoffError, TokenError, TokenExpiredError, UnavailableError, UsageError
from headrace.router.response import Headers, Response, as_error


class ForbiddenError(UsageError):
    """A token that is genuine and that this server does not serve."""

    sentence = "the token is not for this; ask the application for one that is."


class TooLargeError(UsageError):
    """A body, or what is in it, above a limit."""

    sentence = "the body is too large; send less."


class BodyTooSlowError(UsageError):
    """A body that does not come."""

    sentence = "the body has not come in time; send it at once."


class MalformedBodyError(UsageError):
    """A body that breaks off or is framed wrongly."""

    sentence = "the body is not what the request's head announces; send Content-Length and as many bytes, or chunks."


class StalePlanError(UsageError):
    """A plan of the operations page that is older than the deployment's present state."""

    sentence = "the deployment has changed since the plan was made; look at the new one."


class WrongPageError(UsageError):
    """A page of history that cannot be asked for."""

    sentence = "a page has a stream of the token, an id to begin after and a limit from 1 to 1000; correct the query."


class ClientGoneError(Exception):
    """The client has broken off the connection, so that there is nothing to answer."""


ANSWERED: Final = (UsageError, HandoffError, UnavailableError)
"""The errors that a client is told of. Any other is a fault of the router's, which it answers with 500 and logs."""

_STATUSES: Final[dict[type[Exception], int]] = {
    ForbiddenError: 403,
    TokenExpiredError: 403,
    # The token is part of the path: without a genuine one there is nothing.
    TokenError: 404,
    BodyTooSlowError: 408,
    StalePlanError: 409,
    TooLargeError: 413,
    UsageError: 400,
    HandoffError: 400,
    UnavailableError: 503,
}


def error_response(error: Exception, headers: Headers = ()) -> Response:
    """The response to a request that met one of the errors in ANSWERED: the status of its nearest class."""
    status = next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)
    return as_error(status, error, headers)
