"""What to say of a TLS connection that could not be made: "nothing answers there" would mislead."""

import ssl
import urllib.error
from typing import NamedTuple


class Fault(NamedTuple):
    """What is wrong, as the rest of a sentence about a URL, and what to do."""

    found: str
    advice: str


def fault(error: BaseException) -> Fault | None:
    """The fault that an error of urllib or of a socket is about; None if TLS is no part of it."""
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
