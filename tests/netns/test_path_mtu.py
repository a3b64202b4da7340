"""Tunnels that become narrower than the overlay's MTU promises, under running flows.

Two hosts with an engine each, by the library alone, a router between them, and a container behind
each: h1 - r - h2. What the router does to packets that are too long is the case.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

import pyvxlan
from tests.netns.world import command, eventually, inside, socket_in

pytestmark = pytest.mark.root
VNI = 0x4242
MTU = 1430
"""Of the overlay: an IPv6 underlay of 1500 bytes less 70."""
NARROW = 1380
"""What gets through the router at last, in bytes of the underlay's packets."""
SO_MAX_PACING_RATE = 47
MACS = ("02:42:0a:63:00:01", "02:42:0a:63:00:02")


@dataclass
class Path:
    """Both hosts and the router, as names of namespaces, with one engine a host."""

    tag: str
    version: int
    engines: list[pyvxlan.Engine] = field(default_factory=list)

    @property
    def overhead(self) -> int:
        """Bytes of the underlay's packet around the overlay's."""
        return 50 if self.version == 4 else 70

    def tunnel(self, side: int = 0) -> pyvxlan.TunnelStats:
        (tunnel,) = self.engines[side].stats().tunnels.values()
        return tunnel

    def network(self) -> pyvxlan.NetworkStats:
        return self.engines[0].stats().networks[VNI]

    def clamped(self) -> int:
        return sum(engine.stats().networks[VNI].mss_clamped for engine in self.engines)

    def address(self, number: int) -> str:
        return f"198.18.{number}.2" if self.version == 4 else f"fd98:{number}::2"


def ip(*words: object) -> None:
    command("ip", *words)


def build(path: Path, stack: list[str]) -> None:
    tag = path.tag
    for name in ("r", "h1", "h2", "c1", "c2"):
        ip("netns", "add", tag + name)
        stack.append(tag + name)
    for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        command("ip", "netns", "exec", f"{tag}r", "sysctl", "-qw", f"net.{key}=1")
    for number in (1, 2):
        host, inner = f"{tag}h{number}", f"{tag}c{number}"
        ip("-n", f"{tag}r", "link", "add", f"p{number}", "type", "veth",
           "peer", "name", "under0", "netns", host)  # fmt: skip
        ip("-n", f"{tag}r", "link", "set", f"p{number}", "up")
        ip("-n", host, "link", "set", "under0", "up")
        for netns, link, last in ((f"{tag}r", f"p{number}", 1), (host, "under0", 2)):
            ip("-n", netns, "addr", "add", f"198.18.{number}.{last}/24", "dev", link)
            ip("-n", netns, "addr", "add", f"fd98:{number}::{last}/64", "dev", link, "nodad")
        ip("-n", host, "route", "add", "default", "via", f"198.18.{number}.1")
        ip("-n", host, "-6", "route", "add", "default", "via", f"fd98:{number}::1")
        # The router must see each datagram by itself, to judge its length.
        command("ip", "netns", "exec", host, "ethtool", "-K", "under0",
                "tx-udp-segmentation", "off", "gso", "off")  # fmt: skip
        ip("-n", host, "link", "add", "br0", "type", "bridge", "mcast_snooping", 0)
        ip("-n", host, "link", "set", "br0", "up", "mtu", MTU)
        ip("-n", host, "link", "add", "vc", "type", "veth", "peer", "name", "eth0", "netns", inner)
        ip("-n", host, "link", "set", "vc", "master", "br0", "up", "mtu", MTU)
        ip("-n", inner, "link", "set", "eth0", "up", "address", MACS[number - 1], "mtu", MTU)
        ip("-n", inner, "addr", "add", f"10.99.0.{number}/24", "dev", "eth0")
        ip("-n", inner, "addr", "add", f"fd99::{number}/64", "dev", "eth0", "nodad")
        queues = pyvxlan.open_tap(f"/run/netns/{host}", "vxlan0", queues=2, mtu_bytes=MTU)
        ip("-n", host, "link", "set", "vxlan0", "master", "br0", "up", "mtu", MTU)
        own, other = path.address(number), path.address(3 - number)
        sockets = inside(host, lambda own=own: pyvxlan.open_underlay(own, workers=2))
        engine = pyvxlan.Engine(sockets, workers=2)
        path.engines.append(engine)
        engine.attach(VNI, queues, mtu_bytes=MTU)
        far, mac = 3 - number, MACS[2 - number]
        engine.apply(VNI, add={mac: other})
        engine.set_neighbours(VNI, {f"10.99.0.{far}": mac, f"fd99::{far}": mac})
        engine.set_flood(VNI, [other])
        engine.set_tunnels({other: MTU})


