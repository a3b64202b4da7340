"""`pyvxlan why` finds what was broken: each case breaks one thing, on two hosts with an etcd.

The daemons compare everything once an hour only, so what is broken stays so. What concerns one
pair of containers is broken and asked for all at once, what concerns hosts and underlay in turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest

from pyvxlan.daemon.apiclient import ApiClient
from pyvxlan.daemon.model import host_ifname
from pyvxlan.forwarder.client import ForwarderClient
from pyvxlan.forwarder.protocol import TableUpdate
from tests.netns.world import Container, Host, World, command, eventually, world

pytestmark = pytest.mark.root

AT_ONCE = 6
Document = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A container on each of two hosts; `name` is what the network they share is for."""

    network: str
    a: Container
    b: Container

    @property
    def ends(self) -> tuple[Document, Document]:
        return self.a.endpoints[0], self.b.endpoints[0]

    @property
    def address(self) -> str:
        return str(self.ends[1]["addresses"][0].split("/")[0])

    @property
    def names(self) -> tuple[str, str]:
        return self.ends[0]["name"], self.ends[1]["name"]


class Scene:
    """The two hosts, and pairs of containers on them."""

    def __init__(self, made: World) -> None:
        self.world, self.h1, self.h2 = made, made[1], made[2]
        self.ids: dict[str, str] = {}
        self.network("ov")
        self.pairs: dict[str, Pair] = {}

    def network(self, name: str, *options: str) -> None:
        self.ids[name] = self.h1.cli("network", "create", *options, name).strip()

    def pair(self, name: str, network: str = "ov", *, second: Host | None = None) -> Pair:
        made = Pair(
            network, self.h1.container(f"a-{name}"), (second or self.h2).container(f"b-{name}")
        )
        for container, what in ((made.a, "a"), (made.b, "b")):
            # As `Container.attach`, without the time in which a command starts.
            body = {"network": network, "sandbox": container.netns, "name": f"{what}-{name}"}
            api = ApiClient(container.host.run_dir)
            container.endpoints.append(api.post("endpoints", body=body, doing=""))
        return made

    def vni(self, network: str) -> int:
        (found,) = (one for one in self.h1.status()["networks"] if one["name"] == network)
        vni: int = found["vni"]
        return vni

    def overlay(self, host: Host, pair: Pair, *words: object) -> None:
        """Runs `ip` in the overlay's namespace of a host."""
        host.in_overlay(self.ids[pair.network], *words)

    def tables(self, host: Host, pair: Pair, change: Callable[[Any], TableUpdate]) -> None:
        """Changes what the forwarder of a host holds, behind its daemon's back."""

        async def work() -> None:
            async with await ForwarderClient.connect(host.run_dir / "forwarder.sock") as client:
                state = (await client.dump())[self.vni(pair.network)]
                await client.update([change(state)])

        asyncio.run(work())

    def known(self, host: Host, network: str, count: int) -> bool:
        """Whether the forwarder of a host has as many remote endpoints."""
        (found,) = (one for one in host.status()["networks"] if one["name"] == network)
        return bool(found["remote_endpoints"] == count)


def why(host: Host, a: str, b: str, **more: str) -> Document:
    """Asks a daemon."""
    answer: Document = ApiClient(host.run_dir).post("why", body={"a": a, "b": b, **more}, doing="")
    return answer


def shown(said: Document) -> str:
    """What `why` says, for a test that fails."""
    return json.dumps(
        {key: said[key] for key in ("code", "text", "remedy", "also", "steps")}, indent=1
    )


def veth(end: Document) -> str:
    return host_ifname(end["id"])


def mac(end: Document) -> bytes:
    return bytes.fromhex(end["mac"].replace(":", ""))


def rules(where: Container | Host, chain: str, rule: str) -> None:
    """Adds a rule of the kind that people add."""
    text = f"table inet why {{ chain c {{ type filter hook {chain} priority 0; {rule}; }}; }}"
    where.run("nft", text)


# What is broken of one pair


