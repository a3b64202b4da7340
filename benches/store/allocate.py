"""How many addresses a second 16 hosts can take from one network at once.

Two ways in one run, on the same store: what `pyvxlan` does (`Service.create_endpoint`: a key for
each address, claimed together with the endpoint's record), and a bitmap of the whole subnet in one
key, changed by compare-and-swap, as Docker's overlay had it. Each host is a client of its own; its
watches are ended first, since sixteen hosts in one process would measure little else. The subnet is
a /20. Checks that nobody got an address twice, that nobody failed, and that the claims
in the store are those that were given out; ends with 1 if ours is not 5 times as fast.

    python -m benches.store.allocate [KIND ...]        kinds: sqlite, etcd, consul, zk
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import StoreConflictError
from pyvxlan.daemon.kv import ABSENT, Check, Store, Write
from pyvxlan.daemon.kv.mirror import Mirror
from pyvxlan.daemon.kv.open import open_store
from pyvxlan.daemon.model import Network
from pyvxlan.daemon.requests import EndpointSpec, NetworkSpec
from tests.servers.kinds import SERVERS
from tests.unit.cluster import Member, MemoryNet

CLIENTS = 16
OURS_EACH = 100
BITMAP_EACH = 20
"""The bitmap is slower: as many as take about as long."""
SUBNET = "10.8.0.0/20"
RATIO = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one way of taking addresses came to."""

    taken: int
    elapsed_s: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Addresses per second."""
        return self.taken / self.elapsed_s


@contextmanager
def store_url(kind: str, directory: Path) -> Iterator[str]:
    """The URL of an empty store, with its server if it has one."""
    if kind == "sqlite":
        yield f"sqlite://{directory}/store.db"
        return
    with SERVERS[kind](directory / "server") as server:
        yield server.url


async def measured(take: Sequence[Callable[[], Awaitable[str]]], each: int) -> Outcome:
    """Lets every client take `each` addresses, all at once; no two may be the same."""
    durations_s: list[float] = []

    async def client(one: Callable[[], Awaitable[str]]) -> list[str]:
        got = []
        for _ in range(each):
            started = time.perf_counter()
            got.append(await one())
            durations_s.append(time.perf_counter() - started)
        return got

    started = time.perf_counter()
    got = await asyncio.gather(*map(client, take))
    elapsed_s = time.perf_counter() - started
    addresses = [address for of_client in got for address in of_client]
    assert len(addresses) == len(set(addresses)) == len(take) * each, "an address was given twice"
    p99_s = statistics.quantiles(durations_s, n=100)[98]
    return Outcome(len(addresses), elapsed_s, p99_s * 1000)


async def ours(hosts: Sequence[Member], network: Network) -> Outcome:
    """Endpoints as the daemon creates them."""

    def taker(host: Member) -> Callable[[], Awaitable[str]]:
        async def take() -> str:
            endpoint = await host.service.create_endpoint(network.id, EndpointSpec())
            return str(endpoint.addresses[0].ip)

        return take

    outcome = await measured([taker(host) for host in hosts], OURS_EACH)
    claims = await hosts[0].store.list(records.addresses_prefix(network.id))
    assert len(claims) == outcome.taken + 1, "claims and gateway"
    return outcome


async def bitmap(stores: Sequence[Store], network: Network) -> Outcome:
    """One key with a bit for each address; the endpoint's record is written with it."""
    cidr, key = network.subnets[0].cidr, f"bench/{network.id}"
    reserved = (1 << 0) | (1 << 1) | (1 << (cidr.num_addresses - 1))

    def taker(store: Store) -> Callable[[], Awaitable[str]]:
        async def take() -> str:
            while True:
                item = await store.get(key)
                used = int(json.loads(item.value), 16) if item else reserved
                number = ((used + 1) & ~used).bit_length() - 1
                value = json.dumps(f"{used | 1 << number:x}").encode()
                check = Check(key, item.revision if item else ABSENT)
                record = Write(f"bench-ep/{secrets.token_hex(16)}", str(cidr[number]).encode())
                try:
                    await store.txn([check], [Write(key, value), record])
                except StoreConflictError:
                    continue
                return str(cidr[number])

        return take

    outcome = await measured([taker(store) for store in stores], BITMAP_EACH)
    item = await stores[0].get(key)
    assert item is not None
    used = int(json.loads(item.value), 16)
    assert used.bit_count() == outcome.taken + reserved.bit_count(), "every bit that was taken"
    return outcome


async def compared(url: str, directory: Path) -> tuple[Outcome, Outcome]:
    """Both ways on one store: ours, then the bitmap."""
    hosts = []
    for number in range(1, CLIENTS + 1):
        mirror = await Mirror.open(directory / f"mirror{number}.db", url)
        home = directory / f"host{number}"
        hosts.append(Member(await open_store(url), mirror, MemoryNet(), home, number))
    try:
        await asyncio.gather(*(host.start() for host in hosts))
        network = await hosts[0].service.create_network(NetworkSpec("bench", subnets=(SUBNET,)))
        for host in hosts:
            host.state.join(network.id)
            await host.until(partial(host.state.joined, network.id))
            await host.state.close()
        return await ours(hosts, network), await bitmap([host.store for host in hosts], network)
    finally:
        for host in hosts:
            await host.stop()


def main(kinds: Sequence[str]) -> int:
    """Prints a table; gives 1 if ours is not fast enough on one of the stores."""
    print(f"{CLIENTS} clients, {SUBNET}: addresses/s (p99 in ms)")
    print(f"{'store':<8} {'key each':>18} {'bitmap':>18} {'ratio':>7}")
    slow = False
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="pyvxlan-bench-") as name:
            directory = Path(name)
            with store_url(kind, directory) as url:
                mine, other = asyncio.run(compared(url, directory))
        ratio = mine.rate / other.rate
        slow = slow or ratio < RATIO
        print(
            f"{kind:<8} {f'{mine.rate:.0f} ({mine.p99_ms:.0f})':>18} "
            f"{f'{other.rate:.0f} ({other.p99_ms:.0f})':>18} {ratio:>7.1f}",
            flush=True,
        )
    return int(slow)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["sqlite", *SERVERS]))
