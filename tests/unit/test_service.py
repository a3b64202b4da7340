"""The verbs, on hosts that share a store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import (
    ConflictError,
    DaemonError,
    ExhaustedError,
    InUseError,
    InvalidError,
    NetError,
    NotFoundError,
    StoreConflictError,
    StoreUnavailableError,
)
from pyvxlan.daemon.kv import Delete, Item, Write
from pyvxlan.daemon.model import LocalEndpoint, Network, Sandbox
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec
from tests.unit.cluster import Cluster, Node


async def keys(cluster: Cluster) -> set[str]:
    """Everything in the store but the hosts' own records and notes of what was removed."""
    return {
        key
        for key in await cluster.store.list("")
        if not key.startswith(("host/", "vtep/", "alive/", "meta", "pools", "gone/"))
    }


async def network(node: Node, name: str = "n1", **wishes: object) -> Network:
    return await node.service.create_network(replace(NetworkSpec(name), **wishes))  # type: ignore[arg-type]


def attach_spec(
    sandbox: str, network: str = "n1", ifname: str = "", **wishes: object
) -> AttachSpec:
    return AttachSpec(network, sandbox, replace(EndpointSpec(), **wishes), ifname)  # type: ignore[arg-type]


# Networks


async def test_network_is_seen_by_every_host(one: Node, two: Node) -> None:
    made = await network(one, labels={"team": "a"})
    assert made.subnets[0].cidr == ip_network("10.0.0.0/24")
    assert made.subnets[0].gateway == ip_address("10.0.0.1")
    assert made.mtu_bytes == 1450
    assert 4096 <= made.vni <= 2**24 - 2
    assert await two.service.networks() == [made]
    assert await two.service.find_network("n1") == made
    assert await two.service.find_network(made.id) == made
    assert await two.service.find_network(made.id[:6]) == made
    await two.until(lambda: dict(two.state.networks) == {made.id: made})


async def test_networks_get_different_subnets_and_skip_what_is_routed(one: Node) -> None:
    one.net.routes = [(ip_network("10.0.1.0/24"), "eth1")]
    made = [await network(one, f"n{number}") for number in range(3)]
    assert [str(each.subnets[0].cidr) for each in made] == [
        "10.0.0.0/24",
        "10.0.2.0/24",
        "10.0.3.0/24",
    ]


async def test_subnet_of_dockers_way_out_is_refused_and_what_else_is_routed_is_not(
    one: Node,
) -> None:
    one.net.routes = [
        (ip_network("172.18.0.0/16"), "docker_gwbridge"),
        (ip_network("10.9.0.0/16"), "eth1"),
    ]
    with pytest.raises(ConflictError, match=r"172\.18\.0\.0/16 of docker_gwbridge"):
        await network(one, subnets=("172.18.5.0/24",))
    with pytest.raises(ConflictError, match="docker_gwbridge"):
        await one.service.reserve_subnet(ip_network("172.18.0.0/16"), version=4)
    assert await network(one, subnets=("10.9.5.0/24",))


async def test_of_many_creators_of_one_name_one_wins(cluster: Cluster) -> None:
    nodes = [await cluster.start(number) for number in range(1, 5)]
    made = await asyncio.gather(*(network(node) for node in nodes * 2), return_exceptions=True)
    won = [each for each in made if isinstance(each, Network)]
    assert len(won) == 1
    assert all(isinstance(each, ConflictError) for each in made if not isinstance(each, Network))
    assert len([key for key in await keys(cluster) if key.startswith("vni/")]) == 1


async def test_concurrent_creators_get_different_subnets_and_vnis(cluster: Cluster) -> None:
    nodes = [await cluster.start(number) for number in range(1, 4)]
    made = await asyncio.gather(
        *(network(node, f"n{turn}x{node.host.name}") for turn in range(4) for node in nodes)
    )
    assert len({each.subnets[0].cidr for each in made}) == 12
    assert len({each.vni for each in made}) == 12


async def test_removed_network_leaves_nothing(cluster: Cluster, one: Node) -> None:
    before = await keys(cluster)
    made = await network(one, ipv6=True, vni=77)
    assert await one.service.remove_network("n1") == replace(made, state="up")
    assert await keys(cluster) == before
    pools = await cluster.store.get("pools")
    assert pools is not None
    assert records.parse_pools(pools.value).used == {}
    assert await network(one, vni=77)


