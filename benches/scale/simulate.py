"""Many hosts' control planes against one real etcd: what a large cluster costs.

    python -m benches.scale.simulate                                  a small one, in seconds
    python -m benches.scale.simulate --hosts 1000 --networks 1000 --endpoints 100000 --processes 3

Every host has its own connection, session, watches, tables and transactions, as its daemon has;
there are no containers. Records that many hosts know are parsed once for all of a process, or
memory and time of the simulator would be the limit; what a host alone takes is measured in a
process of its own, where nothing is shared. Hosts may be spread over several processes; the
endpoints that come and go are those of the first one's. Every phase is bounded in time, and the
simulator in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benches.scale import gauges
from benches.scale.crowd import Crowd, summary
from benches.scale.gauges import Gauge
from benches.scale.hosts import (
    SimulatedHost,
    Size,
    all_lost,
    in_step,
    network_id,
    records_of,
    share_parsing,
    start_hosts,
)
from pyvxlan.daemon import records
from pyvxlan.daemon.following import REASONS
from pyvxlan.daemon.kv import ABSENT, Check, Write
from pyvxlan.daemon.kv.open import open_store
from pyvxlan.daemon.upkeep.content import fill, open_whole
from tests.servers.etcd import EtcdServer

REPO = Path(__file__).resolve().parents[2]
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result."""

    phase: str
    what: str
    value: float
    unit: str


@dataclass(slots=True)
class Sighting:
    """An endpoint that is being made, and who has seen it when, on the monotonic clock."""

    hosts: Sequence[SimulatedHost]
    """Those that shall see it."""
    endpoint_id: str = ""
    seen_s: dict[int, float] = field(default_factory=dict)
    everywhere: asyncio.Event = field(default_factory=asyncio.Event)

    def look(self, host: SimulatedHost, network: str) -> None:
        """Notes whether a host sees it now."""
        if host.number not in self.seen_s and host.state.endpoint(network, self.endpoint_id):
            self.seen_s[host.number] = time.monotonic()
            if len(self.seen_s) == len(self.hosts):
                self.everywhere.set()


