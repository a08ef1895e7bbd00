"""The front door: whether an event that is published now arrives now at a client that came through the public URL."""

import secrets as random_names
import urllib.error
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Final

from headrace.doctor.finding import Finding, fail, ok, warn
from headrace.node import sse_client, tls_errors
from headrace.node.front_door import FrontDoorClient

EVENTS: Final = 3
LATE_S: Final = 1.0
PATIENCE_S: Final = 4.0
TOKEN_LIFE_S: Final = 60.0
_CHECK: Final = "front door"
_BUFFERS: Final = (
    "a proxy in between keeps the response back: switch off its buffering (nginx: proxy_buffering off) and compression "
    "for /streams/"
)


def delivery(public_url: str, secrets: Sequence[str], publish: Callable[[str, str], object]) -> Finding:
    """Subscribe through the public URL, publish a few events one after the other, and measure how long each takes.

    publish(stream, data) commits an event. A proxy that buffers would bring them late, all at once, or not at all.
    """
    stream = f"headrace:doctor:{random_names.token_hex(8)}"
    try:
        client = FrontDoorClient(public_url, stream, secrets=secrets, life_s=TOKEN_LIFE_S, timeout_s=PATIENCE_S)
    except urllib.error.HTTPError as error:
        with error:
            return _refused(error.code)
    except TimeoutError:
        return fail(_CHECK, f"{public_url} gave no answer within {PATIENCE_S:g} s", _BUFFERS)
    except sse_client.BROKEN as error:
        if distrust := tls_errors.fault(error):
            return fail(_CHECK, f"{public_url}: {distrust.found}", distrust.advice)
        return fail(_CHECK, f"{public_url}: {error}", "start the router, or correct HEADRACE_PUBLIC_URL")
    with closing(client):
        if sse_client.is_proxys_word(client.response):
            return fail(
                _CHECK, f"the proxy at {public_url} reaches no router that is ready", "see the router's /readyz"
            )
        try:
            took_s = [
                client.seconds_of(text, partial(publish, stream, text), within_s=PATIENCE_S)
                for text in map(str, range(EVENTS))
            ]
        except sse_client.BROKEN:
            return fail(_CHECK, f"an event did not arrive within {PATIENCE_S:g} s through {public_url}", _BUFFERS)
    slowest_ms = max(took_s) * 1000
    found = f"{EVENTS} events through {public_url}, the slowest took {slowest_ms:.0f} ms"
    if slowest_ms > LATE_S * 1000:
        return warn(_CHECK, found, f"look for load in the metrics; or {_BUFFERS}")
    return ok(_CHECK, found)


def _refused(status: int) -> Finding:
    advice = {
        404: "the router has another HEADRACE_SECRET, or the public URL leads elsewhere",
        502: "the proxy cannot reach the router",
        503: "no shard accepts clients: see /readyz",
        504: "the proxy gets no answer from the router",
    }
    return fail(_CHECK, f"answered {status}", advice.get(status, "see the log of the router under this status"))
