"""How other commands ask a running `headrace up` for something: a unix socket beside those of its shards.

client ─► {"restart": ["n-0"]}\n  or {"add": 2}, {"remove": ["n-3"]}, {"list": true}
client ◄─ {"say": "n-0: starting the successor of pid 17"}\n …
client ◄─ {"done": ["n-0", "n-1"]}\n  (the shards there are then)   or {"error": "…"}\n, {"wrong": "…"}\n

wrong is for what the request itself has wrong, error for what could not be done.
"""

import contextlib
import json
import select
import selectors
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from headrace.errors import HeadraceError, UnavailableError, UsageError
from headrace.node.socket_file import SocketFile
from headrace.up.shards import Operation, Shards

FILE_NAME: Final = "up.control"
MAX_REQUEST_BYTES: Final = 64 * 1024
DEADLINE_S: Final = 180.0
_BACKLOG: Final = 16


class Control:
    """The listening end, in the supervisor.

    Owned by the supervisor's loop. Operations run one after the other: two at a time could work against each other.
    A command that waits for its turn is told what it waits for. A command that was given up or has ended by then is
    not carried out, since its user may have been told to try again.
    """

    def __init__(self, path: Path, selector: selectors.BaseSelector, shards: Shards) -> None:
        self._selector = selector
        self._shards = shards
        self._waiting: list[tuple[socket.socket | None, Operation]] = []
        self._under_way = False
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.setblocking(False)
        self._file = SocketFile(self._listening, path, backlog=_BACKLOG)
        selector.register(self._listening, selectors.EVENT_READ, self._accept)

    def ask(self, operation: Operation) -> None:
        """Queue an operation of our own, as for a signal."""
        self._waiting.append((None, operation))

    def step(self, say: Callable[[str], None]) -> bool:
        """Advance the operation that is first in line; say is given its progress.

        Returns whether one is under way, so that this is to be called again soon.
        """
        if not self._waiting:
            return False
        client, operation = self._waiting[0]
        if not self._under_way and client is not None and _hung_up(client):
            del self._waiting[0]
            client.close()
            return bool(self._waiting)
        self._under_way = True
        try:
            line = next(operation)
        except StopIteration:
            self._finish(client, {"done": self._shards.ids})
        except HeadraceError as error:
            say(str(error))
            self._finish(client, _refusal(error))
        else:
            if line is not None:
                say(line)
                _send(client, {"say": line})
                for waiting, _ in self._waiting[1:]:
                    _send(waiting, {"say": f"waiting for another command; {line}"})
        return bool(self._waiting)

    def close(self) -> None:
        """Stop listening; who still waits hears no more."""
        self._selector.unregister(self._listening)
        self._listening.close()
        self._file.remove()
        for client, _ in self._waiting:
            if client is not None:
                client.close()
        self._waiting.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listening.accept()
            # Only our own commands may connect, and they send their line at once.
            client.settimeout(1.0)
            try:
                request = json.loads(client.recv(MAX_REQUEST_BYTES))
                self._waiting.append((client, self._operation(request)))
            except (OSError, ValueError, UsageError) as error:
                _send(client, _refusal(error))
                client.close()

    def _operation(self, request: Any) -> Operation:
        match request:
            case {"restart": list(ids)}:
                return self._shards.restart(ids)
            case {"remove": list(ids)}:
                return self._shards.remove(ids)
            case {"add": int(count)} if 0 < count <= 64:
                return self._shards.add(count)
            case {"list": True}:
                return iter(())
        raise UsageError(f"request not understood: {request!r}")

    def _finish(self, client: socket.socket | None, answer: dict[str, Any]) -> None:
        del self._waiting[0]
        self._under_way = False
        _send(client, answer)
        if client is not None:
            client.close()


def _refusal(error: Exception) -> dict[str, str]:
    return {"wrong" if isinstance(error, UsageError) else "error": str(error)}


def ask(runtime_dir: Path, request: dict[str, Any], say: Callable[[str], None]) -> list[str]:
    """Have the `headrace up` whose runtime directory this is do something; returns its shards' ids afterwards.

    say is given lines of progress. Raises UsageError for a request that is wrong, such as one for a shard that there is
    not, and UnavailableError if none runs, or if it cannot do it.
    """
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(DEADLINE_S)
        try:
            control.connect(str(runtime_dir / FILE_NAME))
            control.sendall(json.dumps(request).encode() + b"\n")
            for answer in _answers(control):
                if "say" in answer:
                    say(answer["say"])
                elif "wrong" in answer:
                    raise UsageError(answer["wrong"])
                elif "error" in answer:
                    raise UnavailableError(answer["error"])
                else:
                    return [str(id_) for id_ in answer["done"]]
        except OSError as error:
            raise UnavailableError(
                f"no `headrace up` answers in {runtime_dir} ({error}); run this where it runs, or restart the "
                "processes by whatever started them"
            ) from error
    raise UnavailableError("`headrace up` ended before it was done")


def _answers(control: socket.socket) -> Iterator[dict[str, Any]]:
    with control.makefile() as lines:
        for line in lines:
            yield json.loads(line)


def _hung_up(client: socket.socket) -> bool:
    """Whether nobody reads this connection any more."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))


def _send(client: socket.socket | None, answer: dict[str, Any]) -> None:
    if client is not None:
        with contextlib.suppress(OSError):
            client.sendall(json.dumps(answer).encode() + b"\n")
