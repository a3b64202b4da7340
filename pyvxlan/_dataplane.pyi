"""Stub of the Rust extension: plain values in and out, typed wrappers stand in `pyvxlan`.

MAC addresses are six bytes, VNIs and ports integers, IP addresses text. Buffers are anything with
the buffer protocol that is C-contiguous (`bytes`, `bytearray`, `memoryview`). A bad value raises
`ValueError` that names it, one of the wrong type `TypeError`; a refused system call raises
`OSError` with its errno.
"""

from collections.abc import Sequence
from typing import Final, TypedDict, final, type_check_only

from typing_extensions import Buffer

__all__ = [
    "DEFAULT_PORT",
    "HEADER_LEN",
    "MAX_SNAP_BYTES",
    "Engine",
    "ForwardingTable",
    "Stats",
    "confine",
    "decap",
    "decap_batch",
    "decap_datagram",
    "drop_reasons",
    "encap",
    "encap_batch",
    "encap_datagram",
    "flow_hash",
    "open_tap",
    "open_underlay",
    "parse_arp",
    "parse_capture",
    "parse_ethernet",
    "parse_ipv4",
    "parse_ipv6",
    "parse_tcp",
    "parse_udp",
    "parse_vxlan",
    "receive_offload",
    "source_port",
    "tap_offloads",
    "vxlan_header",
]

@type_check_only
class _NetworkCounters(TypedDict):
    """Counters of one VNI since it was first attached, summed over workers.

    Frames are counted as they are on the wire: a super-frame of ten segments counts ten.
    Bytes are inner Ethernet bytes without VXLAN. `flood_frames` counts the copies sent to VTEPs of
    a flood list (they are in `egress_frames` too), `replies` the local ARP and neighbour answers.
    The drop dictionaries hold every reason of `drop_reasons()` that occurred at least once.
    `fdb_entries`, `neighbour_entries` and `flood_vteps` are what the tables hold now.
    """

    egress_frames: int
    egress_bytes: int
    ingress_frames: int
    ingress_bytes: int
    flood_frames: int
    replies: int
    path_mtu_replies: int
    mss_clamped: int
    fdb_entries: int
    neighbour_entries: int
    flood_vteps: int
    egress_drops: dict[str, int]
    ingress_drops: dict[str, int]

@type_check_only
class _VtepCounters(TypedDict):
    """Datagrams exchanged with one VTEP, and the bytes of their UDP payload.

    Of those received, the ones whose frames the tables let in.
    """

    sent_datagrams: int
    sent_bytes: int
    received_datagrams: int
    received_bytes: int

@type_check_only
class _TunnelCounters(TypedDict):
    """What the probes of one VTEP have told; see `pyvxlan.TunnelStats`."""

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
    round_trips: dict[str, int]

@type_check_only
class _UnderlayCounters(TypedDict):
    """Counters of the underlay sockets, summed over workers.

    A batch is one return of a system call with at least one datagram; bytes are UDP payload.
    `drops` holds what cannot be told to belong to an attached VNI.
    """

    sent_datagrams: int
    sent_bytes: int
    sent_syscalls: int
    sent_batches: int
    received_datagrams: int
    received_bytes: int
    received_syscalls: int
    received_batches: int
    drops: dict[str, int]

HEADER_LEN: Final[int]
"""Length of the VXLAN header in bytes: 8."""

DEFAULT_PORT: Final[int]
"""IANA's UDP port of VXLAN: 4789."""

MAX_SNAP_BYTES: Final[int]
"""Most bytes that a capture keeps of a frame: 65600, a super-frame with its headers."""

