"""Death of the daemon, death of the forwarder, stops, repairs, cleanup."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.flows import transfer
from tests.netns.world import BIN, Container, World, command, eventually, world

pytestmark = pytest.mark.root


class Pair:
    """A network with one container on each of two hosts."""

    def __init__(self, made: World, name: str) -> None:
        self.world = made
        self.name = name
        self.id = made[1].cli("network", "create", name).strip()
        self.one, self.two = made[1].container(), made[2].container()
        self.one.attach(name, "--name", f"{name}-1")
        self.two.attach(name, "--name", f"{name}-2")
        self.address1 = self.one.addresses()[0].split("/")[0]
        self.address2 = self.two.addresses()[0].split("/")[0]
        eventually(lambda: self.one.ping(self.address2, count=1))

    def flows_again(self, within_s: float = 5) -> None:
        eventually(lambda: self.one.ping(self.address2, count=1), within_s=within_s, what="ping")
        eventually(
            lambda: self.two.ping(self.address1, count=1), within_s=within_s, what="ping back"
        )


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with world("pd", 2) as made:
        yield Pair(made, "ov_hard")


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


def test_killed_daemon_costs_running_flows_nothing(pair: Pair) -> None:
    host = pair.world[1]
    forwarder = host.forwarder_pid()
    with (
        pair.two.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
        pair.one.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        listener.bind((pair.address2, 0))
        listener.listen()
        client.connect(listener.getsockname())
        server, _ = listener.accept()

        def restart() -> None:
            host.stop(signal.SIGKILL)
            client.sendall(b"while it is dead")
            assert server.recv(100) == b"while it is dead"
            host.start()

        assert pings_during(pair.one, pair.address2, 200, restart) == 200
        client.sendall(b"after")
        assert server.recv(100) == b"after"
        server.close()
    assert host.forwarder_pid() == forwarder, "the same forwarder carried it all"
    pair.flows_again()
    # The new daemon owns what the old one made: it can take it down and change it.
    late = host.container()
    late.attach(pair.name)
    assert eventually(lambda: pair.two.ping(late.addresses()[0].split("/")[0], count=1))
    late.detach()


def test_clean_stop_leaves_containers_forwarding(pair: Pair) -> None:
    host = pair.world[1]

    def restart() -> None:
        assert host.stop(signal.SIGTERM) == 0
        assert pair.one.ping(pair.address2) == 3
        host.start()

    assert pings_during(pair.one, pair.address2, 200, restart) == 200


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


@pytest.mark.parametrize(
    "damage",
    [
        "veth",
        "br0",
        "vxlan0",
        "link down",
        "address",
        "port",
        "netns file",
        "gateway bridge",
        "nftables",
        "rule",
        "mtu",
    ],
)
def test_what_is_deleted_by_hand_is_repaired_within_five_seconds(pair: Pair, damage: str) -> None:
    host = pair.world[1]
    overlay = host.overlay(pair.id)

    def in_overlay(*args: str) -> None:
        command("nsenter", f"--net={overlay}", "--", *args)

    def ports() -> list[str]:
        listed = command(
            "nsenter", f"--net={overlay}", "--", "ip", "-json", "link", "show", "master", "br0"
        )
        return [link["ifname"] for link in json.loads(listed.stdout) if link["ifname"] != "vxlan0"]

    def ruleset() -> str:
        return host.run("nft", "--stateless", "list", "ruleset").stdout

    before = ruleset()
    match damage:
        case "veth":
            in_overlay("ip", "link", "del", ports()[0])
        case "br0":
            in_overlay("ip", "link", "del", "br0")
        case "vxlan0":
            in_overlay("ip", "link", "del", "vxlan0")
        case "link down":
            in_overlay("ip", "link", "set", "vxlan0", "down")
        case "address":
            pair.one.run("ip", "addr", "flush", "dev", "eth0")
        case "port":
            in_overlay("ip", "link", "set", ports()[0], "nomaster")
        case "netns file":
            path = str(overlay).split("/root", 1)[1]
            command("nsenter", "-t", host.daemon_pid(), "-m", "umount", path)
            command("nsenter", "-t", host.daemon_pid(), "-m", "rm", path)
        case "gateway bridge":
            host.run("ip", "link", "del", "pyvxlan_gw")
        case "nftables":
            host.run("nft", "delete", "table", "inet", "pyvxlan")
        case "rule":
            host.run("nft", "flush", "table", "inet", "pyvxlan")
        case "mtu":
            in_overlay("ip", "link", "set", "vxlan0", "mtu", "900")
    deadline = time.monotonic() + 5

    def repaired() -> bool:
        return (
            pair.one.ping(pair.address2, count=1) == 1
            and pair.one.ping("198.18.0.2", count=1) == 1
            and ruleset() == before
            and pair.one.link()["mtu"] == 1450
            and json.loads(host.in_overlay(pair.id, "ip", "-json", "link", "show", "vxlan0"))[0][
                "mtu"
            ]
            == 1450
        )

    while True:
        try:
            if repaired():
                break
        except AssertionError:
            pass
        assert time.monotonic() < deadline + 1.5, f"{damage} was not repaired"
    assert "default via 172.18.0.1 dev eth1" in pair.one.run("ip", "route")


def test_overlay_namespace_with_everything_in_it_comes_back(pair: Pair) -> None:
    """All links gone at once, as if the namespace had been emptied."""
    host = pair.world[1]
    overlay = host.overlay(pair.id)
    for link in json.loads(
        command("nsenter", f"--net={overlay}", "--", "ip", "-json", "link").stdout
    ):
        if link["ifname"] != "lo":
            command(
                "nsenter",
                f"--net={overlay}",
                "--",
                "ip",
                "link",
                "del",
                link["ifname"],
                check=False,
            )
    pair.flows_again(6)


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
        pair = Pair(made, "ov_clean")
        forwarder = host.forwarder_pid()
        assert snapshot(host.netns) != before
        refused = host.run(BIN / "pyvxlan-daemon", *host.daemon_args(), "--cleanup", check=False)
        assert refused.returncode != 0, "a running daemon is not pulled away"
        host.stop()
        directories = ("--run-dir", host.run_dir, "--state-dir", host.state_dir)
        host.run(BIN / "pyvxlan-daemon", *directories, "--cleanup")  # knows the store by itself
        assert snapshot(host.netns) == before
        assert pair.one.run("ip", "-brief", "link").split()[0] == "lo"
        assert len(pair.one.run("ip", "-brief", "link").splitlines()) == 1
        eventually(lambda: not Path(f"/proc/{forwarder}").exists())
        listed = made[2].cli("endpoint", "ls")
        assert "ov_clean-1" not in listed
        assert "ov_clean-2" in listed
        host.cleanup()


def test_daemons_of_several_hosts_do_not_disturb_each_other(pair: Pair) -> None:
    pair.world[2].stop(signal.SIGKILL)
    assert pair.one.ping(pair.address2) == 3
    pair.world[2].start()
    pair.flows_again()
