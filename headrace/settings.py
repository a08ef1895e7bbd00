"""The settings: one frozen value, read from the environment once per process and passed to who needs it.

Every field is the variable `HEADRACE_` + its name in capitals. A wrong value names the variable, the value and
what is allowed. Nothing here is read at import.
"""

import contextlib
import dataclasses
import difflib
import ipaddress
import os
import re
import resource
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.errors import SettingsError

ENV_FILE = Path(".headrace/env")
EXAMPLES = frozenset({"at-least-16-characters-of-your-own"})
"""Secrets that stand in files which everybody can read."""
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+")
_OWN_PORTS = {"http": ":80", "https": ":443"}

# What Kubernetes, and Docker's links, tell each container of a service whose name begins with `headrace`.
_SERVICE_LINK = re.compile(
    r"HEADRACE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|HEADRACE_(\w+_)?PORT=(tcp|udp|sctp)://.*"
)


def _text(text: str) -> str:
    return text


def _number(kind: Callable[[str], Any], low: float, high: float, unit: str) -> Callable[[str], Any]:
    noun = "a whole number" if kind is int else "a number"
    allowed = f"{noun} of {unit} from {low:g} to {high:g}" if unit else f"{noun} from {low:g} to {high:g}"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(allowed) from None
        if not low <= value <= high:
            raise ValueError(allowed)
        return value

    return parse


def _seconds(low: float, high: float) -> Callable[[str], Any]:
    return _number(float, low, high, "seconds")


def _count(low: int, high: int, unit: str = "") -> Callable[[str], Any]:
    return _number(int, low, high, unit)


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not text.startswith(tuple(f"{scheme}:" for scheme in schemes)):
            raise ValueError("a URL that begins with " + " or ".join(f"{scheme}://" for scheme in schemes))
        return text

    return parse


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for part in text.split(",") if (word := part.strip()))


def _origins(text: str) -> tuple[str, ...]:
    """Origins as browsers send them: in small letters, without a path, and without the scheme's own port."""
    found = []
    for word in _words(text):
        if word in ("null", "*"):
            raise ValueError(
                "origins such as https://www.example.com; null is what any sandboxed page and any local file sends, "
                "and * would be anybody"
            )
        origin = word.lower().removesuffix("/")
        if not _ORIGIN.fullmatch(origin):
            raise ValueError("comma-separated origins, each a scheme and a host, such as https://www.example.com")
        scheme, _, host = origin.partition("://")
        found.append(f"{scheme}://{host.removesuffix(_OWN_PORTS.get(scheme, '/'))}")
    return tuple(found)


def _proxies(text: str) -> tuple[str, ...]:
    words = _words(text)
    for word in words:
        if word != "unix":
            try:
                ipaddress.ip_network(word)
            except ValueError:
                raise ValueError("comma-separated addresses or networks such as 10.0.0.0/8, or unix") from None
    return words


def _secrets(text: str) -> tuple[str, ...]:
    words = _words(text)
    if not words or min(map(len, words)) < 16:
        raise ValueError("one or more comma-separated secrets of at least 16 characters each")
    if EXAMPLES.intersection(words):
        raise ValueError("a secret of your own, not the example's, which everybody knows: openssl rand -hex 32")
    return words


def _password(text: str) -> str:
    if len(text) < 16:
        raise ValueError("a secret of at least 16 characters")
    # Who guesses is not kept out by waiting, which would keep others out too: the token itself must be beyond guessing.
    if text in EXAMPLES or len(set(text)) < 8:
        raise ValueError("a secret that nobody can guess, such as what `openssl rand -hex 32` prints")
    return text


def _node(text: str) -> str:
    if not text or len(text) > 64 or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in text):
        raise ValueError("1 to 64 ASCII letters, digits, dots, dashes or underscores")
    return text