def open_tap(
    netns_fd: int, name: str, queues: int, mtu: int, *, without: Sequence[str] = ()
) -> list[int]:
    """Opens `queues` queues of the TAP `name` in a namespace, creating it if it is missing.

    Flags IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE; all offloads but those of the names in
    `without`, as the kernel grants them (`tap_offloads`); non-blocking, close-on-exec; MTU set; the
    link stays down. The calling thread is in its own namespace again afterwards, also after an
    error. The caller owns the descriptors; the TAP lives as long as one of them is open.

    Raises:
        ValueError: `name` is empty, has "/" or spaces or more than 15 bytes; `queues` is not in
            1-256 or `mtu` not in 68-65521, or no offload has a name in `without`.
        OSError: EPERM without CAP_NET_ADMIN, and for another namespace than the thread's own
            CAP_SYS_ADMIN; EINVAL if another kind of interface has the name.
    """

def tap_offloads(fd: int, *, without: Sequence[str] = ()) -> list[str]:
    """Asks the TAP of a queue for all offloads but some (TUNSETOFFLOAD), and gives those granted.

    Of csum, tso4, tso6, tso_ecn, uso4, uso6, in that order. The kernel grants none without csum,
    tso_ecn with a tso only, and neither uso without the other. May be done while it is in use.

    Raises:
        ValueError: No offload has a name in `without`.
        OSError: It is no queue of a TAP, or was deleted.
    """

def receive_offload(fd: int, *, on: bool) -> bool:
    """Lets the kernel join datagrams for a receiving socket (UDP_GRO), or not.

    Says whether it does now; it can from Linux 5.0 on. May be done while it is in use.
    """

def open_underlay(
    address: str, port: int, workers: int, *, checksum: bool = True, send_sockets: int = 32
) -> list[int]:
    """Opens the UDP sockets of the VTEP `address` in the caller's namespace.

    First `workers` receive sockets on `port` (SO_REUSEPORT, UDP_GRO), then `send_sockets` send
    sockets on ports in 49152-65535 that receive nothing. All are non-blocking, send with DF clear
    and never fragment, and have 4 MiB buffers where allowed. With `checksum` False, the outer UDP
    checksum is sent as zero, if IPv4.

    Raises:
        ValueError: `address` is no unicast IP address, `port` not in 1-65535, `workers` not in
            1-64 or `send_sockets` not in 1-1024.
        OSError: EADDRINUSE if anybody has the port already, naming it and the remedy;
            EADDRNOTAVAIL if the address is not of this host.
    """

def confine(uid: int, gid: int) -> None:
    """Gives up every privilege of this process for ever.

    Groups, gid and uid, all capability sets with bounding and ambient, no_new_privs, not dumpable,
    and a seccomp filter that answers EPERM to all but what running the engine and serving an open
    Unix socket need: no open, socket, connect, bind, exec or fork. Threads may be started, since
    an `Engine` may come later.

    Raises:
        RuntimeError: The process has more than one thread; nothing was given up.
        OSError: The kernel refused a step; steps before it are done. The caller should end.
    """

def drop_reasons() -> list[str]:
    """Names of all reasons for which a frame or datagram can be dropped."""

@final
class Stats:
    """One reading of all counters. Never changes."""

    @property
    def workers(self) -> int:
        """Number of worker threads."""

    @property
    def idle_s(self) -> list[float]:
        """How long each worker has had nothing to do since it began, its present wait included."""

    @property
    def segmentation(self) -> list[bool]:
        """Whether the kernel cuts datagrams for each worker (UDP_SEGMENT)."""

    def networks(self) -> list[tuple[int, _NetworkCounters]]:
        """Counters of each attached VNI, in order of VNI."""

    def underlay(self) -> _UnderlayCounters:
        """Counters of the sockets, with drops that belong to no VNI."""

    def vteps(self) -> list[tuple[str, _VtepCounters]]:
        """Counters of each VTEP that datagrams went to or came from, by address."""

    def tunnels(self) -> list[tuple[str, _TunnelCounters]]:
        """What is known of each VTEP that `Engine.set_tunnels` named, by address."""