def eth_down(_: Scene, pair: Pair) -> None:
    pair.a.run("ip", "link", "set", "eth0", "down")


def far_eth_down(_: Scene, pair: Pair) -> None:
    pair.b.run("ip", "link", "set", "eth0", "down")


def wrong_address(_: Scene, pair: Pair) -> None:
    pair.b.run("ip", "address", "flush", "dev", "eth0")
    pair.b.run("ip", "address", "add", "10.0.0.250/24", "dev", "eth0")


def wrong_mac(_: Scene, pair: Pair) -> None:
    pair.a.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:aa")


def wrong_neighbour(_: Scene, pair: Pair) -> None:
    words = ("lladdr", "02:00:00:00:00:bb", "dev", "eth0", "nud", "permanent")
    pair.a.run("ip", "neighbour", "replace", pair.address, *words)


def wrong_way(_: Scene, pair: Pair) -> None:
    pair.a.run("ip", "route", "add", "unreachable", f"{pair.address}/32")


def small_mtu_inside(_: Scene, pair: Pair) -> None:
    pair.b.run("ip", "link", "set", "eth0", "mtu", 1000)


def veth_missing(scene: Scene, pair: Pair) -> None:
    scene.overlay(scene.h2, pair, "ip", "link", "delete", veth(pair.ends[1]))


def veth_down(scene: Scene, pair: Pair) -> None:
    scene.overlay(scene.h1, pair, "ip", "link", "set", veth(pair.ends[0]), "down")


def veth_off_the_bridge(scene: Scene, pair: Pair) -> None:
    scene.overlay(scene.h2, pair, "ip", "link", "set", veth(pair.ends[1]), "nomaster")


def on_one_host_off_the_bridge(scene: Scene, pair: Pair) -> None:
    scene.overlay(scene.h1, pair, "ip", "link", "set", veth(pair.ends[1]), "nomaster")


def no_fdb_entry(scene: Scene, pair: Pair) -> None:
    scene.tables(
        scene.h1, pair, lambda state: TableUpdate(state.port.vni, remove=[mac(pair.ends[1])])
    )


def no_fdb_entry_back(scene: Scene, pair: Pair) -> None:
    scene.tables(
        scene.h2, pair, lambda state: TableUpdate(state.port.vni, remove=[mac(pair.ends[0])])
    )


def wrong_vtep(scene: Scene, pair: Pair) -> None:
    add = {mac(pair.ends[1]): "198.18.0.77"}
    scene.tables(scene.h1, pair, lambda state: TableUpdate(state.port.vni, add=add))


def no_neighbour_entry(scene: Scene, pair: Pair) -> None:
    def without(state: Any) -> TableUpdate:
        left = {ip: mac for ip, mac in state.neighbours.items() if ip != pair.address}
        return TableUpdate(state.port.vni, neighbours=left)

    scene.tables(scene.h1, pair, without)
    pair.a.run("ip", "neighbour", "flush", "dev", "eth0")


def no_kernel_fdb_entry(scene: Scene, pair: Pair) -> None:
    words = ("bridge", "fdb", "delete", pair.ends[1]["mac"], "dev", "vxlan0")
    scene.overlay(scene.h1, pair, *words, "master")


def rule_inside_a(_: Scene, pair: Pair) -> None:
    rules(pair.a, "output", "ip protocol icmp drop")


def rule_inside_b(_: Scene, pair: Pair) -> None:
    rules(pair.b, "input", "ip protocol icmp drop")


def rule_inside_a_on_the_answer(_: Scene, pair: Pair) -> None:
    rules(pair.a, "input", "ip protocol icmp drop")


def rule_on_the_bridge(scene: Scene, pair: Pair) -> None:
    address = f"ether daddr {pair.ends[1]['mac']} drop"
    text = f"table bridge why {{ chain c {{ type filter hook forward priority 0; {address}; }}; }}"
    scene.overlay(scene.h2, pair, "nft", text)


