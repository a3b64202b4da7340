"""What the doctor finds on a host itself: the judgements, as tables."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from pyvxlan.daemon import hostchecks, records
from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.hostchecks import Listener
from pyvxlan.daemon.hostview import Host
from pyvxlan.daemon.kv import Write
from tests.unit.doorway import doorway


@pytest.mark.parametrize(
    ("listener", "level", "told"),
    [
        (None, "ok", "is free"),
        (Listener("198.18.0.1", frozenset({6, 7}), "python"), "ok", "is the forwarder's"),
        (Listener("0.0.0.0", frozenset({9}), "vtund"), "error", "vtund (pid 9)"),
        (Listener("198.18.0.1", frozenset({9}), "vtund"), "error", "set port to the same other"),
        (Listener("::", frozenset({9}), "vtund"), "error", "vtund"),
        (Listener("198.18.0.2", frozenset({9}), "vtund"), "ok", "is free"),
        (Listener("0.0.0.0", frozenset(), ""), "error", "the kernel"),
    ],
)
def test_port_is_the_forwarders_or_free(listener: Listener | None, level: str, told: str) -> None:
    found = hostchecks.port_of([listener] if listener else [], [7], 4789, "198.18.0.1")
    assert (found.level, told in found.text) == (level, True)


def test_port_is_judged_without_a_daemon_too() -> None:
    listener = Listener("198.18.0.2", frozenset({9}), "vtund")
    assert hostchecks.port_of([listener], [], 4789, "").level == "error"


@pytest.mark.parametrize(
    ("lacking", "level", "told"),
    [([], "ok", "6.1"), (["links of type veth"], "error", "lacks links of type veth: load")],
)
def test_kernel(lacking: list[str], level: str, told: str) -> None:
    found = hostchecks.kernel_of(lacking, "6.1.0")
    assert (found.level, told in found.text) == (level, True)


@pytest.mark.parametrize(
    ("wrong", "right", "driver", "level", "told"),
    [
        (0, 0, "", "ok", "0 of 0"),
        (9, 10, "", "ok", "9 of 19"),
        (50, 1_000_000, "", "ok", "50 of"),
        (500, 1_000_000, "", "error", "ethtool -K eth0 tx off"),
        (0, 5, "vmxnet3", "warning", "tx-udp_tnl-csum-segmentation off"),
        (0, 5, "virtio_net", "ok", "0 of 5"),
    ],
)
def test_checksums(wrong: int, right: int, driver: str, level: str, told: str) -> None:
    found = hostchecks.checksums_of(wrong, right, driver, "eth0")
    assert (found.level, told in found.text) == (level, True)


@pytest.mark.parametrize(
    ("mtu", "overhead", "promised", "level", "told"),
    [
        (1500, 50, {"blue": 1450}, "ok", "up to 1450"),
        (1500, 70, {"blue": 1450}, "warning", "set that of eth0 to 1520"),
        (1400, 50, {"blue": 1450, "red": 1300}, "warning", "network blue has MTU 1450"),
        (1400, 50, {}, "ok", "up to 1350"),
    ],
)
def test_mtu(mtu: int, overhead: int, promised: dict[str, int], level: str, told: str) -> None:
    found = hostchecks.mtu_of("eth0", mtu, overhead, promised)
    assert (found.level, told in found.text) == (level, True)


@pytest.mark.parametrize(
    ("values", "gateway", "level", "told"),
    [
        ({"user/max_net_namespaces": "63000", "net/ipv4/ip_forward": "1"}, True, "ok", "should"),
        ({"user/max_net_namespaces": "0"}, False, "error", "max_net_namespaces"),
        ({"net/ipv4/ip_forward": "0"}, True, "error", "ip_forward is 0"),
        ({"net/ipv4/ip_forward": "0"}, False, "ok", "should"),
        ({"user/max_net_namespaces": None}, True, "ok", "should"),
    ],
)
def test_sysctls(values: dict[str, str | None], gateway: bool, level: str, told: str) -> None:
    found = hostchecks.sysctls_of(values, gateway=gateway)
    assert (found.level, told in found.text) == (level, True)


def test_versions() -> None:
    assert hostchecks.versions_of({"h1": "1", "h2": "1"}).level == "ok"
    found = hostchecks.versions_of({"h1": "1", "h2": "2", "h3": "1"})
    assert (found.level, "1 on h1, h3; 2 on h2" in found.text) == ("warning", True)


def test_clock() -> None:
    levels = {state: hostchecks.clock_of(state).level for state in (0, 1, 5, -1)}
    assert levels == {0: "ok", 1: "ok", 5: "warning", -1: "warning"}


def test_clock_of_this_machine_is_asked() -> None:
    assert hostchecks.check_clock(Host(Settings())).level in {"ok", "warning"}


def test_leftovers() -> None:
    links = [
        {"ifname": "eth0"},
        {"ifname": "g1", "ifalias": f"pyvxlan {'a' * 32} 0123"},
        {"ifname": "g2", "ifalias": f"pyvxlan {'b' * 32}"},
        {"ifname": "x", "ifalias": "somebody else's"},
    ]
    found = hostchecks.leftovers_of(links, "a" * 32)
    assert (found.level, "ip link del g2" in found.text) == ("warning", True)
    assert "g1" not in found.text
    assert hostchecks.leftovers_of(links[:2], "a" * 32).level == "ok"


@pytest.mark.parametrize(
    ("inward", "outward", "level", "told"),
    [
        ({4789: []}, [], "ok", "4789"),
        ({4789: [], 8472: []}, [], "ok", "closes UDP port 4789 or 8472"),
        ({4789: ["policy of chain INPUT"]}, ["x"], "error", "closed by policy of chain INPUT"),
        ({4789: [], 8472: ["a rule"]}, [], "error", "UDP port 8472 is closed by a rule"),
        ({4789: []}, ["policy of chain FORWARD"], "warning", "no way out"),
    ],
)
def test_firewall(inward: dict[int, list[str]], outward: list[str], level: str, told: str) -> None:
    found = hostchecks.firewall_of(inward, outward)
    assert (found.level, told in found.text) == (level, True)


def test_host_on_an_underlay_of_the_other_ip_version_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with doorway() as door:
        apart = replace(door.other.host, id="f" * 32, name="host3", vtep=ip_address("fd98::3"))
        writes = [
            Write(records.host_key(apart.id), records.emit_host(apart)),
            Write(records.alive_key(apart.id), records.emit({"inc": "1"})),
        ]
        door.do(door.node.store.txn([], writes))
        door.do(door.node.until(lambda: apart.id in door.node.state.alive))
        reading = door.do(door.status.reading())
    assert any("IPv4 VTEP with that of host3: start" in problem for problem in reading.problems)
    assert "vteps of two IP versions host=host3 vtep=fd98::3" in caplog.text


def test_host_of_another_version_is_told() -> None:
    with doorway() as door:
        newer = replace(door.other.host, id="f" * 32, name="host3", version="9.8.7")
        writes = [
            Write(records.host_key(newer.id), records.emit_host(newer)),
            Write(records.alive_key(newer.id), records.emit({"inc": "1"})),
        ]
        door.do(door.node.store.txn([], writes))
        door.do(door.node.until(lambda: newer.id in door.node.state.alive))
        found = hostchecks.check_versions(Host(door.settings))
    assert found is not None
    assert (found.level, "9.8.7 on host3" in found.text) == ("warning", True)
