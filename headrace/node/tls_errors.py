"""What the errors of a TLS connection mean, and what to do about them.

Without this, a command would say "nothing answers there" of a server whose certificate it does not trust.
"""

import ssl
import urllib.error
from typing import NamedTuple


class Fault(NamedTuple):
    """What is wrong (`found`, the rest of a sentence that begins with the URL), and what to do about it."""

    found: str
    advice: str


def fault(error: BaseException) -> Fault | None:
    """The fault that an error of urllib, or of a socket, is about; None if the error is not about TLS."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return Fault(
            f"its certificate is not trusted on this machine: {reason.verify_message}",
            "have it signed for this name by an authority that this machine knows, or set SSL_CERT_FILE, for this "
            "command and for shards, to a file with the certificate of the authority",
        )
    if isinstance(reason, ssl.SSLError):
        return Fault(
            f"TLS fails there: {reason.reason or reason}",
            "see that the server there speaks TLS, or let the URL begin with http://",
        )
    return None
