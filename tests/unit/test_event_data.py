"""headrace/event_data.py"""

import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.core.serializers.json import DjangoJSONEncoder
from django.utils.functional import lazystr

from headrace.errors import EventError
from headrace.event_data import as_text

LOOP: list[Any] = []
LOOP.append(LOOP)


def test_text_stays_text() -> None:
    """A text is published as it is, also one that looks like JSON."""
    assert as_text('{"id":1}') == '{"id":1}'


@pytest.mark.parametrize(
    "value",
    [
        1,
        2.5,
        None,
        True,
        "ü\n",
        date(2026, 5, 4),
        datetime(2026, 5, 4, 3, 2, 1),
        datetime(2026, 5, 4, 3, 2, 1, 123456),
        datetime(2026, 5, 4, 3, 2, 1, 9, tzinfo=UTC),
        datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone(timedelta(hours=-2))),
        time(3, 2, 1),
        time(3, 2, 1, 123456),
        timedelta(days=1, hours=2, seconds=3, microseconds=4),
        timedelta(seconds=-1),
        Decimal("12.50"),
        UUID("12345678123456781234567812345678"),
        lazystr("later"),
        (1, [2, {"three": 3}]),
        {1: "a number as a key"},
    ],
)
def test_values_are_those_of_django(value: Any) -> None:
    """Each value becomes what DjangoJSONEncoder makes of it."""
    text = as_text({"value": value})
    assert json.loads(text) == json.loads(json.dumps({"value": value}, cls=DjangoJSONEncoder))
    assert as_text([value]) == json.dumps([value], cls=DjangoJSONEncoder, ensure_ascii=False)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"items": [{"price": 1}, {"price": {1, 2}}]}, r"^data\['items'\]\[1\]\['price'\] is \{1, 2\}, which JSON"),
        ([float("nan")], r"^data\[0\] is nan"),
        ({"at": time(1, tzinfo=UTC)}, r"^data\['at'\] is datetime.time.*a time with a zone"),
        ({"a": {(1, 2): 3}}, r"^data\['a'\] has the key \(1, 2\), which is no text"),
        (LOOP, r"^data\[0\] contains itself"),
        (5, "^data must be text, a dict or a list, not 5"),
        (None, "^data must be text, a dict or a list, not None"),
        (b"x", "^data must be text, a dict or a list, not b'x'"),
    ],
)
def test_what_json_cannot_express_is_named(data: Any, sentence: str) -> None:
    """The error names the place of the value, and the value."""
    with pytest.raises(EventError, match=sentence):
        as_text(data)