def no_name_server(_: Scene, pair: Pair) -> None:
    rules(pair.a, "output", "udp dport 53 drop")


@dataclass(frozen=True)
class Break:
    """What to break of a pair, and what must be said: a code, and words of text and remedy."""

    how: Callable[[Scene, Pair], None]
    code: str
    text: str
    remedy: str
    network: str = "ov"


BREAKS = (
    Break(eth_down, "eth_down", "eth0 in {a} is down", "ip link set eth0 up"),
    Break(far_eth_down, "eth_down", "eth0 in {b} is down", "ip link set eth0 up"),
    Break(
        wrong_address, "eth_address", "10.0.0.250/24, and the store says {address}", "address add"
    ),
    Break(wrong_mac, "eth_mac", "has MAC 02:00:00:00:00:aa", "ip link set eth0 address 02:42"),
    Break(
        wrong_neighbour, "eth_neighbour", "takes 02:00:00:00:00:bb for", "neighbour del {address}"
    ),
    Break(wrong_way, "eth_way", "by another way (no route)", "route get {address}"),
    Break(small_mtu_inside, "eth_mtu", "eth0 in {b} has MTU 1000", "mtu 1450"),
    Break(veth_missing, "veth_missing", "the host's end of {b}, is missing on h2", "3600 s"),
    Break(veth_down, "veth_down", "the host's end of {a}, is down on h1", "link set v"),
    Break(veth_off_the_bridge, "veth_master", "hangs on no bridge instead of br0", "master br0"),
    Break(
        on_one_host_off_the_bridge, "veth_master", "the host's end of {b}", "master br0", "one host"
    ),
    Break(
        no_fdb_entry,
        "fdb_missing",
        "the forwarder on h1 has no entry",
        "on h1: the daemon mends it",
    ),
    Break(no_fdb_entry_back, "fdb_missing", "the forwarder on h2 has no entry", "on h2"),
    Break(wrong_vtep, "vtep_wrong", "198.18.0.77, and should send them to 198.18.0.2", "on h1"),
    Break(no_neighbour_entry, "neighbour_missing", "who asks for {address}", "on h1"),
    Break(
        no_kernel_fdb_entry, "fdb_missing", "the kernel's vxlan device on h1 has no", "", "kernel"
    ),
    Break(rule_inside_a, "firewall", "the kernel in {a} refuses to send", "nft list ruleset"),
    Break(rule_inside_b, "firewall", "eth0 in {b}, and the kernel there does not answer", "nft"),
    Break(rule_inside_a_on_the_answer, "firewall", "comes back to eth0 in {a}", "nft list ruleset"),
    Break(rule_on_the_bridge, "bridge", "the frame is lost on br0 of h2", "nft list ruleset"),
    Break(no_name_server, "name", "does not find it by name", "nft list ruleset"),
)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with world("why", 2, "--reconcile-interval-s", 3600, store="etcd") as made:
        yield Scene(made)


@pytest.fixture(scope="module")
def broken(scene: Scene) -> dict[str, tuple[Pair, Document]]:
    """All pairs, each broken in its own way, and what is said of it."""
    scene.network("kernel", "--opt", "datapath=kernel")
    pairs = {}
    for one in BREAKS:
        name = one.how.__name__.replace("_", "-")
        second = scene.h1 if one.network == "one host" else None
        network = one.network if one.network in scene.ids else "ov"
        pairs[one.how.__name__] = scene.pair(name, network, second=second)
    for host in (scene.h1, scene.h2):
        count = sum(
            pair.network == "ov" and (host is scene.h2 or pair.b.host is scene.h2)
            for pair in pairs.values()
        ) + sum(pair.b.host is scene.h1 for pair in pairs.values()) * (host is scene.h2)
        eventually(lambda host=host, count=count: scene.known(host, "ov", count), within_s=30)  # type: ignore[misc]
    for one in BREAKS:
        one.how(scene, pairs[one.how.__name__])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = {name: pool.submit(why, scene.h1, *pair.names) for name, pair in pairs.items()}
        return {name: (pairs[name], future.result()) for name, future in asked.items()}