async def test_network_in_use_is_not_removed_and_its_users_are_named(
    cluster: Cluster, one: Node, two: Node
) -> None:
    await network(one)
    two.net.add("c1")
    await two.service.attach(attach_spec("c1", name="bbox1"))
    with pytest.raises(InUseError, match="network n1 is in use by bbox1 on host2: detach"):
        await one.service.remove_network("n1")
    assert (await one.service.find_network("n1")).state == "up"
    assert await one.service.prune_networks() == []
    await two.service.detach("bbox1")
    assert [each.name for each in await one.service.prune_networks()] == ["n1"]
    assert await keys(cluster) == set()


async def test_endpoint_that_slips_in_saves_the_network(cluster: Cluster, one: Node) -> None:
    made = await network(one)
    store = cluster.store
    down = asyncio.Event()

    async def slip_in() -> None:
        async for event in store.watch(records.network_key(made.id)):
            del event
            down.set()

    watcher = asyncio.create_task(slip_in())
    results = await asyncio.gather(
        one.service.remove_network("n1"),
        one.service.create_endpoint("n1", EndpointSpec(name="late")),
        return_exceptions=True,
    )
    watcher.cancel()
    failures = [result for result in results if isinstance(result, DaemonError)]
    assert len(failures) == 1
    left = {key.split("/")[0] for key in await keys(cluster)}
    assert left in (set(), {"net", "netname", "vni", "ip", "ep", "own", "name"})


async def test_removal_that_broke_off_is_finished_by_the_next(cluster: Cluster, one: Node) -> None:
    made = await network(one)
    item = await cluster.store.get(records.network_key(made.id))
    assert item is not None
    await cluster.store.txn([], [Write(item.key, records.with_state(item.value, "down"))])
    with pytest.raises(ConflictError, match="is being removed"):
        await one.service.create_endpoint("n1", EndpointSpec())
    await one.service.remove_network("n1")
    assert await keys(cluster) == set()


async def test_endpoint_in_a_joined_network_takes_one_transaction_and_no_read(
    one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await network(one)
    one.state.join(made.id)
    await one.until(lambda: one.state.joined(made.id))
    await one.until(lambda: made.id in one.state.networks)

    async def read(*_: object) -> None:
        raise AssertionError("read from the store")

    for name in ("get", "list"):
        monkeypatch.setattr(one.store, name, read)
    assert await one.service.create_endpoint("n1", EndpointSpec())


async def test_endpoint_is_made_though_the_watch_told_an_older_network(
    cluster: Cluster, one: Node
) -> None:
    made = await network(one)
    await one.until(lambda: made.id in one.state.networks)
    one.state._networks.revisions[made.id] -= 1
    assert await one.service.create_endpoint("n1", EndpointSpec())
    await one.state.close()
    item = await cluster.store.get(records.network_key(made.id))
    assert item is not None
    await cluster.store.txn([], [Write(item.key, records.with_state(item.value, "down"))])
    with pytest.raises(ConflictError, match="is being removed"):
        await one.service.create_endpoint("n1", EndpointSpec())


async def test_dual_stack_network_gets_a_unique_local_subnet(one: Node) -> None:
    first, second = await network(one, ipv6=True), await network(one, "n2", ipv6=True)
    assert [subnet.cidr.version for subnet in first.subnets] == [4, 6]
    six = first.subnets[1]
    assert six.cidr.prefixlen == 64
    assert six.cidr != second.subnets[1].cidr
    endpoint = await one.service.create_endpoint("n1", EndpointSpec())
    assert [address.version for address in endpoint.addresses] == [4, 6]
    assert endpoint.addresses[1].ip == six.cidr[2]
    assert endpoint.mac == bytes.fromhex("02420a000002")


async def test_options_change_the_network(one: Node) -> None:
    made = await network(
        one, options={"multicast": "off", "flood-rate": "5", "vni": "42", "mtu": "1400"}
    )
    assert (made.multicast, made.vni, made.mtu_bytes) == (False, 42, 1400)
    docker = await network(one, "n2", options={"com.docker.network.driver.mtu": "1400"})
    assert docker.mtu_bytes == 1350


@pytest.mark.parametrize("vni", [1, 2**24 - 2])
async def test_every_vni_but_0_and_that_of_probes_may_be_chosen(one: Node, vni: int) -> None:
    assert (await network(one, name="edge", vni=vni)).vni == vni


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"name": "a b"}, "network name 'a b' is not usable"),
        ({"name": ""}, "network name '' is not usable"),
        ({"name": "-x"}, "network name '-x'"),
        ({"name": "x" * 64}, "network name"),
        ({"name": "n\n"}, "network name"),
        ({"name": "a/b"}, "network name"),
        ({"mtu": 575}, r"MTU 575 is below 576: choose 576 to 1450"),
        ({"mtu": 1451}, r"MTU 1451 is above 1450: the underlay's MTU 1500 less 50"),
        ({"mtu": 0}, "MTU 0 is below"),
        ({"mtu": 1279, "ipv6": True}, "below 1280 for IPv6"),
        ({"options": {"mtu": "x"}}, "option mtu=x must be a number"),
        ({"vni": 0}, "VNI 0 must be from 1 to 16777214"),
        ({"vni": 2**24 - 1}, "VNI 16777215 must be .* 16777215 is that of probes"),
        ({"options": {"vni": "16777215"}}, "16777215 is that of probes"),
        ({"vni": 2**24}, "VNI 16777216 must be"),
        ({"vni": -1}, "VNI -1 must be"),
        ({"options": {"multicats": "on"}}, "did you mean multicast"),
        ({"options": {"zzz": "on"}}, "known are"),
        ({"options": {"multicast": "maybe"}}, "must be on or off"),
        ({"options": {"flood-rate": "0"}}, "flood-rate=0 must be"),
        ({"gateways": ("10.0.0.1",)}, "10.0.0.1 needs a --subnet"),
        ({"ip_ranges": ("10.0.0.0/25",)}, "needs a --subnet"),
        ({"subnets": ("10.1.0.0/24",), "gateways": ("10.2.0.1",)}, "in none"),
        ({"subnets": ("10.1.0.1/24",)}, "did you mean"),
        ({"labels": {"": "x"}}, "label ''"),
        ({"labels": {"a": "x" * 20_000}}, "labels are longer"),
    ],
)
async def test_wish_for_a_network_that_can_not_be_is_refused_without_a_trace(
    cluster: Cluster, one: Node, wishes: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidError, match=message):
        await network(one, **{"name": "n1"} | wishes)  # type: ignore[arg-type]
    assert await keys(cluster) == set()


