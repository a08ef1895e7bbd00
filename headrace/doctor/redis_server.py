"""Redis as the directory needs it. It keeps nothing that shards could not say again, so it needs no persistence."""

import time
from typing import Any, Final

import redis

from headrace.doctor.finding import Finding, fail, ok, warn

OLDEST: Final = (5, 0)
TRIED: Final = (6, 2)

NEARLY_ALL: Final = 0.8
SAMPLE_S: Final = 0.5
HALF_BUSY: Final = 0.5
LIMITS: Final = "client-output-buffer-limit"

Info = dict[str, Any]


def information(client: redis.Redis) -> Info:
    """What the server says of itself. Raises redis.RedisError."""
    return dict(client.info())


def version(info: Info) -> Finding:
    """Whether the directory's script runs on this server."""
    text = str(info.get("redis_version", "unknown"))
    # Valkey gives as Redis's the version up to which it is the same.
    shown = f"Valkey {info['valkey_version']}" if "valkey_version" in info else text
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        return fail("redis version", shown, "install Redis 6.2 or newer")
    if numbers < TRIED:
        return warn("redis version", shown, "install Redis 6.2 or newer, which headrace is tried with")
    return ok("redis version", shown)


def persistence(info: Info) -> Finding:
    """Whether Redis could refuse writes because it cannot save, which would leave the directory as it is."""
    saving = [name for name, on in (("AOF", info.get("aof_enabled")),) if on]
    if "err" in (info.get("rdb_last_bgsave_status"), info.get("aof_last_write_status")):
        return fail(
            "redis persistence",
            "the last save failed; by default Redis then refuses to be written to",
            'free its disk, or switch saving off (`save ""`, `appendonly no`): the directory needs none',
        )
    if saving:
        return ok("redis persistence", f"{' and '.join(saving)} on, though the directory needs none")
    return ok("redis persistence", "none needed")


def memory(info: Info) -> Finding:
    """Whether Redis may throw away the directory's keys, or refuse new ones, for lack of memory."""
    most, used, policy = (info.get(name, 0) for name in ("maxmemory", "used_memory", "maxmemory_policy"))
    if not most:
        return ok("redis memory", f"{used / (1 << 20):.1f} MiB, unlimited")
    found = f"{used / (1 << 20):.1f} of {most / (1 << 20):.1f} MiB, {policy}"
    if used > 0.9 * most:
        return fail("redis memory", found, "raise maxmemory: the directory would lose keys or be refused")
    if policy != "noeviction":
        return warn("redis memory", found, "set maxmemory-policy to noeviction, or give headrace a Redis of its own")
    return ok("redis memory", found)


def processor(client: redis.Redis) -> Finding:
    """How busy Redis is, which works on one core, over half a second. Raises redis.RedisError."""
    began, before = time.monotonic(), _cpu_s(information(client))
    time.sleep(SAMPLE_S)
    after = _cpu_s(information(client))
    busy = (after - before) / (time.monotonic() - began)
    found = f"{busy:.0%} of a core"
    if busy < HALF_BUSY:
        return ok("redis processor", found)
    advice = (
        "raise HEADRACE_DIRECTORY_INTERVAL_S and HEADRACE_DIRECTORY_EXPIRY_S alike, or give headrace a Redis of its own"
    )
    return warn("redis processor", found, advice)


def _cpu_s(info: Info) -> float:
    return float(info.get("used_cpu_sys", 0)) + float(info.get("used_cpu_user", 0))


def clients(info: Info) -> Finding:
    """Whether Redis has room for the connections of further shards and routers."""
    used, most = (int(info.get(name, 0)) for name in ("connected_clients", "maxclients"))
    if not most:
        return ok("redis clients", f"{used} connected")
    found = f"{used} of {most} connected"
    if used < NEARLY_ALL * most:
        return ok("redis clients", found)
    return warn("redis clients", found, "raise maxclients, and the limit of open files of Redis")


def pubsub_limits(client: redis.Redis) -> tuple[int, int] | None:
    """The hard and the soft limit, in bytes, of what Redis holds for a subscriber; None where it does not tell.

    0 is no limit. A managed Redis may have no CONFIG.
    """
    try:
        words = str(client.config_get(LIMITS)[LIMITS]).split()
    except (redis.RedisError, KeyError):
        return None
    place = words.index("pubsub")
    return int(words[place + 1]), int(words[place + 2])


def output_buffers(limits: tuple[int, int] | None, page_bytes: int) -> Finding:
    """Whether Redis holds messages for a shard that stands still for a moment, instead of cutting it off.

    A page of events may be page_bytes long, and the next one comes before a busy shard has taken it.
    """
    check = "redis output buffers"
    if limits is None:
        return ok(check, f"Redis does not tell its {LIMITS}")
    hard, soft = limits
    found = f"pubsub {hard} {soft}"
    if (not hard or hard >= 2 * page_bytes) and (not soft or soft >= page_bytes):
        return ok(check, found)
    advice = (
        f"set {LIMITS} to `pubsub {max(8 * page_bytes, 32 << 20)} {max(2 * page_bytes, 8 << 20)} 60`: shards that are "
        "cut off read their events from PostgreSQL, each for itself"
    )
    return warn(check, found, advice)