@pytest.mark.parametrize("one", BREAKS, ids=lambda one: one.how.__name__)
def test_what_is_broken_is_named(broken: dict[str, tuple[Pair, Document]], one: Break) -> None:
    pair, said = broken[one.how.__name__]
    words = {"a": pair.names[0], "b": pair.names[1], "address": pair.address}
    assert said["code"] == one.code, shown(said)
    assert one.text.format(**words) in said["text"]
    assert one.remedy.format(**words) in said["remedy"]
    assert not said["reachable"]


# What is broken of a host or between hosts, and mended again


@contextlib.contextmanager
def rules_on(where: list[str], family: str, chain: str, rule: str) -> Iterator[None]:
    """A rule in a namespace while inside; `where` is what stands before a command."""
    text = f"table {family} why {{ chain c {{ type filter hook {chain} priority 0; {rule}; }}; }}"
    command(*where, "nft", text)
    try:
        yield
    finally:
        command(*where, "nft", "delete", "table", family, "why")


def on_the_way(scene: Scene, rule: str) -> AbstractContextManager[None]:
    enter = ["ip", "netns", "exec", scene.world.switch]
    return rules_on(enter, "bridge", "forward", rule)


def udp_blocked(scene: Scene, _: Pair) -> AbstractContextManager[None]:
    return on_the_way(scene, "udp dport 4789 drop")


def black_hole(scene: Scene, _: Pair) -> AbstractContextManager[None]:
    return on_the_way(scene, "ip length > 1400 drop")


def rule_on_h1(scene: Scene, _: Pair) -> AbstractContextManager[None]:
    return rules_on(scene.h1.enter(), "inet", "output", "udp dport 4789 drop")


def rule_on_h2(scene: Scene, _: Pair) -> AbstractContextManager[None]:
    return rules_on(scene.h2.enter(), "inet", "input", "udp dport 4789 drop")


def rule_on_the_way_back(scene: Scene, _: Pair) -> AbstractContextManager[None]:
    return rules_on(scene.h1.enter(), "inet", "input", "udp dport 4789 drop")


@contextlib.contextmanager
def undone(do: Callable[[], object], undo: Callable[[], object]) -> Iterator[None]:
    do()
    try:
        yield
    finally:
        undo()


def set_in_overlay(scene: Scene, host: Host, pair: Pair, link: str) -> AbstractContextManager[None]:
    def put(state: str) -> None:
        scene.overlay(host, pair, "ip", "link", "set", link, state)

    return undone(lambda: put("down"), lambda: put("up"))


def bridge_down(scene: Scene, pair: Pair) -> AbstractContextManager[None]:
    return set_in_overlay(scene, scene.h2, pair, "br0")


def port_down(scene: Scene, pair: Pair) -> AbstractContextManager[None]:
    return set_in_overlay(scene, scene.h1, pair, "vxlan0")


def forwarder_stopped(scene: Scene, _: Pair) -> AbstractContextManager[None]:
    pid = scene.h2.forwarder_pid()
    return undone(lambda: os.kill(pid, signal.SIGSTOP), lambda: os.kill(pid, signal.SIGCONT))


def small_underlay(scene: Scene, _: Pair) -> AbstractContextManager[None]:
    def put(mtu: int) -> None:
        scene.h1.run("ip", "link", "set", "under0", "mtu", mtu)

    return undone(lambda: put(1400), lambda: put(1500))


def other_address(scene: Scene, _: Pair) -> AbstractContextManager[None]:
    def put(old: str, new: str) -> None:
        scene.h2.run("ip", "address", "del", f"{old}/24", "dev", "under0")
        scene.h2.run("ip", "address", "add", f"{new}/24", "dev", "under0")

    own, other = scene.h2.address, "198.18.0.22"
    return undone(lambda: put(own, other), lambda: put(other, own))