async def test_small_underlay_is_named(one: Node) -> None:
    one.net.mtu = 600
    with pytest.raises(
        InvalidError, match=r"MTU 550 is below 576: the underlay's MTU 600 must be at"
    ):
        await network(one)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"name": "n1"}, "network name n1 is taken by network"),
        ({"name": "n2", "vni": 77}, "VNI 77 is taken by network"),
        ({"name": "n2", "subnets": ("10.0.0.0/16",)}, r"overlaps 10\.0\.0\.0/24 of network n1"),
        ({"name": "n2", "subnets": ("198.18.0.0/24",)}, "of host host1's underlay"),
        ({"name": "n2", "subnets": ("172.18.7.0/24",)}, "gateway bridge"),
    ],
)
async def test_taken_name_vni_or_subnet_is_refused_naming_the_owner(
    one: Node, wishes: dict[str, object], message: str
) -> None:
    made = await network(one, vni=77)
    with pytest.raises(ConflictError, match=message):
        await network(one, **wishes)  # type: ignore[arg-type]
    assert await one.service.networks() == [made]


async def test_exhausted_pool_is_refused(cluster: Cluster, one: Node) -> None:
    pools = {"v": 1, "pools": [{"base": "10.9.0.0/24", "size": 25}]}
    await cluster.store.txn([], [Write("cfg", json.dumps(pools).encode())])
    await one.until(lambda: one.state.config.pools is not None)
    await network(one, "n1")
    await network(one, "n2")
    with pytest.raises(
        ExhaustedError, match=r"no free subnet in the pools \(10\.9\.0\.0/24 in /25\)"
    ):
        await network(one, "n3")


async def test_ambiguous_or_unknown_network_is_refused(cluster: Cluster, one: Node) -> None:
    first = await network(one)
    value = records.emit_network(replace(first, name="n2"))
    twin = first.id[:8] + "0" * 24
    await cluster.store.txn([], [Write(records.network_key(twin), value)])
    with pytest.raises(ConflictError, match=r"ambiguous.*give more digits"):
        await one.service.find_network(first.id[:8])
    for ref in ("nope", "", "ffffffff" if not first.id.startswith("f") else "0000", "a/b", "ä"):
        with pytest.raises(NotFoundError, match="no network"):
            await one.service.find_network(ref)


async def test_name_beats_the_prefix_of_an_id(one: Node) -> None:
    first = await network(one)
    second = await network(one, first.id[:4])
    assert await one.service.find_network(first.id[:4]) == second


