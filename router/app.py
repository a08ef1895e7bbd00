"""The router's WSGI application and its composition root.

/streams/<slot>.<token>   GET, HEAD   hand over to a shard; a HEAD is answered here
/streams/….<token>/events GET, HEAD   the same, for a page of the past
/healthz /readyz /metrics GET, HEAD   how this process is
/headrace.js              GET, HEAD   the browser element
/publish                  POST        events from outside the database, if HEADRACE_DATABASE_URL is set
/ /demo.js /demo.css      GET, HEAD   the demo, if it is on
/demo/config              GET, HEAD
/demo/publish             POST
/ops and below                        the operations page, with HEADRACE_OPS_TOKEN; see router/operations_page.py
"""

import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import gevent
from gunicorn.workers.base_async import ALREADY_HANDLED

from headrace.errors import SettingsError
from headrace.node import logs
from headrace.node.deployment_identity import DeploymentIdentity
from headrace.node.directory import Directory
from headrace.node.socket_passing import Channels
from headrace.router.auth import PREFIX, Terms
from headrace.router.client_addresses import ClientAddresses
from headrace.router.client_placement import ClientPlacement
from headrace.router.connection_limits import ConnectionLimits
from headrace.router.cross_origin import PREFLIGHT, RefusedOrigins, cors
from headrace.router.database_pool import DatabasePool
from headrace.router.demo_page import DemoPage, publisher
from headrace.router.directory_follower import DirectoryFollower, sockets_in
from headrace.router.health import Health
from headrace.router.history_endpoint import SUFFIX, HistoryEndpoint
from headrace.router.metrics import RouterMetrics
from headrace.router.metrics_endpoint import MetricsEndpoint
from headrace.router.operations_page import OperationsPage
from headrace.router.operator_auth import OperatorAuth
from headrace.router.operator_sessions import OperatorSessions
from headrace.router.publish_endpoint import PublishEndpoint
from headrace.router.request import Request
from headrace.router.response import SAFE, Headers, Response, as_error
from headrace.router.static_file import PAGE_HEADERS, StaticFile
from headrace.router.stream_endpoint import StreamEndpoint
from headrace.router.stream_limit import StreamLimit
from headrace.router.usual_request import read_usual
from headrace.router.worker import HeadraceWorker
from headrace.settings import Settings

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request, Headers], Response | None]
_SCRIPT_MAX_AGE_S: Final = 300
_OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint and the methods that it answers, besides OPTIONS. private: for pages of no other origin.

    counted is the word under which the metrics have its responses.
    """

    endpoint: Endpoint
    methods: tuple[str, ...] = ("GET", "HEAD")
    private: bool = False
    counted: str = _OTHER

    @property
    def allow(self) -> str:
        """The value of the header Allow."""
        return ", ".join((*self.methods, "OPTIONS"))


class Application:
    """The WSGI callable. Called by many greenlets; all it keeps is set at the start.

    The worker MUST call start() once, after the fork, before it serves: without it the directory is not followed.
    """

    def __init__(
        self,
        *,
        stream: Route,
        history: Route,
        routes: Mapping[str, Route],
        allowed_origins: tuple[str, ...],
        metrics: RouterMetrics,
        follow: Sequence[Callable[[], None]],
        close: Callable[[], None],
        below_a_path: bool = False,
    ) -> None:
        """below_a_path tells that gunicorn takes a part off each path, by its variable SCRIPT_NAME."""
        self._stream = stream
        self._history = history
        self._routes = routes
        self._allowed_origins = allowed_origins
        self._metrics = metrics
        self._refused_origins = RefusedOrigins(metrics)
        self._follow = follow
        self._close = close
        self._below_a_path = below_a_path
        self._greenlets: list[gevent.Greenlet[[], None]] = []

    def start(self, failed: Callable[[], None]) -> None:
        """Start following the directory; failed() is called, after a log line, if that ends by itself."""

        def ended(greenlet: "gevent.Greenlet[[], None]") -> None:
            logger.critical("the directory's follower ended: %r; this worker stops", greenlet.exception)
            failed()

        self._greenlets = [gevent.spawn(follow) for follow in self._follow]
        for greenlet in self._greenlets:
            greenlet.link_exception(ended)

    def stop(self) -> None:
        """Stop following the directory and close what is open. Yields."""
        gevent.killall(self._greenlets)
        self._close()

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serve one request; returns gunicorn's ALREADY_HANDLED if the client was given away."""
        request = Request.from_environ(environ)
        response = self.serve(request)
        if response is None:
            return ALREADY_HANDLED  # type: ignore[no-any-return]
        start_response(response.status_line, list(response.headers))
        return [] if request.method == "HEAD" else [response.body]

    def serve(self, request: Request) -> Response | None:
        """The whole response with all its headers, None if the client was given away. Yields.

        Every request comes here, whoever has read it. None means that the socket MUST NOT be touched again.
        """
        route = self._route(request)
        private = route is not None and route.private
        origin = request.headers.get("origin", "")
        cross_origin = () if private else cors(origin, self._allowed_origins)
        if origin and not private and origin not in self._allowed_origins:
            self._refused_origins.note(request, origin)
        try:
            response = self._respond(request, route, cross_origin)
        except Exception:
            logger.exception("request %s of %s failed", request.id, request.peer)
            response = as_error(500, "the router failed; its log has the reason under this request id")
        if response is None:
            return None
        self._metrics.responded(route.counted if route else _OTHER, response.status)
        headers = (*cross_origin, *SAFE, ("X-Request-Id", request.id))
        if response.sized and response.status not in (204, 304):
            headers += (("Content-Length", str(len(response.body))),)
        return response.with_headers(headers)

    def usual(self, head: bytes, address: object, client: socket.socket, most_headers: int) -> Request | None:
        """The request whose whole head this is, if `usual_request` reads it; else gunicorn's parser MUST read it."""
        return None if self._below_a_path else read_usual(head, address, client, most_headers)

    def _respond(self, request: Request, route: Route | None, cross_origin: Headers) -> Response | None:
        if route is None:
            return as_error(404, "there is nothing at this path; check the address")
        if request.method == "OPTIONS":
            allowed = len(cross_origin) > 1
            return Response(204, b"", (("Allow", route.allow), *(PREFLIGHT if allowed else ())))
        if request.method not in route.methods:
            return as_error(
                405, f"{request.method} is not answered here; use {route.methods[0]}", (("Allow", route.allow),)
            )
        if request.has_body and request.method != "POST":
            return as_error(400, f"a {request.method} has no body here; send none")
        return route.endpoint(request, cross_origin + SAFE)

    def _route(self, request: Request) -> Route | None:
        if not request.path.startswith(PREFIX):
            # Another spelling would pass a proxy's rule for the path.
            return self._routes.get(request.path) if request.plain else None
        return self._history if request.path.endswith(SUFFIX) else self._stream


