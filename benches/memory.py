"""Memory of the forwarder, and updates of its tables under traffic: `python -m benches.memory`.

Needs root. Two forwarders in processes of their own, as the daemon starts them, carry one network
between two namespaces. Memory is what they hold for themselves (RssAnon): at the start, after each
round of load (small datagrams flat out, then four TCP streams), per table entry and per network. An
engine in this process then moves entries of a table as large, in batches, while datagrams pass.
Fails if memory grows under load, if a million entries take more than 100 MB, or a datagram is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from benches.net.__main__ import LOAD, build_load
from pyvxlan import open_tap, open_underlay, parse_mac
from pyvxlan._dataplane import Engine
from pyvxlan.forwarder.client import ForwarderClient
from pyvxlan.forwarder.protocol import Attachment, TableUpdate
from tests.netns.test_forwarder import PORT, SIDES, VNI, Process, connect, ip, process
from tests.netns.world import socket_in

Figures: TypeAlias = dict[str, dict[str, list[float]]]
"""Values by what they are of, and of whom or when."""
MB = 1_000_000
BATCH = 50_000
BUFFERS_MB = 16
"""What the workers' buffers, of which memory comes with the first use, may add to the start."""
GROWTH = 1.05
"""How much more there may be after a round of load than after the one before."""


