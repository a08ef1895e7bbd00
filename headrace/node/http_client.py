"""How headrace's own programs open a URL: with, or without, the HTTP proxy that the environment names.

`http_proxy` and similar variables name a proxy that leads out of a network. The canary, the doctor and `headrace
status` ask their own node, to which such a proxy does not lead, so they use none. `headrace tail` is a client like any
other: it uses the proxy, except for a URL of its own machine.
"""

import ipaddress
import urllib.parse
import urllib.request
from typing import Any

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def open_direct(request: str | urllib.request.Request, *, timeout: float | None = None) -> Any:
    """Open a URL of this node, without a proxy. Yields. Raises as `urllib.request.urlopen`."""
    return _DIRECT.open(request) if timeout is None else _DIRECT.open(request, timeout=timeout)


def open_as_client(request: str | urllib.request.Request, *, timeout: float) -> Any:
    """Open a URL through the proxy that the environment names; without a proxy if the URL is of this machine.

    Yields. Raises as `urllib.request.urlopen`.
    """
    url = request if isinstance(request, str) else request.full_url
    if _is_here(urllib.parse.urlsplit(url).hostname or ""):
        return _DIRECT.open(request, timeout=timeout)
    # `urlopen` would keep the proxies that the environment named when it was used first.
    return urllib.request.build_opener().open(request, timeout=timeout)


def _is_here(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