async def test_networks_are_listed_from_memory_while_the_store_is_away(
    one: Node,
) -> None:
    made = await network(one)
    await one.until(lambda: made.id in one.state.networks)
    one.store.lose("cable cut")
    assert await one.service.networks() == [made]
    with pytest.raises(StoreUnavailableError, match="cable cut"):
        await network(one, "n2")
    one.store.recover()


async def test_invalid_record_of_a_network_is_named_and_harms_no_other(
    cluster: Cluster, one: Node
) -> None:
    made = await network(one)
    await network(one, "n2")
    await cluster.store.txn([], [Write(records.network_key(made.id), b'{"v":1}')])
    assert [each.name for each in await one.service.networks()] == ["n2"]
    with pytest.raises(InvalidError, match=f"net/{made.id} is not valid"):
        await one.service.find_network("n1")


# Endpoints


async def test_hosts_get_addresses_in_turn(one: Node, two: Node) -> None:
    await network(one)
    made = [
        await node.service.create_endpoint("n1", EndpointSpec()) for node in (one, two, one, two)
    ]
    assert [str(each.addresses[0]) for each in made] == [
        f"10.0.0.{last}/24" for last in (2, 3, 4, 5)
    ]
    assert made[1].mac == bytes.fromhex("02420a000003")


async def test_concurrent_endpoints_get_different_addresses(cluster: Cluster) -> None:
    nodes = [await cluster.start(number) for number in range(1, 5)]
    await network(nodes[0])
    made = await asyncio.gather(
        *(node.service.create_endpoint("n1", EndpointSpec()) for _ in range(15) for node in nodes)
    )
    assert len({each.addresses[0] for each in made}) == 60


async def test_full_subnet_is_refused(one: Node) -> None:
    await network(one, subnets=("10.7.0.0/29",))
    for _ in range(5):
        await one.service.create_endpoint("n1", EndpointSpec())
    with pytest.raises(ExhaustedError, match=r"network n1 has no free address in 10\.7\.0\.0/29"):
        await one.service.create_endpoint("n1", EndpointSpec())


async def test_removed_endpoint_frees_its_address_and_name(cluster: Cluster, one: Node) -> None:
    await network(one)
    before = await keys(cluster)
    wish = EndpointSpec(name="b", ip="10.0.0.9", mac="02:00:00:00:00:01")
    for _ in range(2):
        made = await one.service.create_endpoint("n1", wish)
        assert len(await keys(cluster)) == len(before) + 5
        await one.service.delete_endpoint(made.id)
        assert await keys(cluster) == before


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            EndpointSpec(name="bbox1"),
            "name bbox1 is taken in network n1 by endpoint bbox1 on host host1",
        ),
        (EndpointSpec(name="BBOX1"), "name BBOX1 is taken"),
        (
            EndpointSpec(ip="10.0.0.9"),
            r"address 10\.0\.0\.9 is taken in network n1 by endpoint bbox1",
        ),
        (EndpointSpec(mac="02:00:00:00:00:01"), "MAC 02:00:00:00:00:01 is taken"),
    ],
)
async def test_taken_name_address_or_mac_is_refused_naming_the_holder(
    cluster: Cluster, one: Node, two: Node, wish: EndpointSpec, message: str
) -> None:
    await network(one)
    taken = EndpointSpec(name="bbox1", ip="10.0.0.9", mac="02:00:00:00:00:01")
    await one.service.create_endpoint("n1", taken)
    before = await keys(cluster)
    with pytest.raises(ConflictError, match=message):
        await two.service.create_endpoint("n1", wish)
    assert await keys(cluster) == before


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (EndpointSpec(name="a b"), "endpoint name 'a b' can't be looked up"),
        (EndpointSpec(name="a..b"), "can't be looked up"),
        (EndpointSpec(name="a."), "can't be looked up"),
        (EndpointSpec(name="10.0.0.5"), "reads as an address"),
        (EndpointSpec(aliases=("ok", "bäd")), "alias 'bäd'"),
        (EndpointSpec(hostname="x/y"), "hostname 'x/y'"),
        (EndpointSpec(container_id="../x"), "container id"),
        (EndpointSpec(ip="10.0.0.1"), "is the gateway"),
        (EndpointSpec(ip="10.0.0.0"), "network address"),
        (EndpointSpec(ip="10.0.0.255"), "broadcast address"),
        (EndpointSpec(ip="10.9.0.5"), "in none of the network's subnets"),
        (EndpointSpec(ip="nonsense"), "'nonsense' is not an IP address"),
        (EndpointSpec(ip6="fd00::5"), "no IPv6 subnet"),
        (EndpointSpec(mac="01:00:5e:00:00:01"), "multicast"),
        (EndpointSpec(mac="nonsense"), "six bytes"),
        (EndpointSpec(mac="02:42:0a:00:00:07"), "is that of address 10.0.0.7"),
        (EndpointSpec(mac="02:42:0a:00:00:01"), "is that of address 10.0.0.1"),
    ],
)
async def test_wish_for_an_endpoint_that_can_not_be_is_refused_without_a_trace(
    cluster: Cluster, one: Node, wish: EndpointSpec, message: str
) -> None:
    await network(one)
    one.net.add("c1")
    before = await keys(cluster)
    with pytest.raises(InvalidError, match=message):
        await one.service.attach(AttachSpec("n1", "c1", wish))
    assert await keys(cluster) == before
    assert not one.local.endpoints