@dataclass(slots=True)
class Simulation:
    """One run.

    Args:
        size: The cluster.
        running: How many of its hosts run; the others only are in the store.
        server: Its store, which runs.
        at_once: How many hosts start at one time.
        rate: Endpoints that come and go per second, in `churn`.
        churn_s: For how long.
        phase_s: How long a phase may take.
        processes: Over how many processes they are spread.
        memory: Bytes that these may use.
    """

    size: Size
    running: int
    server: EtcdServer
    at_once: int
    rate: float
    churn_s: float
    phase_s: float
    processes: int
    memory: int
    figures: list[Figure] = field(default_factory=list)
    hosts: dict[int, SimulatedHost] = field(default_factory=dict)
    """Those of this process, by number."""
    crowds: list[Crowd] = field(default_factory=list)
    """All others."""
    awaited: dict[str, Sighting] = field(default_factory=dict)
    """By network: the endpoint that comes there."""

    async def run(self, phases: Sequence[str]) -> None:
        for phase in phases:
            async with asyncio.timeout(self.phase_s):
                await getattr(self, phase)()

    def add(self, phase: str, what: str, value: float, unit: str) -> None:
        self.figures.append(Figure(phase, what, value, unit))
        print(f"{phase:<8} {what:<46} {value:>12.4g} {unit}", file=sys.stderr, flush=True)

    def cost(self, phase: str, before: Gauge, *, per: float = 0, of: str = "") -> Gauge:
        """Notes what etcd did since `before`, in all or per piece."""
        after = gauges.read(self.server)
        cpu_s, sent = after.etcd_cpu_s - before.etcd_cpu_s, after.sent - before.sent
        if per:
            self.add(phase, f"etcd CPU per {of}", 1000 * cpu_s / per, "ms")
            self.add(phase, f"etcd sends per {of}", sent / per / 1000, "kB")
        else:
            self.add(phase, "etcd CPU", cpu_s, "s")
            self.add(phase, "etcd sends", sent / MB, "MB")
        return after

    async def load(self) -> None:
        """Fills the store with all networks and endpoints."""
        store = await open_whole(self.server.url)
        values = records_of(self.size)
        meta = records.emit_meta(records.Meta(secrets.token_hex(16)))
        await store.txn([Check(records.META, ABSENT)], [Write(records.META, meta)])
        item = await store.get(records.META)
        assert item
        guard = Check(records.META, item.revision)
        began_s = time.monotonic()
        await fill(store, values, kind="etcd", guard=guard, say=lambda _: None)
        await store.close()
        self.add("load", "records", len(values), "")
        self.add("load", "bytes of keys and values", _bytes(values) / MB, "MB")
        self.add("load", "time", time.monotonic() - began_s, "s")
        now = gauges.read(self.server)
        self.add("load", "etcd memory", now.etcd_rss / MB, "MB")
        self.add("load", "etcd database", now.database / MB, "MB")

    async def start(self) -> None:
        """Starts one host in a process of its own, while no other host runs."""
        before = gauges.read(self.server)
        numbers = (self.size.hosts, self.size.networks, self.size.endpoints)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benches.scale.one_host", self.server.url),
            *map(str, numbers),
            stdout=asyncio.subprocess.PIPE,
            cwd=REPO,
        )
        printed, _ = await process.communicate()
        assert process.returncode == 0
        one = json.loads(printed)
        assert one["endpoints"] == one["networks"] * self.size.per_network
        self.add("start", "networks on the host", one["networks"], "")
        self.add("start", "endpoints that it knows", one["endpoints"], "")
        self.add("start", "time", one["took_s"], "s")
        self.add("start", "CPU of the daemon", one["cpu_s"], "s")
        self.add("start", "memory per endpoint", one["rss"] / one["endpoints"], "bytes")
        self.cost("start", before)

    async def start_all(self) -> None:
        """Starts every host."""
        before = gauges.read(self.server)
        bounds = [self.running * part // self.processes for part in range(self.processes + 1)]
        own, *others = map(range, bounds, bounds[1:])
        at_once, memory = max(1, self.at_once // self.processes), self.memory // self.processes
        for numbers in others:
            crowd = await Crowd.open(
                self.server.url, numbers, self.size,
                at_once=at_once, within_s=self.phase_s, memory=memory,
            )  # fmt: skip
            self.crowds.append(crowd)
        async with asyncio.TaskGroup() as group:
            group.create_task(
                start_hosts(
                    self.hosts,
                    own,
                    self.size,
                    self.server.url,
                    self._seen,
                    at_once=at_once,
                    within_s=self.phase_s,
                    memory=memory,
                )
            )
            self._ask_all("start", group)
        after = self.cost("hosts", before, per=self.running, of="host")
        sums = await self._sums()
        assert sums["known"] == sums["watched"] * self.size.per_network
        self.add("hosts", "hosts that run", sums["hosts"], "")
        self.add("hosts", "processes of the simulator", self.processes, "")
        took_s = after.at_s - before.at_s
        self.add("hosts", "time", took_s, "s")
        own_s = sums["cpu_s"] - before.own_cpu_s
        self.add("hosts", "CPU of the simulator", 100 * own_s / took_s, "% of a core")
        share = (after.etcd_cpu_s - before.etcd_cpu_s) / took_s
        self.add("hosts", "etcd CPU", 100 * share, "% of a core")
        events = (after.events - before.events) / self.running
        self.add("hosts", "events delivered per host", events, "")
        self.add("hosts", "registered with the second try or later", sums["late"], "")
        self.add("hosts", "streams of watches in etcd", after.streams - before.streams, "")
        self.add("hosts", "watches in etcd", after.watchers - before.watchers, "")
        self.add("hosts", "watches of endpoints", sums["watched"], "")
        grown = after.etcd_rss - before.etcd_rss
        self.add(
            "hosts", "etcd memory per watch", grown / (after.watchers - before.watchers), "bytes"
        )
        self.add("hosts", "etcd memory", after.etcd_rss / MB, "MB")
        self.add("hosts", "memory of the simulator", sums["rss"] / MB, "MB")

    async def idle(self) -> None:
        """Looks what everybody costs who does nothing."""
        before = gauges.read(self.server)
        await asyncio.sleep(min(20, self.churn_s))
        after = gauges.read(self.server)
        took_s = after.at_s - before.at_s
        share = (after.etcd_cpu_s - before.etcd_cpu_s) / took_s
        self.add("idle", "etcd CPU", 100 * share, "% of a core")
        self.add("idle", "etcd sends", (after.sent - before.sent) / took_s / 1000, "kB/s")

    async def churn(self) -> None:
        """Endpoints come and go at a steady rate."""
        rng = random.Random(1)
        hosts = list(self.hosts.values())
        members = {network_id(n): set(hosts) for n, hosts in enumerate(self.size.members)}
        before = gauges.read(self.server)
        answered: list[float] = []
        seen: list[float] = []
        skipped = 0
        began_s = time.monotonic()

        async def once(host: SimulatedHost, network: str) -> None:
            others = [
                self.hosts[n] for n in members[network] if n != host.number and n in self.hosts
            ]
            sighting = self.awaited[network] = Sighting(others)
            called_s = time.monotonic()
            endpoint = await host.create(network)
            answered_s = time.monotonic()
            answered.append(answered_s - called_s)
            sighting.endpoint_id = endpoint.id
            for other in others:
                sighting.look(other, network)
            if others:
                await sighting.everywhere.wait()
            del self.awaited[network]
            seen.extend(max(0, at_s - answered_s) for at_s in sighting.seen_s.values())
            assert await host.endpoints.delete(endpoint)

        async with asyncio.TaskGroup() as group:
            for number in range(int(self.rate * self.churn_s)):
                await asyncio.sleep(max(0, began_s + number / self.rate - time.monotonic()))
                host = rng.choice(hosts)
                free = [network for network in host.joined if network not in self.awaited]
                if free:
                    group.create_task(once(host, rng.choice(free)))
                else:
                    skipped += 1
        took_s = time.monotonic() - began_s
        after = self.cost("churn", before, per=len(answered), of="endpoint that comes and goes")
        self.add("churn", "wanted", self.rate, "endpoints/s")
        self.add("churn", "done", len(answered) / took_s, "endpoints/s")
        self.add("churn", "skipped, as all networks were busy", skipped, "")
        self.add("churn", "create, median", 1000 * statistics.median(answered), "ms")
        self.add("churn", "create, 99 %", 1000 * _percentile(answered, 99), "ms")
        self.add("churn", "seen by another host, median", 1000 * statistics.median(seen), "ms")
        self.add("churn", "seen by another host, 99 %", 1000 * _percentile(seen, 99), "ms")
        events = (after.events - before.events) / len(answered)
        self.add("churn", "events delivered per endpoint", events, "")
        own = (after.own_cpu_s - before.own_cpu_s) / took_s
        self.add("churn", "CPU of the simulator", 100 * own, "% of a core")
        share = (after.etcd_cpu_s - before.etcd_cpu_s) / took_s
        self.add("churn", "etcd CPU", 100 * share, "% of a core")

    async def resume(self) -> None:
        """Kills etcd and starts it again: every watch goes on where it was."""
        await self._restart("resume")

    async def relist(self) -> None:
        """The same, with the history gone: every watch reads everything anew."""
        store = await open_store(self.server.url)
        await store.txn([], [Write("else/compacted", b"1")])
        item = await store.get("else/compacted")
        await store.close()
        assert item
        await asyncio.to_thread(self.server.ctl, "compact", str(item.revision))
        await self._restart("relist")

    async def _restart(self, phase: str) -> None:
        before = await self._sums()
        await asyncio.to_thread(self.server.kill)
        async with asyncio.TaskGroup() as group:
            group.create_task(all_lost(self.hosts.values(), self.phase_s))
            self._ask_all("lost", group)
        await asyncio.to_thread(self.server.start)
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(in_step(self.hosts.values(), self.phase_s))
            self._ask_all("back", group)
        self.add(phase, "time until all hosts are in step", time.monotonic() - began_s, "s")
        after, sums = gauges.read(self.server), await self._sums()
        self.add(phase, "etcd CPU", after.etcd_cpu_s, "s")
        self.add(phase, "CPU of the simulator", sums["cpu_s"] - before["cpu_s"], "s")
        self.add(phase, "etcd sends", after.sent / MB, "MB")
        self.add(phase, "etcd memory", after.etcd_rss / MB, "MB")
        for reason in REASONS:
            self.add(phase, f"prefixes taken up, {reason}", sums[reason] - before[reason], "")

    async def stop(self) -> None:
        """Ends every host."""
        async with asyncio.TaskGroup() as group:
            for one in (*self.hosts.values(), *self.crowds):
                group.create_task(one.close())
        self.hosts.clear()
        self.crowds.clear()

    def _ask_all(self, word: str, group: asyncio.TaskGroup) -> None:
        for crowd in self.crowds:
            group.create_task(crowd.ask(word))

    async def _sums(self) -> Counter[str]:
        """Adds up what all processes say of their hosts."""
        sums = Counter(summary(self.hosts))
        for crowd in self.crowds:
            sums.update(await crowd.ask("count"))
        return sums

    def _seen(self, host: SimulatedHost, network: str) -> None:
        if sighting := self.awaited.get(network):
            sighting.look(host, network)


def main(args: Sequence[str]) -> list[Figure]:
    parser = argparse.ArgumentParser(prog="simulate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--endpoints", type=int, default=200)
    parser.add_argument("--running", type=int, help="hosts that run; all if left out")
    parser.add_argument("--processes", type=int, default=1, help="over which hosts are spread")
    parser.add_argument("--at-once", type=int, default=8, help="hosts that start at one time")
    parser.add_argument("--rate", type=float, default=20.0, help="endpoints per second")
    parser.add_argument("--churn-s", type=float, default=3.0)
    parser.add_argument("--phase-s", type=float, default=600.0, help="longest time of a phase")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="most that this may use")
    parser.add_argument(
        "--phases",
        default="load,start,start_all,idle,churn,resume,relist,stop",
        help="which, in order, with commas",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args(args)
    size = Size(given.hosts, given.networks, given.endpoints)
    share_parsing()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="scale-") as directory:
        server = EtcdServer(
            Path(directory) / "etcd",
            flags=["--auto-compaction-retention=1h", "--quota-backend-bytes=8589934592"],
        )
        with server:
            simulation = Simulation(
                size=size,
                running=min(given.running or size.hosts, size.hosts),
                server=server,
                at_once=given.at_once,
                rate=given.rate,
                churn_s=given.churn_s,
                phase_s=given.phase_s,
                processes=given.processes,
                memory=int(given.memory_gb * 1e9),
            )
            asyncio.run(simulation.run(given.phases.split(",")))
    if given.json:
        print(json.dumps([asdict(figure) for figure in simulation.figures], indent=1))
    return simulation.figures


def _bytes(values: dict[str, bytes]) -> int:
    return sum(len(key) + len(value) for key, value in values.items())


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


if __name__ == "__main__":
    main(sys.argv[1:])