@final
class Engine:
    """Worker threads that forward between the attached ports and the underlay sockets.

    Every method may be called from any thread. After `close` methods but `close` and `events`
    raise RuntimeError("engine is closed"). In a fork, which has none of the threads, they raise
    another one, and those two do nothing.
    """

    def __new__(cls, underlay: Sequence[int], workers: int, /, *, paused: bool = False) -> Engine:
        """Takes ownership of the descriptors that `open_underlay` gave, and starts the workers.

        With `paused`, they read nothing before `resume`. Also when it raises, the descriptors are
        closed.

        Raises:
            ValueError: `workers` is not in 1-64, or `underlay` does not hold `workers` receive
                sockets and at least one send socket, all for UDP and of one address family.
            OSError: No thread, epoll or eventfd can be had, or a descriptor is not open.
        """

    @property
    def event_fd(self) -> int:
        """An eventfd of the engine's, readable while `events` has something and after `close`.

        Do not close it.
        """

    @property
    def workers(self) -> int:
        """Number of worker threads."""

    def resume(self) -> None:
        """Lets workers that were started paused begin; does nothing for others."""

    def switch_segmentation(self, *, on: bool) -> None:
        """Lets the kernel cut datagrams for the workers (UDP_SEGMENT), or not.

        It does at first. Workers to which it refuses go on without.
        """

    def attach(
        self,
        vni: int,
        queues: Sequence[int],
        mtu: int,
        *,
        multicast: bool = True,
        flood_rate: int = 10000,
    ) -> None:
        """Takes ownership of a TAP's queues and forwards for `vni`, with empty tables at first.

        If `vni` is attached, the new queues and settings replace the old, and tables and counters
        stay. Queue i belongs to worker i; with fewer queues than workers some workers have none,
        with more they are dealt out in turn. `flood_rate` is in frames a second. The descriptors
        are closed also when it raises.

        Raises:
            ValueError: `vni` is not in 0-16777214, `mtu` not in 68-65521, `flood_rate` is not in
                1-1000000000, or `queues` is empty.
        """

    def detach(self, vni: int) -> None:
        """Closes the VNI's queues and forgets its tables and counters.

        When it returns, no worker uses them any more. Does nothing for a VNI not attached.
        """

    def apply(self, vni: int, add: Sequence[tuple[bytes, str]], remove: Sequence[bytes]) -> None:
        """Changes the FDB, all or nothing: removes MACs, then adds or moves MACs to VTEPs.

        Removing a MAC that is not there does nothing.

        Raises:
            ValueError: An entry is invalid, or `vni` is not attached; nothing was changed.
        """

    def set_flood(self, vni: int, vteps: Sequence[str]) -> None:
        """Replaces the list of VTEPs that get broadcast and multicast frames.

        Raises:
            ValueError: An address is invalid, or `vni` is not attached; nothing was changed.
        """

    def set_neighbours(self, vni: int, entries: Sequence[tuple[str, bytes]]) -> None:
        """Replaces the table from overlay address to MAC that local answers come from.

        Raises:
            ValueError: An entry is invalid, or `vni` is not attached; nothing was changed.
        """

    def set_tunnels(self, interval_ms: int, tunnels: Sequence[tuple[str, int]]) -> None:
        """Replaces the VTEPs that are probed, each with the largest MTU of the networks shared.

        `interval_ms` of 0 means that they are answered only.

        Raises:
            ValueError: A value is out of range, or an address not one of the underlay's family;
                nothing was changed.
        """

    def dump(
        self, vni: int
    ) -> tuple[list[tuple[bytes, str]], list[tuple[str, bytes]], list[str], bool]:
        """What the workers use now: FDB, neighbours, flood list, and whether the port is alive.

        Sorted, except the flood list, which keeps its order.

        Raises:
            ValueError: `vni` is not attached.
        """

    def port(self, vni: int) -> tuple[int, bool, int]:
        """The settings of an attachment: MTU in bytes, multicast, flood rate.

        Raises:
            ValueError: `vni` is not attached.
        """

    def vnis(self) -> list[int]:
        """The attached VNIs in order."""

    def stats(self) -> Stats:
        """Reads all counters."""

    def begin_capture(
        self,
        vni: int,
        socket: int,
        *,
        mac: bytes | None = None,
        snap_bytes: int = 65600,
        drops_only: bool = False,
    ) -> int:
        """Sends records of the frames of `vni` to the peer of a socket, and gives its number.

        Takes ownership of `socket`, a SOCK_SEQPACKET one; each message is one for `parse_capture`.
        What the peer does not take at once is lost. Ends when the peer has gone. `vni` need not be
        attached. With `mac`, only frames from and to it, and broadcast and multicast from other
        hosts; with `drops_only`, only those that are dropped.

        Raises:
            ValueError: A value is out of range, the socket of another kind, or 16 captures run.
        """

    def end_capture(self, number: int) -> None:
        """Ends a capture and closes its socket. One that has ended is no error."""

    def recent_drops(self) -> list[tuple[int, int, str, str, int | None, str, int, bytes]]:
        """The last dropped frames, the oldest first; of each reason and worker the last 16.

        Time in nanoseconds of Unix time, how many in a row were alike, direction, reason, VNI if
        known, VTEP or "", bytes of the frame, its headers (no payload; at most 128 bytes).
        """

    def events(self) -> list[tuple[str, ...]]:
        """Takes what happened since the last call and makes `event_fd` quiet.

        ("port_lost", "<vni>"): the TAP behind the VNI's port was deleted. Tables stay; attach
        again. ("worker_lost", "<number>"): a worker thread ended by a defect; replace the engine.
        """

    def close(self) -> None:
        """Ends and joins the workers and closes all descriptors. May be repeated."""

    def __enter__(self) -> Engine: ...
    def __exit__(self, exc_type: object, exc: object, traceback: object, /) -> None: ...