async def test_mac_of_an_address_may_be_chosen_with_it(one: Node) -> None:
    await network(one)
    wish = EndpointSpec(ip="10.0.0.7", mac="02:42:0a:00:00:07")
    made = await one.service.create_endpoint("n1", wish)
    assert made.mac == bytes.fromhex("02420a000007")


async def test_endpoint_is_found_by_id_prefix_and_name(one: Node) -> None:
    await network(one)
    await network(one, "n2")
    first = await one.service.create_endpoint("n1", EndpointSpec(name="web"))
    assert await one.service.find_endpoint("web") == first
    second = await one.service.create_endpoint("n2", EndpointSpec(name="web"))
    assert await one.service.find_endpoint("web.n2") == second
    assert await one.service.find_endpoint(first.id) == first
    with pytest.raises(ConflictError, match=r"ambiguous: web\.n[12] "):
        await one.service.find_endpoint("web")
    for ref in ("nope", ""):
        with pytest.raises(NotFoundError):
            await one.service.find_endpoint(ref)
    assert await one.service.endpoints("n1") == [first]
    assert len(await one.service.endpoints()) == 2


async def test_endpoint_on_a_network_of_this_host_is_found_without_reading_all(
    cluster: Cluster, one: Node
) -> None:
    """Nobody lists the cluster for it; of those elsewhere with the same name, it comes first."""
    two = await cluster.start(2)
    await network(one)
    await network(one, "n2")
    for node, name in ((one, "n1"), (two, "n2")):
        node.net.add("c1")
        await node.service.attach(AttachSpec(name, "c1", EndpointSpec(name="web")))
    (mine,) = await one.service.attached()
    (other,) = await two.service.attached("n2")
    assert await one.service.attached("n2") == []
    listed = counted_lists(one)
    for ref in ("web", "web.n1", mine.id, mine.id[:12]):
        assert await one.service.find_endpoint(ref) == mine
    assert listed == []
    assert await one.service.find_endpoint("web.n2") == other
    assert await one.service.find_endpoint(other.id[:12]) == other
    await two.service.detach(other.id)
    with pytest.raises(NotFoundError):
        await one.service.find_endpoint("web.n2")


def counted_lists(node: Node) -> list[str]:
    """The prefixes that a host lists from now on."""
    listed: list[str] = []
    list_ = node.store.list

    async def counting(prefix: str) -> Mapping[str, Item]:
        listed.append(prefix)
        return await list_(prefix)

    node.store.list = counting  # type: ignore[method-assign]
    return listed


# Attaching


async def test_attached_sandbox_has_an_endpoint_and_a_way_out(one: Node) -> None:
    made = await network(one)
    sandbox = one.net.add("c1")
    endpoint = await one.service.attach(attach_spec("c1", name="bbox1", aliases=("web",)))
    local = one.local.endpoints[endpoint.id]
    assert (local.sandbox, local.ifname, local.gateway_ifname) == (sandbox, "eth0", "eth1")
    assert str(local.gateway_address) == "172.18.0.2/16"
    assert one.local.records[endpoint.id] == endpoint
    assert one.local.networks[made.id] == made
    assert one.reconciler.pokes == [made.id]
    assert one.state.endpoints[made.id] == {endpoint.id: endpoint}