@pytest.fixture
def path(request: pytest.FixtureRequest) -> Iterator[Path]:
    made = Path(f"pm{os.getpid() % 10000}", request.param)
    names: list[str] = []
    try:
        build(made, names)
        for side in (0, 1):
            eventually(lambda side=side: made.tunnel(side).path_mtu_bytes, within_s=20)
        yield made
    finally:
        for engine in made.engines:
            engine.close()
        for name in names:
            command("ip", "netns", "del", name, check=False)


class Flow:
    """A paced TCP stream from container 1 to container 2, and the longest pause in it."""

    def __init__(self, tag: str, version: int) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        address = "10.99.0.2" if version == 4 else "fd99::2"
        with socket_in(f"{tag}c2", family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen()
            self.client = socket_in(f"{tag}c1", family, socket.SOCK_STREAM)
            self.client.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 10_000_000)
            self.client.connect((address, listener.getsockname()[1]))
            self.server, _ = listener.accept()
        self.received = 0
        self.pause_s = 0.0
        self.last = time.monotonic()
        for end in (self.client, self.server):
            end.settimeout(60)
        self.threads = [threading.Thread(target=part) for part in (self.send, self.receive)]
        for thread in self.threads:
            thread.start()

    def send(self) -> None:
        block = bytes(1 << 16)
        try:
            while True:
                self.client.sendall(block)
        except OSError:
            return

    def receive(self) -> None:
        while data := self.server.recv(1 << 16):
            now = time.monotonic()
            self.pause_s = max(self.pause_s, now - self.last)
            self.last = now
            self.received += len(data)

    def goes_on(self) -> None:
        """Returns when a megabyte more has arrived."""
        before = self.received
        eventually(lambda: self.received > before + 1_000_000, within_s=30)

    def end(self) -> None:
        self.client.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        self.client.close()
        self.server.close()


def narrow(path: Path, how: str) -> None:
    """Lets no more than NARROW bytes through, both ways."""
    if how == "link":
        for number in (1, 2):
            ip("-n", f"{path.tag}r", "link", "set", f"p{number}", "mtu", NARROW)
    elif how == "device":
        for number in (1, 2):
            ip("-n", f"{path.tag}h{number}", "link", "set", "under0", "mtu", NARROW)
    else:
        rules = f"""
            table inet hole {{
                chain over {{ type filter hook forward priority 0; meta length > {NARROW} drop; }}
            }}
        """
        command("ip", "netns", "exec", f"{path.tag}r", "nft", rules)


@pytest.mark.parametrize(
    ("path", "how"),
    [
        (4, "link"),
        (4, "black hole, no offloads"),
        (6, "link"),
        (6, "device"),
        (6, "black hole"),
    ],
    indirect=["path"],
)
def test_flows_go_on_through_a_tunnel_that_became_narrow(path: Path, how: str) -> None:
    if how.endswith("no offloads"):
        words = ("nsenter", f"--net=/run/netns/{path.tag}c1", "ethtool", "-K", "eth0")
        command(*words, "tso", "off", "gso", "off")
    flows = [Flow(path.tag, version) for version in (4, 6)]
    try:
        for flow in flows:
            flow.goes_on()
            flow.pause_s = 0.0
        narrow(path, how.partition(",")[0])
        eventually(lambda: path.tunnel().path_mtu_bytes <= NARROW, within_s=20)
        for flow in flows:
            flow.goes_on()
        # Two seconds are promised; a machine with much else to do may be slower.
        print(f"longest pause: {[round(flow.pause_s, 3) for flow in flows]} s")
        assert all(flow.pause_s < 8 for flow in flows)
    finally:
        for flow in flows:
            flow.end()
    # On a busy machine an answer may come too late to count, until more is tried for.
    eventually(lambda: NARROW - 4 < path.tunnel().path_mtu_bytes <= NARROW, within_s=40)
    assert path.tunnel().needed_mtu_bytes == MTU + path.overhead
    assert path.tunnel().narrowed >= 1
    assert path.network().path_mtu_replies > 0
    learned(path)


def learned(path: Path) -> None:
    """Checks that both containers know, by their kernel and by TCP's handshake."""
    most = NARROW - path.overhead
    eventually(lambda: path.tunnel(1).path_mtu_bytes <= NARROW, within_s=20)
    for version, headers in ((4, 40), (6, 60)):
        clamped = path.clamped()
        flow = Flow(path.tag, version)
        try:
            for end in (flow.client, flow.server):
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= most - headers
            flow.goes_on()
        finally:
            flow.end()
        assert path.clamped() > clamped
    with socket_in(f"{path.tag}c1", socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: IP_PMTUDISC_DO
        client.connect(("10.99.0.2", 9))

        def refused() -> bool:
            try:
                client.send(bytes(MTU - 28))
            except OSError:  # EMSGSIZE; before that perhaps ECONNREFUSED
                return client.getsockopt(socket.IPPROTO_IP, 14) <= most  # IP_MTU
            return False

        eventually(refused, within_s=20)
