"""headrace/node/handoff.py between versions: each understands what the other sends."""

import json
from dataclasses import replace
from typing import Any

import pytest

from headrace.cursor import Pending, Position
from headrace.errors import HandoffError, HandoffVersionError
from headrace.node import handoff
from headrace.node.handoff import Handoff, HandoffAnswer, Moved
from headrace.tokens import Context
from tests.fixtures.releases import RELEASES, Release

ISSUED_MS = 1700000000000
NEW = Handoff(
    (("room:1", Position(17)), ("ж", "now"), ("c", "all")),
    Context("ada", frozenset({"staff", "ops"}), ISSUED_MS, ISSUED_MS + 360000),
    "r-1",
    "192.0.2.7:51234",
    (("Access-Control-Allow-Origin", "https://a.example"), ("Vary", "Origin")),
)
MOVED = Handoff(
    (("room:1", Position(3)), ("c", Position(0))),
    Context(None, frozenset(), ISSUED_MS),
    "r-2",
    "192.0.2.7:51235",
    (),
    Moved(812, True),
)
SENT = [
    # 0.1.0, a router's and a shard's
    (
        '{"v":1,"streams":[["room:1",17],["ж","now"],["c","all"]],'
        '"context":["ada",["ops","staff"],1700000000000,1700000360000],"request_id":"r-1","peer":"192.0.2.7:51234",'
        '"headers":[["Access-Control-Allow-Origin","https://a.example"],["Vary","Origin"]],"moved":null}',
        NEW,
    ),
    (
        '{"v":1,"streams":[["room:1",3],["c",0]],"context":[null,[],1700000000000,null],"request_id":"r-2",'
        '"peer":"192.0.2.7:51235","headers":[],"moved":[812,true]}',
        MOVED,
    ),
]
# What a release's decoder finds in the message of its argument.
FOUND = """
import json, sys
from headrace.handoff import decode
found = decode(sys.argv[1].encode())
context = [found.context.user, sorted(found.context.audiences), found.context.issued_ms, found.context.expires_ms]
moved = found.moved and [found.moved.unsent, found.moved.owed]
print(json.dumps([found.streams, context, found.request_id, found.peer, found.headers, moved]))
"""
REFUSED = """
import json, sys
from headrace.handoff import decode
try:
    decode(sys.argv[1].encode())
except Exception as error:
    print(json.dumps(type(error).__name__))
"""


def with_fields(sent: str, **fields: Any) -> bytes:
    return json.dumps(json.loads(sent) | fields).encode()


@pytest.mark.parametrize(("sent", "meant"), SENT)
def test_what_was_sent_by_releases_is_understood(sent: str, meant: Handoff) -> None:
    """The bytes of each released version mean what they meant."""
    assert handoff.decode(sent.encode()) == meant


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
@pytest.mark.parametrize("message", [NEW, replace(NEW, chunked=True), MOVED, replace(NEW, moved=Moved())])
def test_releases_understand_what_is_sent(release: Release, message: Handoff) -> None:
    """A process of each released version refuses the newest form and takes the older one."""
    context = message.context
    newest, older = (form.decode() for form in handoff.forms(message))
    assert release.evaluate(REFUSED, newest) in ("HandoffError", "HandoffVersionError")
    assert release.evaluate(FOUND, older) == [
        [[name, start.id if isinstance(start, Position) else start] for name, start in message.streams],
        [context.user, sorted(context.audiences), context.issued_ms, context.expires_ms],
        message.request_id,
        message.peer,
        [list(header) for header in message.headers],
        [message.moved.unsent, message.moved.owed] if message.moved else None,
    ]


def test_a_response_begun_in_chunks_has_no_older_form() -> None:
    """An older shard, which would write between the chunks, is never offered a connection that has begun in chunks."""
    assert list(handoff.forms(replace(MOVED, chunked=True))) == [handoff.encode(replace(MOVED, chunked=True))]
    assert len(handoff.forms(MOVED)) == 2


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
@pytest.mark.parametrize("moved", [None, Moved(812, True)])
def test_a_client_with_pending_events_has_no_older_form(release: Release, moved: Moved | None) -> None:
    """An older shard, which would send it the events that it has, refuses the only form, and is offered no other."""
    streams = (("room:1", Position(17, Pending({81, 84}))), ("c", Position(4)))
    message = Handoff(streams, Context("ada"), "r-3", "192.0.2.7:51236", moved=moved)
    (form,) = handoff.forms(message)
    assert form == handoff.encode(message)
    assert release.evaluate(REFUSED, form.decode()) in ("HandoffError", "HandoffVersionError")
    without = replace(message, streams=(("room:1", Position(17)), ("c", Position(4))))
    assert len(handoff.forms(without)) == 2


@pytest.mark.parametrize("message", [NEW, MOVED, Handoff((("a", Position(3)),), Context(), "r", "p", page=7)])
def test_versions_differ_in_what_must_not_be_overlooked(message: Handoff) -> None:
    """Chunks and the deployment travel in the newest form alone; all else is the same in both."""
    whole = replace(message, chunked=message.page is None, deployment="7c0f")
    assert handoff.decode(handoff.encode(whole)) == whole
    older = 1 if message.page is None else 2
    assert handoff.decode(handoff.encode(whole, older)) == message
    stray = json.loads(handoff.encode(message, older)) | {"chunked": True, "deployment": "7c0f"}
    assert handoff.decode(json.dumps(stray).encode()) == message


@pytest.mark.parametrize(("sent", "meant"), SENT)
def test_what_is_unknown_is_overlooked(sent: str, meant: Handoff) -> None:
    """Fields that a later version adds, and values behind those known in an array, do no harm."""
    known = json.loads(sent)
    assert handoff.decode(with_fields(sent, colour="red", more={"a": [1]})) == meant
    assert handoff.decode(with_fields(sent, context=[*known["context"], "later"])) == meant
    assert handoff.decode(with_fields(sent, streams=[[*pair, 9] for pair in known["streams"]])) == meant
    if known["moved"]:
        assert handoff.decode(with_fields(sent, moved=[*known["moved"], 1])) == meant


def test_what_is_missing_has_a_default() -> None:
    """A giver may leave out all but version, streams and context."""
    least = {name: json.loads(SENT[0][0])[name] for name in ("v", "streams", "context")}
    assert handoff.decode(json.dumps(least).encode()) == Handoff(NEW.streams, NEW.context, "", "")
    for name in least:
        with pytest.raises(HandoffError):
            handoff.decode(json.dumps({key: value for key, value in least.items() if key != name}).encode())


@pytest.mark.parametrize("version", [0, 4, 17])
def test_another_version_is_told_from_garbage(version: int) -> None:
    """A message that this process must not read is refused for its version, whatever else is in it."""
    with pytest.raises(HandoffVersionError, match=f"version {version}; this process speaks 1, 2 and 3"):
        handoff.decode(json.dumps({"v": version}).encode())
    for value in (None, True, "1", 1.0):
        with pytest.raises(HandoffError) as raised:
            handoff.decode(with_fields(SENT[0][0], v=value))
        assert not isinstance(raised.value, HandoffVersionError)


def test_an_answer_may_say_more() -> None:
    """A taker's answer is understood with whatever a later version adds, and a reason that is new is a refusal."""
    assert handoff.decode_answer(b'{"ok": true, "load": 3}') == HandoffAnswer()
    assert handoff.decode_answer(b'{"refused": "version", "speaks": 2}') == HandoffAnswer("version")
