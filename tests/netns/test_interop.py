"""Interoperation with the kernel's own vxlan device, by the library alone (no daemon).

Host 1 runs `pyvxlan.Engine` on a TAP; host 2 a kernel vxlan device. Both sit behind a bridge port
that is the "container": an address on the bridge.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pyvxlan
from pyvxlan.daemon.config import OFFLOADS, TAP_OFFLOADS
from tests.netns.flows import receive_all
from tests.netns.world import command, eventually, inside, world

pytestmark = pytest.mark.root
VNI = 0x1234


@dataclass
class Ends:
    """Both ends: namespaces of containers, overlay addresses; and what host 1 runs."""

    netns: tuple[str, str]
    v4: tuple[str, str]
    v6: tuple[str, str]
    host: str
    engine: pyvxlan.Engine
    queue: int
    sockets: list[int]
    underlay: tuple[str, str]


def _container(netns: str, number: int) -> None:
    """A veth from the host's bridge into a namespace, as a container has it."""
    inner = f"{netns}in"
    command("ip", "netns", "add", inner)
    command(
        "ip",
        "-n",
        netns,
        "link",
        "add",
        "vc",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        inner,
    )
    command("ip", "-n", netns, "link", "set", "vc", "master", "br0", "up", "mtu", 1430)
    command(
        "ip",
        "-n",
        inner,
        "link",
        "set",
        "eth0",
        "address",
        f"02:42:0a:63:00:0{number}",
        "mtu",
        1430,
    )
    command("ip", "-n", inner, "addr", "add", f"10.99.0.{number}/24", "dev", "eth0")
    command("ip", "-n", inner, "addr", "add", f"fd99::{number}/64", "dev", "eth0", "nodad")
    command("ip", "-n", inner, "link", "set", "eth0", "up")


