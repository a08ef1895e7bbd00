"""Where one node serves: the address that its router listens at."""

import http.client
import ipaddress
import socket
import time
from dataclasses import dataclass

from headrace.embedded import free_port as ports
from headrace.errors import UsageError

_ANYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # not bound to here


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port to listen at."""

    host: str
    port: int

    @classmethod
    def claim(cls, host: str, port: int, patience_s: float = 0.0) -> "Address":
        """The address if it is free, and with port 0 a free port there. It is not reserved.

        Waits patience_s for a port that is taken. Raises UsageError if it stays taken, or host is not ours.
        """
        try:
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise UsageError(f"cannot serve at {host!r}: {error.strerror}; choose another --host") from error
        family, _, _, _, address = found[0]
        if port == 0:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                try:
                    probe.bind(address)
                except OSError as error:
                    raise UsageError(f"cannot serve at {host!r}: {error.strerror}; choose another --host") from error
            return cls(host, ports.choose(str(address[0]), ports.ROUTERS))
        deadline = time.monotonic() + patience_s
        while not ports.is_free(port, str(address[0])):
            if time.monotonic() > deadline:
                raise UsageError(
                    f"cannot serve at port {port} of {host!r}, it is taken or not allowed; stop what listens there, "
                    "or choose another with --port"
                )
            time.sleep(0.1)
        return cls(host, port)

    @property
    def bind(self) -> str:
        """As gunicorn wants it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        return f"http://{Address(self._reachable, self.port).bind}"

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine reaches it."""
        return all(
            ipaddress.ip_address(str(found[4][0]).partition("%")[0]).is_loopback
            for found in socket.getaddrinfo(
                self.host or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        )

    def is_ready(self) -> bool:
        """Whether a router there says, at /readyz, that it serves clients; within a second or so."""
        connection = http.client.HTTPConnection(self._reachable, self.port, timeout=1)
        try:
            connection.request("GET", "/readyz", headers={"Connection": "close"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    @property
    def _reachable(self) -> str:
        return _ANYWHERE.get(self.host, self.host)
