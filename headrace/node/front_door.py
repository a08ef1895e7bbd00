"""A client that comes in through the front door, the public URL, as a browser does, and measures how long events take.

The canary and the doctor use it. What a failure means, and what to do about it, each of them decides for itself.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from headrace.node import http_client, sse_client
from headrace.tokens import sign


class FrontDoorClient:
    """A client of one stream, from now on. Owned by one greenlet or thread, which MUST close it.

    response is the HTTP response, of which nobody else may read the body.
    """

    def __init__(
        self, public_url: str, stream: str, *, secrets: Sequence[str], life_s: float, timeout_s: float | None = None
    ) -> None:
        """Subscribe, with a token that lives for life_s. Yields.

        timeout_s bounds each wait for bytes, None leaves it to the caller. Raises as `urllib.request.urlopen`.
        """
        token = sign(stream, secrets=secrets, ttl_s=life_s)
        url = f"{public_url.rstrip('/')}/streams/{token}?since=now"
        self.response: Any = http_client.open_direct(url, timeout=timeout_s)
        self._parser = sse_client.Parser()

    def close(self) -> None:
        """End the connection."""
        self.response.close()

    def seconds_of(self, text: str, publish: Callable[[], object], *, within_s: float | None = None) -> float:
        """The time from before publish() until the event that it publishes, with text for data, has come. Yields.

        publish() is called when the server has told this client its cursor. Raises one of `sse_client.BROKEN`, of which
        TimeoutError if the event does not come within_s; and whatever publish raises.
        """
        while not self._parser.last_id:
            self._read()
        began = time.monotonic()
        publish()
        while not any(message.data == text for message in self._read()):
            # Heartbeats come in between, so that the time for each wait is never over.
            if within_s is not None and time.monotonic() - began > within_s:
                raise TimeoutError(f"the event did not arrive within {within_s:g} s")
        return time.monotonic() - began

    def _read(self) -> list[sse_client.Message]:
        data = self.response.read1(sse_client.CHUNK_BYTES)
        if not data:
            raise ConnectionResetError("the response has ended")
        return self._parser.feed(data)
