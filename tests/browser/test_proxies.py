"""deploy/nginx.conf and deploy/haproxy.cfg as a browser meets them: HTTP/2, and more streams than HTTP/1.1 allows."""

from playwright.sync_api import Browser

from tests.browser.conftest import TIMEOUT_MS
from tests.fixtures.deployment import Host, sign
from tests.fixtures.front import Front
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
    hosts: list[Host], deployed: Database, front: Front, browser: Browser
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