async def test_interfaces_are_numbered_from_the_first_free_one(one: Node) -> None:
    for name in ("n1", "n2", "n3"):
        await network(one, name, internal=name == "n1")
    one.net.add("c1", "eth1")
    for name in ("n1", "n2", "n3"):
        await one.service.attach(attach_spec("c1", name))
    used = {
        entry.network_id: (entry.ifname, entry.gateway_ifname)
        for entry in one.local.endpoints.values()
    }
    names = {each.id: each.name for each in await one.service.networks()}
    assert {names[id_]: ifnames for id_, ifnames in used.items()} == {
        "n1": ("eth0", ""),
        "n2": ("eth2", "eth3"),
        "n3": ("eth4", ""),
    }


async def test_way_out_passes_to_the_endpoint_that_stays(one: Node) -> None:
    await network(one)
    await network(one, "n2")
    one.net.add("c1")
    first = await one.service.attach(attach_spec("c1"))
    second = await one.service.attach(attach_spec("c1", "n2"))
    held = one.local.endpoints[first.id].gateway_address
    await one.service.detach(first.id)
    left = one.local.endpoints[second.id]
    assert (left.gateway_ifname, left.gateway_address) == ("eth1", held)


async def test_chosen_interface_name_is_kept_or_refused(one: Node) -> None:
    await network(one)
    one.net.add("c1", "eth0")
    for ifname, error in (("eth0", ConflictError), ("a b", InvalidError), ("x" * 16, InvalidError)):
        with pytest.raises(error):
            await one.service.attach(attach_spec("c1", ifname=ifname))
    endpoint = await one.service.attach(attach_spec("c1", ifname="net0"))
    assert one.local.endpoints[endpoint.id].ifname == "net0"


async def test_sandbox_is_attached_to_a_network_once(cluster: Cluster, one: Node) -> None:
    await network(one)
    one.net.add("c1")
    results = await asyncio.gather(
        *(one.service.attach(attach_spec("c1", name=f"b{number}")) for number in range(3)),
        return_exceptions=True,
    )
    failures = [result for result in results if isinstance(result, ConflictError)]
    assert len(failures) == 2
    assert len(one.local.endpoints) == 1
    winner = next(iter(one.local.records.values()))
    with pytest.raises(ConflictError, match=f"in network n1 already, as endpoint {winner.name}"):
        await one.service.attach(attach_spec("c1"))
    assert len([key for key in await keys(cluster) if key.startswith("ep/")]) == 1


async def test_failed_attach_leaves_nothing(cluster: Cluster, one: Node) -> None:
    made = await network(one)
    one.net.add("c1")
    before = await keys(cluster)
    one.reconciler.fail = NetError("veth refused")
    with pytest.raises(NetError, match="veth refused"):
        await one.service.attach(attach_spec("c1", name="b"))
    assert await keys(cluster) == before
    assert not one.local.endpoints
    assert not one.state.joined(made.id)
    assert one.reconciler.pokes == [made.id, made.id]
    await one.service.attach(attach_spec("c1", name="b"))


async def test_cancelled_attach_leaves_nothing(cluster: Cluster, one: Node) -> None:
    await network(one)
    one.net.add("c1")
    before = await keys(cluster)
    one.reconciler.fail = asyncio.CancelledError()  # type: ignore[assignment]
    with pytest.raises(asyncio.CancelledError):
        await one.service.attach(attach_spec("c1"))
    assert await keys(cluster) == before
    assert not one.local.endpoints


async def test_sandbox_that_does_not_exist_leaves_nothing(cluster: Cluster, one: Node) -> None:
    await network(one)
    before = await keys(cluster)
    with pytest.raises(NotFoundError, match="'c9'"):
        await one.service.attach(attach_spec("c9"))
    assert await keys(cluster) == before


async def test_bridge_takes_1022_endpoints_beside_vxlan0(cluster: Cluster, one: Node) -> None:
    made = await network(one, subnets=("10.4.0.0/16",))
    for number in range(1022):
        id_ = f"{number:032x}"
        one.local._endpoints[id_] = LocalEndpoint(
            id_, made.id, Sandbox(f"/x/{number}", 10_000 + number)
        )
    one.net.add("c1")
    before = await keys(cluster)
    with pytest.raises(ExhaustedError, match=r"1022 endpoints on this host.*1023 ports"):
        await one.service.attach(attach_spec("c1"))
    assert await keys(cluster) == before
    one.local._endpoints.clear()


async def test_full_gateway_subnet_is_refused(cluster: Cluster, one: Node) -> None:
    small = ip_network("172.18.0.0/30")
    assert small.version == 4
    one.local.remember_gateway_subnet(small)
    await network(one)
    one.net.add("c1")
    one.net.add("c2")
    await one.service.attach(attach_spec("c1"))
    before = await keys(cluster)
    with pytest.raises(ExhaustedError, match=r"gateway subnet 172\.18\.0\.0/30"):
        await one.service.attach(attach_spec("c2"))
    assert await keys(cluster) == before


