"""The settings: one frozen value, read from the environment once per process and passed to whatever needs it.

Every field of `Settings` is the variable `HEADRACE_` + its name in capitals. The end of a name is its unit: `_s`
seconds, `_ms` milliseconds, `_bytes` bytes. Each field has metadata, from which the documentation is made:

    parse     the SettingParser that reads the variable; parse.allowed says in words what is allowed
    group     the heading under which the setting stands
    help      what the setting does, with its unit, and what it means to leave it unset or 0
    secret    whether the value is a password, or may hold one: then no message and no repr shows it

A wrong value is an error that names the variable, the value and what is allowed. Nothing here is read at import.
"""

import dataclasses
import os
import resource
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.environment_file import ENV_FILE, is_unreadable
from headrace.environment_variables import read_variables
from headrace.errors import SettingsError
from headrace.setting_parsers import (
    MODULE,
    NAME,
    ORIGINS,
    PASSWORD,
    PATH,
    PREFIX,
    PROXIES,
    REDIS,
    SECRETS,
    SWITCH,
    SettingParser,
    count,
    number,
    one_of,
    seconds,
    server_url,
    url,
)


def _group(title: str) -> Callable[..., Any]:
    """A function that makes a field of the group: its default, its parser, and what it does."""

    def setting(default: Any, parse: SettingParser, help: str) -> Any:
        metadata = {"parse": parse, "group": title, "help": help, "secret": parse.secret}
        return field(default=default, metadata=metadata, repr=not parse.secret)

    return setting


