"""Cutting and joining by the forwarder, against what Linux itself makes of the same frames.

Super-frames to cut go by the same call to both, a packet socket with a virtio-net header
(packet(7), PACKET_VNET_HDR): to the forwarder through its TAP, to Linux on a veth that can't
segment. Segments to join come to the forwarder as VXLAN datagrams that wait when it begins, to
Linux on a veth with GRO; packet sockets behind TAP and veth tell what became of them.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TypeAlias

import pytest

import pyvxlan
from tests.netns.world import command, inside

pytestmark = pytest.mark.root
VNI = 77
HERE, THERE = b"\x02\x42\x0a\x00\x00\x02", b"\x02\x42\x0a\x00\x00\x03"
VTEP = "127.0.0.2"
MTU_BYTES = 2000
"""Room for the largest segment with all options."""
ETH_P_ALL, SOL_PACKET, PACKET_VNET_HDR, SO_RCVBUFFORCE = 0x0003, 263, 15, 33
NEEDS_CSUM = 1
TCPV4, TCPV6, UDP_L4, ECN = 1, 4, 5, 0x80
"""virtio 1.2, section 5.1.6; linux/virtio_net.h for UDP_L4."""
FIN, PSH, ACK, URG, ECE, CWR = 0x01, 0x08, 0x10, 0x20, 0x40, 0x80


@dataclass(frozen=True)
class Packet:
    """A TCP or UDP packet whose sender left its checksum, and perhaps its cutting, to others."""

    version: int
    udp: bool
    payload: bytes
    mss: int
    """Payload bytes of a segment."""
    flags: int = ACK
    window: int = 501
    options: bytes = b""
    identification: int = 7
    dont_fragment: bool = True
    tos: int = 0
    sequence: int = 1
    acknowledgement: int = 99
    source_port: int = 40000

    @property
    def count(self) -> int:
        """How many segments it has."""
        return max(1, -(-len(self.payload) // self.mss))

    def with_header(self) -> bytes:
        """The virtio-net header, then the frame."""
        transport, at = self._transport()
        packet = self._network(len(transport)) + transport
        start = 14 + len(packet) - len(transport)
        headers = start + len(transport) - len(self.payload)
        kind = UDP_L4 if self.udp else {4: TCPV4, 6: TCPV6}[self.version]
        kind |= ECN if self.flags & CWR and not self.udp else 0
        if self.count == 1:
            kind = 0
        size = self.mss if kind else 0
        header = struct.pack("=BBHHHH", NEEDS_CSUM, kind, headers, size, start, at)
        ethertype = {4: b"\x08\x00", 6: b"\x86\xdd"}[self.version]
        return header + THERE + HERE + ethertype + packet

    def _transport(self) -> tuple[bytes, int]:
        length = len(self.payload) + (8 if self.udp else 20 + len(self.options))
        sources, target = (
            ip_address(text).packed
            for text in {4: ("10.0.0.2", "10.0.0.3"), 6: ("fd00::2", "fd00::3")}[self.version]
        )
        protocol = socket.IPPROTO_UDP if self.udp else socket.IPPROTO_TCP
        pseudo = folded(sources + target + struct.pack("!HH", protocol, length))
        if self.udp:
            return struct.pack("!HHHH", self.source_port, 5001, length, pseudo) + self.payload, 6
        offset_and_flags = (5 + len(self.options) // 4) << 12 | self.flags
        header = struct.pack(
            "!HHIIHHHH",
            *(self.source_port, 80, self.sequence, self.acknowledgement),
            *(offset_and_flags, self.window, pseudo, 0),
        )
        return header + self.options + self.payload, 16

    def _network(self, length: int) -> bytes:
        protocol = socket.IPPROTO_UDP if self.udp else socket.IPPROTO_TCP
        if self.version == 6:
            first = 6 << 28 | self.tos << 20 | 0x12345
            addresses = ip_address("fd00::2").packed + ip_address("fd00::3").packed
            return struct.pack("!IHBB", first, length, protocol, 64) + addresses
        addresses = ip_address("10.0.0.2").packed + ip_address("10.0.0.3").packed
        fields = [0x45, self.tos, 20 + length, self.identification]
        fields += [0x4000 if self.dont_fragment else 0, 64, protocol, 0]
        header = struct.pack("!BBHHHBBH", *fields) + addresses
        fields[-1] = 0xFFFF - folded(header)
        return struct.pack("!BBHHHBBH", *fields) + addresses


def folded(data: bytes) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


TIMESTAMPS = bytes.fromhex("0101080a00000102000003ff")
SACK = bytes.fromhex("0101050a000000010000ffff")


def packets() -> Iterator[Packet]:
    """Some of every kind: the same in each run."""
    chance = random.Random(4789)
    for number in range(240):
        udp = number % 3 == 2
        mss = chance.choice([1, 7, 536, 1200, 1398, 1448])
        segments = chance.choice([1, 2, 3, 17, 40])
        size = max(1, min(mss * segments - chance.randrange(mss), 60_000))
        yield Packet(
            version=chance.choice([4, 6]),
            udp=udp,
            payload=chance.randbytes(size),
            mss=mss,
            flags=ACK | sum(flag for flag in (FIN, PSH, ECE, CWR) if chance.random() < 0.3),
            window=chance.choice([0, 1, 501, 65535]),
            options=chance.choice([b"", TIMESTAMPS, SACK, TIMESTAMPS + SACK]),
            identification=chance.choice([0, 7, 65530]),
            dont_fragment=chance.random() < 0.5,
            tos=chance.choice([0, 1, 2, 3, 0xB8]),
            sequence=chance.choice([1, 2**32 - 1000]),
        )


def streams() -> Iterator[list[Packet]]:
    """Segments of one or two flows, as they come or with something wrong: the same in each run.

    Left out is what the forwarder joins and not every Linux does. With DF, identifications mean
    nothing (RFC 6864), but Linux looks at them: here they count up. And CWR, which a sender of
    classic ECN sets on the first segment alone, is joined with those behind it until Linux 6.16.
    """
    chance = random.Random(7348)
    changes: list[dict[str, object]] = [
        *({"flags": ACK | flag} for flag in (PSH, FIN, ECE, URG)),
        {"window": 0},
        {"acknowledgement": 100},
        {"tos": 3},  # congestion experienced
        {"options": TIMESTAMPS[:-1] + b"\x00"},
        {"identification": 999, "dont_fragment": False},
        {"dont_fragment": False},
        {"payload": b""},
        {"payload": bytes(99)},
        {"payload": bytes(101)},
    ]
    for number in range(80):
        version, udp = chance.choice([4, 6]), number % 4 == 3
        mss, count = 100, chance.randrange(2, 12)
        first = Packet(
            version=version,
            udp=udp,
            payload=b"",
            mss=200,
            options=chance.choice([b"", TIMESTAMPS, SACK]),
            dont_fragment=chance.random() < 0.5,
            tos=chance.choice([0, 2]),
        )
        made = [
            replace(
                first,
                payload=chance.randbytes(mss),
                sequence=(2**32 - 300 + index * mss) % 2**32,
                identification=7 + index,
            )
            for index in range(count)
        ]
        at = chance.randrange(count)
        match number % 5:
            case 0:  # a gap, or a shorter end
                made[at : at + 1] = []
            case 1:  # again
                made.insert(at, made[chance.randrange(count)])
            case 2:  # out of order
                made[at], made[at - 1] = made[at - 1], made[at]
            case 3:
                change = changes[number // 5 % len(changes)]
                if udp:
                    change = {name: change[name] for name in change.keys() - {"options"}}
                made[at] = replace(made[at], **change)  # type: ignore[arg-type]
            case 4:  # with another flow in between
                other = [replace(packet, source_port=40001) for packet in made]
                made = [packet for pair in zip(made, other, strict=True) for packet in pair]
        counts = {packet.source_port: itertools.count(7) for packet in made}
        yield [
            replace(packet, identification=next(counts[packet.source_port]))
            if packet.dont_fragment
            else packet
            for packet in made
        ]


class Bench:
    """One namespace with an engine's TAP, a veth that can't segment, and one that joins."""

    def __init__(self, stack: ExitStack) -> None:
        self.netns = f"ko{os.getpid() % 10000}"
        command("ip", "netns", "add", self.netns)
        stack.callback(command, "ip", "netns", "del", self.netns)
        ip = ("ip", "-n", self.netns, "link")
        command(*ip, "set", "lo", "up")
        mtu = ("mtu", MTU_BYTES)
        for name in ("cut", "join"):
            peer = ("type", "veth", "peer", "name", f"{name}1")
            command(*ip, "add", f"{name}0", *mtu, *peer, *mtu)
        self.queues = pyvxlan.open_tap(f"/run/netns/{self.netns}", mtu_bytes=MTU_BYTES)
        self.sockets = inside(self.netns, lambda: pyvxlan.open_underlay("127.0.0.1"))
        for descriptor in (*self.queues, *self.sockets):
            stack.callback(os.close, descriptor)
        enter = ("nsenter", f"--net=/run/netns/{self.netns}")
        off = [word for name in ("tso", "gso", "gro", "tx") for word in (name, "off")]
        command(*enter, "ethtool", "-K", "cut0", *off)
        command(*enter, "ethtool", "-K", "join0", *off)
        command(*enter, "ethtool", "-K", "join1", "gro", "on", "rx-udp-gro-forwarding", "on")
        # What is held to be joined waits for more so long, in nanoseconds.
        flush = "echo 5000000 >/sys/class/net/join1/gro_flush_timeout"
        command("ip", "netns", "exec", self.netns, "sh", "-c", flush)
        for name in ("vxlan0", "cut0", "cut1", "join0", "join1"):
            # Nobody else shall speak there.
            command(*enter, "sysctl", "-q", "-w", f"net.ipv6.conf.{name}.disable_ipv6=1")
            command(*ip, "set", name, "arp", "off", "up")
        self.port, self.wire, self.cut, self.apart, self.joined = (
            stack.enter_context(self.packet_socket(name))
            for name in ("vxlan0", "cut0", "cut1", "join0", "join1")
        )
        for sock in (self.port, self.wire, self.joined):
            sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.vtep = stack.enter_context(
            inside(self.netns, lambda: socket.socket(type=socket.SOCK_DGRAM))
        )
        inside(self.netns, lambda: self.vtep.bind((VTEP, pyvxlan.DEFAULT_PORT)))
        for sock in (self.cut, self.vtep, self.port, self.joined):
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
            sock.settimeout(10)

    @contextmanager
    def engine(self) -> Iterator[pyvxlan.Engine]:
        """An engine that begins with what waits for it, and leaves sockets and TAP open."""
        sockets, queues = ([os.dup(fd) for fd in fds] for fds in (self.sockets, self.queues))
        with pyvxlan.Engine(sockets, paused=True) as engine:
            engine.attach(VNI, queues, mtu_bytes=MTU_BYTES)
            engine.apply(VNI, {THERE: VTEP})
            engine.resume()
            yield engine

    def completed(self, packet: Packet) -> bytes:
        """The frame of a packet of one segment, its checksum made by Linux."""
        self.wire.send(packet.with_header())
        return self.cut.recv(65536)

    def packet_socket(self, name: str) -> socket.socket:
        """A packet socket on an interface."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            made.bind((name, ETH_P_ALL))
            return made

        return inside(self.netns, make)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)


