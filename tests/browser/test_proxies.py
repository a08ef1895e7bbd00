"""deploy/nginx.conf and deploy/haproxy.cfg as a browser meets them: HTTP/2, and more streams than HTTP/1.1 allows."""

import pytest
from playwright.sync_api import Browser

from tests.browser.conftest import STATIC, TIMEOUT_MS
from tests.fixtures.deployment import ROUTER, SHARD, Host, sign, without
from tests.fixtures.reverse_proxy import ReverseProxy
from tests.fixtures.shard import Database

COUNT = 12
LISTEN = """(paths) => {
    window.seen = {};
    window.open = 0;
    for (const path of paths) {
        const source = new EventSource(path);
        source.onopen = () => window.open++;
        source.onmessage = (event) => window.seen[path] = event.data;
    }
}"""
PROTOCOLS = "[...new Set(performance.getEntriesByType('navigation').map((entry) => entry.nextHopProtocol))]"


def test_a_browser_has_many_streams_over_http_2(
    hosts: list[Host], deployed: Database, front: ReverseProxy, browser: Browser
) -> None:
    """Twelve streams of one page are open at once, which takes HTTP/2, and each gets its event."""
    streams = [f"{front.name}:{number}" for number in range(COUNT)]
    # Not from `now`: an event could be committed after the answer's head and before the stream's.
    paths = [f"{sign(hosts[0], stream)}?since=all" for stream in streams]
    with browser.new_context(ignore_https_errors=True) as context:
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.goto(f"https://127.0.0.1:{front.tls_port}/healthz")
        assert page.evaluate(PROTOCOLS) == ["h2"]
        page.evaluate(LISTEN, paths)
        page.wait_for_function(f"window.open >= {COUNT}")
        for stream in streams:
            deployed.publish(stream, f"for {stream}")
        page.wait_for_function(f"Object.keys(window.seen).length === {COUNT}")
        assert page.evaluate("window.seen") == {
            path: f"for {stream}" for path, stream in zip(paths, streams, strict=True)
        }


FOLLOW = """(paths) => {
    window.followed = paths.map((path) => {
        const source = new EventSource(path);
        const one = { source, opened: 0, data: [] };
        source.onopen = () => one.opened++;
        source.onmessage = ({ data }) => one.data.push(data);
        return one;
    });
    window.elements = paths.map((path) => {
        const element = document.createElement("headrace-stream");
        const one = { element, data: [], states: [], refused: 0 };
        element.addEventListener("event", ({ detail }) => one.data.push(detail.data));
        element.addEventListener("open", () => one.states.push("open"));
        element.addEventListener("error", ({ detail }) => detail.status === 503 && one.refused++);
        element.src = path;
        document.body.append(element);
        return one;
    });
}"""
HAVE = "(count) => [...followed, ...elements].every(({ data }) => data.length === count)"


@pytest.mark.slow
def test_browsers_outlast_an_outage_of_everything(hosts: list[Host], deployed: Database, browser: Browser) -> None:
    """While no host answers, an EventSource gets 200 and nothing else, comes back by itself, and misses nothing.

    The element knows such an answer for an outage: it is not `open` meanwhile.
    """
    streams = [f"outage:{number}" for number in range(3)]
    paths = [f"{sign(hosts[0], stream)}?since=all" for stream in streams]
    fronts = [ReverseProxy(name, hosts) for name in ("nginx", "haproxy")]
    try:
        with browser.new_context(ignore_https_errors=True) as context:
            context.set_default_timeout(TIMEOUT_MS)
            pages = [context.new_page() for _ in fronts]
            for page, front in zip(pages, fronts, strict=True):
                page.goto(f"https://127.0.0.1:{front.tls_port}/healthz")
                page.add_script_tag(content=(STATIC / "headrace.js").read_text(), type="module")
                page.evaluate("customElements.whenDefined('headrace-stream')")
                page.evaluate(FOLLOW, paths)
            for stream in streams:
                deployed.publish(stream, "before")
            for page in pages:
                page.wait_for_function(HAVE, arg=1)
            with without(ROUTER, hosts), without(SHARD, hosts):
                for stream in streams:
                    deployed.publish(stream, "meanwhile")
                for page in pages:
                    page.wait_for_function("followed.every(({ opened }) => opened >= 2)")
                    page.wait_for_function("elements.every(({ refused }) => refused >= 1)")
                    assert page.evaluate("elements.map(({ states }) => states.length)") == [1] * len(paths)
            for page in pages:
                page.wait_for_function(HAVE, arg=2)
            for stream in streams:
                deployed.publish(stream, "after")
            for page in pages:
                page.wait_for_function(HAVE, arg=3)
                seen = page.evaluate("[...followed, ...elements].map(({ data }) => data)")
                assert seen == [["before", "meanwhile", "after"]] * 2 * len(paths)
    finally:
        for front in fronts:
            front.remove()
