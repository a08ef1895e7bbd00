"""Signed addresses of streams: what an application gives to its pages, with the secrets of its own environment.

The variables `HEADRACE_…` of an application come from its environment, else from its framework's settings, else from
the file that `headrace up` writes. Within a test they may be replaced.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from headrace import cursor, publisher_tokens, tokens
from headrace.environment_file import environ_with_file
from headrace.errors import SettingsError, StreamNameError, TokenError
from headrace.settings import Settings
from headrace.stream import RESERVED_PREFIX, check_names

_sources: list[Callable[[], Mapping[str, str]]] = []
_replaced: dict[str, str] = {}


def environ() -> dict[str, str]:
    """The variables `HEADRACE_…`, and all others of the environment, as the application has them now."""
    found: dict[str, str] = {}
    for source in _sources:
        found.update(source())
    return {**environ_with_file(found), **os.environ, **_replaced}


def add_source(source: Callable[[], Mapping[str, str]]) -> None:
    """Take variables from a framework's settings, too, where the environment has none. Each framework calls it once."""
    _sources.append(source)


@contextmanager
def replaced(variables: Mapping[str, str]) -> Iterator[None]:
    """Within the block these variables win over all others: for tests, of one thread at a time."""
    before = dict(_replaced)
    _replaced.update(variables)
    try:
        yield
    finally:
        _replaced.clear()
        _replaced.update(before)


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
    """Return the signed path `/streams/<slot>.<token>?since=…` of one stream, or of several on one connection.

    A page gives it to its element `<headrace-stream src="…">` or to an EventSource. streams is a name, or a sequence of
    1 to 64 names. since is where the client begins: a watermark, as `headrace.watermark` gave it for the page's
    snapshot; an id; `now`; `all`; or, for several streams, a watermark or an id for each of them, joined with dots.
    None leaves it out of the path, which means `now`.

    The other arguments are signed into the token. user is text, or an object whose str() is the user's name, such as a
    number. audiences are labels, a sequence of texts. ttl_s is the life of the token in seconds; None means for ever.
    presence names those of the streams on which the user is present while connected; True means all of them but
    companion streams (`headrace.presence_stream`). secrets are those of HEADRACE_SECRET when None; the first one signs.

    Raises TokenError without a secret, for a user, audience or life that is not allowed, for a presence without a user,
    and for a token of more than 49,152 characters; StreamNameError for a name that cannot be a stream, or begins with
    `headrace:`; CursorError for a since that is no cursor of so many streams.
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
    """Return a publisher token, with which a program may `POST /publish` to the streams that match one of the patterns.

    streams is a pattern, or a sequence of 1 to 64 patterns. In a pattern `*` is any text and `?` one character. Neither
    stands for the beginning `presence:` of companion streams, where joins and leaves are published: a publisher that
    may invent those needs a pattern that begins with `presence:`. ttl_s is the life of the token in seconds; None means
    for ever. Before its expiry a token can only be taken back by replacing the secret. secrets are those of
    HEADRACE_SECRET when None.

    Raises TokenError without a secret or pattern, StreamNameError for a pattern that is empty or has over 512 bytes.
    """
    return publisher_tokens.sign_publisher(streams, secrets=_own(secrets), ttl_s=ttl_s)


def _own(secrets: Sequence[str] | None) -> Sequence[str]:
    """The given secrets, else those of the environment. Raises TokenError, with how to set them, if there are none."""
    if secrets is not None:
        return secrets
    settings = Settings.from_environ(environ())
    try:
        return settings.require("secret").secret
    except SettingsError as error:
        raise TokenError(str(error)) from error


def origin() -> str:
    """What a page puts before headrace's paths: HEADRACE_PUBLIC_URL, or "" where unset, for one origin of both."""
    return environ().get("HEADRACE_PUBLIC_URL", "").rstrip("/")
