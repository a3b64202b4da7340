"""Death of the daemon, death of the forwarder, stops, repairs, cleanup; over both datapaths."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.flows import transfer
from tests.netns.world import BIN, Container, World, command, eventually, world

pytestmark = pytest.mark.root
DATAPATHS = ("forwarder", "kernel")


class Pair:
    """A network with one container on each of two hosts."""

    def __init__(self, made: World, datapath: str) -> None:
        self.world = made
        self.name = name = f"ov_{datapath}"
        options = ("--opt", f"datapath={datapath}")
        self.id = made[1].cli("network", "create", *options, name).strip()
        self.one, self.two = made[1].container(), made[2].container()
        self.one.attach(name, "--name", f"{name}-1")
        self.two.attach(name, "--name", f"{name}-2")
        self.address1 = self.one.addresses()[0].split("/")[0]
        self.address2 = self.two.addresses()[0].split("/")[0]
        eventually(lambda: self.one.ping(self.address2, count=1))

    def device(self) -> dict[str, Any]:
        """What the first host has as `vxlan0`."""
        printed = self.world[1].in_overlay(self.id, "ip", "-json", "link", "show", "vxlan0")
        link: dict[str, Any] = json.loads(printed)[0]
        return link

    def flows_again(self, within_s: float = 5) -> None:
        eventually(lambda: self.one.ping(self.address2, count=1), within_s=within_s, what="ping")
        eventually(
            lambda: self.two.ping(self.address1, count=1), within_s=within_s, what="ping back"
        )


@pytest.fixture(scope="module")
def pairs() -> Iterator[dict[str, Pair]]:
    with world("pd", 2) as made:
        yield {datapath: Pair(made, datapath) for datapath in DATAPATHS}


@pytest.fixture
def pair(pairs: dict[str, Pair]) -> Pair:
    """The one in the forwarder, for what concerns that one only, or no datapath."""
    return pairs["forwarder"]


@pytest.fixture(params=DATAPATHS)
def either(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


def pings_during(container: Container, target: str, count: int, action: Callable[[], None]) -> int:
    """Pings at 50/s while `action` runs a second later; returns how many were answered."""
    answered: list[int] = []
    pinging = threading.Thread(
        target=lambda: answered.append(container.ping(target, count=count, interval_s=0.02))
    )
    pinging.start()
    time.sleep(0.8)
    action()
    pinging.join()
    return answered[0]


def test_killed_daemon_costs_running_flows_nothing(either: Pair) -> None:
    host = either.world[1]
    forwarder, device = host.forwarder_pid(), either.device()["ifindex"]
    with (
        either.two.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
        either.one.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        listener.bind((either.address2, 0))
        listener.listen()
        client.connect(listener.getsockname())
        server, _ = listener.accept()

        def restart() -> None:
            host.stop(signal.SIGKILL)
            client.sendall(b"while it is dead")
            assert server.recv(100) == b"while it is dead"
            host.start()

        assert pings_during(either.one, either.address2, 200, restart) == 200
        client.sendall(b"after")
        assert server.recv(100) == b"after"
        server.close()
    assert host.forwarder_pid() == forwarder, "the same forwarder goes on"
    assert either.device()["ifindex"] == device, "with the same device"
    either.flows_again()
    # The new daemon owns what the old one made: it can take it down and change it.
    late = host.container()
    late.attach(either.name)
    assert eventually(lambda: either.two.ping(late.addresses()[0].split("/")[0], count=1))
    late.detach()


def test_clean_stop_leaves_containers_forwarding(either: Pair) -> None:
    host = either.world[1]

    def restart() -> None:
        assert host.stop(signal.SIGTERM) == 0
        assert either.one.ping(either.address2) == 3
        host.start()

    assert pings_during(either.one, either.address2, 200, restart) == 200


def test_dead_forwarder_is_replaced_within_a_second(pair: Pair) -> None:
    host = pair.world[1]
    pid = host.forwarder_pid()
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    while pair.one.ping(pair.address2, count=1) == 0:
        assert time.monotonic() - started < 5
    assert time.monotonic() - started < 2.2, "a ping that got lost waits a second by itself"
    assert host.forwarder_pid() != pid
    payload = os.urandom(1 << 20)
    assert transfer(pair.two, pair.one, pair.address1, payload) == payload


def test_forwarder_killed_while_the_daemon_is_dead_comes_back_with_it(pair: Pair) -> None:
    host = pair.world[1]
    forwarder = host.forwarder_pid()
    host.stop(signal.SIGKILL)
    os.kill(forwarder, signal.SIGKILL)
    host.start()
    pair.flows_again(10)


def in_overlay(pair: Pair, *args: object) -> str:
    """Runs a command in the network's namespace on the first host."""
    return pair.world[1].in_overlay(pair.id, *args)


