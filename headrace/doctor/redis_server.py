"""Redis as the directory needs it. It keeps nothing that shards could not say again, so it needs no persistence."""

from typing import Any, Final

import redis

from headrace.doctor.finding import Finding, fail, ok, warn

OLDEST: Final = (5, 0)
TRIED: Final = (6, 2)

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
