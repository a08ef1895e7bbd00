"""The secrets that tokens are signed with."""

from collections.abc import Sequence
from typing import Final

from headrace.doctor.finding import Finding, fail, ok, warn

SHORT: Final = 32
FEW_DIFFERENT: Final = 8
_HOW: Final = "make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
_EXAMPLES: Final = ("secret", "password", "change", "example", "1234", "your-")


def strength(secrets: Sequence[str]) -> Finding:
    """Whether somebody could guess a secret, and so read any stream. None is shown."""
    for number, secret in enumerate(secrets, 1):
        which = f"secret {number} of {len(secrets)}"
        if len(set(secret)) < FEW_DIFFERENT:
            return fail("secrets", f"{which} has {len(set(secret))} different characters", _HOW)
        if any(word in secret.lower() for word in _EXAMPLES):
            return warn("secrets", f"{which} looks like an example", _HOW)
        if len(secret) < SHORT:
            return warn("secrets", f"{which} has {len(secret)} characters", _HOW)
    return ok("secrets", f"{len(secrets)}, the first signs")
