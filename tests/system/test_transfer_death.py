"""A shard dies in the middle of a move, at each step of the protocol: nobody is stuck, and nothing is lost."""

import pytest

from headrace.node.directory import Directory
from headrace.stream import slot
from tests.fixtures.client import Client
from tests.fixtures.stack import StartStack
from tests.fixtures.waiting import wait_until

# Each is a module that the shard imports, with which it kills itself at that step of its first move.
PREAMBLE = """
import os, signal
from headrace.node import handoff, socket_passing
from headrace.shard import dispatcher, inbox, intake, messages, transfer

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""
GIVER = {
    "before the message is sent": """
transfer.Transfer._give = lambda self, parcel, path: die()
""",
    "after the message was sent": """
send_fds = socket_passing.socket.send_fds
def sending(channel, data, descriptors):
    send_fds(channel, data, descriptors)
    die()
socket_passing.socket.send_fds = sending
""",
    "after the answer has come": """
give = transfer.Transfer._give
def giving(self, parcel, path):
    give(self, parcel, path)
    die()
transfer.Transfer._give = giving
""",
}
TAKER = {
    "before it answers": """
take = intake.Intake._take
def taking(self, channel, data, descriptors):
    if handoff.decode(data).moved:
        die()
    take(self, channel, data, descriptors)
intake.Intake._take = taking
""",
    "after it has answered": """
put = inbox.Inbox.put
def putting(self, message):
    if isinstance(message, messages.Connect) and message.handoff.moved:
        die()
    put(self, message)
inbox.Inbox.put = putting
""",
    "after it has begun to serve": """
connect = dispatcher.Dispatcher._connect
def connecting(self, message):
    connect(self, message)
    if message.handoff.moved:
        self.finish_batch()
        die()
dispatcher.Dispatcher._connect = connecting
""",
}
CASES = [
    *(("giver", step, code) for step, code in GIVER.items()),
    *(("taker", step, code) for step, code in TAKER.items()),
]


@pytest.mark.parametrize(("role", "step", "code"), CASES, ids=[f"{role} {step}" for role, step, _ in CASES])
def test_a_death_in_the_middle_of_a_move(start_stack: StartStack, role: str, step: str, code: str) -> None:
    """Each client stays on its connection or sees it end, and in both cases has every event exactly once."""
    number = {"giver": 0, "taker": 1}[role]
    predicates = ["", ""]
    predicates[number] = PREAMBLE + code
    stack = start_stack(2, predicates=predicates, auto_balance=False)
    giver, taker = stack.shards
    directory = Directory(stack.redis.url, expiry_s=1)
    directory.assign("n1", {slot("room"): giver.id})
    wait_until(lambda: directory.read().slots.get("n1", {}).get(slot("room")) == giver.id, "the giver has the slot")
    clients = [stack.subscribe("room", since="0") for _ in range(4)]
    stack.database.publish("room", "before")
    for client in clients:
        client.wait_for(1)
    directory.assign("n1", {slot("room"): taker.id})
    victim = stack.shards[number]
    wait_until(lambda: not victim.running, f"the {role} has died")
    survivor = stack.shards[1 - number]
    stack.database.publish("room", "after")
    for client in clients:
        wait_for_two_or_the_end(client)
        if client.ended:
            assert client.ids in ([1], [1, 2])
            again = stack.subscribe("room", last_event_id=client.last_id)
            again.wait(lambda again=again, client=client: client.ids + again.ids == [1, 2], "the event after")  # type: ignore[misc]
            assert stack.holder(again) is survivor
        else:
            assert client.ids == [1, 2]
            assert stack.holder(client) is survivor
    directory.close()


def wait_for_two_or_the_end(client: Client) -> None:
    """Read until both events are here, or the connection has ended: anything else would be stuck."""

    def decided() -> bool:
        client.pump()
        return client.ended or len(client.ids) == 2

    wait_until(decided, "the event, or the end")
