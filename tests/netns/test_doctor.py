"""The doctor on a host whose faults are made for real; and nftables' own rules."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from pyvxlan.daemon import firewall, hostchecks
from pyvxlan.daemon.firewall import PROTOCOLS, Datagram
from pyvxlan.daemon.requests import AttachSpec, NetworkSpec
from tests.netns.world import BIN, command, inside, socket_in
from tests.unit.doorway import Doorway, doorway

pytestmark = pytest.mark.root

NETNS = f"dr{os.getpid()}"
DATAGRAM = Datagram(PROTOCOLS["udp"], 4789, "under0")


@pytest.fixture(scope="module")
def door() -> Iterator[Doorway]:
    """A daemon, in memory, with a network of MTU 1450."""
    with doorway() as made:
        made.node.net.add("box")
        made.do(made.node.service.create_network(NetworkSpec("blue")))
        made.do(made.node.service.attach(AttachSpec("blue", "box")))
        yield made


@pytest.fixture
def place() -> Iterator[str]:
    """A network namespace with the daemon's underlay address."""
    command("ip", "netns", "add", NETNS)
    try:
        for words in (
            ("link", "set", "lo", "up"),
            ("link", "add", "under0", "mtu", 1500, "type", "bridge"),
            ("address", "add", "198.18.0.1/24", "dev", "under0"),
            ("link", "set", "under0", "up"),
        ):
            command("ip", "-n", NETNS, *words)
        yield NETNS
    finally:
        command("ip", "netns", "del", NETNS)


