"""Subnets and addresses that a host holds until their owner is known."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network

import pytest

from pyvxlan.daemon.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    StoreConflictError,
    StoreError,
)
from pyvxlan.daemon.kv import Check
from pyvxlan.daemon.model import Network
from pyvxlan.daemon.networks import parsed_pools
from pyvxlan.daemon.requests import NetworkSpec
from tests.unit.cluster import Cluster, Node

TEN = ip_network("10.7.0.0/24")


async def network(node: Node, subnet: str = "10.7.0.0/24", **wishes: object) -> Network:
    spec = NetworkSpec("n1", subnets=(subnet,), **wishes)  # type: ignore[arg-type]
    made = await node.service.create_network(spec)
    await node.until(lambda: made.id in node.state.networks)
    return made


async def reserve(node: Node, made: Network, address: str = "") -> str:
    wanted = ip_address(address) if address else None
    cidr = made.subnets[0].cidr
    return str((await node.service.reservations.reserve_address(made.id, cidr, wanted)).ip)


async def claims(node: Node) -> set[str]:
    return {key.rpartition("/")[2] for key in await node.store.list("ip/")}


async def test_reserved_subnet_is_nobody_elses_until_it_is_given_back(one: Node, two: Node) -> None:
    assert (await one.service.reserve_subnet(TEN, version=4)).cidr == TEN
    with pytest.raises(ConflictError, match=str(TEN)):
        await two.service.reserve_subnet(TEN, version=4)
    with pytest.raises(ConflictError):
        await network(two)
    assert await one.service.reservations.subnets() == {TEN}
    await two.service.reservations.release_subnet(TEN)
    assert await one.service.reservations.subnets() == {TEN}, "it is not the other's to give"
    await one.service.reservations.release_subnet(TEN)
    await network(two)


async def test_network_takes_its_reserved_subnet_over(one: Node) -> None:
    await one.service.reserve_subnet(TEN, version=4)
    spec = NetworkSpec("n1", subnets=(str(TEN),))
    await one.service.create_network(spec, held={TEN})
    assert await one.service.reservations.subnets() == set()
    await one.service.reservations.release_subnet(TEN)
    with pytest.raises(ConflictError):
        await one.service.reserve_subnet(TEN, version=4)


async def test_what_was_read_ahead_of_a_network_may_have_changed(one: Node, two: Node) -> None:
    reserved = await one.service.reserve_subnet(TEN, version=4)
    ahead = await one.service.groundwork(reserved.mtu)
    other = await network(two, "10.8.0.0/24")
    spec = NetworkSpec("n2", subnets=(str(TEN),))
    made = await one.service.create_network(spec, held={TEN}, groundwork=ahead)
    used = (await one.service.groundwork(reserved.mtu)).pools
    assert parsed_pools(used.item) == {TEN: made.id, ip_network("10.8.0.0/24"): other.id}


async def test_subnets_reserved_by_two_hosts_at_once_differ(one: Node, two: Node) -> None:
    given = await asyncio.gather(
        *(node.service.reserve_subnet(None, version=4) for node in (one, two) * 5)
    )
    assert len({one.cidr for one in given}) == 10


async def test_addresses_reserved_by_two_hosts_at_once_differ(one: Node, two: Node) -> None:
    made = await network(one)
    await two.until(lambda: made.id in two.state.networks)
    given = await asyncio.gather(*(reserve(node, made) for node in (one, two) * 10))
    assert len(set(given)) == 20
    assert await claims(one) == {*given, "10.7.0.1"}


async def test_address_that_is_given_back_twice_harms_nobody(one: Node, two: Node) -> None:
    made = await network(one)
    await two.until(lambda: made.id in two.state.networks)
    address = await reserve(one, made, "10.7.0.9")
    await one.service.reservations.release_address(made.id, ip_address(address))
    assert await reserve(two, made, "10.7.0.9") == address
    await one.service.reservations.release_address(made.id, ip_address(address))
    assert address in await claims(one)


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        ("10.7.0.1", InvalidError, "10.7.0.1"),
        ("10.7.0.9", ConflictError, "a container that is starting on host host2"),
        ("10.7.0.5", InvalidError, "aux address"),
        ("10.9.0.1", InvalidError, "10.9.0.1"),
    ],
)
async def test_address_that_can_not_be_is_refused_with_the_reason(
    one: Node, two: Node, address: str, error: type[Exception], said: str
) -> None:
    made = await network(one, aux_addresses={"router": "10.7.0.5"})
    await two.until(lambda: made.id in two.state.networks)
    await reserve(two, made, "10.7.0.9")
    with pytest.raises(error, match=said):
        await reserve(one, made, address)


async def test_full_subnet_says_so(one: Node) -> None:
    made = await network(one, "10.7.0.0/30")
    assert await reserve(one, made) == "10.7.0.2"
    with pytest.raises(ExhaustedError, match="no free address"):
        await reserve(one, made)


async def test_sweep_gives_back_what_an_earlier_process_held_and_nothing_else(
    cluster: Cluster, one: Node, two: Node
) -> None:
    made = await network(one)
    await two.until(lambda: made.id in two.state.networks)
    old, others = await reserve(one, made), await reserve(two, made)
    await cluster.stop(one)
    again = await cluster.start(1)
    held = await reserve(again, made)
    await again.service.reservations.sweep()
    assert await claims(again) == {"10.7.0.1", others, held}
    assert old not in {others, held}


async def test_reservations_of_a_dead_host_are_collected_while_the_guard_holds(
    one: Node, two: Node
) -> None:
    made = await network(one)
    await reserve(one, made)
    await one.service.reserve_subnet(ip_network("10.8.0.0/24"), version=4)
    collect = two.service.reservations.collect
    meta = await two.store.get("meta")
    assert meta
    with pytest.raises(StoreConflictError):
        await collect(one.host.id, [Check("meta", meta.revision - 1)])
    await collect(one.host.id, [Check("meta", meta.revision)])
    assert await claims(two) == {"10.7.0.1"}
    assert await one.service.reservations.subnets() == set()


async def test_nothing_is_reserved_without_a_store(one: Node) -> None:
    made = await network(one)
    one.store.lose()
    with pytest.raises(StoreError):
        await reserve(one, made)
    with pytest.raises(StoreError):
        await one.service.reserve_subnet(TEN, version=4)
    one.store.recover()
    assert await claims(one) == {"10.7.0.1"}