def container_port(pair: Pair) -> str:
    """The first host's port of the bridge that is a container's."""
    listed = json.loads(in_overlay(pair, "ip", "-json", "link", "show", "master", "br0"))
    (port,) = {link["ifname"] for link in listed} - {"vxlan0"}
    return str(port)


def unmount(pair: Pair) -> None:
    """Removes the file that names the overlay's namespace on the first host."""
    host = pair.world[1]
    path = str(host.overlay(pair.id)).split("/root", 1)[1]
    for words in (("umount", path), ("rm", path)):
        command("nsenter", "-t", host.daemon_pid(), "-m", *words)


PORT = ("bridge", "link", "set", "dev")
OVERLAY_DAMAGE: dict[str, Callable[[Pair], object]] = {
    "veth": lambda pair: in_overlay(pair, "ip", "link", "del", container_port(pair)),
    "br0": lambda pair: in_overlay(pair, "ip", "link", "del", "br0"),
    "vxlan0": lambda pair: in_overlay(pair, "ip", "link", "del", "vxlan0"),
    "link down": lambda pair: in_overlay(pair, "ip", "link", "set", "vxlan0", "down"),
    "mtu": lambda pair: in_overlay(pair, "ip", "link", "set", "vxlan0", "mtu", "900"),
    "port state": lambda pair: in_overlay(pair, *PORT, "vxlan0", "state", "0"),
    "port locked": lambda pair: in_overlay(pair, *PORT, "vxlan0", "locked", "on"),
    "floods": lambda pair: in_overlay(
        pair, *PORT, container_port(pair), "flood", "off", "bcast_flood", "off", "state", "0"
    ),
    "netns file": unmount,
}
OTHER_DAMAGE: dict[str, Callable[[Pair], object]] = {
    "address": lambda pair: pair.one.run("ip", "addr", "flush", "dev", "eth0"),
    "port": lambda pair: in_overlay(pair, "ip", "link", "set", container_port(pair), "nomaster"),
    "gateway bridge": lambda pair: pair.world[1].run("ip", "link", "del", "pyvxlan_gw"),
    "nftables": lambda pair: pair.world[1].run("nft", "delete", "table", "ip", "pyvxlan"),
    "rule": lambda pair: pair.world[1].run("nft", "flush", "table", "ip", "pyvxlan"),
}


@pytest.mark.parametrize("damage", OVERLAY_DAMAGE)
def test_what_is_deleted_in_an_overlay_is_repaired(either: Pair, damage: str) -> None:
    before = either.device()["ifindex"]
    is_repaired(either, OVERLAY_DAMAGE[damage])
    assert (either.device()["ifindex"] == before) == (damage != "vxlan0"), "only that is made anew"


@pytest.mark.parametrize("damage", OTHER_DAMAGE)
def test_what_is_deleted_beside_it_is_repaired(pair: Pair, damage: str) -> None:
    is_repaired(pair, OTHER_DAMAGE[damage])


