"""What a shard has done since its start, as plain numbers."""


class Counters:
    """What delivery has done since the start: plain numbers that others read.

    Owned by the dispatcher greenlet; reading is safe anywhere.
    """

    __slots__ = ("bytes", "closed", "deliveries", "events", "writes")

    def __init__(self) -> None:
        self.events = 0
        self.deliveries = 0
        self.writes = 0
        self.bytes = 0
        self.closed: dict[str, int] = {}
