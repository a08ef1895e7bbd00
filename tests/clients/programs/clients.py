"""The clients of PyPI, each as its own documentation has it: `python clients.py CLIENT URL` follows a stream for ever.

A line of JSON is printed for each event that the client hands to its caller, `{"id", "type", "data"}`. Where a client
gives up with its connection, the caller begins anew after the id of the last event that it was handed (`since` in
the URL), and prints `{"again": why}`.
"""

import asyncio
import importlib.util
import io
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import aiohttp
import aiosseclient
import httpx
import httpx_sse
import pycurl
import requests
import requests_sse
import sseclient
import urllib3
from aiohttp_sse_client import client as aiohttp_sse
from aiohttp_sse_client2 import client as aiohttp_sse_2
from ld_eventsource import SSEClient
from ld_eventsource.config import ConnectStrategy, ErrorStrategy
from tornado.httpclient import AsyncHTTPClient

PAUSE_S = 0.1
ENDLESS = httpx.Timeout(5, read=60)
url = ""
last = ""


def say(**line: str | None) -> None:
    sys.stdout.write(f"{json.dumps(line)}\n")
    sys.stdout.flush()


def told(id_: str | None, type_: str | None, data: str) -> None:
    global last
    last = id_ or last
    say(id=id_ or None, type=type_ or "message", data=data)


def begin(at: str) -> str:
    parts = urlsplit(at)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()} | ({"since": last} if last else {})
    return urlunsplit(parts._replace(query=urlencode(query)))


def loop(connect: Callable[[str], None]) -> None:
    while True:
        why = "end"
        try:
            connect(begin(url))
        except Exception as error:
            why = repr(error)
        say(again=why)
        time.sleep(PAUSE_S)


def async_loop(connect: Callable[[str], Awaitable[None]]) -> None:
    with asyncio.Runner() as runner:

        def once(at: str) -> None:
            runner.run(connect(at))

        loop(once)