async def test_detached_endpoint_is_gone_everywhere(cluster: Cluster, one: Node) -> None:
    made = await network(one)
    before = await keys(cluster)
    one.net.add("c1")
    endpoint = await one.service.attach(attach_spec("c1", name="b"))
    assert await one.service.detach("b") == endpoint
    assert await keys(cluster) == before
    assert not one.local.endpoints
    assert not one.state.joined(made.id)
    with pytest.raises(NotFoundError):
        await one.service.detach("b")


async def test_endpoint_of_a_live_host_is_detached_there_only(
    cluster: Cluster, one: Node, two: Node
) -> None:
    await network(one)
    two.net.add("c1")
    await two.service.attach(attach_spec("c1", name="b"))
    with pytest.raises(ConflictError, match="runs on host host2: detach it there, or with --force"):
        await one.service.detach("b")
    with pytest.raises(ConflictError, match="host2, which is alive"):
        await one.service.detach("b", force=True)
    await cluster.expire(two)
    await one.service.detach("b", force=True)
    await one.service.remove_network("n1")
    assert await keys(cluster) == set()


async def test_detach_works_while_the_store_is_away(cluster: Cluster, one: Node) -> None:
    await network(one)
    before = await keys(cluster)
    one.net.add("c1")
    await one.service.attach(attach_spec("c1", name="b"))
    keeper = asyncio.create_task(one.service.keep())
    one.store.lose("cable cut")
    await one.service.detach("b")
    assert not one.local.endpoints
    assert await one.service.endpoints() == []
    one.store.recover()
    async with asyncio.timeout(5):
        while await keys(cluster) != before:
            await asyncio.sleep(0.01)
    keeper.cancel()


# Hosts and repair


async def test_hosts_are_listed_with_who_is_alive(cluster: Cluster, one: Node, two: Node) -> None:
    await one.until(lambda: len(one.state.alive) == 2)
    listed = [(s.host.name, s.alive, s.is_self) for s in await one.service.hosts()]
    assert listed == [("host1", True, True), ("host2", True, False)]
    await cluster.stop(two)
    await one.until(lambda: len(one.state.alive) == 1)
    assert [status.alive for status in await one.service.hosts()] == [True, False]


async def test_second_live_host_with_one_vtep_is_refused(cluster: Cluster, one: Node) -> None:
    with pytest.raises(
        ConflictError, match=r"VTEP address 198\.18\.0\.1 belongs to host host1, which is"
    ):
        await cluster.start(1, fresh="again")
    assert one.host.id in one.state.alive


async def test_reinstalled_host_takes_its_vtep_back(cluster: Cluster, one: Node) -> None:
    await cluster.expire(one)
    again = await cluster.start(1, fresh="again")
    claim = await cluster.store.get(records.vtep_key(again.host.vtep))
    assert claim is not None
    assert records.parse_claim(claim.value) == again.host.id


async def test_host_that_crashed_registers_again_at_once(cluster: Cluster, one: Node) -> None:
    await cluster.stop(one, crash=True)
    again = await cluster.start(1)
    assert again.membership.token()


async def test_host_that_starts_again_writes_its_session_alone(cluster: Cluster, one: Node) -> None:
    kept = [records.host_key(one.host.id), records.vtep_key(one.host.vtep)]
    before = [await cluster.store.get(key) for key in kept]
    await cluster.stop(one)
    await cluster.start(1)
    assert [await cluster.store.get(key) for key in kept] == before


async def test_lost_session_is_opened_anew(cluster: Cluster, one: Node) -> None:
    token = one.membership.token()
    cluster.time_s += 60

    def anew() -> bool:
        with contextlib.suppress(StoreUnavailableError):
            return one.membership.token() != token
        return False

    await one.until(anew)
    assert one.membership.session_valid_s > 0
    assert await cluster.store.get(records.alive_key(one.host.id)) is not None


async def test_host_without_a_session_creates_no_endpoint(cluster: Cluster, one: Node) -> None:
    await network(one)
    await one.membership.close()
    with pytest.raises(StoreUnavailableError, match="host1 has no session"):
        await one.service.create_endpoint("n1", EndpointSpec())