def create_application() -> Application:
    """Build the router's parts from the environment; called by gunicorn in each worker, after the fork.

    Raises SettingsError in a process that is no `headrace.router.worker.HeadraceWorker`: another kind of worker would
    write to sockets that were given away.
    """
    if not HeadraceWorker.running:
        raise SettingsError(
            "the router needs gunicorn's worker class headrace.router.worker.HeadraceWorker, without preload_app; take "
            "--worker-class, -k, --threads and --preload out of the command line and of GUNICORN_CMD_ARGS"
        )
    settings = Settings.from_environ(os.environ).require("secret", "redis_url")
    logs.set_up(settings, "router")
    metrics = RouterMetrics()
    channels = Channels(deadline_s=settings.handoff_deadline_s)
    placement = ClientPlacement(
        settings.node,
        hold_s=settings.directory_expiry_s,
        found=lambda: sockets_in(settings.runtime_dir),
        load_factor=settings.load_factor,
    )
    metrics.watch(placement)
    deployment = DeploymentIdentity(settings, limit=lambda: gevent.Timeout(settings.publish_deadline_s, False))  # type: ignore[arg-type]
    directory = Directory.of(settings, deployment.required, resident=True)
    follower = DirectoryFollower(
        directory,
        placement,
        node=settings.node,
        interval_s=settings.directory_interval_s,
        learned=lambda: channels.retain({entry.path for entry in placement.shards()}),
    )
    terms = Terms(settings.secret, settings.max_streams, settings.max_token_life_s)
    peers = ClientAddresses(settings.trusted_proxies)
    streams = StreamEndpoint(
        terms=terms,
        placement=placement,
        limits=ConnectionLimits(directory, placement, settings),
        peers=peers,
        channels=channels,
        metrics=metrics,
        log_clients_per_s=settings.log_clients_per_s,
        deployment=lambda: deployment.known,
    )

    scrape = MetricsEndpoint(metrics, placement, settings.runtime_dir)
    scrape.start()

    database = DatabasePool(settings.database_url, settings.publish_deadline_s) if settings.database_url else None

    operators = OperatorAuth(settings.ops_token, OperatorSessions(directory, placement)) if settings.ops_token else None

    def may_see_all(request: Request) -> bool:
        return request.is_local or (operators is not None and operators.is_token(request.bearer or ""))

    routes = _routes(settings, Health(placement, channels, may_see_all), scrape, database, metrics)
    if operators is not None:
        routes |= _ops_routes(OperationsPage(settings, operators, placement, directory, peers, database))

    def follow_directory() -> None:
        deployment.look()
        follower.run()

    def close() -> None:
        scrape.stop()
        channels.close()
        directory.close()
        if database is not None:
            database.close()

    return Application(
        stream=Route(streams, counted="streams"),
        history=Route(HistoryEndpoint(terms, streams), counted="history"),
        routes=routes,
        allowed_origins=settings.allowed_origins,
        metrics=metrics,
        follow=(follow_directory, deployment.follow),
        close=close,
        below_a_path=bool(os.environ.get("SCRIPT_NAME")),
    )