@final
class ForwardingTable:
    """The tables of one VNI and the decisions made by them, without threads or descriptors.

    Safe to share: a change builds the next table and swaps it in.
    """

    def __new__(cls, vni: int, *, multicast: bool = True) -> ForwardingTable:
        """Makes empty tables. ValueError if `vni` is not in 0-16777215."""

    @property
    def vni(self) -> int: ...
    @property
    def multicast(self) -> bool: ...
    def __len__(self) -> int:
        """Number of FDB entries."""

    def apply(self, add: Sequence[tuple[bytes, str]], remove: Sequence[bytes]) -> None:
        """Like `Engine.apply`."""

    def set_flood(self, vteps: Sequence[str]) -> None:
        """Like `Engine.set_flood`."""

    def set_neighbours(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Like `Engine.set_neighbours`."""

    def lookup(self, mac: bytes) -> str | None:
        """The VTEP of a MAC. ValueError if it is not six bytes."""

    def neighbour(self, address: str) -> bytes | None:
        """The MAC of an overlay address. ValueError if that is no IP address."""

    def is_vtep(self, address: str) -> bool:
        """Whether any entry or the flood list names this VTEP."""

    def dump(self) -> tuple[list[tuple[bytes, str]], list[tuple[str, bytes]], list[str]]:
        """FDB and neighbours, sorted, and the flood list."""

    def egress(self, frame: Buffer) -> tuple[str, list[str], bytes, str]:
        """Decides on a frame from a container: verdict, VTEPs, reply, drop reason.

        Verdicts: "unicast" (one VTEP), "flood" (all of the flood list), "reply" (the frame to
        give back to the container), "drop" (the reason). What does not apply is empty.
        """

    def ingress(self, frame: Buffer, source: str) -> str | None:
        """Decides on a decapsulated frame from VTEP `source`: None to deliver, or why to drop."""

def vxlan_header(vni: int) -> bytes:
    """The eight bytes in front of a frame (RFC 7348, section 5), for `sendmsg([header, frame])`."""

def encap(frame: Buffer, vni: int) -> bytes:
    """The UDP payload: VXLAN header and frame. ValueError if the frame is under 14 bytes."""

def encap_batch(frames: Sequence[Buffer], vni: int) -> list[bytes]:
    """`encap` of each frame. One that is invalid is named by its index in ValueError."""

def decap(payload: Buffer) -> tuple[int, memoryview]:
    """VNI and frame of a UDP payload; the frame is a view of `payload`, nothing is copied.

    Raises:
        ValueError: The I flag is not set, or it is too short for headers of VXLAN and Ethernet.
    """

def decap_batch(payloads: Sequence[Buffer]) -> list[tuple[int, memoryview]]:
    """`decap` of each payload. One that is invalid is named by its index in ValueError."""

def encap_datagram(
    frame: Buffer,
    vni: int,
    src: str,
    dst: str,
    *,
    sport: int | None = None,
    dport: int = 4789,
    checksum: bool = True,
) -> bytes:
    """The whole outer packet: IPv4 or IPv6, UDP, VXLAN, frame.

    `sport` None is `source_port(frame)`. With `checksum` False the UDP checksum is zero (RFC 768;
    over IPv6, RFC 6935).

    Raises:
        ValueError: Addresses are invalid or of two families, a port is not in 1-65535, or the
            packet would be longer than 65535 bytes.
    """

def decap_datagram(packet: Buffer) -> tuple[str, str, int, int, int, memoryview]:
    """Source, destination, source port, destination port, VNI and frame (a view) of an IP packet.

    Raises:
        ValueError: It is no whole UDP packet, a checksum is wrong, it is a fragment, or the
            payload is not VXLAN.
    """

def flow_hash(frame: Buffer) -> int:
    """32-bit hash of the inner flow: addresses, protocol, ports; of fragments without ports."""

def source_port(frame: Buffer) -> int:
    """The outer UDP source port for a frame, in 49152-65535 (RFC 7348, section 4.1)."""

def parse_vxlan(payload: Buffer) -> tuple[int, int]:
    """Flags byte and VNI of a UDP payload, whatever the flags say; the frame begins at byte 8."""

def parse_ethernet(frame: Buffer) -> tuple[bytes, bytes, list[int], int, int]:
    """Destination, source, VLAN tags (TCI, outermost first), ethertype, offset of the payload."""

def parse_arp(payload: Buffer) -> tuple[int, bytes, str, bytes, str]:
    """Operation, sender MAC and address, target MAC and address of an Ethernet/IPv4 ARP packet."""

def parse_ipv4(packet: Buffer) -> tuple[str, str, int, int, int, int, int, int, int, int]:
    """An IPv4 header (RFC 791); total length and checksum are as given, not compared.

    Source, destination, protocol, TTL, TOS byte, identification, flags (3 bits), fragment offset
    in bytes, total length, header length in bytes.
    """

def parse_ipv6(packet: Buffer) -> tuple[str, str, int, int, int, int, int, int, bool]:
    """An IPv6 header with its extension headers (RFC 8200).

    Source, destination, upper-layer protocol, hop limit, traffic class, flow label, payload
    length, offset of the upper layer in bytes, whether it is a fragment.
    """

def parse_capture(
    message: Buffer,
) -> tuple[int, int, list[tuple[int, str, str, str, int, str, int, int, bytes]]]:
    """A message of a capture: the worker, how many records it has lost so far, and its records.

    Each: time in nanoseconds of Unix time, direction, verdict, reason of a drop or "", copies sent,
    VTEP or "", how many frames on the wire it stands for, bytes of the frame, the bytes kept.
    """

def parse_udp(segment: Buffer) -> tuple[int, int, int, int]:
    """Source port, destination port, length and checksum (RFC 768)."""

def parse_tcp(segment: Buffer) -> tuple[int, int, int, int, int, int, int, int]:
    """A TCP header (RFC 9293).

    Source port, destination port, sequence number, acknowledgement number, flags byte, window,
    checksum, header length in bytes.
    """
