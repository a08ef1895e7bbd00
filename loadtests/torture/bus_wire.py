"""The wire between headrace and Redis: a proxy that loses, repeats, holds back and shuffles what the bus tells."""

import random
import socket
import time
from typing import Final

from loadtests.torture.wire import Wire

TROUBLES: Final = ("lose", "repeat", "delay", "shuffle", "lose all")
_MESSAGE: Final = (b"*3\r\n$8\r\nsmessage\r\n", b"*3\r\n$7\r\nmessage\r\n")


class BusWire(Wire):
    """As a wire. While there is trouble, messages to subscribers fare badly; all other answers of Redis pass.

    trouble is one of TROUBLES, "" for none. The directory's hint that something has changed is such a message as well.
    """

    def __init__(self, port: int, chance: random.Random) -> None:
        super().__init__(port)
        self.trouble = ""
        self._chance = chance

    def passed_on(self, source: socket.socket, data: bytes) -> bytes:
        """What comes out of the wire for what has come in."""
        if not self.trouble or not (messages := whole_messages(data)):
            return data
        if self.trouble == "delay":
            time.sleep(self._chance.uniform(0, 0.3))
        elif self.trouble == "shuffle":
            self._chance.shuffle(messages)
        elif self.trouble == "repeat":
            messages += messages[: self._chance.randint(0, len(messages))]
        else:
            messages = [each for each in messages if self.trouble == "lose" and self._chance.random() < 0.7]
        return b"".join(messages)


def whole_messages(data: bytes) -> list[bytes]:
    """The messages for subscribers that data are made of; none if it is anything else, or not whole."""
    found = []
    while data:
        beginning = next((each for each in _MESSAGE if data.startswith(each)), None)
        if beginning is None:
            return []
        end = len(beginning)
        for _ in range(2):
            size, mark, _ = data[end:].partition(b"\r\n")
            if not mark or not size[1:].isdigit():
                return []
            end += len(size) + 2 + int(size[1:]) + 2
        if end > len(data):
            return []
        found.append(data[:end])
        data = data[end:]
    return found