@pytest.fixture(scope="module", params=["ipv4 underlay", "ipv6 underlay"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with world("pf", 2, start=False) as made:
        one, two = made.hosts
        underlay = (
            (one.address, two.address) if "ipv4" in request.param else (one.address6, two.address6)
        )
        for host in (one, two):
            command(
                "ip", "-n", host.netns, "link", "add", "br0", "type", "bridge", "mcast_snooping", 0
            )
            command("ip", "-n", host.netns, "link", "set", "br0", "up", "mtu", 1430)
            _container(host.netns, host.number)
        command(
            "ip",
            "-n",
            two.netns,
            "link",
            "add",
            "vxlan0",
            "mtu",
            1430,
            "type",
            "vxlan",
            "id",
            VNI,
            "dstport",
            4789,
            "local",
            underlay[1],
            "nolearning",
        )
        command("ip", "-n", two.netns, "link", "set", "vxlan0", "master", "br0", "up")
        for mac in ("02:42:0a:63:00:01", "00:00:00:00:00:00"):
            command(
                "bridge", "-n", two.netns, "fdb", "append", mac, "dev", "vxlan0", "dst", underlay[0]
            )
        queues = pyvxlan.open_tap(f"/run/netns/{one.netns}", "vxlan0", queues=2, mtu_bytes=1430)
        command("ip", "-n", one.netns, "link", "set", "vxlan0", "master", "br0", "up", "mtu", 1430)
        sockets = inside(one.netns, lambda: pyvxlan.open_underlay(underlay[0], workers=2))
        with contextlib.ExitStack() as stack:
            # The engine owns those that it gets.
            queue, *receiving = [os.dup(descriptor) for descriptor in (queues[0], *sockets[:2])]
            for descriptor in (queue, *receiving):
                stack.callback(os.close, descriptor)
            engine = stack.enter_context(pyvxlan.Engine(sockets, workers=2))
            engine.attach(VNI, queues, mtu_bytes=1430)
            engine.apply(VNI, add={"02:42:0a:63:00:02": underlay[1]})
            engine.set_flood(VNI, [underlay[1]])
            engine.set_neighbours(
                VNI, {"10.99.0.2": "02:42:0a:63:00:02", "fd99::2": "02:42:0a:63:00:02"}
            )
            yield Ends(
                (f"{one.netns}in", f"{two.netns}in"),
                ("10.99.0.1", "10.99.0.2"),
                ("fd99::1", "fd99::2"),
                one.netns,
                engine,
                queue,
                receiving,
                underlay,
            )
        for host in (one, two):
            command("ip", "netns", "del", f"{host.netns}in")


def _ping(netns: str, target: str) -> int:
    done = command(
        "nsenter",
        f"--net=/run/netns/{netns}",
        "ping",
        "-q",
        "-c",
        20,
        "-i",
        0.02,
        "-W",
        1,
        target,
        check=False,
    )
    return int(done.stdout.split(" received")[0].split()[-1])


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_pings_go_both_ways(ends: Ends, version: str) -> None:
    addresses: tuple[str, str] = getattr(ends, version)
    assert _ping(ends.netns[0], addresses[1]) == 20
    assert _ping(ends.netns[1], addresses[0]) == 20


@pytest.mark.parametrize("version", ["v4", "v6"])
@pytest.mark.parametrize("client", [0, 1])
def test_tcp_arrives_bit_exact_in_both_roles(ends: Ends, version: str, client: int) -> None:
    _transfer(ends, version, client, os.urandom(1 << 20) * 16)


def _transfer(ends: Ends, version: str, client: int, payload: bytes) -> None:
    """Sends `payload` by TCP from one end to the other, and compares what arrives."""
    addresses: tuple[str, str] = getattr(ends, version)
    family = socket.AF_INET if version == "v4" else socket.AF_INET6
    server = 1 - client
    received: list[bytes] = []
    listener = inside(Path(f"/run/netns/{ends.netns[server]}"), lambda: socket.socket(family))
    with listener:
        listener.settimeout(10)
        listener.bind((addresses[server], 0))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                received.append(receive_all(connection, len(payload)))

        thread = threading.Thread(target=serve)
        thread.start()
        sender = inside(Path(f"/run/netns/{ends.netns[client]}"), lambda: socket.socket(family))
        with sender:
            sender.settimeout(20)
            sender.connect((addresses[server], listener.getsockname()[1]))
            sender.sendall(payload)
        thread.join()
    assert hashlib.sha256(received[0]).digest() == hashlib.sha256(payload).digest()


@pytest.mark.parametrize("version", ["v4", "v6"])
@pytest.mark.parametrize("client", [0, 1])
@pytest.mark.parametrize("size", [1, 1000, 1382, 8000])
def test_udp_arrives_in_both_roles(ends: Ends, version: str, client: int, size: int) -> None:
    addresses: tuple[str, str] = getattr(ends, version)
    family = socket.AF_INET if version == "v4" else socket.AF_INET6
    server = 1 - client
    payload = os.urandom(size)
    receiver = inside(
        Path(f"/run/netns/{ends.netns[server]}"), lambda: socket.socket(family, socket.SOCK_DGRAM)
    )
    sender = inside(
        Path(f"/run/netns/{ends.netns[client]}"), lambda: socket.socket(family, socket.SOCK_DGRAM)
    )
    with receiver, sender:
        receiver.settimeout(5)
        receiver.bind((addresses[server], 0))
        sender.sendto(payload, (addresses[server], receiver.getsockname()[1]))
        assert receiver.recvfrom(65536)[0] == payload


@pytest.mark.parametrize("version", ["v4", "v6"])
@pytest.mark.parametrize("client", [0, 1])
def test_udp_super_frames_arrive_in_both_roles(ends: Ends, version: str, client: int) -> None:
    """The kernel's vxlan device hands one over a veth uncut, with the inner segments' size."""
    _send_super_frames(ends, version, client)


def _send_super_frames(ends: Ends, version: str, client: int) -> None:
    """Sends UDP with UDP_SEGMENT from one end to the other, and compares what arrives."""
    udp_segment = 103
    addresses: tuple[str, str] = getattr(ends, version)
    family = socket.AF_INET if version == "v4" else socket.AF_INET6
    server = 1 - client
    payload = os.urandom(1200 * 20 + 77)
    receiver = inside(
        Path(f"/run/netns/{ends.netns[server]}"), lambda: socket.socket(family, socket.SOCK_DGRAM)
    )
    sender = inside(
        Path(f"/run/netns/{ends.netns[client]}"), lambda: socket.socket(family, socket.SOCK_DGRAM)
    )
    with receiver, sender:
        receiver.settimeout(5)
        receiver.bind((addresses[server], 0))
        sender.setsockopt(socket.IPPROTO_UDP, udp_segment, 1200)
        for _ in range(3):
            sender.sendto(payload, (addresses[server], receiver.getsockname()[1]))
            parts = [receiver.recvfrom(65536)[0] for _ in range(21)]
            assert b"".join(parts) == payload
            assert {len(part) for part in parts[:-1]} == {1200}


def _sent(netns: str, link: str) -> tuple[int, int]:
    """Frames and bytes that a link was given; a super-frame is one."""
    words = ("ip", "-n", netns, "-s", "-json", "link", "show", link)
    counters = json.loads(command(*words).stdout)[0]["stats64"]["tx"]
    return counters["packets"], counters["bytes"]


def _mean(before: tuple[int, int], after: tuple[int, int]) -> float:
    return (after[1] - before[1]) / (after[0] - before[0])


@pytest.mark.parametrize("off", [(), *((name,) for name in OFFLOADS), OFFLOADS], ids="-".join)
def test_everything_arrives_without_an_offload_too(ends: Ends, off: tuple[str, ...]) -> None:
    of_tap = [name for name in off if name in TAP_OFFLOADS]
    # What the kernel grants only together.
    missing = set(of_tap) | ({"uso4", "uso6"} if {"uso4", "uso6"} & {*off} else set())
    missing |= set(TAP_OFFLOADS) if "csum" in off else set()
    try:
        granted = pyvxlan.tap_offloads(ends.queue, without=of_tap)
        assert granted == [name for name in TAP_OFFLOADS if name not in missing]
        ends.engine.switch_segmentation(on="segment" not in off)
        for sock in ends.sockets:
            on = "gro" not in off
            assert pyvxlan.receive_offload(sock, on=on) is on
        for version, tso in (("v4", "tso4"), ("v6", "tso6")):
            before = [_sent(ends.host, link) for link in ("vxlan0", "under0")]
            for client in (0, 1):
                _transfer(ends, version, client, os.urandom(1 << 20) * 2)
            after = [_sent(ends.host, link) for link in ("vxlan0", "under0")]
            read, written = map(_mean, before, after)
            # Both ways count: half of the frames are acknowledgements.
            assert (read > 1500) is (tso in granted)
            assert (written > 1500) is ("segment" not in off)
            for client in (0, 1):
                _send_super_frames(ends, version, client)
        assert ends.engine.stats().segmentation == ("segment" not in off,) * 2
    finally:
        pyvxlan.tap_offloads(ends.queue)
        ends.engine.switch_segmentation(on=True)
        for sock in ends.sockets:
            pyvxlan.receive_offload(sock, on=True)


def test_probes_do_not_disturb_a_kernel_that_knows_none(ends: Ends) -> None:
    def counters() -> dict[str, int]:
        netns = ends.netns[1].removesuffix("in")
        shown = command("ip", "-n", netns, "-json", "-s", "link", "show", "vxlan0").stdout
        received = json.loads(shown)[0]["stats64"]["rx"]
        # Neighbour discovery may go on.
        return {name: received[name] for name in received.keys() - {"packets", "bytes"}}

    before = counters()
    ends.engine.set_tunnels({ends.underlay[1]: 1430}, interval_s=0.1)

    def stats() -> pyvxlan.TunnelStats:
        (tunnel,) = ends.engine.stats().tunnels.values()
        return tunnel

    eventually(lambda: stats().lost >= 10, within_s=20)
    assert (stats().answered, stats().answer_age_ns, stats().path_mtu_bytes) == (0, -1, 0)
    assert counters() == before
    assert _ping(ends.netns[0], ends.v4[1]) == 20
    ends.engine.set_tunnels({})
    assert ends.engine.stats().tunnels == {}
