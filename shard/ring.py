"""Recent frames of a stream, encoded, so that a resume or a slow client's catch-up costs no query.

A ring covers the ids above `start` up to the stream's head, without holes: every event that the log has between them.
It is bounded in bytes and forgets its oldest frames first; an event that it has forgotten is read from the log.
"""

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import islice

from headrace.event import Frame


class Ring:
    """The newest frames of one stream.

    Owned by the dispatcher greenlet.
    """

    __slots__ = ("_frames", "_limit", "size", "start")

    def __init__(self, start: int, limit: int) -> None:
        self.start = start
        self.size = 0
        self._limit = limit
        self._frames: deque[Frame] = deque()

    def __repr__(self) -> str:
        return f"<Ring after {self.start}: {len(self._frames)} frames, {self.size} bytes>"

    def reset(self, start: int) -> None:
        """Forget all frames; the ring now begins after the id start."""
        self._frames.clear()
        self.start = start
        self.size = 0

    def append(self, frames: Iterable[Frame]) -> None:
        """Add frames that follow those held, oldest first; forget the oldest beyond the limit."""
        for frame in frames:
            self._frames.append(frame)
            self.size += len(frame)
        while self.size > self._limit:
            self.shed()

    def prepend(self, after: int, frames: Sequence[Frame]) -> bool:
        """Extend the ring backwards by all frames above the id after; false, and unchanged, where they do not fit.

        frames MUST be all that the log has above after, in order. Those that the ring holds already are passed over, so
        a page of the log may overlap it.
        """
        older = frames[: bisect_right(frames, self.start, key=lambda frame: frame.id)]
        size = sum(len(frame) for frame in older)
        if not older or after >= self.start or older[-1].id != self.start or self.size + size > self._limit:
            return False
        self._frames.extendleft(reversed(older))
        self.size += size
        self.start = after
        return True

    def shed(self) -> int:
        """Forget the oldest frame; returns its bytes, 0 if there is none."""
        if not self._frames:
            return 0
        frame = self._frames.popleft()
        self.size -= len(frame)
        self.start = frame.id
        return len(frame)

    def after(self, position: int, max_bytes: int) -> list[Frame] | None:
        """Frames above position, at most max_bytes but at least one; None if the ring does not cover position.

        An id between start and the newest that is no frame's is not covered: it lies inside a recorded jump.
        """
        index = bisect_right(self._frames, position, key=lambda frame: frame.id)
        if position != (self._frames[index - 1].id if index else self.start):
            return None
        found: list[Frame] = []
        size = 0
        for frame in islice(self._frames, index, None):
            size += len(frame)
            if found and size > max_bytes:
                break
            found.append(frame)
        return found


class RingBudget:
    """Bounds the bytes of all rings together: the ring that has been unchanged for longest sheds first.

    Owned by the dispatcher greenlet.
    """

    def __init__(self, limit: int) -> None:
        self.size = 0
        self._limit = limit
        self._sizes: OrderedDict[Ring, int] = OrderedDict()

    def account(self, ring: Ring) -> None:
        """Account for a ring that has just changed; it is the last to shed."""
        self.size += ring.size - self._sizes.pop(ring, 0)
        self._sizes[ring] = ring.size
        while self.size > self._limit and self._sizes:
            oldest = next(iter(self._sizes))
            self.size -= oldest.shed()
            if oldest.size:
                self._sizes[oldest] = oldest.size
            else:
                del self._sizes[oldest]

    def forget(self, ring: Ring) -> None:
        """Stop accounting for a ring that is dropped."""
        self.size -= self._sizes.pop(ring, 0)