def unplugged(scene: Scene, _: Pair) -> AbstractContextManager[None]:
    def put(state: str) -> None:
        command("ip", "-n", scene.world.switch, "link", "set", "port2", state)

    return undone(lambda: put("down"), lambda: put("up"))


@dataclass(frozen=True)
class Outage:
    """As `Break`, of hosts; `asked` is the host on which `why` is run."""

    how: Callable[[Scene, Pair], AbstractContextManager[None]]
    code: str
    text: str
    remedy: str
    asked: int = 1


OUTAGES = (
    Outage(udp_blocked, "udp_blocked", "between them blocks UDP port 4789", "UDP port 4789"),
    Outage(small_underlay, "mtu", "under0 of h1 has 1400", "ip link set under0 mtu 1500"),
    Outage(rule_on_h1, "firewall", "(underlay_error)", "nft list ruleset"),
    Outage(rule_on_h2, "firewall", "not to the forwarder: a rule there", "on h2: nft list ruleset"),
    Outage(rule_on_the_way_back, "firewall", "198.18.0.1 of h1", "on h1: nft list ruleset"),
    Outage(bridge_down, "bridge_down", "br0 is down on h2", "link set br0 up"),
    Outage(port_down, "vxlan0_down", "vxlan0 is down on h1", "link set vxlan0 up"),
    Outage(forwarder_stopped, "forwarder", "the forwarder on h2 does not answer", "forwarder.pid"),
    Outage(other_address, "vtep_wrong", "it has 198.18.0.22 (under0)", "--advertise", asked=2),
    Outage(unplugged, "vtep_unreachable", "h1 does not reach 198.18.0.2", "ping -I 198.18.0.1"),
)


@pytest.fixture(scope="module")
def whole(scene: Scene) -> Pair:
    return scene.pair("whole")


def test_frames_are_seen_at_each_stop_there_and_back(scene: Scene, whole: Pair) -> None:
    for host in (scene.h1, scene.h2):
        said = why(host, *whole.names)
        assert said["reachable"], shown(said)
        assert not said["also"], shown(said)
        assert all(step["request"] and step["reply"] for step in said["steps"])
        assert [step["host"] for step in said["steps"]] == 4 * ["h1"] + 4 * ["h2"]


@pytest.mark.parametrize("options", [("--ipv6",), ("--ipv6", "--opt", "datapath=kernel")])
def test_addresses_of_both_versions_are_followed(scene: Scene, options: tuple[str, ...]) -> None:
    name = f"dual{len(options)}"
    scene.network(name, *options)
    pair = scene.pair(name, name)
    for address in pair.ends[1]["addresses"]:
        said = why(scene.h1, pair.names[0], address.split("/")[0])
        assert said["reachable"], shown(said)
        assert not said["also"], shown(said)


def test_two_on_one_host_reach_each_other(scene: Scene) -> None:
    pair = scene.pair("together", second=scene.h1)
    for host in (scene.h1, scene.h2):
        said = why(host, *pair.names)
        assert said["reachable"], shown(said)
        assert [step["stop"] for step in said["steps"]] == ["eth", "veth", "veth", "eth"]


def test_command_line_shows_the_way_and_ends_accordingly(scene: Scene, whole: Pair) -> None:
    said = scene.h2.cli_try("why", *whole.names)
    assert said.returncode == 0, said.stdout
    assert "a-whole (10.0.0." in said.stdout
    assert "ok: a-whole reaches b-whole at" in said.stdout
    with udp_blocked(scene, whole):
        said = scene.h1.cli_try("why", "--format", "json", "a-whole", "b-whole")
    assert said.returncode == 1
    assert json.loads(said.stdout)["code"] == "udp_blocked"


