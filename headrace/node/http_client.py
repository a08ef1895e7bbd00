"""How headrace's own programs reach a router: past the proxies that an environment names, where these are not meant.

`http_proxy` and its kin are for what lies beyond a network. The canary, the doctor and `status` look at their own node,
to which a proxy of that kind does not lead. `tail` is a client like any other and goes by it, but not to its own
machine.
"""

import ipaddress
import urllib.parse
import urllib.request
from typing import Any

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def open_direct(request: str | urllib.request.Request, *, timeout: float | None = None) -> Any:
    """Open a URL of this node, without a proxy of the environment. Yields, and raises as `urllib.request.urlopen`."""
    return _DIRECT.open(request) if timeout is None else _DIRECT.open(request, timeout=timeout)


def open_as_client(request: str | urllib.request.Request, *, timeout: float) -> Any:
    """Open a URL as a client does: through the proxy that the environment names, unless it leads to this machine."""
    url = request if isinstance(request, str) else request.full_url
    if _is_here(urllib.parse.urlsplit(url).hostname or ""):
        return _DIRECT.open(request, timeout=timeout)
    # An opener of its own, since that of `urlopen` keeps the proxies that the environment named at its first use.
    return urllib.request.build_opener().open(request, timeout=timeout)


def _is_here(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