def test_super_frames_leave_as_the_segments_that_linux_makes(bench: Bench) -> None:
    with bench.engine() as engine:
        for packet in packets():
            frame = packet.with_header()
            bench.wire.send(frame)
            by_linux = [bench.cut.recv(65536) for _ in range(packet.count)]
            bench.port.send(frame)
            datagrams = [bench.vtep.recv(65536) for _ in range(packet.count)]
            assert [datagram[8:] for datagram in datagrams] == by_linux, packet
        assert engine.stats().networks[VNI].egress_drops == {}


Joined: TypeAlias = dict[bytes, list[tuple[int, int, bytes]]]
"""By flow, in order: kind and segment size of the virtio-net header, 0 if none; and the frame."""


def received(sock: socket.socket, count: int) -> Joined:
    """Takes frames until they stand for `count` segments, and sorts them by flow."""
    found: Joined = defaultdict(list)
    while count > 0:
        given = sock.recv(1 << 17)
        kind, size = struct.unpack("=xBxxH", given[:6])
        frame = given[10:]
        # Behind a header of IP without options.
        ports = 14 + (20 if frame[12:14] == b"\x08\x00" else 40)
        headers = ports + (8 if kind == UDP_L4 else frame[ports + 12] >> 4 << 2)
        count -= -(-(len(frame) - headers) // size) if kind else 1
        found[frame[ports : ports + 4]].append((kind, size, frame))
    return found


def test_segments_are_joined_to_the_super_frames_that_linux_joins(bench: Bench) -> None:
    """Linux lets go of what it holds when its clock ticks: the most that it ever joins counts."""
    joined = 0
    for stream in streams():
        frames = [bench.completed(packet) for packet in stream]
        # From there to here.
        frames = [frame[6:12] + frame[:6] + frame[12:] for frame in frames]
        for frame in frames:
            bench.vtep.sendto(pyvxlan.encap(frame, VNI), ("127.0.0.1", pyvxlan.DEFAULT_PORT))
        with bench.engine():
            by_us = received(bench.port, len(frames))
        tries: list[Joined] = []
        while len(tries) < 3 or by_us not in tries:
            assert len(tries) < 50, (stream, by_us, tries[-1])
            for frame in frames:
                bench.apart.send(frame)
            tries.append(received(bench.joined, len(frames)))
            for flow, outputs in tries[-1].items():
                assert len(outputs) >= len(by_us[flow]), (stream, outputs)
        joined += sum(kind != 0 for outputs in by_us.values() for kind, _, _ in outputs)
    assert joined > 60