def _prefix(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{0,63}[A-Za-z0-9]", text):
        raise ValueError(
            "1 to 64 ASCII letters, digits, dots, dashes, underscores or colons, with one of the first two last"
        )
    return text


def _switch(text: str) -> bool:
    values = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    try:
        return values[text.lower()]
    except KeyError:
        raise ValueError("on or off") from None


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(", ".join(words[:-1]) + f" or {words[-1]}")
        return text

    return parse


def _setting(default: Any, parse: Callable[[str], Any], secret: bool = False) -> Any:
    return field(default=default, metadata={"parse": parse, "secret": secret}, repr=not secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process of headrace runs with. Units are in the names; see the comments for effects."""

    # Where things are. The LISTEN URL must reach PostgreSQL itself; the other may be a pooler.
    database_url: str = _setting("", _url("postgresql", "postgres"), secret=True)
    listen_database_url: str = _setting("", _url("postgresql", "postgres"), secret=True)
    redis_url: str = _setting("", _url("redis", "rediss", "unix"), secret=True)
    # Begins each key in Redis: deployments that share a database of Redis need one each.
    redis_prefix: str = _setting("headrace", _prefix)
    runtime_dir: Path = _setting(Path(".headrace/run"), Path)
    node: str = _setting("", _node)

    # Tokens and who may ask: the first secret signs, all verify.
    secret: tuple[str, ...] = _setting((), _secrets, secret=True)
    allowed_origins: tuple[str, ...] = _setting((), _origins)
    # 0: for ever. Else tokens that live longer are refused, and revocations older than that are forgotten.
    max_token_life_s: float = _setting(0.0, _seconds(0, 10 * 365 * 86_400))
    filters: str = _setting("", _text)
    filter_deadline_s: float = _setting(2.0, _seconds(0.01, 60))

    # Limits. 0 connections of a shard: derived from the descriptor limit; of a node, a user or an address: none.
    max_connections: int = _setting(0, _count(0, 1_000_000, "connections"))
    max_node_connections: int = _setting(0, _count(0, 10_000_000, "connections"))
    max_user_connections: int = _setting(0, _count(0, 1_000_000, "connections"))
    max_address_connections: int = _setting(0, _count(0, 1_000_000, "connections"))
    # Whose X-Forwarded-For is believed: addresses and networks of proxies, and `unix` for a router at a unix socket.
    trusted_proxies: tuple[str, ...] = _setting((), _proxies)
    max_streams: int = _setting(64, _count(1, 64, "streams a connection"))

    # Placement. A shard with load_factor times its fair share is passed over; a stream is hot, and spread over the
    # node, from hot_connections on until it has half of them (0: never); a new shard gets its share of slots by itself.
    load_factor: float = _setting(1.5, _number(float, 1.05, 100, ""))
    hot_connections: int = _setting(1000, _count(0, 1_000_000, "connections"))
    auto_balance: bool = _setting(True, _switch)

    # Towards whoever connects: what one request may cost a router worker, and how many may wait in one.
    request_deadline_s: int = _setting(5, _count(1, 600, "seconds"))
    max_requests: int = _setting(4000, _count(1, 100_000, "requests in progress and connections without one"))
    max_header_bytes: int = _setting(16 << 10, _count(1024, 1 << 20, "bytes a header"))
    max_headers: int = _setting(64, _count(8, 1000, "headers"))

    # Towards the client.
    heartbeat_interval_s: float = _setting(15.0, _seconds(0.1, 3600))
    write_deadline_s: float = _setting(30.0, _seconds(0.1, 3600))
    # What clients that stalled within a frame may keep in memory; above it, those stalled for longest are closed.
    unsent_total_bytes: int = _setting(64 << 20, _count(1 << 20, 64 << 30, "bytes a shard"))
    retry_ms: int = _setting(2000, _count(1, 600_000, "milliseconds"))
    send_buffer_bytes: int = _setting(0, _count(0, 1 << 30, "bytes"))
    tick_interval_s: float = _setting(0.25, _seconds(0.01, 60))

    # Towards the log.
    readers: int = _setting(2, _count(1, 16, "database connections a shard"))
    page_events: int = _setting(500, _count(1, 10_000, "events"))
    page_bytes: int = _setting(4 << 20, _count(1024, 256 << 20, "bytes"))
    read_deadline_s: float = _setting(10.0, _seconds(0.5, 600))
    ring_bytes: int = _setting(1 << 20, _count(0, 1 << 30, "bytes a stream"))
    ring_total_bytes: int = _setting(128 << 20, _count(0, 64 << 30, "bytes a shard"))
    sweep_interval_s: float = _setting(5.0, _seconds(0.1, 600))
    unlisten_after_s: float = _setting(300.0, _seconds(0, 86_400))
    ping_interval_s: float = _setting(2.0, _seconds(0.1, 60))
    ping_deadline_s: float = _setting(2.0, _seconds(0.1, 60))
    listen_proof_deadline_s: float = _setting(5.0, _seconds(0.1, 60))
    publish_deadline_s: float = _setting(5.0, _seconds(0.1, 60))
    idempotency_keep_s: float = _setting(86_400.0, _seconds(60, 90 * 86_400))
    revocation_interval_s: float = _setting(0.5, _seconds(0.02, 1))
    prune_interval_s: float = _setting(10.0, _seconds(0.1, 3600))
    prune_batch: int = _setting(2000, _count(1, 100_000, "events"))
    # From so many publishing transactions a second on, one shard notifies for all of them, at this interval. 0: never.
    announce_above_per_s: float = _setting(50.0, _number(float, 0, 1_000_000, "transactions a second"))
    announce_interval_s: float = _setting(0.005, _seconds(0.001, 1))

    # Presence: how often PostgreSQL is told, how long who left may come back unnoticed, how long a dead shard's
    # members stay.
    presence_interval_s: float = _setting(0.5, _seconds(0.05, 60))
    presence_grace_s: float = _setting(5.0, _seconds(0, 600))
    presence_expiry_s: float = _setting(15.0, _seconds(0.5, 3600))

    # Between processes.
    handoff_deadline_s: float = _setting(2.0, _seconds(0.05, 60))
    directory_interval_s: float = _setting(1.0, _seconds(0.05, 60))
    directory_expiry_s: float = _setting(3.0, _seconds(0.2, 600))
    stop_deadline_s: float = _setting(5.0, _seconds(0.1, 600))

    # Where clients reach the router, for the addresses that commands print.
    public_url: str = _setting("http://127.0.0.1:8000", _url("http", "https"))

    # How often each shard tries delivery from end to end, 0 for never, and through which URL: one that leads to this
    # node. "" is the public one. Only a shard that has the secret can do it.
    canary_interval_s: float = _setting(5.0, _seconds(0, 3600))
    canary_url: str = _setting("", _url("http", "https"))

    # Opens the operations page /ops; without it there is none.
    ops_token: str = _setting("", _password, secret=True)

    # What `headrace up` serves.
    demo: bool = _setting(False, _switch)
    log_level: str = _setting("info", _text)
    log_format: str = _setting("auto", _one_of("auto", "json", "text"))

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read and validate every `HEADRACE_*` variable of environ; an empty value counts as unset.

        Raises SettingsError, naming the variable, for a value that is not allowed and for a variable that is
        not a setting (a misspelt one would otherwise be ignored in silence). Passed over is what the kubelet sets
        where there is a service with such a name.
        """
        fields = {f"HEADRACE_{f.name.upper()}": f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for variable, text in environ.items():
            if not variable.startswith("HEADRACE_") or not text:
                continue
            if variable not in fields:
                if _SERVICE_LINK.fullmatch(f"{variable}={text}"):
                    continue
                raise SettingsError(f"unknown setting {variable}; {_instead(variable, fields)}")
            spec = fields[variable]
            try:
                values[spec.name] = spec.metadata["parse"](text)
            except ValueError as error:
                shown = "a value that is not shown here" if spec.metadata["secret"] else repr(text)
                raise SettingsError(f"{variable} is {shown}; allowed is {error}") from None
        values.setdefault("listen_database_url", values.get("database_url", ""))
        values.setdefault("node", _default_node())
        settings = cls(**values)
        if settings.log_level not in ("debug", "info", "warning", "error"):
            raise SettingsError(
                f"HEADRACE_LOG_LEVEL is {settings.log_level!r}; allowed is debug, info, warning or error"
            )
        if settings.directory_expiry_s < 2 * settings.directory_interval_s:
            raise SettingsError(
                f"HEADRACE_DIRECTORY_EXPIRY_S is {settings.directory_expiry_s:g}; allowed is at least twice "
                f"HEADRACE_DIRECTORY_INTERVAL_S ({settings.directory_interval_s:g} seconds)"
            )
        return settings

    def require(self, *names: str) -> "Settings":
        """Return these settings; raise SettingsError, with how to set it, if one of the named ones is unset."""
        for name in names:
            if not getattr(self, name):
                if _is_unreadable(ENV_FILE):
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
        """Most connections a shard takes: the setting, else what the descriptor limit leaves after 200 spare."""
        return min(self.max_connections, _spare_descriptors()) if self.max_connections else _spare_descriptors()

    def request_limit(self) -> int:
        """Most clients that a router worker holds: the setting, or what the descriptor limit leaves if that is less."""
        return min(self.max_requests, _spare_descriptors())


def _spare_descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft - 200)


def _instead(variable: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(variable, allowed, n=1, cutoff=0.8)
    return f"perhaps {near[0]} is meant; else unset it" if near else f"allowed are {', '.join(sorted(allowed))}"


def _default_node() -> str:
    name = socket.gethostname() or "node"
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name)[:64]


def environ_with_file(environ: Mapping[str, str], path: Path = ENV_FILE) -> dict[str, str]:
    """The environment, completed by the lines `NAME=value` of the file that `headrace up` writes, if it can be read.

    Variables of the environment win, so that a command can be pointed elsewhere. Another user's file is none: what
    is missing then, `Settings.require` tells.
    """
    merged: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            name, separator, value = line.partition("=")
            if separator and not line.startswith("#"):
                merged[name.strip()] = value
    merged.update(environ)
    return merged


def _is_unreadable(path: Path) -> bool:
    """Whether there is a file that this user may not read, or a directory that hides whether there is one."""
    try:
        path.read_bytes()
    except PermissionError:
        return True
    except OSError:
        return False
    return False
