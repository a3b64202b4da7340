"""Time from one container to another, through two engines or through the kernel's vxlan device.

Input: two network namespaces on one underlay (a veth pair, MTU 1500), without bridges, so that both
do the same; everything runs on this machine. Needs root. Each benchmark checks what arrives.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from pyvxlan import Engine, open_tap, open_underlay
from tests.netns.world import command, inside, socket_in

pytestmark = pytest.mark.root

VNI, MTU_BYTES = 77, 1450
VTEPS = ("198.18.7.1", "198.18.7.2")
ADDRESSES = ("10.78.0.1", "10.78.0.2")
MACS = ("02:42:0a:4e:00:01", "02:42:0a:4e:00:02")


@dataclass(frozen=True)
class Path:
    """Two namespaces that reach each other."""

    netns: tuple[str, str]

    def socket(self, side: int) -> socket.socket:
        """A UDP socket at one end, at that end's address."""
        made = socket_in(self.netns[side], socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(10)
        made.bind((ADDRESSES[side], 9000))
        return made


@pytest.fixture(scope="module", params=["pyvxlan", "kernel"])
def path(request: pytest.FixtureRequest) -> Iterator[Path]:
    with ExitStack() as stack:
        netns = tuple(f"bp{side}{os.getpid() % 10000}" for side in (1, 2))
        for name in netns:
            command("ip", "netns", "add", name)
            stack.callback(command, "ip", "netns", "del", name)
        peer = ("type", "veth", "peer", "name", "under0", "netns", netns[1])
        command("ip", "-n", netns[0], "link", "add", "under0", *peer)
        for side, name in enumerate(netns):
            command("ip", "-n", name, "addr", "add", f"{VTEPS[side]}/24", "dev", "under0")
            command("ip", "-n", name, "link", "set", "under0", "up")
        for side, name in enumerate(netns):
            if request.param == "kernel":
                device = ("type", "vxlan", "id", VNI, "dstport", 4789, "local", VTEPS[side])
                command(
                    "ip", "-n", name, "link", "add", "vxlan0", *device, "remote", VTEPS[1 - side]
                )
            else:
                stack.enter_context(_engine(name, side))
            link = ("ip", "-n", name, "link", "set", "vxlan0")
            command(*link, "address", MACS[side], "mtu", MTU_BYTES, "up")
            command("ip", "-n", name, "addr", "add", f"{ADDRESSES[side]}/24", "dev", "vxlan0")
        yield Path((netns[0], netns[1]))


def _engine(netns: str, side: int) -> Engine:
    sockets = inside(netns, lambda: open_underlay(VTEPS[side]))
    engine = Engine(sockets)
    engine.attach(VNI, open_tap(f"/run/netns/{netns}", mtu_bytes=MTU_BYTES), mtu_bytes=MTU_BYTES)
    engine.apply(VNI, {MACS[1 - side]: VTEPS[1 - side]})
    engine.set_neighbours(VNI, {ADDRESSES[1 - side]: MACS[1 - side]})
    return engine


@pytest.mark.benchmark(group="whole path: a datagram there and back")
def test_round_trip(benchmark, path):
    with path.socket(0) as one, path.socket(1) as two:

        def trip() -> bytes:
            one.sendto(b"there", (ADDRESSES[1], 9000))
            data, sender = two.recvfrom(100)
            two.sendto(data + b" and back", sender)
            return one.recv(100)

        assert benchmark(trip) == b"there and back"


@pytest.mark.benchmark(group="whole path: 64 datagrams of 1,000 bytes")
def test_datagrams(benchmark, path):
    sent = [bytes([number]) * 1_000 for number in range(64)]
    with path.socket(0) as one, path.socket(1) as two:

        def send() -> list[bytes]:
            for datagram in sent:
                one.sendto(datagram, (ADDRESSES[1], 9000))
            return [two.recv(2_000) for _ in sent]

        assert benchmark(send) == sent
