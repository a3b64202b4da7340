"""An engine in memory, for the server's Protocol, and what the tests need around it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pyvxlan.forwarder.client import ForwarderClient
from pyvxlan.forwarder.protocol import TableUpdate
from pyvxlan.forwarder.server import Server


@dataclass
class FakePort:
    """What the fake remembers of one attachment."""

    queues: list[int]
    mtu_bytes: int
    multicast: bool
    flood_rate: int
    fdb: dict[bytes, str] = field(default_factory=dict)
    neighbours: dict[str, bytes] = field(default_factory=dict)
    flood: list[str] = field(default_factory=list)
    alive: bool = True


class FakeStats:
    """Counters that say how many VNIs there are."""

    workers = 2
    idle_s = (0.5, 1.5)

    def __init__(self, vnis: Sequence[int], segmentation: Sequence[bool]) -> None:
        self._vnis = vnis
        self.segmentation = segmentation

    def networks(self) -> Sequence[tuple[int, Mapping[str, Any]]]:
        return [
            (vni, {"egress_frames": vni, "egress_drops": {"truncated": 1}}) for vni in self._vnis
        ]

    def underlay(self) -> Mapping[str, Any]:
        return {"sent_datagrams": 7, "drops": {}}

    def vteps(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return [("198.18.0.2", {"sent_datagrams": 3})]

    def tunnels(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return [("198.18.0.2", {"sent": 4, "round_trips": {"50": 1, "inf": 0}})]


class FakeEngine:
    """Owns descriptors and keeps tables as the real engine does, but forwards nothing."""

    def __init__(self, underlay: Sequence[int], workers: int) -> None:
        self.underlay = list(underlay)
        self.workers = workers
        self.ports: dict[int, FakePort] = {}
        self.closed = False
        self.paused = True
        self.captures: dict[int, tuple[int, Mapping[str, Any]]] = {}
        """Socket, and what was asked for, by number."""
        self.segmentation = True
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._events: list[tuple[str, ...]] = []
        self.tunnels: tuple[int, dict[str, int]] | None = None
        if not underlay:
            os.close(self.event_fd)
            raise ValueError("underlay holds no sockets")

    def resume(self) -> None:
        self.paused = False

    def switch_segmentation(self, *, on: bool) -> None:
        self.segmentation = on

    def attach(
        self, vni: int, queues: Sequence[int], mtu: int, *, multicast: bool, flood_rate: int
    ) -> None:
        if mtu < 68:
            close_all(queues)
            raise ValueError(f"MTU {mtu} is too small")
        old = self.ports.get(vni)
        port = FakePort(list(queues), mtu, multicast, flood_rate)
        if old is not None:
            close_all(old.queues)
            port.fdb, port.neighbours, port.flood = old.fdb, old.neighbours, old.flood
        self.ports[vni] = port

    def detach(self, vni: int) -> None:
        if (port := self.ports.pop(vni, None)) is not None:
            close_all(port.queues)

    def apply(self, vni: int, add: Sequence[tuple[bytes, str]], remove: Sequence[bytes]) -> None:
        for mac in remove:
            self.ports[vni].fdb.pop(mac, None)
        self.ports[vni].fdb.update(add)

    def set_flood(self, vni: int, vteps: Sequence[str]) -> None:
        self.ports[vni].flood = list(vteps)

    def set_neighbours(self, vni: int, entries: Sequence[tuple[str, bytes]]) -> None:
        self.ports[vni].neighbours = dict(entries)

    def set_tunnels(self, interval_ms: int, tunnels: Sequence[tuple[str, int]]) -> None:
        self.tunnels = (interval_ms, dict(tunnels))

    def dump(
        self, vni: int
    ) -> tuple[list[tuple[bytes, str]], list[tuple[str, bytes]], list[str], bool]:
        port = self.ports[vni]
        return list(port.fdb.items()), list(port.neighbours.items()), port.flood, port.alive

    def stats(self) -> FakeStats:
        return FakeStats(sorted(self.ports), [self.segmentation] * 2)

    def begin_capture(self, vni: int, socket: int, **wish: Any) -> int:
        if wish["snap_bytes"] < 14:
            os.close(socket)
            raise ValueError(f"{wish['snap_bytes']} bytes are too few")
        number = len(self.captures)
        self.captures[number] = (socket, {"vni": vni, **wish})
        return number

    def end_capture(self, number: int) -> None:
        os.close(self.captures.pop(number)[0])

    def recent_drops(self) -> Sequence[tuple[Any, ...]]:
        return [(5, 2, "egress", "flood_rate", 42, "", 60, b"headers")]

    def happen(self, kind: str, subject: str) -> None:
        """Makes an event known."""
        self._events.append((kind, subject))
        os.eventfd_write(self.event_fd, 1)

    def events(self) -> Sequence[tuple[str, ...]]:
        os.eventfd_read(self.event_fd)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        close_all([*self.underlay, self.event_fd, *(end for end, _ in self.captures.values())])
        for port in self.ports.values():
            close_all(port.queues)


def close_all(descriptors: Sequence[int]) -> None:
    """Closes each."""
    for descriptor in descriptors:
        os.close(descriptor)


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def check(update: TableUpdate) -> None:
    """Refuses what the fake calls invalid: the MAC of six zeros."""
    if bytes(6) in update.add:
        raise ValueError("MAC 00:00:00:00:00:00 is not unicast")


@dataclass
class Rig:
    """A server on a listening socket in the file system, and the engine it has started."""

    server: Server
    path: str
    engines: list[FakeEngine] = field(default_factory=list)

    @property
    def engine(self) -> FakeEngine:
        """The engine that `configure` started."""
        return self.engines[-1]

    def socket(self) -> socket.socket:
        """A connected socket, to send garbage with."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(self.path)
        return sock

    async def client(self) -> ForwarderClient:
        """A connected client."""
        return await ForwarderClient.connect(self.path, timeout_s=5)


@asynccontextmanager
async def rig(path: str, *, allowed_uids: frozenset[int] | None = None) -> AsyncIterator[Rig]:
    """Runs a server until the block ends."""

    def start(underlay: Sequence[int], workers: int) -> FakeEngine:
        made.engines.append(FakeEngine(underlay, workers))
        return made.engine

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    uids = frozenset({os.getuid()}) if allowed_uids is None else allowed_uids
    made = Rig(Server(start, check, version="9.9", allowed_uids=uids), path)
    serving = asyncio.create_task(made.server.serve(listener))
    try:
        yield made
    finally:
        made.server.stop()
        await asyncio.wait_for(serving, 5)
