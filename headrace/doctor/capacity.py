"""Whether this node can hold as many clients as its shards would accept: ports, tracked connections, cores, memory."""

import ipaddress
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from headrace.doctor.finding import Finding, ok, warn
from headrace.node.shard_entry import ShardEntry
from headrace.settings import Settings

PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
TRACKED_MOST: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")
CGROUPS: Final = Path("/sys/fs/cgroup")
MEMORY: Final = Path("/proc/meminfo")
MOST_PORTS: Final = 64_511
"""From 1024 on: what one proxy may have towards one address of a router, if its range is as wide as it can be."""
PROCESS_BYTES: Final = 60 << 20
"""Of a shard without clients and events."""
CONNECTION_BYTES: Final = 1400
PAGES: Final = 12
"""Three kinds of reads, each of which holds its page about four times over while it is encoded."""


def clients(shards: Sequence[ShardEntry], most_of_node: int) -> int:
    """How many clients the node takes with these shards of its. most_of_node is its limit, 0 for none."""
    accepted = sum(shard.capacity for shard in shards)
    return min(accepted, most_of_node) if most_of_node else accepted


def proxy_ports(most: int, proxies: Sequence[str], path: Path = PORT_RANGE) -> Finding:
    """Whether the trusted proxies have a local port for each of the node's clients, so many at most.

    A proxy on this machine has the ports of this machine's range, another one those of its own, at most MOST_PORTS.
    """
    check = "proxy ports"
    networks = [ipaddress.ip_network(word) for word in proxies if word != "unix"]
    if not networks:
        return ok(check, f"{most} clients at most; no proxy has an address in HEADRACE_TRUSTED_PROXIES")
    if wide := next((network for network in networks if network.num_addresses > 1), None):
        return ok(check, f"{most} clients at most, from any number of proxies in {wide}")
    low, high = map(int, path.read_text().split())
    here = any(network.is_loopback for network in networks)
    room = sum(high - low + 1 if network.is_loopback else MOST_PORTS for network in networks)
    found = f"{most} clients at most, {room} ports of {len(networks)} proxies"
    if most <= room:
        return ok(check, found)
    wider = "widen net.ipv4.ip_local_port_range (deploy/sysctl.conf), " if here and high - low < 60_000 else ""
    return warn(check, found, f"{wider}add a proxy, or let the router listen on several addresses")


def tracked_connections(most: int, path: Path = TRACKED_MOST) -> Finding:
    """Whether the kernel's firewall can track each client's connection. When its table is full, packets are lost."""
    check = "tracked connections"
    if not path.exists():
        return ok(check, "the kernel tracks none here")
    table = int(path.read_text())
    found = f"{most} clients at most, {table} entries"
    if most < 0.9 * table:
        return ok(check, found)
    advice = f"sysctl -w net.netfilter.nf_conntrack_max={2 * most}, or do not track the connections to the router"
    return warn(check, found, advice)


def cores(shards: int) -> Finding:
    """Whether each shard of this machine can have a core."""
    have = len(os.sched_getaffinity(0))
    found = f"{shards} shards here, {have} cores"
    if shards <= have:
        return ok("cores", found)
    return warn("cores", found, "run fewer shards: each uses one core, and more than cores gain nothing")


def memory(
    shards: Sequence[ShardEntry], settings: Settings, machine: Path = MEMORY, cgroups: Path = CGROUPS
) -> Finding:
    """Whether the machine, and each memory limit that a shard is under, has what the shards may take by these settings.

    The kernel's buffers of sockets are not counted.
    """
    total = int(machine.read_text().split("MemTotal:")[1].split()[0]) << 10
    needs: Counter[int | Path] = Counter()
    limits: dict[int | Path, int] = {0: total}
    for shard in shards:
        most = shard_bytes(shard, settings)
        needs[0] += most
        for path, limit in _limits(shard.pid, cgroups):
            limits[path] = limit
            needs[path] += most
    if not shards:
        return ok("memory", f"no shard here, {total >> 20} MiB")
    tightest = max(needs, key=lambda key: needs[key] / limits[key])
    found = f"{len(shards)} shards may take {needs[0] >> 20} MiB of {total >> 20}"
    if tightest != 0:
        found = f"shards may take {needs[tightest] >> 20} MiB of the {limits[tightest] >> 20} of their cgroup"
    if needs[tightest] <= 0.9 * limits[tightest]:
        return ok("memory", found)
    advice = (
        "lower HEADRACE_RING_TOTAL_BYTES and HEADRACE_UNSENT_TOTAL_BYTES, run fewer shards, or give them more memory"
    )
    return warn("memory", found, advice)


def shard_bytes(shard: ShardEntry, settings: Settings) -> int:
    """The most that a shard takes beside the kernel's buffers, with as many clients as it accepts."""
    kept = settings.ring_total_bytes + settings.unsent_total_bytes + PAGES * settings.page_bytes
    return PROCESS_BYTES + kept + shard.capacity * CONNECTION_BYTES


def _limits(pid: int, cgroups: Path) -> Iterator[tuple[Path, int]]:
    """The files of the memory limits that a process is under, those of the groups around its own included."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        # The second version of cgroups has one hierarchy, without a name; the first has one for memory.
        if controllers == "":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = root / group.lstrip("/")
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(root):
                break
            limit = _number(folder / name)
            if limit is not None:
                yield folder / name, limit


def _number(path: Path) -> int | None:
    """The limit in a file; None without one."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    # The first version of cgroups says a number near 2^63 for no limit.
    return int(text) if text.isdecimal() and int(text) < 1 << 60 else None
