"""Starts one host in a process of its own and prints what that took, as JSON."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time

from benches.scale.gauges import cpu_s, rss
from benches.scale.hosts import SimulatedHost, Size, nobody


async def main(url: str, size: Size) -> None:
    host = SimulatedHost(0, size.joined[0], url, nobody)
    await warm_up(url, size)
    gc.collect()
    rss_before, cpu_before, began_s = rss(os.getpid()), cpu_s(os.getpid()), time.monotonic()
    await host.start()
    took_s = time.monotonic() - began_s
    cpu_after = cpu_s(os.getpid())
    gc.collect()
    document = {
        "took_s": took_s,
        "cpu_s": cpu_after - cpu_before,
        "networks": len(host.joined),
        "endpoints": host.known,
        "rss": rss(os.getpid()) - rss_before,
    }
    await host.close()
    print(json.dumps(document))


async def warm_up(url: str, size: Size) -> None:
    """Loads and makes what every daemon has before it knows its first endpoint."""
    host = SimulatedHost(size.hosts, [], url, nobody)
    await host.start()
    await host.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Size(*map(int, sys.argv[2:]))))