async def test_own_records_that_vanish_are_published_again(cluster: Cluster, one: Node) -> None:
    await network(one)
    one.net.add("c1")
    endpoint = await one.service.attach(attach_spec("c1", name="b"))
    keeper = asyncio.create_task(one.service.keep())
    everything = await keys(cluster)
    await cluster.store.txn(
        [],
        [
            Delete(records.host_key(one.host.id)),
            Delete(records.endpoint_key(endpoint.network_id, endpoint.id)),
            *(Delete(claim) for claim in records.endpoint_claims(endpoint)),
        ],
    )
    async with asyncio.timeout(5):
        while await keys(cluster) != everything or one.host.id not in one.state.hosts:
            await asyncio.sleep(0.01)
    keeper.cancel()


async def test_lost_store_is_filled_again_by_its_hosts(
    cluster: Cluster, one: Node, two: Node
) -> None:
    made = await network(one)
    for node in (one, two):
        node.net.add("c1")
        await node.service.attach(attach_spec("c1", name=f"on-{node.host.name}"))
    await one.until(lambda: len(one.state.endpoints[made.id]) == 2)
    keepers = [asyncio.create_task(node.service.keep()) for node in (one, two)]
    everything = await keys(cluster)
    cluster.store.wipe()
    async with asyncio.timeout(10):
        while await keys(cluster) != everything:
            assert one.state.networks[made.id] == made
            await asyncio.sleep(0.01)
        assert len(one.state.endpoints[made.id]) == 2
    for keeper in keepers:
        keeper.cancel()


async def test_endpoint_whose_name_was_taken_meanwhile_is_fenced(
    cluster: Cluster, one: Node, two: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await network(one)
    one.net.add("c1")
    mine = await one.service.attach(attach_spec("c1", name="b"))
    await cluster.expire(one)
    await two.service.detach("b", force=True)
    await two.service.create_endpoint("n1", EndpointSpec(name="b"))
    again = await cluster.start(1)
    with caplog.at_level(logging.ERROR):
        await again.service.repair()
    assert mine.id not in again.local.endpoints
    assert f"endpoint fenced endpoint={mine.id} name=b" in caplog.text
    assert len(await two.service.endpoints()) == 1


async def test_returning_host_keeps_its_endpoints(cluster: Cluster, one: Node, two: Node) -> None:
    await network(one)
    one.net.add("c1")
    mine = await one.service.attach(attach_spec("c1", name="b"))
    await cluster.expire(one)
    await two.service.detach("b", force=True)
    again = await cluster.start(1)
    await again.service.repair()
    assert await two.service.endpoints() == [mine]
    assert mine.id in again.local.endpoints


async def test_network_that_was_removed_meanwhile_stays_removed(
    cluster: Cluster, one: Node, two: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await network(one)
    one.net.add("c1")
    await one.service.attach(attach_spec("c1", name="b"))
    await one.service.repair()
    await cluster.expire(one)
    await two.service.detach("b", force=True)
    await two.service.remove_network("n1")
    again = await cluster.start(1)
    with caplog.at_level(logging.ERROR):
        await again.service.repair()
    assert not again.local.endpoints
    assert "endpoint fenced" in caplog.text
    assert await keys(cluster) == set()


async def test_nothing_is_fenced_while_this_host_has_no_session(
    cluster: Cluster, one: Node
) -> None:
    await network(one)
    one.net.add("c1")
    mine = await one.service.attach(attach_spec("c1", name="b"))
    await one.membership.close()
    cluster.store.wipe()
    with pytest.raises(StoreUnavailableError):
        await one.service.repair()
    assert mine.id in one.local.endpoints


async def test_endpoint_that_a_crash_left_without_a_sandbox_is_removed(
    cluster: Cluster, one: Node
) -> None:
    await network(one)
    before = await keys(cluster)
    await one.service.create_endpoint("n1", EndpointSpec(name="half"))
    await one.service.repair()
    assert len(await one.service.endpoints()) == 1
    await cluster.stop(one, crash=True)
    again = await cluster.start(1)
    await again.service.repair()
    assert await keys(cluster) == before


async def test_conflict_without_a_reason_is_tried_again(cluster: Cluster, one: Node) -> None:
    await network(one)
    attempts = 0
    txn = one.store.txn

    async def flaky(*args: object, **kwargs: object) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise StoreConflictError("somebody was faster")
        await txn(*args, **kwargs)  # type: ignore[arg-type]

    one.store.txn = flaky  # type: ignore[method-assign,assignment]
    await one.service.create_endpoint("n1", EndpointSpec())
    assert attempts == 4