class Lines:
    """A minimal parser, as a caller writes it who has only a library for HTTP."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}

    def take(self, line: str) -> None:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            self.fields[name] = f"{self.fields[name]}\n{value}" if name == "data" and name in self.fields else value
            return
        fields, self.fields = self.fields, {}
        if "data" in fields:
            told(fields.get("id"), fields.get("event"), fields["data"])

    def follow(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.take(line)


def requests_lines(at: str) -> None:
    with requests.get(at, stream=True, timeout=60) as response:
        response.raise_for_status()
        Lines().follow(response.iter_lines(decode_unicode=True))


def urllib3_stream(at: str) -> None:
    response = urllib3.request("GET", at, preload_content=False)
    assert response.status == 200, response.status
    Lines().follow(line.decode().rstrip("\n") for line in lines_of(response.stream()))


def lines_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def httpx_lines(at: str) -> None:
    with httpx.stream("GET", at, timeout=ENDLESS) as response:
        response.raise_for_status()
        Lines().follow(response.iter_lines())


async def aiohttp_lines(at: str) -> None:
    async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(at) as response:
        parser = Lines()
        async for line in response.content:
            parser.take(line.decode().rstrip("\n"))


def httpx_sse_events(at: str) -> None:
    with httpx.Client(timeout=ENDLESS) as client, httpx_sse.connect_sse(client, "GET", at) as source:
        source.response.raise_for_status()
        for event in source.iter_sse():
            told(event.id, event.event, event.data)


async def httpx_sse_async(at: str) -> None:
    async with httpx.AsyncClient(timeout=ENDLESS) as client, httpx_sse.aconnect_sse(client, "GET", at) as source:
        source.response.raise_for_status()
        async for event in source.aiter_sse():
            told(event.id, event.event, event.data)


def sseclient_py_on_requests(at: str) -> None:
    with requests.get(at, stream=True, headers={"Accept": "text/event-stream"}, timeout=60) as response:
        response.raise_for_status()
        for event in sseclient.SSEClient(response).events():
            told(event.id, event.event, event.data)


def sseclient_py_on_urllib3(at: str) -> None:
    response = urllib3.request("GET", at, preload_content=False)
    assert response.status == 200, response.status
    for event in sseclient.SSEClient(response).events():
        told(event.id, event.event, event.data)


def sseclient_module() -> ModuleType:
    """The file of `sseclient`, which the package of `sseclient-py` hides."""
    file = Path(sseclient.__file__).parent.with_name("sseclient.py")
    spec = importlib.util.spec_from_file_location("sseclient_file", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sseclient_events(at: str) -> None:
    for event in sseclient_module().SSEClient(at, retry=int(PAUSE_S * 1000)):
        told(event.id, event.event, event.data)


def requests_sse_events(at: str) -> None:
    with requests_sse.EventSource(at, reconnection_time=timedelta(seconds=PAUSE_S), timeout=60) as source:
        for event in source:
            told(event.last_event_id, event.type, event.data or "")


def launchdarkly(at: str) -> None:
    client = SSEClient(
        ConnectStrategy.http(at), initial_retry_delay=PAUSE_S, error_strategy=ErrorStrategy.always_continue()
    )
    for event in client.events:
        told(event.last_event_id, event.event, event.data)


def aiohttp_sse_client(module: Any) -> Callable[[str], Awaitable[None]]:
    async def connect(at: str) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
        async with module.EventSource(at, reconnection_time=timedelta(seconds=PAUSE_S), timeout=timeout) as source:
            async for event in source:
                told(event.last_event_id, event.type, event.data)

    return connect


async def aiosseclient_events(at: str) -> None:
    events: AsyncIterator[Any] = aiosseclient.aiosseclient(at, raise_for_status=True)
    async for event in events:
        told(event.id, event.event, event.data)


def pycurl_lines(at: str) -> None:
    parser, rest = Lines(), io.BytesIO()

    def write(chunk: bytes) -> None:
        *lines, left = (rest.getvalue() + chunk).split(b"\n")
        rest.seek(0)
        rest.truncate()
        rest.write(left)
        parser.follow(line.decode() for line in lines)

    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, at)
    curl.setopt(pycurl.FAILONERROR, True)
    curl.setopt(pycurl.WRITEFUNCTION, write)
    try:
        curl.perform()
    finally:
        curl.close()


def program(*command: str) -> Callable[[str], None]:
    """A program that writes a body to its standard output as it comes."""

    def connect(at: str) -> None:
        with subprocess.Popen([*command, at], stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            Lines().follow(line.rstrip("\n") for line in running.stdout)

    return connect


async def tornado_lines(at: str) -> None:
    parser, rest = Lines(), [b""]

    def take(chunk: bytes) -> None:
        *lines, rest[0] = (rest[0] + chunk).split(b"\n")
        parser.follow(line.decode() for line in lines)

    await AsyncHTTPClient().fetch(at, streaming_callback=take, request_timeout=0)


CLIENTS: dict[str, Callable[[], None]] = {
    "requests": lambda: loop(requests_lines),
    "urllib3": lambda: loop(urllib3_stream),
    "httpx": lambda: loop(httpx_lines),
    "aiohttp": lambda: async_loop(aiohttp_lines),
    "httpx-sse": lambda: loop(httpx_sse_events),
    "httpx-sse, asynchronous": lambda: async_loop(httpx_sse_async),
    "sseclient-py on requests": lambda: loop(sseclient_py_on_requests),
    "sseclient-py on urllib3": lambda: loop(sseclient_py_on_urllib3),
    "sseclient": lambda: loop(sseclient_events),
    "requests-sse": lambda: loop(requests_sse_events),
    "launchdarkly-eventsource of PyPI": lambda: loop(launchdarkly),
    "aiohttp-sse-client": lambda: async_loop(aiohttp_sse_client(aiohttp_sse)),
    "aiohttp-sse-client2": lambda: async_loop(aiohttp_sse_client(aiohttp_sse_2)),
    "aiosseclient": lambda: async_loop(aiosseclient_events),
    "pycurl": lambda: loop(pycurl_lines),
    "curl": lambda: loop(program("curl", "-sfN")),
    "wget": lambda: loop(program("wget", "-qO-", "--tries=1")),
    "tornado": lambda: async_loop(tornado_lines),
}

if __name__ == "__main__":
    _, name, url = sys.argv
    last = parse_qs(urlsplit(url).query).get("since", [""])[0]
    CLIENTS[name]()
