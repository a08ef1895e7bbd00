"""Signed addresses of streams: what an application gives to its pages, with the secrets of its own environment."""

import os
from collections.abc import Sequence

from headrace import cursor, publisher_token, tokens
from headrace.errors import SettingsError, StreamNameError, TokenError
from headrace.settings import Settings, environ_with_file
from headrace.stream import RESERVED_PREFIX, check_names


def sign(
    streams: str | Sequence[str],
    *,
    since: int | str | None = None,
    user: object = None,
    audiences: Sequence[str] = (),
    ttl_s: float | None = None,
    presence: bool | Sequence[str] = False,
    secrets: Sequence[str] | None = None,
) -> str:
    """Return the path `/streams/<slot>.<token>?since=…` for a page's stream element or an EventSource.

    since is where the client begins: an id (as `headrace.head` gave it for the page's snapshot), `now`, `all`
    or a composite cursor; left out of the path when None, which means `now`. user (text, or what has one, such as a
    number), audiences (a list of labels) and ttl_s (seconds, None for ever) are signed into the token. presence makes
    the user present, as long as the connection lasts, on those of the streams that it names; True means all but
    companion streams (`headrace.presence_stream`). secrets are those of HEADRACE_SECRET when None.

    Raises TokenError without a secret, for a user, audience or life that cannot be, or for a presence without a user;
    StreamNameError for a name that cannot be a stream, or begins with `headrace:`; CursorError for a since that every
    server would refuse.
    """
    names = check_names(streams)
    for name in names:
        if name.startswith(RESERVED_PREFIX):
            raise StreamNameError(f"{name!r} is headrace's own; choose a name that does not begin with 'headrace:'")
    token = tokens.sign(names, secrets=_own(secrets), user=user, audiences=audiences, ttl_s=ttl_s, presence=presence)
    if since is None:
        return f"/streams/{token}"
    cursor.parse(str(since), len(names))
    return f"/streams/{token}?since={since}"


def sign_publisher(
    streams: str | Sequence[str], *, ttl_s: float | None = None, secrets: Sequence[str] | None = None
) -> str:
    """Return a token that allows its holder to `POST /publish` to the streams that match one of the patterns.

    In a pattern `*` is any text and `?` one character, but neither stands for `presence:`, where joins and leaves are
    published: spell that out for who may make them up. ttl_s is the life of the token in seconds, None for no expiry:
    until then it can only be taken back by replacing the secret. secrets are those of HEADRACE_SECRET when None. Raises
    TokenError without a secret or pattern, StreamNameError for a pattern that is empty or has over 512 bytes.
    """
    return publisher_token.sign_publisher(streams, secrets=_own(secrets), ttl_s=ttl_s)


def _own(secrets: Sequence[str] | None) -> Sequence[str]:
    """Those that are given, else those of the environment. Raises TokenError, with how to set them, without any."""
    if secrets is not None:
        return secrets
    settings = Settings.from_environ(environ_with_file(os.environ))
    try:
        return settings.require("secret").secret
    except SettingsError as error:
        raise TokenError(str(error)) from error


def origin() -> str:
    """What a page puts before our paths: HEADRACE_PUBLIC_URL where it is set, else nothing, for one origin of both."""
    return environ_with_file(os.environ).get("HEADRACE_PUBLIC_URL", "").rstrip("/")
