"""Networks with `datapath=kernel`: what is special about them.

What both promise is tested over both in `test_overlay`, `test_resilience` and `test_traffic`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.netns.captures import capture, end_capture, tshark
from tests.netns.flows import pinging
from tests.netns.world import Container, World, eventually, inside, socket_in, world

pytestmark = pytest.mark.root
KERNEL = ("--opt", "datapath=kernel")
EVERYONE, GROUP, STRAY = "00:00:00:00:00:00", "01:00:5e:01:01:01", "02:42:0a:63:63:63"
TO_THE_OTHER = ("dev", "vxlan0", "self", "dst", "198.18.0.2")


@dataclass
class Pair:
    """A container on each of two hosts, on one network in the kernel."""

    world: World
    name: str
    options: tuple[str, ...] = KERNEL
    id: str = field(init=False)
    containers: list[Container] = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.world[1].cli("network", "create", *self.options, self.name).strip()
        self.containers = [self.world[number].container() for number in (1, 2)]
        for container in self.containers:
            container.attach(self.name)
        self.reaches()

    @property
    def target(self) -> str:
        return self.containers[1].addresses()[0].split("/")[0]

    def reaches(self) -> None:
        eventually(lambda: self.containers[0].ping(self.target, count=1), what="ping")

    def vxlan(self) -> dict[str, object]:
        shown = self.world[1].in_overlay(
            self.id, "ip", "-d", "-json", "link", "show", "vxlan0", check=False
        )
        link: dict[str, object] = json.loads(shown or "[{}]")[0]
        return link

    def close(self) -> None:
        for container in self.containers:
            container.detach()
        self.world[1].cli("network", "rm", self.name)


@pytest.fixture(scope="module")
def pair(two_hosts: World) -> Iterator[Pair]:
    made = Pair(two_hosts, "ov_kernel", ("--ipv6", *KERNEL))
    yield made
    made.close()


def test_port_is_a_vxlan_device_that_learns_nothing(pair: Pair) -> None:
    link = pair.vxlan()
    info = link["linkinfo"]
    assert isinstance(info, dict)
    data, port = info["info_data"], info["info_slave_data"]
    assert info["info_kind"] == "vxlan"
    assert (data["port"], data["local"]) == (8472, pair.world[1].address)
    assert not data["learning"]
    assert not port["learning"]
    assert not port["flood"]
    assert link["mtu"] == 1450
    shown = json.loads(pair.world[1].cli("network", "inspect", pair.name))[0]
    assert shown["options"]["datapath"] == "kernel"


def test_names_and_both_versions_work(pair: Pair) -> None:
    for address in pair.containers[1].addresses():
        assert pair.containers[0].ping(address.split("/")[0]) == 3
    for container in pair.containers:
        gateway = container.addresses()[0].rsplit(".", 1)[0] + ".1"
        assert container.ping(gateway) == 3


def test_address_resolution_and_strangers_stay_off_the_wire(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "arp.pcap"
    running = capture(pair.world[1].netns, "under0", path, "udp", "port", "8472")
    first = pair.containers[0]
    first.run("ip", "neigh", "flush", "dev", "eth0")
    assert first.ping(pair.target) == 3
    first.ping(first.addresses()[0].rsplit(".", 1)[0] + ".250", count=1)
    nobody = "02:42:0a:ff:ff:fe"
    first.run("ip", "neigh", "add", "10.0.0.251", "lladdr", nobody, "dev", "eth0", check=False)
    first.run("arping", "-c", "1", "10.0.0.251", check=False)
    first.ping("10.0.0.251", count=1)
    end_capture(running)
    options = {"decode_port": 8472}
    assert tshark(path, "frame.number", display="icmp", **options), "it saw the pings"
    assert not tshark(path, "frame.number", display="arp", **options)
    assert not tshark(path, "frame.number", display=f"eth.dst == {nobody}", **options)


@pytest.mark.parametrize(
    "damage",
    [
        ("ip", "link", "set", "vxlan0", "nomaster"),
        ("bridge", "link", "set", "dev", "vxlan0", "learning", "on", "flood", "on"),
        ("bridge", "fdb", "del", "{mac}", "dev", "vxlan0", "self"),
        ("bridge", "fdb", "del", "{mac}", "dev", "vxlan0", "master"),
        ("bridge", "fdb", "replace", "{mac}", "dev", "vxlan0", "self", "dst", "198.18.0.77"),
        ("ip", "neigh", "flush", "dev", "vxlan0", "nud", "permanent"),
        ("bridge", "fdb", "del", EVERYONE, "dev", "vxlan0", "dst", "198.18.0.2"),
        # What nobody wants there, or what leads elsewhere.
        ("bridge", "fdb", "add", STRAY, "dev", "vxlan0", "self", "dst", "198.18.0.77"),
        ("bridge", "fdb", "add", STRAY, "dev", "vxlan0", "master", "static"),
        ("bridge", "fdb", "append", GROUP, "dev", "vxlan0", "dst", "198.18.0.77"),
        ("bridge", "fdb", "append", EVERYONE, "dev", "vxlan0", "dst", "198.18.0.77"),
        ("bridge", "fdb", "append", EVERYONE, *TO_THE_OTHER, "port", "4789"),
        ("bridge", "fdb", "replace", "{mac}", *TO_THE_OTHER, "port", "4789"),
        ("bridge", "fdb", "replace", "{mac}", *TO_THE_OTHER, "vni", "77"),
        ("ip", "neigh", "add", "10.0.99.9", "lladdr", STRAY, "dev", "vxlan0", "nud", "permanent"),
        ("ip", "link", "set", "vxlan0", "type", "vxlan", "ttl", "1"),
        ("ip", "link", "set", "vxlan0", "type", "vxlan", "remote", "198.18.0.77"),
        # What the bridge does not do then.
        ("bridge", "link", "set", "dev", "vxlan0", "bcast_flood", "off", "mcast_flood", "off"),
        ("bridge", "link", "set", "dev", "vxlan0", "locked", "on"),
        ("bridge", "link", "set", "dev", "vxlan0", "state", "0"),
    ],
    ids=lambda words: " ".join((*words[:4], *words[-2:])).replace("/", "_"),
)
def test_what_is_changed_by_hand_is_repaired_within_five_seconds(
    pair: Pair, damage: tuple[str, ...]
) -> None:
    mac = pair.containers[1].link()["address"]
    host = pair.world[1]

    def seen() -> list[str]:
        words = (
            ("bridge", "fdb", "show", "dev", "vxlan0"),
            ("ip", "neigh", "show", "dev", "vxlan0"),
            ("bridge", "-d", "link", "show", "dev", "vxlan0"),
        )
        link = pair.vxlan()
        info = link.get("linkinfo") or {}
        assert isinstance(info, dict)
        shown = [str(link.get("master")), str(info.get("info_data"))]
        for command in words:
            shown += host.in_overlay(pair.id, *command, check=False).splitlines()
        # A new device has another MAC and another index.
        return sorted(
            line.split(":", 1)[-1] if "mtu" in line else line
            for line in shown
            if "permanent" not in line or "dst" in line
        )

    before = seen()
    host.in_overlay(pair.id, *(word.format(mac=mac) for word in damage))
    assert seen() != before, "the damage shows"
    eventually(lambda: seen() == before, what=f"it is {before} again")
    pair.reaches()


def test_device_under_another_name_makes_room(pair: Pair) -> None:
    pair.world[1].in_overlay(
        pair.id, "sh", "-c", "ip link set vxlan0 down && ip link set vxlan0 name lost0"
    )
    eventually(lambda: pair.containers[0].ping(pair.target, count=1), within_s=10, what="repair")
    links = pair.world[1].in_overlay(pair.id, "ip", "-brief", "link")
    assert ("vxlan0" in links, "lost0" in links) == (True, False)


def test_outer_checksum_of_a_device_that_is_there_follows_the_setting() -> None:
    with world("pk", 2) as made:
        pair = Pair(made, "ov_sums")
        host = made[1]

        def shown() -> str:
            return host.in_overlay(pair.id, "ip", "-d", "link", "show", "vxlan0")

        assert " udpcsum " in shown()
        host.stop()
        host.start("--outer-checksum", "false")
        eventually(lambda: " noudpcsum " in shown(), within_s=10, what="no checksum")
        pair.reaches()
        pair.close()


def test_what_the_kernel_does_not_tell_is_said(pair: Pair) -> None:
    host = pair.world[1]
    assert "tcpdump -i vxlan0" in host.refused("capture", pair.name)
    assert "remembers none" in host.refused("drops", pair.name)


def test_closed_port_is_found(pair: Pair) -> None:
    host = pair.world[2]
    rules = """
        table inet closed {
            chain in { type filter hook input priority 0; udp dport 8472 drop; }
        }
    """
    host.run("nft", rules)
    try:
        found = host.run(
            host.programs / "pyvxlan", "--run-dir", host.run_dir, "doctor", check=False
        )
        assert "UDP port 8472 is closed by" in found.stdout
        told = pair.world[1].cli_try("why", pair.containers[0].netns, pair.target).stdout
        assert "8472" in told
    finally:
        host.run("nft", "delete", "table", "inet", "closed")
    pair.reaches()


def test_killed_forwarder_costs_running_flows_nothing(pair: Pair) -> None:
    host, device = pair.world[1], pair.vxlan()["ifindex"]
    forwarder = host.forwarder_pid()
    with pinging(pair.containers[0], pair.target) as pings:
        os.kill(forwarder, signal.SIGKILL)
        eventually(lambda: host.forwarder_pid() != forwarder, within_s=20, what="another one")
        pair.reaches()
    assert pings.lost == []
    assert pair.vxlan()["ifindex"] == device


def test_multicast_off_keeps_it_at_home(two_hosts: World) -> None:
    pair = Pair(two_hosts, "ov_quiet", (*KERNEL, "--opt", "multicast=off"))
    fdb = two_hosts[1].in_overlay(pair.id, "bridge", "fdb", "show", "dev", "vxlan0")
    assert EVERYONE not in fdb
    repairs = json.loads(two_hosts[1].cli("status", "--format", "json"))["reconcile"]["repairs"]
    time.sleep(4)
    after = json.loads(two_hosts[1].cli("status", "--format", "json"))["reconcile"]
    assert (after["repairs"], after["problems"]) == (repairs, [])
    pair.world[1].in_overlay(pair.id, "bridge", "fdb", "append", EVERYONE, *TO_THE_OTHER)
    eventually(
        lambda: (
            EVERYONE
            not in pair.world[1].in_overlay(pair.id, "bridge", "fdb", "show", "dev", "vxlan0")
        ),
        what="it is at home again",
    )
    pair.close()


def test_taken_port_is_said_with_the_remedy() -> None:
    with world("pt", 1) as alone:
        host = alone[1]
        host.cli("network", "create", *KERNEL, "ov_taken")
        with socket_in(host.netns, socket.AF_INET, socket.SOCK_DGRAM) as other:
            inside(host.netns, lambda: other.bind(("0.0.0.0", 8472)))
            said = host.refused("attach", "--network", "ov_taken", host.container().netns)
        assert "UDP port 8472 is taken" in said
        assert "--kernel-port" in said


def test_hosts_with_different_ports_are_told_apart() -> None:
    with world("pd", 2, start=False) as made:
        made[1].start(wait=False)
        made[2].start("--kernel-port", 8473, wait=False)
        for host in made.hosts:
            host.wait()
        made[1].cli("network", "create", *KERNEL, "ov_apart")
        ends = [host.container() for host in made.hosts]
        for number, end in enumerate(ends, 1):
            end.attach("ov_apart", "--name", f"bbox{number}")
        said = made[1].cli_try("why", "bbox1", "bbox2").stdout
        assert "on h1 has UDP port 8472, the kernel's vxlan device on h2 8473" in said
        assert "the same kernel_port" in said


def test_network_made_anew_on_the_other_datapath_works_at_once(two_hosts: World) -> None:
    same = ("--vni", "777", "--subnet", "10.99.0.0/24")
    for options in ((), KERNEL, (), KERNEL):
        Pair(two_hosts, "ov_switched", (*options, *same)).close()


def test_ipv6_underlay() -> None:
    with world("p6", 2, start=False) as made:
        for host in made.hosts:
            host.start("--advertise", host.address6, wait=False)
        for host in made.hosts:
            host.wait()
        pair = Pair(made, "ov_six")
        info = pair.vxlan()["linkinfo"]
        assert isinstance(info, dict)
        assert info["info_data"]["local6"] == made[1].address6
        assert pair.vxlan()["mtu"] == 1430
        pair.close()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("datapath=fast",), "datapath=fast must be forwarder or kernel"),
        (("datapath=kernel", "flood-rate=5"), "flood-rate does nothing with datapath=kernel"),
    ],
)
def test_bad_options_are_refused(two_hosts: World, options: tuple[str, ...], named: str) -> None:
    words = [word for option in options for word in ("--opt", option)]
    assert named in two_hosts[1].refused("network", "create", *words, "ov_bad")
