"""Sandboxes: attached and detached."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

import pytest

from pyvxlan.daemon.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    NetError,
    NotFoundError,
)
from pyvxlan.daemon.model import LocalEndpoint, Sandbox
from tests.unit.cluster import Cluster, Node, attach_spec, keys, network


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