def main() -> int:
    """Measures and prints; fails if a check does."""
    parser = argparse.ArgumentParser(prog="python -m benches.memory", description=__doc__)
    parser.add_argument("--rounds", default=4, type=int, help="of load")
    parser.add_argument("--seconds", default=3.0, type=float, help="of one load, and of updates")
    parser.add_argument(
        "--entries", default=1_000_000, type=int, help="of the table, twice a batch or more"
    )
    parser.add_argument("--networks", default=100, type=int)
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    build_load()
    figures = measured(options.rounds, options.seconds, options.entries, options.networks)
    for what, values in figures.items():
        print(f"{what}: {values}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measured(rounds: int, seconds: float, entries: int, networks: int) -> Figures:
    """Measures everything; raises AssertionError if a check fails."""
    with namespaces(), tempfile.TemporaryDirectory() as directory:
        figures = asyncio.run(_of_forwarders(Path(directory), rounds, seconds, entries, networks))
    with namespaces():
        return figures | _updates(seconds, entries)


@contextmanager
def namespaces() -> Iterator[None]:
    """The namespaces of both sides."""
    with ExitStack() as stack:
        for side in SIDES:
            ip("netns", "add", side.netns)
            stack.callback(ip, "netns", "del", side.netns)
        yield


async def _of_forwarders(
    directory: Path, rounds: int, seconds: float, entries: int, networks: int
) -> Figures:
    with (
        process(directory / "one.sock") as one,
        process(directory / "two.sock") as two,
    ):
        async with await one.client() as client, await two.client() as other:
            await connect(client, *SIDES)
            await connect(other, *SIDES[::-1])
            both = (one, two)
            start = _held_mb(both)
            under_load = []
            for _ in range(rounds):
                await asyncio.to_thread(_flood, seconds)
                await asyncio.to_thread(_load, "tcp", 4, seconds)
                under_load.append(_held_mb(both))
            _check_flat(start, under_load)
            each, full_mb = await _per_entry(client, one, entries)
            return {
                "memory of a forwarder, MB": {
                    "at the start": start,
                    "after a round of load": [held for both in under_load for held in both],
                    f"with {_count(entries)} table entries": [full_mb],
                },
                "memory per table entry, bytes": {"pyvxlan": [each]},
                "memory per network, kB": {"pyvxlan": [await _per_network(client, one, networks)]},
            }


def _held_mb(forwarders: tuple[Process, ...]) -> list[float]:
    return [round(_held(forwarder) / MB, 2) for forwarder in forwarders]


def _held(forwarder: Process) -> int:
    """Bytes of memory that a process holds for itself (proc_pid_status(5))."""
    status = Path(f"/proc/{forwarder.pid}/status").read_text("ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def _check_flat(start: list[float], under_load: list[list[float]]) -> None:
    for side, at_first in enumerate(start):
        rounds = [held[side] for held in under_load]
        assert max(rounds) <= at_first + BUFFERS_MB, f"{rounds} MB under load, {at_first} before"
        # A worker that the first one covered gets its buffers when it serves itself: once.
        grown = sum(after > before * GROWTH for before, after in pairwise(rounds))
        assert grown <= 1, f"memory grows under load: {rounds} MB"


def _flood(seconds: float) -> None:
    """Sends datagrams of 22 bytes as fast as it can; nobody takes them from the socket."""
    sender, receiver = (socket_in(side.netns, socket.AF_INET, socket.SOCK_DGRAM) for side in SIDES)
    with sender, receiver:
        receiver.bind((SIDES[1].address, 9000))
        sender.connect((SIDES[1].address, 9000))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(100):
                sender.send(bytes(22))


def _load(kind: str, *arguments: object) -> None:
    names = (f"/run/netns/{side.netns}" for side in SIDES)
    words = [LOAD, *names, SIDES[1].address, kind, *arguments]
    subprocess.run(
        [str(word) for word in words], check=True, stdout=subprocess.DEVNULL, timeout=120
    )


async def _per_entry(
    client: ForwarderClient, forwarder: Process, entries: int
) -> tuple[float, float]:
    """Fills the table by messages of `BATCH`; what one message takes is reused, and not counted."""
    before = 0
    for first in range(0, entries, BATCH):
        numbers = range(first, min(first + BATCH, entries))
        await client.update([TableUpdate(VNI, {_mac(n): _vtep(n) for n in numbers})])
        before = before or _held(forwarder)
    stats = await client.stats()
    assert stats.networks[VNI]["fdb_entries"] == entries + 1  # that of the other side
    each = (_held(forwarder) - before) / (entries - BATCH)
    assert each < 100, f"{each} bytes per entry"
    return round(each, 1), round(_held(forwarder) / MB, 1)


async def _per_network(client: ForwarderClient, forwarder: Process, count: int) -> float:
    before = _held(forwarder)
    netns = os.open(f"/run/netns/{SIDES[0].netns}", os.O_RDONLY)
    for vni in range(VNI + 1, VNI + 1 + count):
        queues = open_tap(netns, f"v{vni}", queues=2)
        await client.attach(Attachment(vni, 1450), queues, netns)
        for queue in queues:
            os.close(queue)
    os.close(netns)
    return round((_held(forwarder) - before) / count / 1000, 1)


def _updates(seconds: float, entries: int) -> Figures:
    """Moves entries in batches for some seconds while datagrams cross; none may be lost."""
    with ExitStack() as stack:
        engines = []
        for own, other in (SIDES, SIDES[::-1]):
            underlay = open_underlay(own.vtep, PORT, workers=1, send_sockets=4)
            engine = stack.enter_context(Engine(underlay, 1))
            engine.attach(VNI, open_tap(f"/run/netns/{own.netns}"), 1450)
            engine.apply(VNI, [(parse_mac(other.mac), other.vtep)], [])
            engine.set_neighbours(VNI, [(other.address, parse_mac(other.mac))])
            inside = ("-n", own.netns)
            ip(*inside, "link", "set", "vxlan0", "address", own.mac, "up")
            ip(*inside, "address", "add", f"{own.address}/24", "dev", "vxlan0")
            engines.append(engine)
        table = [(_mac(n), _vtep(n)) for n in range(entries)]
        moved = [(mac, _vtep(n + 1)) for n, (mac, _) in enumerate(table)]
        batches = [
            version[first : first + BATCH]
            for version in (table, moved)
            for first in range(0, entries, BATCH)
        ]
        for batch in batches[: len(batches) // 2]:
            engines[0].apply(VNI, batch, [])
        with Stream() as stream:
            rates: list[float] = []
            turn, now = len(batches) // 2, time.perf_counter()
            end = now + seconds
            while now < end:
                begin, batch = now, batches[turn % len(batches)]
                engines[0].apply(VNI, batch, [])
                now = time.perf_counter()
                rates.append(round(len(batch) / (now - begin)))
                turn += 1
        assert stream.sent > 100 * seconds, f"only {stream.sent} datagrams were sent meanwhile"
        assert stream.received == stream.sent, f"{stream.received} of {stream.sent} arrived"
        fdb, *_ = engines[0].dump(VNI)
        assert len(fdb) == entries + 1
        assert {*batches[(turn - 1) % len(batches)]} <= {*fdb}
        return {
            f"table entries moved a second, of {_count(entries)}": {"pyvxlan": rates},
            "datagrams that crossed meanwhile, none lost": {"pyvxlan": [stream.sent]},
        }


SENDER = """
import select, socket, sys
sender, sent = socket.socket(type=socket.SOCK_DGRAM), 0
sender.connect((sys.argv[1], 9000))
while not select.select([sys.stdin], [], [], 0.002)[0]:
    for _ in range(10):
        sender.send(bytes(22))
        sent += 1
print(sent)
"""


class Stream:
    """Datagrams from one side to the other, up to 5,000 a second, while inside.

    They are sent by another process, since this one's threads wait for each other.
    """

    def __init__(self) -> None:
        self.sent = self.received = 0
        self._receiver = socket_in(SIDES[1].netns, socket.AF_INET, socket.SOCK_DGRAM)
        so_rcvbufforce = 33
        self._receiver.setsockopt(socket.SOL_SOCKET, so_rcvbufforce, 1 << 26)
        self._receiver.bind((SIDES[1].address, 9000))

    def __enter__(self) -> Stream:
        enter = ("nsenter", f"--net=/run/netns/{SIDES[0].netns}")
        self._sender = subprocess.Popen(
            [*enter, sys.executable, "-c", SENDER, SIDES[1].address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._receiver.settimeout(10)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        printed, _ = self._sender.communicate(b"end", timeout=10)
        self.sent = int(printed)
        self._receiver.settimeout(1)
        with self._receiver, contextlib.suppress(TimeoutError):
            while True:
                self._take()

    def _take(self) -> None:
        self._receiver.recv(100)
        self.received += 1


def _count(entries: int) -> str:
    return "a million" if entries == MB else f"{entries:,}"


def _mac(number: int) -> bytes:
    """The MAC of an entry; numbers are scattered, so that neighbours in the table are none here."""
    return b"\x02\x00" + (number * 0x9E3779B1 & 0xFFFFFFFF).to_bytes(4, "big")


def _vtep(number: int) -> str:
    return f"198.18.{number % 4}.{number % 250 + 1}"


if __name__ == "__main__":
    sys.exit(main())
