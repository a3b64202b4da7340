"""How long after `network create` has returned another host knows the network.

Two hosts with the daemon's own parts (`Service`, `State`) and a connection each; one creates
networks, one after the other, and the other notes when its watch has told it. Negative: the other
host knew before the call returned. Checks that the other host has every network in the end, and
ends with 1 if a median is above 50 ms on SQLite or etcd.

    python -m benches.store.visible [--pause-s S] [KIND ...]       kinds: sqlite, etcd, consul, zk
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benches.store.allocate import store_url
from pyvxlan.daemon.kv.mirror import Mirror
from pyvxlan.daemon.kv.open import open_store
from pyvxlan.daemon.requests import NetworkSpec
from tests.servers.kinds import SERVERS
from tests.unit.cluster import Member, MemoryNet

WARM_UP = 5
NETWORKS = 100
PAUSE_S = 0.02
"""Between two networks, if nothing else is said: what is measured is one change, not a queue."""
LIMIT_MS = 50.0
LIMITED = {"sqlite", "etcd"}


@dataclass(frozen=True, slots=True)
class Spread:
    """What many durations came to, in milliseconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, durations_s: Sequence[float]) -> Spread:
        """The median, and the bounds of the middle four fifths."""
        tenths = statistics.quantiles((duration_s * 1000 for duration_s in durations_s), n=10)
        return cls(tenths[4], tenths[0], tenths[8])

    def __str__(self) -> str:
        return f"{self.median:.1f} [{self.low:.1f} .. {self.high:.1f}]"


async def measured(
    url: str, directory: Path, *, networks: int = NETWORKS, pause_s: float = PAUSE_S
) -> tuple[Spread, Spread]:
    """How long the calls took, and how long after each of them the other host knew."""
    hosts = []
    for number in (1, 2):
        mirror = await Mirror.open(directory / f"mirror{number}.db", url)
        home = directory / f"host{number}"
        hosts.append(Member(await open_store(url), mirror, MemoryNet(), home, number))
    here, there = hosts
    try:
        await asyncio.gather(*(host.start() for host in hosts))
        calls_s, known_s = [], []
        for number in range(WARM_UP + networks):
            name = f"n{number}"
            known_at = asyncio.create_task(_known_at(there, name))
            await asyncio.sleep(pause_s)
            called_at = time.perf_counter()
            await here.service.create_network(NetworkSpec(name))
            returned_at = time.perf_counter()
            calls_s.append(returned_at - called_at)
            known_s.append(await known_at - returned_at)
        assert len(there.state.networks) == WARM_UP + networks
        return Spread.of(calls_s[WARM_UP:]), Spread.of(known_s[WARM_UP:])
    finally:
        for host in hosts:
            await host.stop()


async def _known_at(host: Member, name: str) -> float:
    def known() -> bool:
        return any(network.name == name for network in host.state.networks.values())

    await host.state.wait_for(known, timeout_s=20, what=f"{name} is known")
    return time.perf_counter()


def main(args: Sequence[str]) -> int:
    """Prints a table; gives 1 if a median is too high where there is a limit."""
    parser = argparse.ArgumentParser(prog="visible", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="all if left out")
    parser.add_argument("--pause-s", type=float, default=PAUSE_S, help="between two networks")
    given = parser.parse_args(args)
    print(f"{NETWORKS} networks, ms: median [the middle four fifths]")
    print(f"{'store':<8} {'the call':>24} {'known elsewhere after it':>28}")
    slow = False
    for kind in given.kinds or ["sqlite", *SERVERS]:
        with tempfile.TemporaryDirectory(prefix="pyvxlan-bench-") as name:
            directory = Path(name)
            with store_url(kind, directory) as url:
                call, known = asyncio.run(measured(url, directory, pause_s=given.pause_s))
        slow = slow or (kind in LIMITED and known.median > LIMIT_MS)
        print(f"{kind:<8} {call!s:>24} {known!s:>28}", flush=True)
    return int(slow)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
