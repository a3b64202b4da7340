"""Networks: made, found, removed, on hosts that share a store."""

from __future__ import annotations

import asyncio
import json
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
    NotFoundError,
    StoreUnavailableError,
)
from pyvxlan.daemon.kv import Write
from pyvxlan.daemon.model import Network
from pyvxlan.daemon.requests import UNDERLAY_MTU, EndpointSpec
from tests.unit.cluster import Cluster, Node, attach_spec, keys, network


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


@pytest.mark.parametrize(
    "name", ["a b", "-x", "_x", "..", ".", "x" * 255, "Ünï☃", "a%2Fb", "q\"'="]
)
async def test_network_has_any_name_that_docker_finds(one: Node, name: str) -> None:
    made = await network(one, name=name)
    await one.until(lambda: made.id in one.state.networks)
    assert one.state.networks[made.id].name == name
    assert (await one.service.find_network(name)).id == made.id
    with pytest.raises(ConflictError, match="is taken by network"):
        await network(one, name=name)
    await one.service.remove_network(name)
    assert await network(one, name=name)


async def test_options_change_the_network(one: Node) -> None:
    made = await network(
        one, options={"multicast": "off", "flood-rate": "5", "vni": "42", "mtu": "1400"}
    )
    assert (made.multicast, made.vni, made.mtu_bytes) == (False, 42, 1400)
    for name, around, inside in (("n2", "1400", 1350), ("n3", "0", 1450)):
        docker = await network(one, name, options={UNDERLAY_MTU: around})
        assert docker.mtu_bytes == inside


@pytest.mark.parametrize("vni", [1, 2**24 - 2])
async def test_every_vni_but_0_and_that_of_probes_may_be_chosen(one: Node, vni: int) -> None:
    assert (await network(one, name="edge", vni=vni)).vni == vni


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"name": ""}, "network name '' is not usable"),
        ({"name": "x" * 256}, "network name"),
        ({"name": "ü" * 50}, "up to 255 characters, of which"),
        ({"name": "n\n"}, "network name"),
        ({"name": "a/b"}, "network name"),
        ({"name": "  "}, "network name"),
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
        ({"options": {f"{UNDERLAY_MTU}s": "1"}}, r"mean com\.docker\.network\.driver\.mtu\?"),
        ({"options": {"com.docker.network.bridge.name": "x"}}, "known are"),
        ({"options": {"encrypted": ""}}, "'encrypted' is unknown: pyvxlan does not encrypt"),
        ({"options": {"com.docker.network.driver.overlay.vxlanid_list": "7"}}, "give vni=N"),
        ({"options": {UNDERLAY_MTU: "60"}}, "mtu=60 is the underlay's MTU: choose at least 626"),
        ({"options": {"multicast": "maybe"}}, "must be on or off"),
        ({"options": {"flood-rate": "0"}}, "flood-rate=0 must be"),
        ({"gateways": ("10.0.0.1",)}, "10.0.0.1 needs a --subnet"),
        ({"ip_ranges": ("10.0.0.0/25",)}, "needs a --subnet"),
        ({"subnets": ("10.1.0.0/24",), "gateways": ("10.2.0.1",)}, "in none"),
        ({"subnets": ("10.1.0.1/24",)}, "did you mean"),
        ({"labels": {"a": "\ud800"}}, "half a character"),
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
