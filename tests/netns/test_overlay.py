"""The main job on two hosts: networks, endpoints, names, as a user sees them."""

from __future__ import annotations

import ipaddress
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.netns.world import World, command, eventually, world

pytestmark = pytest.mark.root


@pytest.fixture(params=["forwarder", "kernel"])
def datapath(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Options of `network create`, for what holds whatever carries the frames."""
    return ("--opt", f"datapath={request.param}")


def test_network_made_on_one_host_is_listed_on_the_other(two_hosts: World) -> None:
    network_id = two_hosts[1].cli("network", "create", "ov_listed").strip()
    assert len(network_id) == 32
    rows = eventually(
        lambda: [
            row for row in two_hosts[2].cli("network", "ls").splitlines() if "ov_listed" in row
        ]
    )
    assert rows[0].split() == [network_id[:12], "ov_listed", "pyvxlan", "global"]
    assert two_hosts[2].cli("network", "ls").splitlines()[0].split("  ")[0] == "NETWORK ID"
    two_hosts[2].cli("network", "rm", "ov_listed")
    eventually(lambda: "ov_listed" not in two_hosts[1].cli("network", "ls"))


def test_container_looks_as_the_original_made_it(two_hosts: World) -> None:
    network_id = (
        two_hosts[1].cli("network", "create", "ov_looks", "--subnet", "10.40.0.0/24").strip()
    )
    container = two_hosts[1].container()
    container.attach("ov_looks", "--name", "looks1")
    (address,) = container.addresses()
    assert ipaddress.ip_interface(address).network == ipaddress.ip_network("10.40.0.0/24")
    eth0 = container.link("eth0")
    assert eth0["mtu"] == 1450
    octets = ipaddress.ip_interface(address).ip.packed
    assert eth0["address"] == "02:42:" + octets.hex(":")
    (gateway_side,) = container.addresses("eth1")
    assert ipaddress.ip_interface(gateway_side).ip in ipaddress.ip_network("172.18.0.0/16")
    assert "default via 172.18.0.1 dev eth1" in container.run("ip", "route")
    assert container.ping("10.40.0.1") == 3, "the overlay's gateway answers"
    assert container.ping("172.18.0.1") == 3, "the gateway bridge answers"
    overlay = two_hosts[1].overlay(network_id)
    counter, digits = overlay.name.split("-")
    assert counter.isdigit()
    assert digits == network_id[:10]
    links = {
        link["ifname"]: link
        for link in json.loads(two_hosts[1].in_overlay(network_id, "ip", "-json", "-d", "link"))
    }
    assert {"lo", "br0", "vxlan0"} < set(links)
    assert links["vxlan0"]["master"] == "br0"
    assert links["vxlan0"]["linkinfo"]["info_kind"] == "tun"
    assert links["vxlan0"]["qdisc"] == "noqueue", "each of 256 disciplines takes 100 kB"
    host_links = two_hosts[1].run("ip", "-brief", "link").stdout
    assert "vxlan0" not in host_links, "the overlay is not visible in the host's namespace"
    container.detach()
    two_hosts[1].cli("network", "rm", "ov_looks")


def test_internal_network_has_no_way_out(two_hosts: World) -> None:
    two_hosts[1].cli("network", "create", "--internal", "ov_internal")
    container = two_hosts[1].container()
    container.attach("ov_internal")
    assert container.run("ip", "route", "show", "default") == ""
    assert "eth1" not in container.run("ip", "-brief", "link")
    container.detach()
    two_hosts[1].cli("network", "rm", "ov_internal")


def test_containers_of_two_hosts_reach_each_other(
    two_hosts: World, datapath: tuple[str, ...]
) -> None:
    two_hosts[1].cli("network", "create", *datapath, "--ipv6", "ov_reach")
    one, two = two_hosts[1].container(), two_hosts[2].container()
    one.attach("ov_reach", "--name", "reach1")
    two.attach("ov_reach", "--name", "reach2")
    targets = [address.split("/")[0] for address in one.addresses()]
    assert sorted(ipaddress.ip_address(target).version for target in targets) == [4, 6]
    for target in targets:
        assert eventually(lambda target=target: two.ping(target, count=1))
        assert two.ping(target, count=20, interval_s=0.02) == 20
    back = [address.split("/")[0] for address in two.addresses()]
    for target in back:
        assert one.ping(target, count=20, interval_s=0.02) == 20
    one.detach()
    two.detach()
    two_hosts[1].cli("network", "rm", "ov_reach")


def test_containers_on_one_host_do_not_meet_over_the_gateway_bridge(two_hosts: World) -> None:
    two_hosts[1].cli("network", "create", "ov_gw_a")
    two_hosts[1].cli("network", "create", "ov_gw_b")
    one, two = two_hosts[1].container(), two_hosts[1].container()
    one.attach("ov_gw_a")
    two.attach("ov_gw_b")
    target = two.addresses("eth1")[0].split("/")[0]
    assert one.ping(target) == 0
    # Not by way of the bridge's own address either.
    one.run("ip", "route", "replace", f"{target}/32", "via", "172.18.0.1", "dev", "eth1")
    assert one.ping(target) == 0
    assert one.ping("198.18.0.2") > 0, "the way out is there, with NAT"
    one.detach()
    two.detach()
    two_hosts[1].cli("network", "rm", "ov_gw_a", "ov_gw_b")


def test_static_addresses_and_mac_are_taken_as_given(two_hosts: World) -> None:
    two_hosts[1].cli(
        "network",
        "create",
        "ov_static",
        "--subnet",
        "10.41.0.0/24",
        "--subnet",
        "fd41::/64",
        "--gateway",
        "10.41.0.254",
        "--ipv6",
    )
    container = two_hosts[2].container()
    container.attach(
        "ov_static", "--ip", "10.41.0.77", "--ip6", "fd41::77", "--mac", "02:aa:bb:cc:dd:ee"
    )
    assert sorted(container.addresses()) == ["10.41.0.77/24", "fd41::77/64"]
    assert container.link()["address"] == "02:aa:bb:cc:dd:ee"
    assert container.ping("10.41.0.254") == 3
    line = two_hosts[1].refused(
        "attach", "--network", "ov_static", "--ip", "10.41.0.77", two_hosts[1].container().netns
    )
    assert "10.41.0.77" in line
    container.detach()
    two_hosts[1].cli("network", "rm", "ov_static")


def test_default_pools_skip_what_the_host_routes_already() -> None:
    with world("pc", 1, start=False) as made:
        host = made[1]
        command("ip", "-n", host.netns, "route", "add", "10.0.0.0/24", "via", "198.18.0.9")
        made.start()
        for name in ("ov_p1", "ov_p2"):
            host.cli("network", "create", name)
        subnets = [
            json.loads(host.cli("network", "inspect", name))[0]["subnets"][0]["cidr"]
            for name in ("ov_p1", "ov_p2")
        ]
        assert subnets == ["10.0.1.0/24", "10.0.2.0/24"]


def test_removal_of_a_network_in_use_names_endpoints_and_hosts(two_hosts: World) -> None:
    two_hosts[1].cli("network", "create", "ov_used")
    container = two_hosts[2].container()
    container.attach("ov_used", "--name", "holder")
    line = two_hosts[1].refused("network", "rm", "ov_used")
    assert "holder" in line
    host_name = next(
        node["name"]
        for node in json.loads(two_hosts[2].cli("node", "ls", "--format", "json"))
        if node["self"]
    )
    assert host_name in line
    container.detach()
    two_hosts[1].cli("network", "rm", "ov_used")


def test_detach_leaves_nothing_behind(two_hosts: World, datapath: tuple[str, ...]) -> None:
    network_id = two_hosts[1].cli("network", "create", *datapath, "ov_gone").strip()
    container = two_hosts[1].container()
    container.attach("ov_gone")
    two_hosts[1].overlay(network_id)
    container.detach()
    assert container.run("ip", "-brief", "link").split()[0] == "lo"
    assert len(container.run("ip", "-brief", "link").splitlines()) == 1
    eventually(
        lambda: not list((two_hosts[1].run_dir / "netns").glob(f"*-{network_id[:10]}")),
        what="the overlay's namespace goes with its last endpoint",
    )
    two_hosts[1].cli("network", "rm", "ov_gone")


def test_change_reaches_the_other_hosts_table_within_a_moment(
    two_hosts: World, datapath: tuple[str, ...]
) -> None:
    two_hosts[1].cli("network", "create", *datapath, "ov_fast")
    anchor = two_hosts[2].container()
    anchor.attach("ov_fast")
    late = two_hosts[1].container()
    endpoint = late.attach("ov_fast")
    started = time.monotonic()
    target = endpoint["addresses"][0].split("/")[0]
    assert eventually(lambda: anchor.ping(target, count=1), within_s=2)
    assert time.monotonic() - started < 2
    anchor.detach()
    late.detach()
    two_hosts[1].cli("network", "rm", "ov_fast")


def test_endpoint_that_moves_to_another_host_is_found_there(
    two_hosts: World, datapath: tuple[str, ...]
) -> None:
    two_hosts[1].cli("network", "create", *datapath, "--subnet", "10.44.0.0/24", "ov_moves")
    watchers = [host.container() for host in two_hosts.hosts]
    for watcher in watchers:
        watcher.attach("ov_moves")
    for host in (two_hosts[2], two_hosts[1], two_hosts[2]):
        moved = host.container()
        moved.attach("ov_moves", "--ip", "10.44.0.77", "--mac", "02:aa:bb:cc:dd:01")
        for watcher in watchers:
            eventually(lambda watcher=watcher: watcher.ping("10.44.0.77", count=1))
        moved.detach()
    for watcher in watchers:
        watcher.detach()
    two_hosts[1].cli("network", "rm", "ov_moves")


def test_two_hosts_creating_one_name_at_once_make_one_network(two_hosts: World) -> None:
    for round_number in range(8):
        name = f"ov_race{round_number}"
        with ThreadPoolExecutor(2) as pool:
            done = list(
                pool.map(
                    lambda host, name=name: host.cli_try("network", "create", name), two_hosts.hosts
                )
            )
        assert sorted(result.returncode == 0 for result in done) == [False, True]
        loser = next(result for result in done if result.returncode != 0)
        assert name in loser.stderr
        two_hosts[1].cli("network", "rm", name)


def test_many_concurrent_attachments_all_succeed_with_addresses_of_their_own(
    two_hosts: World,
) -> None:
    two_hosts[1].cli("network", "create", "ov_many")
    containers = [two_hosts[1 + number % 2].container() for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda container: container.attach("ov_many"), containers))
    addresses = [container.addresses()[0] for container in containers]
    assert len(set(addresses)) == 16
    first = containers[0]
    for address in addresses[1:]:
        assert eventually(lambda address=address: first.ping(address.split("/")[0], count=1))
    for container in containers:
        container.detach()
    two_hosts[1].cli("network", "rm", "ov_many")


def test_one_container_on_networks_of_both_datapaths(two_hosts: World) -> None:
    for name, datapath in (("ov_multi1", "forwarder"), ("ov_multi2", "kernel")):
        two_hosts[1].cli("network", "create", "--opt", f"datapath={datapath}", name)
    both, other = two_hosts[1].container(), two_hosts[2].container()
    both.attach("ov_multi1", "--name", "both")
    second = both.attach("ov_multi2", "--name", "both")
    other.attach("ov_multi2", "--name", "other")
    assert eventually(lambda: other.ping(second["addresses"][0].split("/")[0], count=1))
    both.detach()
    other.detach()
    two_hosts[1].cli("network", "rm", "ov_multi1", "ov_multi2")


def test_network_of_several_subnets_is_one_overlay(
    two_hosts: World, datapath: tuple[str, ...]
) -> None:
    two_hosts[1].cli(
        "network",
        "create",
        *datapath,
        "ov_sub2",
        "--subnet",
        "10.42.0.0/24",
        "--subnet",
        "10.43.0.0/24",
    )
    one, two = two_hosts[1].container(), two_hosts[2].container()
    one.attach("ov_sub2", "--ip", "10.42.0.5")
    two.attach("ov_sub2", "--ip", "10.43.0.5")
    assert eventually(lambda: one.ping("10.43.0.5", count=1))
    assert two.ping("10.42.0.5") == 3
    one.detach()
    two.detach()
    two_hosts[1].cli("network", "rm", "ov_sub2")