def test_what_is_no_endpoint_is_named(scene: Scene, whole: Pair) -> None:
    loose = scene.h1.container("loose")
    scene.network("ov_other")
    other = scene.h1.container("other")
    other.attach("ov_other", "--name", "other")
    for a, b, code, text, remedy in (
        (loose.netns, "b-whole", "not_attached", "attached to no network", "attach --network"),
        ("a-whole", "b-hole", "not_attached", "no endpoint is called b-hole", "with b-whole"),
        ("a-whole", "10.0.0.251", "not_attached", "no endpoint has the address", "endpoint ls"),
        ("other", "b-whole", "different_networks", "is on ov_other, and b-whole on ov", "attach"),
        (other.netns, "b-whole", "different_networks", "is on ov_other", "attach --network ov "),
    ):
        said = why(scene.h1, a, b)
        assert said["code"] == code, shown(said)
        assert text in said["text"]
        assert remedy in said["remedy"]
    assert "same endpoint" in scene.h1.refused("why", "a-whole", whole.a.netns)


def test_a_host_whose_daemon_does_not_answer_is_named(scene: Scene, whole: Pair) -> None:
    with rules_on(scene.h2.enter(), "inet", "input", "tcp dport 9473 reject"):
        said = why(scene.h1, *whole.names)
        assert said["reachable"], shown(said)
        silent = "h2's daemon does not answer at 198.18.0.2:9473"
        assert silent in said["to"]["unheard"]
        assert f"h2 was not asked: {silent}" in scene.h1.cli("why", *whole.names)
        assert [step["request"] for step in said["steps"]] == 4 * [True] + 4 * [None]
        said = why(scene.h1, *reversed(whole.names))
        assert said["code"] == "unheard", shown(said)
        with udp_blocked(scene, whole):
            said = why(scene.h1, *whole.names)
    assert said["code"] == "udp_blocked", shown(said)
    assert "what came of it there is not known: h2's daemon does not answer" in said["text"]


def test_a_host_with_an_old_view_of_the_store_is_named(scene: Scene, whole: Pair) -> None:
    scene.world.cut(scene.h1)
    try:
        eventually(lambda: not scene.h1.status()["store"]["synced"], within_s=30)
        late = scene.h2.container("late")
        late.attach("ov", "--name", "late")
        said = why(scene.h2, "a-whole", "late")
        assert said["code"] == "store_stale", shown(said)
        assert "h1 does not know late at h2, since the store has not answered it" in said["text"]
        said = why(scene.h1, "a-whole", "late")
        assert said["code"] == "not_attached", shown(said)
        assert "as far as is known here" in said["text"]
        assert "store_stale" in {one["code"] for one in why(scene.h1, *whole.names)["also"]}
    finally:
        scene.world.heal()
    eventually(lambda: scene.h1.status()["store"]["synced"], within_s=30)


def test_a_path_that_swallows_full_frames_is_named(scene: Scene, whole: Pair) -> None:
    def told() -> list[str]:
        lines = scene.h1.cli("events", "--format", "json").splitlines()
        return [json.loads(line)["kind"] for line in lines]

    with black_hole(scene, whole):
        said = why(scene.h1, *whole.names)
        eventually(lambda: "tunnel_narrow" in told(), within_s=30)
    eventually(lambda: "tunnel_wide" in told(), within_s=40)
    # The forwarder may have found out first: then the container sends nothing longer.
    (found,) = (one for one in (said, *said["also"]) if one["code"] == "mtu")
    assert ("carries less than 1500 bytes" in found["text"]) != said["reachable"], shown(said)
    assert "--mtu" in found["remedy"]


@pytest.mark.parametrize("one", OUTAGES, ids=lambda one: one.how.__name__)
def test_what_is_broken_between_hosts_is_named(scene: Scene, whole: Pair, one: Outage) -> None:
    with one.how(scene, whole):
        said = why(scene.world[one.asked], *whole.names)
    # A that has learned the smaller path MTU reaches B all the same: then it is told below `also`.
    learned = one.how is small_underlay and said["reachable"]
    found = next(each for each in said["also"] if one.text in each["text"]) if learned else said
    assert found["code"] == one.code, shown(said)
    assert one.text in found["text"]
    assert one.remedy in found["remedy"]
    eventually(lambda: whole.a.ping(whole.address, count=1), within_s=30)
