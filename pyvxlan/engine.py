"""`Engine`: worker threads that forward frames, in this process.

    with Engine(open_underlay("198.18.0.1", workers=2), workers=2) as engine:
        engine.attach(42, open_tap("/run/netns/overlay", "vxlan0", queues=2), mtu_bytes=1450)
        engine.apply(42, {"02:42:0a:00:00:03": "198.18.0.2"})

Needs CAP_NET_ADMIN for the TAP, once; forwarding itself needs no privilege.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from pyvxlan import _dataplane
from pyvxlan._dataplane import DEFAULT_PORT
from pyvxlan.addresses import (
    Address,
    AddressLike,
    MacLike,
    address_text,
    address_texts,
    items,
    parse_address,
    parse_mac,
    parse_macs,
    several,
)
from pyvxlan.capture import DroppedFrame, dropped_frame
from pyvxlan.table import Ip, Mac, TableDump, fdb_entries, neighbour_entries, table_dump

if TYPE_CHECKING:
    from types import TracebackType

NetnsLike: TypeAlias = int | str | os.PathLike[str]
"""A network namespace: an open descriptor, or the path of its file."""


@dataclass(frozen=True, slots=True)
class NetworkStats:
    """Counters of one VNI since it was first attached.

    Frames are counted as on the wire: a super-frame of ten segments counts ten. Bytes are of inner
    Ethernet frames. `flood_frames` are copies sent to VTEPs of a flood list, part of
    `egress_frames`; `replies` local answers to ARP and neighbour solicitations; `path_mtu_replies`
    senders told that a frame is too long for its tunnel, `mss_clamped` TCP connections told before.
    Drops are by reason, those only that occurred. `fdb_entries`, `neighbour_entries` and
    `flood_vteps` are no counters but what the tables hold now.
    """

    egress_frames: int
    egress_bytes: int
    ingress_frames: int
    ingress_bytes: int
    flood_frames: int
    replies: int
    path_mtu_replies: int
    mss_clamped: int
    egress_drops: Mapping[str, int]
    ingress_drops: Mapping[str, int]
    fdb_entries: int
    neighbour_entries: int
    flood_vteps: int


@dataclass(frozen=True, slots=True)
class UnderlayStats:
    """Counters of the underlay sockets.

    Bytes are UDP payload. A batch is a system call that moved at least one datagram. `drops` are
    those that cannot be told to belong to an attached VNI, by reason.
    """

    sent_datagrams: int
    sent_bytes: int
    sent_syscalls: int
    sent_batches: int
    received_datagrams: int
    received_bytes: int
    received_syscalls: int
    received_batches: int
    drops: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class VtepStats:
    """Datagrams exchanged with one VTEP, and the bytes of their UDP payload.

    Received are those whose frames the tables let in.
    """

    sent_datagrams: int
    sent_bytes: int
    received_datagrams: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class TunnelStats:
    """What the probes of one VTEP have told since `Engine.set_tunnels` named it first.

    `sent` short requests, of which so many were `answered` or `lost`; of the last `recent` ones
    `recent_lost`. `reordered` answers came behind one that was asked later. `round_trips` counts
    by the bucket's upper bound in microseconds, as text, "inf" for the rest. `path_mtu_bytes` is
    the longest packet of the underlay that is known to get through, at most `needed_mtu_bytes`,
    what the networks need; 0 until one did. `narrowed` says how often less got through than
    before. `answer_age_ns` is the time since the last answer, -1 if there was none. `replies`
    counts the requests of the VTEP that were answered here.
    """

    sent: int
    answered: int
    lost: int
    reordered: int
    replies: int
    narrowed: int
    recent: int
    recent_lost: int
    round_trip_sum_ns: int
    path_mtu_bytes: int
    needed_mtu_bytes: int
    answer_age_ns: int
    round_trips: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Stats:
    """One reading of all counters, summed over workers.

    `networks` by VNI; `vteps` by address, those that datagrams went to or came from. By worker:
    `idle_s`, how long it has had nothing to do since it began, and `segmentation`, whether the
    kernel cuts datagrams for it. `tunnels` by address, those that `Engine.set_tunnels` named.
    """

    workers: int
    idle_s: Sequence[float]
    segmentation: Sequence[bool]
    underlay: UnderlayStats
    networks: Mapping[int, NetworkStats]
    vteps: Mapping[Address, VtepStats]
    tunnels: Mapping[Address, TunnelStats]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the engine.

    `port_lost`: the TAP of VNI `number` was deleted; its tables stay, attach it anew.
    `worker_lost`: worker `number` ended by a defect; replace the engine.
    """

    kind: Literal["port_lost", "worker_lost"]
    number: int


