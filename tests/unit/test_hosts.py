"""Hosts: who is up, and what a host puts right of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import (
    ConflictError,
    StoreConflictError,
    StoreUnavailableError,
)
from pyvxlan.daemon.kv import Delete
from pyvxlan.daemon.requests import EndpointSpec
from tests.unit.cluster import Cluster, Node, attach_spec, keys, network


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