def _routes(
    settings: Settings, health: Health, scrape: MetricsEndpoint, database: DatabasePool | None, metrics: RouterMetrics
) -> dict[str, Route]:
    routes = {
        "/healthz": Route(health.healthz, counted="health"),
        "/readyz": Route(health.readyz, counted="health"),
        "/metrics": Route(scrape, counted="metrics"),
        "/headrace.js": Route(StaticFile("headrace.js", max_age_s=_SCRIPT_MAX_AGE_S)),
    }
    if database is not None:
        publish = PublishEndpoint(
            settings.secret,
            database,
            settings.request_deadline_s,
            metrics,
            StreamLimit(settings.publish_streams_per_s),
        )
        routes["/publish"] = Route(publish, ("POST",), counted="publish")
    if settings.demo:
        settings.require("database_url")
        demo = DemoPage(
            secrets=settings.secret,
            publish_one=publisher(settings.database_url),
            body_deadline_s=settings.request_deadline_s,
        )
        for path, name in {"/": "demo.html", "/demo.js": "demo.js", "/demo.css": "demo.css"}.items():
            routes[path] = Route(StaticFile(name, max_age_s=0, headers=PAGE_HEADERS))
        routes["/demo/config"] = Route(demo.config)
        routes["/demo/publish"] = Route(demo.publish, ("POST",))
    return routes


def _ops_routes(ops: OperationsPage) -> dict[str, Route]:
    def file(name: str) -> Route:
        return Route(StaticFile(name, max_age_s=0, headers=PAGE_HEADERS), private=True, counted="ops")

    return {
        "/ops": file("ops.html"),
        "/ops.js": file("ops.js"),
        "/ops.css": file("ops.css"),
        "/ops/session": Route(ops.session, ("POST", "DELETE"), private=True, counted="ops"),
        "/ops/stream": Route(ops.stream, private=True, counted="ops"),
        "/ops/status": Route(ops.status, private=True, counted="ops"),
        "/ops/plan": Route(ops.plan, ("POST",), private=True, counted="ops"),
        "/ops/act": Route(ops.act, ("POST",), private=True, counted="ops"),
    }