def open_tap(
    netns: NetnsLike,
    name: str = "vxlan0",
    *,
    queues: int = 1,
    mtu_bytes: int = 1450,
    without: Iterable[str] = (),
) -> list[int]:
    """Opens the queues of a TAP in a network namespace, creating it if it is missing.

    With virtio-net headers and all offloads that the kernel grants (`tap_offloads`). The link stays
    down; put it into a bridge and set it up. It lives as long as one of its descriptors is open.

    Args:
        netns: The namespace.
        name: Of the link, at most 15 bytes.
        queues: 1 to 256; one per worker is right.
        mtu_bytes: 68 to 65521; the underlay's minus 50, or minus 70 on IPv6.
        without: Names of offloads not to ask for.

    Returns:
        A descriptor per queue, the caller's to close or to give to `Engine.attach`.

    Raises:
        ValueError: A value is out of range.
        OSError: EPERM without CAP_NET_ADMIN, and for another namespace than the caller's
            CAP_SYS_ADMIN; EINVAL if another kind of interface has that name, ENOENT if there is no
            such namespace.
    """
    names = tuple(several(without, "names of offloads"))
    if not isinstance(name, str):
        raise TypeError(f"interface name {name!r} is no text")
    descriptor = netns if isinstance(netns, int) else os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _dataplane.open_tap(descriptor, name, queues, mtu_bytes, without=names)
    except OSError as error:
        error.filename = netns
        raise
    finally:
        if descriptor is not netns:
            os.close(descriptor)


def tap_offloads(queue: int, *, without: Iterable[str] = ()) -> list[str]:
    """Asks a queue's TAP for all offloads but some; gives those that it grants from now on.

    They are csum, tso4, tso6, tso_ecn, uso4 and uso6. Linux grants none without csum, tso_ecn with
    a tso only, and neither uso without the other. May be done while the TAP is in use.

    Raises:
        ValueError: No offload has a name in `without`.
        OSError: It is no descriptor of a TAP.
    """
    return _dataplane.tap_offloads(queue, without=tuple(several(without, "names of offloads")))


def receive_offload(sock: int, *, on: bool) -> bool:
    """Lets the kernel join datagrams for a receiving socket of `open_underlay`, or not.

    It does when the socket is opened, from Linux 5.0 on (UDP_GRO). May be done while it is in use.

    Returns:
        Whether it does now.

    Raises:
        OSError: It is no descriptor of a socket.
    """
    return _dataplane.receive_offload(sock, on=on)


def open_underlay(
    address: AddressLike,
    port: int = DEFAULT_PORT,
    *,
    workers: int = 1,
    checksum: bool = True,
    send_sockets: int = 32,
) -> list[int]:
    """Opens the UDP sockets of the VTEP `address`, in the current network namespace.

    One receive socket per worker on `port`, then `send_sockets` that send from ports in
    49152-65535, chosen per flow. Datagrams are never fragmented (RFC 7348, section 4.3).

    Args:
        address: A unicast address of this host.
        port: 1 to 65535; 4789 is IANA's.
        workers: 1 to 64, as the engine gets.
        checksum: Whether datagrams over IPv4 carry a UDP checksum; over IPv6 they always do.
        send_sockets: 1 to 1024; how many source ports spread the flows.

    Returns:
        Descriptors, the caller's to close or to give to `Engine`.

    Raises:
        ValueError: A value is out of range.
        OSError: EADDRINUSE if another program has the port, with the remedy in its text;
            EADDRNOTAVAIL if the address is not of this host.
    """
    return _dataplane.open_underlay(
        address_text(address), port, workers, checksum=checksum, send_sockets=send_sockets
    )


