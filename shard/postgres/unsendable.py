"""Events that cannot be sent to any client: what stands in their place, and the log line that tells of them.

PostgreSQL checks what it stores, so such events exist only where its data are damaged, or somebody has changed them by
hand: text that is not UTF-8, an event type with a line break. Such an event is skipped. Its clients are told that they
missed it, and everything behind it arrives.
"""

import logging
from collections import OrderedDict
from typing import Final

from headrace.event import DEFAULT_TYPE, Frame, gap_event

logger = logging.getLogger(__name__)

MOST_REMEMBERED: Final = 1000


class Unsendable:
    """Counts the events that were skipped, and logs each of them once.

    Shared by the greenlets that read events; no method switches. The latest MOST_REMEMBERED are remembered.
    """

    def __init__(self) -> None:
        self.count = 0
        self._known: OrderedDict[tuple[str, int], None] = OrderedDict()

    def checked(
        self, stream: str, id_: int, type_: str | bytes | None, data: str | bytes, label: str | bytes | None
    ) -> tuple[str, str, str | None]:
        """Type, data and label as they are sent. A text that could not be decoded is given as bytes."""
        if isinstance(type_, bytes) or isinstance(data, bytes) or isinstance(label, bytes):
            return self._skipped(stream, id_, label, "it is not UTF-8")
        if type_ is not None and ("\r" in type_ or "\n" in type_):
            return self._skipped(stream, id_, label, "its type has a line break")
        return type_ or DEFAULT_TYPE, data, label

    def frame(
        self,
        stream: str,
        id_: int,
        seq: int | None,
        type_: str | bytes | None,
        data: str | bytes,
        label: str | bytes | None,
    ) -> Frame:
        """The frame of an event, or the frame that tells clients that they missed it."""
        sent_type, sent_data, sent_label = self.checked(stream, id_, type_, data, label)
        return Frame(id_, sent_data, sent_type, sent_label, seq)

    def _skipped(self, stream: str, id_: int, label: str | bytes | None, why: str) -> tuple[str, str, str | None]:
        if (stream, id_) not in self._known:
            self._known[stream, id_] = None
            if len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)
            self.count += 1
            logger.error("event %d of stream %r cannot be sent, and is told as a gap: %s", id_, stream, why)
        return *gap_event(stream, id_), None if isinstance(label, bytes) else label