def doctor(netns: str, door: Doorway) -> tuple[int, dict[str, dict[str, str]]]:
    """Runs `pyvxlan doctor` there; returns its exit code and the findings by name."""
    done = subprocess.run(
        [
            *("ip", "netns", "exec", netns, BIN / "pyvxlan"),
            *("--run-dir", door.run_dir, "doctor", "--format", "json"),
        ],
        env={**os.environ, "PYVXLAN_CONFIG": "/dev/null", "PYVXLAN_PLUGIN_SOCKET": ""},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, {one["what"]: one for one in json.loads(done.stdout)}


def test_host_in_order_gets_no_error(place: str, door: Doorway) -> None:
    code, found = doctor(place, door)
    assert (code, {one["level"] for one in found.values()} - {"warning"}) == (0, {"ok"}), found
    assert {what for what, one in found.items() if one["level"] == "warning"} <= {"clock"}
    assert {"kernel", "port", "firewall", "checksums", "mtu", "sysctls", "versions", "clock",
            "leftovers"} <= found.keys()  # fmt: skip


def test_faults_that_are_made_are_found_with_their_remedies(place: str, door: Doorway) -> None:
    """Each of them is an error or a warning of its own, so they can be made together."""
    with contextlib.ExitStack() as stack:
        taker = stack.enter_context(holder(place))
        spoil_checksums(place)
        for words in (
            ("ip", "link", "set", "under0", "mtu", 1400),
            ("ip", "link", "add", "pyvxlan_gw", "type", "bridge"),
            ("ip", "link", "set", "pyvxlan_gw", "alias", f"pyvxlan {'f' * 32}"),
            ("sysctl", "-q", "-w", "net.ipv4.ip_forward=0"),
            ("nft", "add", "table", "inet", "t"),
            ("nft", "add chain inet t i { type filter hook input priority 0; policy drop; }"),
            ("nft", "add rule inet t i ct state established accept"),
        ):
            command("ip", "netns", "exec", place, *words)
        code, found = doctor(place, door)
    assert code == 1
    for what, level, told in (
        ("port", "error", f"(pid {taker}): stop it"),
        ("firewall", "error", "closed by policy of chain inet t i"),
        ("checksums", "error", "ethtool -K under0 tx off"),
        ("mtu", "warning", "set that of under0 to 1500"),
        ("sysctls", "error", "net.ipv4.ip_forward is 0"),
        ("leftovers", "warning", "ip link del pyvxlan_gw"),
    ):
        assert (found[what]["level"], told in found[what]["text"]) == (level, True), found[what]


@contextlib.contextmanager
def holder(netns: str) -> Iterator[int]:
    """A program that has taken the underlay's port; gives its process id."""
    script = (
        "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 4789)); "
        "print(flush=True); sys.stdin.read()"
    )
    words = ["nsenter", f"--net=/run/netns/{netns}", "--", sys.executable, "-c", script]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.terminate()


def spoil_checksums(netns: str) -> None:
    """Sends datagrams with a wrong checksum to a socket, as a broken network card would."""
    receiver = socket_in(netns, socket.AF_INET, socket.SOCK_DGRAM)
    raw = partial(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sender = inside(netns, raw)
    with receiver, sender:
        receiver.bind(("127.0.0.1", 5555))
        udp = struct.pack("!HHHH", 5555, 5555, 12, 0x1234) + b"bad!"
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0,
            *[socket.inet_aton("127.0.0.1")] * 2,
        )  # fmt: skip
        for _ in range(2 * hostchecks.WRONG_SUMS):
            sender.sendto(header + udp, ("127.0.0.1", 0))


def test_vtep_that_is_nowhere_is_told(place: str, door: Doorway) -> None:
    command("ip", "-n", place, "address", "del", "198.18.0.1/24", "dev", "under0")
    assert "no interface here has 198.18.0.1" in doctor(place, door)[1]["mtu"]["text"]


def test_forward_rules_that_close_the_way_out_are_told(place: str, door: Doorway) -> None:
    for words in (
        ("ip", "link", "add", "pyvxlan_gw", "type", "bridge"),
        ("sysctl", "-q", "-w", "net.ipv4.ip_forward=1"),
        ("iptables", "-P", "FORWARD", "DROP"),
    ):
        command("ip", "netns", "exec", place, *words)
    found = doctor(place, door)[1]["firewall"]
    assert (found["level"], "policy of chain FORWARD of iptables" in found["text"]) == (
        "warning", True,
    )  # fmt: skip


def test_tap_device_that_is_missing_is_told() -> None:
    """In a mount namespace of its own, where /dev/net is covered."""
    script = "from pyvxlan.daemon.hostchecks import check_kernel as c; print(c(None).text)"
    done = command(
        "unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh",
        sys.executable, "-c", script,
    )  # fmt: skip
    assert "/dev/net/tun (No such file or directory)" in done.stdout


def listed(*rules: str, policy: str = "accept", family: str = "inet") -> dict[str, Any]:
    """What the real nft makes of rules, in a namespace that ends with it."""
    script = "\n".join(
        [
            f"add table {family} t",
            f"add chain {family} t i {{ type filter hook input priority 0; policy {policy}; }}",
            f"add chain {family} t c",
            *(f"add rule {family} t {rule}" for rule in rules),
        ]
    )
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", "nft -f - && nft -j list ruleset"],
        input=script, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("rules", "policy", "closed"),
    [
        ((), "accept", False),
        ((), "drop", True),
        (("i udp dport 4789 accept",), "drop", False),
        (("i udp dport { 53, 4000-5000 } accept",), "drop", False),
        (("i udp dport 53 accept",), "drop", True),
        (("i udp dport != 53 accept",), "drop", False),
        (("i tcp dport 4789 accept",), "drop", True),
        (("i meta l4proto { tcp, udp } accept",), "drop", False),
        (("i ip protocol icmp accept",), "drop", True),
        (("i ct state established,related accept",), "drop", True),
        (("i ct state { new, established } accept",), "drop", False),
        (('i iifname "lo" accept',), "drop", True),
        (('i iifname "under0" udp dport 4789 counter drop',), "accept", True),
        (("i udp dport 4789 reject",), "accept", True),
        (("i jump c", "c udp dport 4789 drop"), "accept", True),
        (("i jump c", "c return", "c drop"), "accept", False),
        (("i ip saddr 198.18.0.0/24 accept",), "drop", False),
        (("i ip saddr 198.18.0.9 drop",), "accept", False),
        (("i limit rate 10/second accept",), "drop", False),
    ],
)
def test_rules_of_nftables(rules: tuple[str, ...], policy: str, closed: bool) -> None:
    rulesets = firewall.nftables(listed(*rules, policy=policy), DATAGRAM)
    assert bool(firewall.blockers(rulesets, "input")) is closed


def test_bridges_and_devices_have_rules_of_their_own() -> None:
    document = listed("i drop", family="bridge")
    assert firewall.blockers(firewall.nftables(document, DATAGRAM), "input") == []
