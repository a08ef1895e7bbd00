"""deploy/nginx.conf and deploy/haproxy.cfg, in the real programs, in front of two hosts."""

import http.client
import random
import re
import string
import time
from contextlib import closing

import headrace
from headrace.stream import slot
from tests.fixtures.client import Client, wait_all
from tests.fixtures.deployment import ROUTER, SHARD, Host, get, sign, without
from tests.fixtures.reverse_proxy import ReverseProxy
from tests.fixtures.shard import Database
from tests.fixtures.waiting import DEADLINE_S, wait_until


def rooms(front: ReverseProxy) -> list[str]:
    """Streams that no other proxy's test has used."""
    return [f"{front.name}:{number}" for number in range(24)]


def subscribe(front: ReverseProxy, host: Host, clients: list[Client], *streams: str) -> list[Client]:
    new = [Client(get(front.port, sign(host, stream))) for stream in streams]
    clients += new
    wait_all(new, lambda client: client.last_id, "the cursor")
    return new


def test_events_are_passed_on_as_they_come(
    hosts: list[Host], deployed: Database, front: ReverseProxy, clients: list[Client]
) -> None:
    """Each event arrives when it is published, and both hosts serve."""
    before = [len(host.placed()) for host in hosts]
    streams = rooms(front)
    subscribe(front, hosts[0], clients, *streams * 2)
    for number in range(3):
        deployed.publish(streams[0], str(number))
        for client in (clients[0], clients[len(streams)]):
            client.wait_for(number + 1)

    def placed_now() -> list[list[int]]:
        return [host.placed()[start:] for host, start in zip(hosts, before, strict=True)]

    # A router's line comes after the shard's first byte.
    wait_until(lambda: sum(map(len, placed_now())) >= len(streams) * 2, "each hand-off is logged")
    placed = placed_now()
    assert sorted(placed[0] + placed[1]) == sorted(map(slot, streams * 2))
    assert all(placed), "both hosts serve"


def test_heartbeats_keep_a_quiet_stream_open(
    hosts: list[Host], deployed: Database, front: ReverseProxy, clients: list[Client]
) -> None:
    """A stream without events outlives the proxy's patience, which ends a stream whose host is silent."""
    patience_s = 5
    impatient = ReverseProxy(front.name, hosts, patience_s)
    try:
        (client,) = subscribe(impatient, hosts[0], clients, "quiet")
        began = time.monotonic()
        client.wait(lambda: time.monotonic() - began > 1.5 * patience_s, "time to pass")
        assert client.comments and not client.ended
        deployed.publish("quiet", "at last")
        client.wait_for_data("at last")
    finally:
        impatient.remove()


def test_the_other_host_is_there_when_one_is_down(
    hosts: list[Host], deployed: Database, front: ReverseProxy, clients: list[Client]
) -> None:
    """While a host's router is stopped, clients of all streams are served by the other; those that it had stay."""
    streams = rooms(front)
    stay = subscribe(front, hosts[0], clients, *streams)
    assert hosts[0].stop(ROUTER) == 0
    try:
        subscribe(front, hosts[0], clients, *streams)
        heads = {client: deployed.head(stream) + 1 for client, stream in zip(stay, streams, strict=True)}
        for stream in streams:
            deployed.publish(stream, "still here")
        wait_all(stay, lambda client: client.last_id == str(heads[client]), "the event")
    finally:
        hosts[0].start(ROUTER)
        wait_until(hosts[0].serves, "the router serves again")


def test_the_longest_address_passes(hosts: list[Host], front: ReverseProxy, clients: list[Client]) -> None:
    """A token with as many long names as one may have gets through."""
    # Tokens are compressed.
    names = [
        "".join(random.choices(string.ascii_letters + string.digits + string.punctuation, k=512)) for _ in range(64)
    ]
    assert len(sign(hosts[0], *names)) > 32 << 10
    client = Client(get(front.port, sign(hosts[0], *names)))
    clients.append(client)
    client.wait(lambda: client.last_id, "the cursor")
    assert len(client.cursor) == 64


def ask(front: ReverseProxy, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request through the proxy: status, headers, and a body that has an end."""
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=DEADLINE_S)
    with closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return response.status, named, response.read() if "content-length" in named else b""


def assert_away(front: ReverseProxy, path: str) -> None:
    """A stream gets 200 and `retry:`, spread over some seconds, history and monitors get what is."""
    answers = [ask(front, f"{path}?since=7") for _ in range(12)]
    assert {status for status, _, _ in answers} == {200}
    assert {headers["content-type"] for _, headers, _ in answers} == {"text/event-stream; charset=utf-8"}
    assert {headers["cache-control"] for _, headers, _ in answers} == {"no-store"}
    waits = [int(body.removeprefix(b"retry: ").removesuffix(b"\n")) for _, _, body in answers]
    assert all(1000 <= wait <= 4500 for wait in waits)
    assert len(set(waits)) > 1
    _, headers, _ = ask(front, path, Origin="http://elsewhere.example")
    assert headers["access-control-allow-origin"] == "http://elsewhere.example"
    assert headers["access-control-allow-credentials"] == "true"
    assert ask(front, f"{path}/events")[0] in {502, 503}
    assert ask(front, "/readyz")[0] in {502, 503}


def test_an_outage_is_no_end_for_an_event_source(hosts: list[Host]) -> None:
    """While no host has an answer for a stream it is 200 with `retry:`; refusals of headrace stay what they are."""
    fronts = [ReverseProxy(name, hosts) for name in ("nginx", "haproxy")]
    path = sign(hosts[0], "away")
    try:
        expired = headrace.sign("away", secrets=[hosts[0].environ["HEADRACE_SECRET"]], ttl_s=1e-9)
        for front in fronts:
            refusals = {f"{path}x": 404, f"{path}?since=x": 400, expired: 403}
            assert {each: ask(front, each)[0] for each in refusals} == refusals
        with without(SHARD, hosts):
            for front in fronts:
                wait_until(lambda front=front: ask(front, "/readyz")[0] == 503, "the routers know it")  # type: ignore[misc]
                assert_away(front, path)
            with without(ROUTER, hosts):
                for front in fronts:
                    assert_away(front, path)
                    assert ask(front, path, "HEAD")[0] == 503
        for host in hosts:
            wait_until(host.serves, "the host serves again")
    finally:
        for front in fronts:
            front.remove()


def test_tokens_are_not_logged(hosts: list[Host], front: ReverseProxy, clients: list[Client]) -> None:
    """The access log tells the slot of a stream, never its token."""
    path = sign(hosts[0], "secret")
    client = Client(get(front.port, path))
    clients.append(client)
    client.wait(lambda: client.last_id, "the cursor")
    client.close()
    line = rf".* GET (slot=)?{slot('secret')} 200 .*"
    wait_until(lambda: re.search(line, front.access_log.read_text()), "the request is logged")
    assert path.partition(".")[2] not in front.access_log.read_text()


def test_metrics_are_not_for_browsers(hosts: list[Host], front: ReverseProxy) -> None:
    """What Prometheus asks each router for is not to be had from outside."""
    for path in ("/metrics", "/%6detrics", "/metric%73?x=1", "/./metrics", "//metrics", "/metrics#x", "/x/../metrics"):
        with get(front.port, path) as client:
            # HAProxy refuses a fragment by itself.
            assert client.recv(12)[9:] in (b"404", b"400"), path