def is_repaired(pair: Pair, damage: Callable[[Pair], object]) -> None:
    """Does the damage; fails if it is not repaired in time."""
    host = pair.world[1]

    def ruleset() -> str:
        return host.run("nft", "--stateless", "list", "ruleset").stdout

    def repaired() -> bool:
        try:
            return (
                pair.one.ping(pair.address2, count=1) == 1
                and pair.one.ping("198.18.0.2", count=1) == 1
                and ruleset() == before
                and pair.one.link()["mtu"] == pair.device()["mtu"] == 1450
            )
        except AssertionError:
            return False  # a link or a namespace is not there yet

    before = ruleset()
    damage(pair)
    # Pings that got lost waited a second each, and a busy machine takes its time.
    eventually(repaired, within_s=10, what="repair")
    assert "default via 172.18.0.1 dev eth1" in pair.one.run("ip", "route")


def test_overlay_namespace_with_everything_in_it_comes_back(either: Pair) -> None:
    """All links gone at once, as if the namespace had been emptied."""
    for link in json.loads(in_overlay(either, "ip", "-json", "link")):
        if link["ifname"] != "lo":
            either.world[1].in_overlay(either.id, "ip", "link", "del", link["ifname"], check=False)
    either.flows_again(10)


def test_container_that_vanished_is_withdrawn(pair: Pair) -> None:
    host = pair.world[1]
    gone = host.container("gone")
    endpoint = gone.attach(pair.name, "--name", "vanishing")
    command("ip", "netns", "del", gone.netns)
    eventually(
        lambda: endpoint["id"][:12] not in pair.world[2].cli("endpoint", "ls"),
        within_s=8,
        what="endpoint of a deleted namespace is withdrawn",
    )


def test_second_daemon_on_one_run_directory_is_refused(pair: Pair) -> None:
    host = pair.world[1]
    done = host.run(BIN / "pyvxlan-daemon", *host.daemon_args(), check=False)
    assert done.returncode != 0
    assert str(host.run_dir) in done.stderr
    pair.flows_again()


def snapshot(host_netns: str) -> str:
    """What a host's kernel holds: links, addresses, routes, rules, sysctls."""
    shown = []
    for words in (
        ("ip", "-brief", "addr"),
        ("ip", "route"),
        ("ip", "-6", "route"),
        ("nft", "--stateless", "list", "ruleset"),
        ("sysctl", "-n", "net.ipv4.ip_forward"),
    ):
        shown.append(command("nsenter", f"--net=/run/netns/{host_netns}", "--", *words).stdout)
    return "\n".join(shown)


def test_cleanup_removes_everything_and_nothing_else() -> None:
    with world("pe", 2, start=False) as made:
        host = made[1]
        host.run("nft", "add", "table", "inet", "foreign")
        host.run("ip", "link", "add", "foreign0", "type", "bridge")
        before = snapshot(host.netns)
        made.start()
        pairs = [Pair(made, datapath) for datapath in DATAPATHS]
        forwarder = host.forwarder_pid()
        assert snapshot(host.netns) != before
        refused = host.run(BIN / "pyvxlan-daemon", *host.daemon_args(), "--cleanup", check=False)
        assert refused.returncode != 0, "a running daemon is not pulled away"
        host.stop()
        directories = ("--run-dir", host.run_dir, "--state-dir", host.state_dir)
        host.run(BIN / "pyvxlan-daemon", *directories, "--cleanup")  # knows the store by itself
        assert snapshot(host.netns) == before
        for pair in pairs:
            (left,) = pair.one.run("ip", "-brief", "link").splitlines()
            assert left.split()[0] == "lo"
        eventually(lambda: not Path(f"/proc/{forwarder}").exists())
        listed = made[2].cli("endpoint", "ls")
        for pair in pairs:
            assert f"{pair.name}-1" not in listed
            assert f"{pair.name}-2" in listed
        host.cleanup()


def test_daemons_of_several_hosts_do_not_disturb_each_other(pair: Pair) -> None:
    pair.world[2].stop(signal.SIGKILL)
    assert pair.one.ping(pair.address2) == 3
    pair.world[2].start()
    pair.flows_again()