# The groups, in the order of the fields.
_servers = _group("Servers and names")
_tokens = _group("Tokens and audiences")
_limits = _group("Limits")
_placement = _group("Placement")
_requests = _group("HTTP requests")
_clients = _group("Writing to clients")
_reading = _group("Reading the log")
_log = _group("Publishing and upkeep of the log")
_presence = _group("Presence")
_processes = _group("Between processes")
_operation = _group("Addresses, checks and logs")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process of headrace runs with. `help` in each field's metadata says what it does."""

    database_url: str = _servers(
        "", server_url("postgresql", "postgres"), "URL of the PostgreSQL database, or of a pooler in front."
    )
    listen_database_url: str = _servers(
        "",
        server_url("postgresql", "postgres"),
        "URL of the same database for LISTEN: PostgreSQL itself, or a pooler in session mode. DATABASE_URL unless set.",
    )
    redis_url: str = _servers(
        "",
        REDIS,
        "URL of the Redis database for the directory of shards and slots, and for the bus: of a server, of Sentinels "
        "(redis+sentinel://HOST:26379/SERVICE), or of a cluster (redis+cluster://HOST:6379).",
    )
    redis_prefix: str = _servers(
        "headrace", PREFIX, "Beginning of every key in Redis. Deployments that share a Redis database need one each."
    )
    runtime_dir: Path = _servers(
        Path(".headrace/run"), PATH, "Directory of a node's unix sockets, which its routers and shards share."
    )
    node: str = _servers(
        "", NAME, "Name of this node, unique among the deployment's nodes. The host's name unless set."
    )

    secret: tuple[str, ...] = _tokens(
        (), SECRETS, "Secrets of 16 characters or more, separated by commas. The first signs tokens; all verify them."
    )
    allowed_origins: tuple[str, ...] = _tokens(
        (), ORIGINS, "Origins whose pages may read streams, separated by commas."
    )
    max_token_life_s: float = _tokens(
        0.0,
        seconds(0, 10 * 365 * 86_400),
        "Seconds that a token may live. Tokens that live longer are refused, and older revocations are forgotten. "
        "0: no limit.",
    )
    filters: str = _tokens("", MODULE, "Python module that registers the predicates.")
    filter_deadline_s: float = _tokens(
        2.0, seconds(0.01, 60), "Seconds that a predicate may take. After them the event is hidden."
    )

    max_connections: int = _limits(
        0, count(0, 1_000_000, "connections"), "Connections of a shard, at most. 0: what its descriptor limit leaves."
    )
    max_node_connections: int = _limits(
        0, count(0, 10_000_000, "connections"), "Connections of a node, at most. 0: what its shards take."
    )
    max_user_connections: int = _limits(
        0, count(0, 1_000_000, "connections"), "Connections of a user over all nodes, at most. 0: no limit."
    )
    max_address_connections: int = _limits(
        0, count(0, 1_000_000, "connections"), "Connections of a client's address over all nodes, at most. 0: no limit."
    )
    trusted_proxies: tuple[str, ...] = _limits(
        (),
        PROXIES,
        "Proxies whose X-Forwarded-For is believed: addresses, networks, and `unix` for a router at a unix socket.",
    )
    max_streams: int = _limits(64, count(1, 64, "streams a connection"), "Streams of one connection, at most.")

    load_factor: float = _placement(
        1.5,
        number(float, 1.05, 100, ""),
        "How many times its fair share of connections a shard may have before routers pass it over.",
    )
    hot_connections: int = _placement(
        1000,
        count(0, 1_000_000, "connections"),
        "Connections from which on a stream is hot, that is, spread over all shards of a node. At half of them it "
        "is no longer. 0: never.",
    )
    auto_balance: bool = _placement(
        True, SWITCH, "Whether a shard that joins is given its share of slots without `headrace rebalance`."
    )

    request_deadline_s: int = _requests(
        5, count(1, 600, "seconds"), "Seconds for a request's head to arrive, and again for its body."
    )
    max_requests: int = _requests(
        4000,
        count(1, 100_000, "requests in progress and connections without one"),
        "Clients that a router worker holds before they are handed over, at most.",
    )
    max_header_bytes: int = _requests(
        16 << 10,
        count(1024, 1 << 20, "bytes a header"),
        "Bytes of one header, at most. All headers of a request together may have four times that.",
    )
    max_headers: int = _requests(64, count(8, 1000, "headers"), "Headers of one request, at most.")

    heartbeat_interval_s: float = _clients(
        15.0, seconds(0.1, 3600), "Seconds between the heartbeats that keep a quiet connection open."
    )
    write_deadline_s: float = _clients(
        30.0, seconds(0.1, 3600), "Seconds that a client may take nothing before its connection is closed."
    )
    unsent_total_bytes: int = _clients(
        64 << 20,
        count(1 << 20, 64 << 30, "bytes a shard"),
        "Bytes that a shard keeps in memory for clients that stalled within a frame. Above it, those stalled for "
        "longest are closed.",
    )
    retry_ms: int = _clients(
        2000, count(1, 600_000, "milliseconds"), "Milliseconds after which a browser reconnects, jittered by half."
    )
    send_buffer_bytes: int = _clients(
        0, count(0, 1 << 30, "bytes"), "Bytes of the send buffer of a client's socket. 0: the kernel decides."
    )
    tick_interval_s: float = _clients(
        0.25, seconds(0.01, 60), "Seconds between the ticks of a shard's clock, which drives deadlines and heartbeats."
    )

    readers: int = _reading(
        2, count(1, 16, "database connections a shard"), "Database connections of a shard for reading."
    )
    page_events: int = _reading(500, count(1, 10_000, "events"), "Events of a stream in one read, at most.")
    page_bytes: int = _reading(
        4 << 20, count(1024, 256 << 20, "bytes"), "Bytes of data in one read, of all its streams together, at most."
    )
    read_deadline_s: float = _reading(
        10.0, seconds(0.5, 600), "Seconds for a read. After them it is tried on another connection."
    )
    ring_bytes: int = _reading(
        1 << 20, count(0, 1 << 30, "bytes a stream"), "Bytes of recent frames that a shard keeps of a stream."
    )
    ring_total_bytes: int = _reading(
        128 << 20, count(0, 64 << 30, "bytes a shard"), "Bytes of recent frames that a shard keeps of all its streams."
    )
    sweep_interval_s: float = _reading(
        5.0, seconds(0.1, 600), "Seconds between sweeps, which find what a lost notification would have told."
    )
    unlisten_after_s: float = _reading(
        300.0, seconds(0, 86_400), "Seconds that a shard goes on listening to a slot that has no subscribers."
    )
    ping_interval_s: float = _reading(
        2.0, seconds(0.1, 60), "Seconds of silence after which the LISTEN connection is tested."
    )
    ping_deadline_s: float = _reading(
        2.0, seconds(0.1, 60), "Seconds for the answer to that test. After them the connection is replaced."
    )
    listen_proof_deadline_s: float = _reading(
        5.0, seconds(0.1, 60), "Seconds for the notification to arrive by which a shard proves that LISTEN works."
    )

    bus: bool = _reading(
        True,
        SWITCH,
        "Whether one shard may read new events for all, which then pass through Redis. Needs SECRET in the shards.",
    )
    bus_above_per_s: float = _reading(
        20.0,
        number(float, 0.1, 1_000_000, "notifications a second"),
        "Notifications a second from which on one shard reads new events for all.",
    )

    publish_deadline_s: float = _log(
        5.0, seconds(0.1, 60), "Seconds for `POST /publish`. After them the answer is 503."
    )
    idempotency_keep_s: float = _log(
        86_400.0, seconds(60, 90 * 86_400), "Seconds that an Idempotency-Key is remembered."
    )
    revocation_interval_s: float = _log(0.5, seconds(0.02, 1), "Seconds between a shard's readings of revocations.")
    prune_interval_s: float = _log(
        10.0, seconds(0.1, 3600), "Seconds between searches for events that retention no longer keeps."
    )
    prune_batch: int = _log(2000, count(1, 100_000, "events"), "Events that one statement removes, at most.")
    forget_after_s: float = _log(
        30 * 86_400.0,
        seconds(0, 10 * 365 * 86_400),
        "Seconds after which a stream is forgotten that has had no event and no subscriber: 3600 or more, and the same "
        "for all shards. 0: never.",
    )
    publish_streams_per_s: float = _log(
        100.0,
        number(float, 0, 1_000_000, "streams a second"),
        "Streams a second that a publisher token may make by `POST /publish` at one router worker, on average over 10 "
        "seconds. Above it the answer is 429. 0: no limit.",
    )
    announce_above_per_s: float = _log(
        50.0,
        number(float, 0, 1_000_000, "transactions a second"),
        "Publishing transactions a second from which on one shard numbers for all of them. 0: never.",
    )
    announce_interval_s: float = _log(
        0.005, seconds(0.001, 1), "Seconds between two rounds of that shard, each of which numbers and notifies."
    )

    presence_interval_s: float = _presence(
        0.5, seconds(0.05, 60), "Seconds between a shard's reports to PostgreSQL of the members who joined and left."
    )
    presence_grace_s: float = _presence(
        5.0,
        seconds(0, 600),
        "Seconds that a member without a connection has to come back before it counts as having left.",
    )
    presence_expiry_s: float = _presence(
        15.0, seconds(0.5, 3600), "Seconds after which the members of a dead shard leave."
    )

    handoff_deadline_s: float = _processes(2.0, seconds(0.05, 60), "Seconds for a shard's answer to a hand-off.")
    directory_interval_s: float = _processes(
        1.0,
        seconds(0.05, 60),
        "Seconds between the entries that a shard writes in Redis, and between a router's readings of them.",
    )
    directory_expiry_s: float = _processes(
        3.0,
        seconds(0.2, 600),
        "Seconds after which an entry that was not written again is gone. At least twice DIRECTORY_INTERVAL_S.",
    )
    stop_deadline_s: float = _processes(5.0, seconds(0.1, 600), "Seconds that a stopping shard has for its goodbyes.")

    public_url: str = _operation(
        "http://127.0.0.1:8000",
        url("http", "https"),
        "URL at which clients reach the router, for the addresses that commands and applications print.",
    )
    canary_interval_s: float = _operation(
        5.0, seconds(0, 3600), "Seconds between the canaries of a shard, which needs SECRET for them. 0: none."
    )
    canary_url: str = _operation(
        "", url("http", "https"), "URL through which a shard's canary reaches its own node. PUBLIC_URL unless set."
    )
    ops_token: str = _operation(
        "",
        PASSWORD,
        "Password of the operations page /ops, of 16 characters or more, which nobody can guess. Without it there "
        "is no page.",
    )
    demo: bool = _operation(
        False, SWITCH, "Whether `headrace up` serves the demo page. It does anyway where only this machine reaches it."
    )
    log_level: str = _operation(
        "info", one_of("debug", "info", "warning", "error"), "Least important log lines that are written."
    )
    log_format: str = _operation(
        "auto",
        one_of("auto", "json", "text"),
        "Form of log lines: `json`, `text`, or `auto`, which is text on a terminal and under `headrace up`, and "
        "JSON elsewhere.",
    )
    log_clients_per_s: int = _operation(
        50, count(0, 1_000_000, "lines"), "Log lines a second about clients that come and go, of each kind, at most."
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read and validate every `HEADRACE_*` variable of environ; an empty value counts as unset.

        Raises SettingsError, which names the variable, for a value that is not allowed and for a variable that is no
        setting: a misspelt one would otherwise be ignored without a word. The variables that Kubernetes sets for a
        service whose name begins with `headrace` are ignored.
        """
        values = read_variables(environ, dataclasses.fields(cls))
        values.setdefault("listen_database_url", values.get("database_url", ""))
        values.setdefault("node", _default_node())
        settings = cls(**values)
        if settings.directory_expiry_s < 2 * settings.directory_interval_s:
            raise SettingsError(
                f"HEADRACE_DIRECTORY_EXPIRY_S is {settings.directory_expiry_s:g}; allowed is at least twice "
                f"HEADRACE_DIRECTORY_INTERVAL_S ({settings.directory_interval_s:g} seconds)"
            )
        if 0 < settings.forget_after_s < 3600:
            raise SettingsError(
                f"HEADRACE_FORGET_AFTER_S is {settings.forget_after_s:g}; allowed is 0, or at least 3600 seconds"
            )
        return settings

    def require(self, *names: str) -> "Settings":
        """Return these settings. Raises SettingsError, with how to set it, if one of the named settings is unset."""
        for name in names:
            if not getattr(self, name):
                if is_unreadable(ENV_FILE):
                    raise SettingsError(
                        f"HEADRACE_{name.upper()} is not set, and user {os.geteuid()} cannot read {str(ENV_FILE)!r}; "
                        "set it, or run this as the user of `headrace up`"
                    )
                raise SettingsError(
                    f"HEADRACE_{name.upper()} is not set; set it, or run this in the directory of a running "
                    f"`headrace up`, which writes {ENV_FILE}"
                )
        return self

    def connection_limit(self) -> int:
        """How many connections a shard takes: max_connections unless 0, at most the descriptor limit less 200."""
        return min(self.max_connections, _spare_descriptors()) if self.max_connections else _spare_descriptors()

    def request_limit(self) -> int:
        """How many clients a router worker holds: max_requests, at most the descriptor limit less 200."""
        return min(self.max_requests, _spare_descriptors())


def _spare_descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft - 200)


def _default_node() -> str:
    name = socket.gethostname() or "node"
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name)[:64]
