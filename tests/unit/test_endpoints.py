"""Endpoints: their addresses and names, on hosts that share a store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from pyvxlan.daemon.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
)
from pyvxlan.daemon.kv import Item
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec
from tests.unit.cluster import Cluster, Node, keys, network


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


async def test_two_who_give_an_endpoint_its_name_at_once_agree(
    one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await network(one)
    made = await one.service.create_endpoint("n1", EndpointSpec())
    get = one.store.get

    async def slow(key: str) -> Item | None:
        item = await get(key)
        await asyncio.sleep(0)
        return item

    monkeypatch.setattr(one.store, "get", slow)
    named = replace(made, name="web")
    describe = one.service.registry.describe_anew
    assert await asyncio.gather(describe(named), describe(named)) == [named, named]
