"""How many addresses a second 16 clients can take from one network at once.

Two ways in one run, on the same store: what `pyvxlan` does (`Service.create_endpoint`: a key for
each address, claimed together with the endpoint's record), and a bitmap of the whole subnet in one
key, changed by compare-and-swap, as Docker's overlay had it. With a server, each client is a host
of its own. A SQLite file is one machine's: there it is 16 clients of that machine's daemon, and
`sqlite-shared` shows 16 daemons, each a process, that share the file. Watches are ended first,
since sixteen hosts on one machine would measure little else. The subnet is a /20. Checks that
nobody got an address twice, that nobody failed, and that the claims in the store are those that
were given out; ends with 1 if ours is not 5 times as fast, except for `sqlite-shared`
(docs/scale.md).

    python -m benches.store.allocate [KIND ...]    kinds: sqlite, sqlite-shared, etcd, consul, zk
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import StoreConflictError
from pyvxlan.daemon.kv import ABSENT, Check, Delete, Session, Store, Write
from pyvxlan.daemon.kv.bounded import BoundedStore
from pyvxlan.daemon.kv.mirror import Mirror
from pyvxlan.daemon.kv.open import open_store
from pyvxlan.daemon.requests import EndpointSpec, NetworkSpec
from tests.servers.kinds import SERVERS
from tests.unit.cluster import Member, MemoryNet

REPO = Path(__file__).resolve().parents[2]
CLIENTS = 16
OURS_EACH = 100
BITMAP_EACH = 20
"""The bitmap is slower: as many as take about as long."""
SUBNET = "10.8.0.0/20"
RATIO = 5.0
WITHIN_S = 120.0
"""For one way on one store; longer is a failure."""

Take = Callable[[], Awaitable[str]]
"""Takes one address."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the clients are: processes, hosts in each, and clients of each host."""

    processes: int = 1
    hosts: int = 1
    clients: int = 1


LAYOUTS: Mapping[str, Layout] = {
    "sqlite": Layout(clients=CLIENTS),
    "sqlite-shared": Layout(processes=CLIENTS),
    **dict.fromkeys(SERVERS, Layout(hosts=CLIENTS)),
}
FOR_COMPARISON = {"sqlite-shared"}
"""Kinds that need not be so much faster."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one way of taking addresses came to."""

    taken: int
    elapsed_s: float
    p99_ms: float
    tries: float
    """Transactions for each address."""

    @property
    def rate(self) -> float:
        """Addresses per second."""
        return self.taken / self.elapsed_s

    def __str__(self) -> str:
        return f"{self.rate:.0f} ({self.p99_ms:.0f} ms, {self.tries:.1f})"


class CountingStore(BoundedStore):
    """A store that counts transactions."""

    transactions = 0

    async def txn(
        self,
        checks: Sequence[Check],
        ops: Sequence[Write | Delete],
        *,
        session: Session | None = None,
    ) -> None:
        self.transactions += 1
        await super().txn(checks, ops, session=session)


def ours(host: Member, network_id: str) -> Take:
    """An endpoint as the daemon creates it."""

    async def take() -> str:
        endpoint = await host.service.create_endpoint(network_id, EndpointSpec())
        return str(endpoint.addresses[0].ip)

    return take


def bitmap(store: Store) -> Take:
    """One key with a bit for each address; the endpoint's record is written with it."""
    cidr = IPv4Network(SUBNET)
    reserved = _reserved(cidr)

    async def take() -> str:
        while True:
            item = await store.get(BITMAP)
            used = int(json.loads(item.value), 16) if item else reserved
            number = ((used + 1) & ~used).bit_length() - 1
            value = json.dumps(f"{used | 1 << number:x}").encode()
            check = Check(BITMAP, item.revision if item else ABSENT)
            record = Write(f"bench-ep/{secrets.token_hex(16)}", str(cidr[number]).encode())
            try:
                await store.txn([check], [Write(BITMAP, value), record])
            except StoreConflictError:
                continue
            return str(cidr[number])

    return take


BITMAP = "bench/bitmap"


def _reserved(cidr: IPv4Network) -> int:
    return (1 << 0) | (1 << 1) | (1 << (cidr.num_addresses - 1))


async def serve(url: str, directory: Path, first: int, count: int, clients: int) -> None:
    """Some of the hosts: they do what is read from standard input; answers are lines of JSON."""
    hosts = []
    for number in range(first, first + count):
        mirror = await Mirror.open(directory / f"mirror{number}.db", url)
        store = CountingStore(await open_store(url), url)
        hosts.append(Member(store, mirror, MemoryNet(), directory / f"host{number}", number))
    await asyncio.gather(*(host.start() for host in hosts))
    answer: object = None
    try:
        while True:
            print(json.dumps(answer), flush=True)
            command, *args = (await asyncio.to_thread(sys.stdin.readline)).split()
            match command:
                case "create":
                    spec = NetworkSpec("bench", subnets=(SUBNET,))
                    answer = (await hosts[0].service.create_network(spec)).id
                case "join":
                    answer = await asyncio.gather(*(join(host, args[0]) for host in hosts))
                case "ours":
                    takes = {host: ours(host, args[0]) for host in hosts}
                    answer = await all_timed(takes, clients, OURS_EACH)
                case "bitmap":
                    takes = {host: bitmap(host.store) for host in hosts}
                    answer = await all_timed(takes, clients, BITMAP_EACH)
                case _:
                    return
    finally:
        for host in hosts:
            await host.stop()


