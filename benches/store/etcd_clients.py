"""etcd through both of its clients, in one run on one server: what each call costs.

The clients can't be in one environment, so each works in a process of its own, in turns of three
rounds, all on one etcd; of each figure the median of the rounds is printed. Records are as large as
an endpoint's. The processes check that every change was made, seen and listed.

    python -m benches.store.etcd_clients PYTHON    that of the environment with python-etcd3, which
                                                   `scripts/test etcd3` leaves in .venv-etcd3
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from pyvxlan.daemon.kv import ABSENT, Check, Put, Snapshot, Store, Write
from pyvxlan.daemon.kv.open import open_store
from tests.servers.etcd import EtcdServer

ROUNDS = 3
GETS = TXNS = CHANGES = 300
IN_FLIGHT = 16
TXNS_EACH = 40
RECORDS = 10_000
LISTS = 5
AWAY_S = 3.0
VALUE = b"x" * 180
FIGURES: Mapping[str, str] = {
    "get": "get, one at a time: p50, ms",
    "txn": "transaction of 2 checks and 3 writes, one at a time: p50, ms",
    "txns": "the same, 16 at once: a second",
    "txn_cpu": "the same, 16 at once: client's CPU each, us",
    "watch": "change until a watch tells it: p50, ms",
    "watch_p99": "change until a watch tells it: p99, ms",
    "list": "list of 10,000 records, ms",
    "pause": "longest pause of the event loop meanwhile, ms",
    "away": "client's CPU while etcd is away, % of a core",
}


async def timed_ms(call: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """How long each of so many calls took, in ms."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        await call()
        took.append(1000 * (time.perf_counter() - started))
    return took


async def change(store: Store) -> None:
    """A transaction as that of an endpoint."""
    name = secrets.token_hex(16)
    keys = [f"{part}/{name}" for part in ("ep", "ip", "name")]
    checks = [Check(key, ABSENT) for key in keys[:2]]
    await store.txn(checks, [Write(key, VALUE) for key in keys])


async def many(store: Store) -> tuple[float, float]:
    """Changes a second, and CPU of this process for each, in us."""

    async def some() -> None:
        for _ in range(TXNS_EACH):
            await change(store)

    started, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))
    total = IN_FLIGHT * TXNS_EACH
    elapsed_s = time.perf_counter() - started
    return total / elapsed_s, 1e6 * (time.process_time() - cpu_s) / total


async def told_ms(store: Store) -> list[float]:
    """From the moment before a change to its event, in ms."""
    watch = store.watch("told/")
    first = await anext(watch)
    assert isinstance(first, Snapshot)
    took = []
    for number in range(CHANGES):
        started = time.perf_counter()
        writing = asyncio.create_task(store.txn([], [Write("told/key", str(number).encode())]))
        event = await anext(watch)
        took.append(1000 * (time.perf_counter() - started))
        assert isinstance(event, Put)
        assert event.item.value == str(number).encode()
        await writing
    return took


async def list_ms(store: Store) -> tuple[float, float]:
    """How long a list takes, and how long the loop stands still at most, in ms."""
    longest_s = 0.0

    async def tick() -> None:
        nonlocal longest_s
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.perf_counter() - before - 0.001)

    ticker = asyncio.create_task(tick())
    took = []
    for _ in range(LISTS):
        started = time.perf_counter()
        found = await store.list("many/")
        took.append(1000 * (time.perf_counter() - started))
        assert len(found) == RECORDS
    ticker.cancel()
    return statistics.median(took), 1000 * longest_s


async def work(url: str) -> None:
    """Measures one client; says so, and measures what it does while etcd is away, when told to."""
    store = await open_store(url)
    await store.txn([], [Write("one", VALUE)])
    figures = {"get": statistics.median(await timed_ms(lambda: store.get("one"), GETS))}
    figures["txn"] = statistics.median(await timed_ms(lambda: change(store), TXNS))
    figures["txns"], figures["txn_cpu"] = await many(store)
    told = await told_ms(store)
    figures["watch"] = statistics.median(told)
    figures["watch_p99"] = statistics.quantiles(told, n=100)[98]
    figures["list"], figures["pause"] = await list_ms(store)
    watch = store.watch("told/")
    await anext(watch)
    print("measured", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    cpu_s = time.process_time()
    await asyncio.sleep(AWAY_S)
    figures["away"] = 100 * (time.process_time() - cpu_s) / AWAY_S
    print(json.dumps(figures), flush=True)
    await store.close()


def measured(python: str, url: str, server: EtcdServer) -> Mapping[str, float]:
    """Lets a process measure its client, and takes its server away at the end."""
    words = [python, "-m", "benches.store.etcd_clients", "--client", url]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == "measured\n", said
        server.kill()
        process.stdin.write("\n")
        process.stdin.flush()
        figures: Mapping[str, float] = json.loads(process.stdout.readline())
    server.start()
    return figures


async def fill(url: str) -> None:
    """Writes the records that are listed."""
    store = await open_store(url)
    for start in range(0, RECORDS, 32):
        names = range(start, min(start + 32, RECORDS))
        await store.txn([], [Write(f"many/{secrets.token_hex(16)}", VALUE) for _ in names])
    await store.close()


def compared(other: str) -> int:
    """Prints the table."""
    runs: dict[str, list[Mapping[str, float]]] = {"etcd": [], "etcd+python-etcd3": []}
    with (
        tempfile.TemporaryDirectory(prefix="pyvxlan-bench-") as name,
        EtcdServer(Path(name, "server")) as server,
    ):
        location = f"{server.member}/bench/v1"
        asyncio.run(fill(f"etcd://{location}"))
        for _ in range(ROUNDS):
            for kind, python in (("etcd", sys.executable), ("etcd+python-etcd3", other)):
                runs[kind].append(measured(python, f"{kind}://{location}", server))
    print(f"{'':<62} {'etcd':>8} {'python-etcd3':>13} {'ratio':>7}")
    for figure, text in FIGURES.items():
        ours, theirs = (
            statistics.median(run[figure] for run in runs[kind])
            for kind in ("etcd", "etcd+python-etcd3")
        )
        print(f"{text:<62} {ours:>8.2f} {theirs:>13.2f} {theirs / ours:>7.1f}")
    return 0


def main(words: Sequence[str]) -> int:
    """Compares both clients, or is one of the processes that do."""
    match words:
        case ["--client", url]:
            asyncio.run(work(url))
            return 0
        case [python]:
            return compared(python)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