class Engine:
    """Worker threads that forward between TAP ports and the underlay, by table only.

    Safe to use from any thread; forwarding never takes the interpreter lock. Once closed, calls
    but `close` and `events` raise RuntimeError. So they do in a fork, which has no threads of its
    parent's: there, the two do nothing.
    """

    __slots__ = ("_engine",)

    def __init__(self, underlay: Sequence[int], *, workers: int = 1, paused: bool = False) -> None:
        """Takes ownership of the descriptors of `open_underlay`, and starts the workers.

        The descriptors are closed also when it raises.

        Args:
            underlay: Descriptors of `open_underlay`.
            workers: 1 to 64, as `open_underlay` got.
            paused: Whether nothing is read before `resume`. For an engine that takes over another's
                descriptors: what waits in them is then not dropped for want of tables.

        Raises:
            ValueError: `workers` is not the number that `underlay` was opened for, or one of them
                is no UDP socket.
            OSError: The kernel refused a thread or descriptor.
        """
        sockets = list(several(underlay, "descriptors"))
        self._engine = _dataplane.Engine(sockets, workers, paused=paused)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def workers(self) -> int:
        """Number of worker threads."""
        return self._engine.workers

    @property
    def event_fd(self) -> int:
        """An eventfd, readable while `events` has something, and once after `close`.

        It is the engine's: do not close it.
        """
        return self._engine.event_fd

    def resume(self) -> None:
        """Lets an engine that was made with `paused` begin. May be repeated."""
        self._engine.resume()

    def switch_segmentation(self, *, on: bool) -> None:
        """Lets the kernel cut datagrams for the workers (UDP_SEGMENT), or not.

        It does at first, where it can (Linux 4.18). Workers to which it refuses, as for some routes
        and devices, go on without; `stats` tells.
        """
        self._engine.switch_segmentation(on=on)

    def attach(
        self,
        vni: int,
        queues: Sequence[int],
        *,
        mtu_bytes: int,
        multicast: bool = True,
        flood_rate: int = 10_000,
    ) -> None:
        """Takes ownership of a TAP's queues and forwards for `vni`, with empty tables at first.

        If `vni` is attached, the new queues and settings replace the old; tables and counters
        stay. The descriptors are closed also when it raises.

        Args:
            vni: 0 to 16777214; the last one is that of probes.
            queues: Descriptors of `open_tap`; queue i belongs to worker i.
            mtu_bytes: 68 to 65521, of the overlay; larger frames are dropped.
            multicast: Whether broadcast and multicast frames are flooded.
            flood_rate: How many such frames a second may leave, 1 to 1000000000.

        Raises:
            ValueError: A value is out of range, or `queues` is empty.
        """
        descriptors = list(several(queues, "descriptors"))
        self._engine.attach(vni, descriptors, mtu_bytes, multicast=multicast, flood_rate=flood_rate)

    def detach(self, vni: int) -> None:
        """Closes the VNI's queues and forgets its tables. No error if it is not attached."""
        self._engine.detach(vni)

    def apply(
        self,
        vni: int,
        add: Mapping[Mac, AddressLike] | None = None,
        remove: Iterable[MacLike] = (),
    ) -> None:
        """Changes the FDB, all or nothing: removes MACs, then adds or moves MACs to VTEPs.

        Raises:
            ValueError: An entry is invalid, or `vni` is not attached; nothing was changed.
        """
        self._engine.apply(vni, fdb_entries({} if add is None else add), parse_macs(remove))

    def set_flood(self, vni: int, vteps: Iterable[AddressLike]) -> None:
        """Replaces the list of VTEPs that get broadcast and multicast frames.

        Raises:
            ValueError: An address is invalid, or `vni` is not attached; nothing was changed.
        """
        self._engine.set_flood(vni, address_texts(vteps))

    def set_neighbours(self, vni: int, neighbours: Mapping[Ip, MacLike]) -> None:
        """Replaces the table from overlay address to MAC that ARP and NS are answered from.

        Raises:
            ValueError: An entry is invalid, or `vni` is not attached; nothing was changed.
        """
        self._engine.set_neighbours(vni, neighbour_entries(neighbours))

    def set_tunnels(self, tunnels: Mapping[Ip, int], *, interval_s: float = 1.0) -> None:
        """Probes the tunnels to these VTEPs, and answers theirs; replaces those before.

        Args:
            tunnels: The largest MTU of the networks shared, in bytes, by VTEP.
            interval_s: Time between probes, up to an hour; 0 for answers only. A tunnel with
                traffic is probed four times a second at least; a thousand are probed a second.

        Raises:
            ValueError: A value is out of range, or a VTEP is not of the underlay's address family.
        """
        pairs = items(tunnels, "VTEP to MTU")
        wanted = [(address_text(vtep), mtu_bytes) for vtep, mtu_bytes in pairs]
        self._engine.set_tunnels(_interval_ms(interval_s), wanted)

    def dump(self, vni: int) -> TableDump:
        """Gives what the workers use now.

        Raises:
            ValueError: `vni` is not attached.
        """
        return table_dump(*self._engine.dump(vni))

    def vnis(self) -> list[int]:
        """Gives the attached VNIs in order."""
        return self._engine.vnis()

    def stats(self) -> Stats:
        """Reads all counters. Nothing is reset."""
        raw = self._engine.stats()
        return Stats(
            raw.workers,
            tuple(raw.idle_s),
            tuple(raw.segmentation),
            UnderlayStats(**raw.underlay()),
            {vni: NetworkStats(**counters) for vni, counters in raw.networks()},
            {parse_address(vtep): VtepStats(**counters) for vtep, counters in raw.vteps()},
            {parse_address(vtep): TunnelStats(**counters) for vtep, counters in raw.tunnels()},
        )

    def begin_capture(
        self,
        vni: int,
        socket: int,
        *,
        mac: MacLike | None = None,
        snap_bytes: int = _dataplane.MAX_SNAP_BYTES,
        drops_only: bool = False,
    ) -> int:
        """Sends what becomes of frames from now on to the peer of `socket`, for `parse_capture`.

        Takes ownership of `socket`, also when it raises; see `capture_sockets`. What its peer does
        not take at once is lost, and counted: forwarding never waits. Ends when the peer is closed.

        Args:
            vni: Of the frames. It need not be attached yet.
            socket: A descriptor, SOCK_SEQPACKET.
            mac: Only frames from and to it, and broadcast and multicast from other hosts.
            snap_bytes: How much is kept of each frame, 14 to 65600.
            drops_only: Whether only frames that are dropped are of interest.

        Returns:
            The capture's number, for `end_capture`.

        Raises:
            ValueError: A value is out of range, `socket` is of another kind, or 16 captures run.
        """
        try:
            station = None if mac is None else parse_mac(mac)
        except (TypeError, ValueError):
            os.close(socket)
            raise
        return self._engine.begin_capture(
            vni,
            socket,
            mac=station,
            snap_bytes=snap_bytes,
            drops_only=drops_only,
        )

    def end_capture(self, number: int) -> None:
        """Ends a capture and closes its socket. One that has ended is no error."""
        self._engine.end_capture(number)

    def recent_drops(self) -> list[DroppedFrame]:
        """Gives the last dropped frames, the oldest first: of each reason and worker up to 16."""
        return [dropped_frame(drop) for drop in self._engine.recent_drops()]

    def events(self) -> list[Event]:
        """Takes what happened since the last call; does not wait."""
        return [_event(*event) for event in self._engine.events()]

    async def wait_events(self) -> list[Event]:
        """Waits in the running asyncio loop until something happens, and takes it.

        One task at a time, since a loop watches a descriptor once.

        Raises:
            RuntimeError: The engine is closed, or was while this waited.
        """
        import asyncio  # noqa: PLC0415  # slow to import, and most users need none of it

        loop = asyncio.get_running_loop()
        while not (events := self.events()):
            self._engine.vnis()  # raises if it is closed, which wakes as an event does
            ready = asyncio.Event()
            loop.add_reader(self.event_fd, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(self.event_fd)
        return events

    def close(self) -> None:
        """Ends the workers and closes all descriptors. May be repeated."""
        self._engine.close()


def _interval_ms(interval_s: float) -> int:
    if not isinstance(interval_s, int | float):
        raise TypeError(f"interval {interval_s!r}: give a number of seconds")
    if not (interval_s == 0 or 0.001 <= interval_s <= 3600):
        raise ValueError(f"interval {interval_s!r} s is neither 0 nor in 0.001-3600")
    return round(interval_s * 1000)


def _event(kind: str, number: str) -> Event:
    if kind == "worker_lost":
        return Event("worker_lost", int(number))
    return Event("port_lost", int(number))
