"""What a test sees of an event that was published."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """One event: its stream, its type (`message` unless given), its data, and the label of its audience or None."""

    stream: str
    type: str
    data: str
    visible_to: str | None

    def json(self) -> Any:
        """The value of the data, read as JSON. Raises ValueError for other data."""
        return json.loads(self.data)