async def join(host: Member, network_id: str) -> None:
    """Lets a host learn of a network, and ends its watches then."""
    host.state.join(network_id)
    await host.until(partial(host.state.joined, network_id), within_s=30)
    await host.state.close()


async def all_timed(takes: Mapping[Member, Take], clients: int, each: int) -> Mapping[str, object]:
    """Lets some clients of every host take `each` addresses, all at once."""
    stores = [host.store for host in takes]
    before, began_s = _transactions(stores), time.monotonic()
    runs = [timed(take, each) for take in takes.values() for _ in range(clients)]
    taken = [one for run in await asyncio.gather(*runs) for one in run]
    return {
        "began_s": began_s,
        "ended_s": time.monotonic(),
        "addresses": [address for address, _ in taken],
        "durations_s": [duration_s for _, duration_s in taken],
        "transactions": _transactions(stores) - before,
    }


def _transactions(stores: Sequence[Store]) -> int:
    return sum(store.transactions for store in stores if isinstance(store, CountingStore))


async def timed(take: Take, each: int) -> Sequence[tuple[str, float]]:
    """Takes `each` addresses, one after the other; gives each with the seconds that it took."""
    taken = []
    for _ in range(each):
        asked_s = time.monotonic()
        address = await take()
        taken.append((address, time.monotonic() - asked_s))
    return taken


class Process:
    """Some of the hosts, as the process that measures sees them."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, url: str, directory: Path, first: int, layout: Layout) -> Process:
        args = (sys.executable, "-m", "benches.store.allocate", "--serve")
        return cls(
            await asyncio.create_subprocess_exec(
                *args,
                *(url, str(directory), str(first), str(layout.hosts), str(layout.clients)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 24,
                cwd=REPO,
            )
        )

    async def answer(self) -> Any:
        assert self._process.stdout
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of hosts failed: exit {await self._process.wait()}")
        return json.loads(line)

    async def ask(self, *words: str) -> Any:
        assert self._process.stdin
        self._process.stdin.write(f"{' '.join(words)}\n".encode())
        return await self.answer()

    async def end(self) -> None:
        if self._process.returncode is None:
            assert self._process.stdin
            self._process.stdin.write(b"end\n")
            self._process.stdin.close()
            await self._process.wait()


async def measured(processes: Sequence[Process], *command: str) -> Outcome:
    """Lets every host take its addresses, all at once; no two may be the same."""
    async with asyncio.timeout(WITHIN_S):
        each = await asyncio.gather(*(process.ask(*command) for process in processes))
    addresses = [address for of_one in each for address in of_one["addresses"]]
    assert len(addresses) == len(set(addresses)), "an address was given twice"
    durations_s = [duration for of_one in each for duration in of_one["durations_s"]]
    return Outcome(
        taken=len(addresses),
        elapsed_s=max(one["ended_s"] for one in each) - min(one["began_s"] for one in each),
        p99_ms=1000 * statistics.quantiles(durations_s, n=100)[98],
        tries=sum(of_one["transactions"] for of_one in each) / len(addresses),
    )


async def compared(url: str, directory: Path, layout: Layout) -> tuple[Outcome, Outcome]:
    """Both ways on one store: ours, then the bitmap."""
    firsts = [1 + number * layout.hosts for number in range(layout.processes)]
    processes = await asyncio.gather(
        *(Process.start(url, directory, first, layout) for first in firsts)
    )
    try:
        await asyncio.gather(*(process.answer() for process in processes))
        network_id = await processes[0].ask("create")
        await asyncio.gather(*(process.ask("join", network_id) for process in processes))
        mine = await measured(processes, "ours", network_id)
        other = await measured(processes, "bitmap")
        store = await open_store(url)
        claims = await store.list(records.addresses_prefix(network_id))
        item = await store.get(BITMAP)
        await store.close()
    finally:
        await asyncio.gather(*(process.end() for process in processes))
    assert len(claims) == mine.taken + 1, "claims and gateway"
    assert item
    reserved = _reserved(IPv4Network(SUBNET)).bit_count()
    assert int(json.loads(item.value), 16).bit_count() == other.taken + reserved, "every bit"
    return mine, other


@contextmanager
def store_url(kind: str, directory: Path) -> Iterator[str]:
    """The URL of an empty store, with its server if it has one."""
    if kind.startswith("sqlite"):
        yield f"sqlite://{directory}/store.db"
        return
    with SERVERS[kind](directory / "server") as server:
        yield server.url


def main(kinds: Sequence[str]) -> int:
    """Prints a table; gives 1 if ours is not fast enough on one of the stores."""
    print(f"{CLIENTS} clients, {SUBNET}: addresses/s (99 % within, transactions per address)")
    print(f"{'store':<13} {'key each':>24} {'bitmap':>24} {'ratio':>7}")
    slow = False
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="pyvxlan-bench-") as name:
            directory = Path(name)
            with store_url(kind, directory) as url:
                mine, other = asyncio.run(compared(url, directory, LAYOUTS[kind]))
        ratio = mine.rate / other.rate
        slow = slow or (ratio < RATIO and kind not in FOR_COMPARISON)
        print(f"{kind:<13} {mine!s:>24} {other!s:>24} {ratio:>7.1f}", flush=True)
    return int(slow)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve(sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:])))
    else:
        sys.exit(main(sys.argv[1:] or list(LAYOUTS)))
