"""The data of an event as text: a text as it is, and a dict or a list as JSON.

Values are encoded as Django's DjangoJSONEncoder does it, for applications with and without Django: a moment as in
ECMA-262 ("2026-05-04T03:02:01.123Z", in milliseconds), a date as "2026-05-04", a time without a zone as "03:02:01.123",
a duration as in ISO 8601 ("P1DT02H03M04S"), Decimal, UUID and Django's lazy texts as text. Numbers stay numbers; a
browser reads those above 2^53 inexactly, so applications give such ids as text.
"""

import json
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from headrace.errors import EventError

Data = str | dict[Any, Any] | list[Any] | tuple[Any, ...]
"""What an application may give as the data of an event."""


def as_text(data: Data) -> str:
    """Return the text of an event's data: text itself, or the JSON of a dict, a list or a tuple.

    Raises EventError for any other object, and, with the place of the value, for one that JSON cannot express: an
    object of a class that is not named above, a number that is not finite, a key that is no text.
    """
    if isinstance(data, str):
        return data
    if not isinstance(data, dict | list | tuple):
        raise EventError(f"data must be text, a dict or a list, not {data!r:.80}")
    try:
        return json.dumps(data, default=_plain, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        found = _fault(data, "data", ())
        raise EventError(found or f"data cannot be encoded as JSON: {error}") from error


def _plain(value: Any) -> str:
    """The text of a value that JSON has no form for. Raises TypeError or ValueError if there is none."""
    if isinstance(value, datetime):
        text = value.isoformat()
        if value.microsecond:
            text = text[:23] + text[26:]
        return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, time):
        if value.utcoffset() is not None:
            raise ValueError("a time with a zone has no form in JSON")
        text = value.isoformat()
        return text[:12] if value.microsecond else text
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, Decimal | UUID) or _is_lazy(value):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _duration(value: timedelta) -> str:
    sign = ""
    if value < timedelta(0):
        sign, value = "-", -value
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06d}" if value.microseconds else ""
    return f"{sign}P{value.days}DT{hours:02d}H{minutes:02d}M{seconds:02d}{fraction}S"


def _is_lazy(value: object) -> bool:
    """Whether it is one of Django's lazy texts, without importing Django."""
    return any(
        kind.__module__ == "django.utils.functional" and kind.__name__ == "Promise" for kind in type(value).__mro__
    )


def _fault(value: Any, place: str, outer: tuple[int, ...]) -> str | None:
    """Describe the first value below value that cannot be encoded, with its place, such as `data['items'][2]`."""
    if isinstance(value, dict | list | tuple):
        if id(value) in outer:
            return f"{place} contains itself; JSON cannot express that"
        below: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in below:
            if isinstance(value, dict) and not (key is None or isinstance(key, str | int | float)):
                return f"{place} has the key {key!r:.80}, which is no text; use a text as the key"
            if len(outer) < 100 and (found := _fault(inner, f"{place}[{key!r:.80}]", (*outer, id(value)))):
                return found
        return None
    try:
        json.dumps(value, default=_plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"{place} is {value!r:.80}, which JSON cannot express ({error}); give a text or a number instead"
    return None
