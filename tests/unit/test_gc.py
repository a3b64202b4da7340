"""What a host that is gone for good left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest

from pyvxlan.daemon import records
from pyvxlan.daemon.endpoints import Endpoints
from pyvxlan.daemon.gc import MOST_GRACE_S, Collector
from pyvxlan.daemon.kv import Delete, Live, Stale, Write
from pyvxlan.daemon.networks import Networks
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec
from pyvxlan.daemon.witness import Witness
from tests.unit.cluster import Cluster, Node

GRACE_S = 600.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    await made.close()


class Ears:
    """A data plane that gets datagrams from hosts, as a test says."""

    def __init__(self) -> None:
        self.received: dict[str, int] = {}

    async def stats(self) -> Mapping[str, object]:
        return {"vteps": {vtep: {"received_datagrams": n} for vtep, n in self.received.items()}}


def collector(node: Node, ears: Ears | None = None) -> Collector:
    rng = Random(1)
    networks = Networks(node.store, node.state, node.host, cluster=lambda: "", rng=rng)
    endpoints = Endpoints(
        node.store, node.state, node.host, networks, token=node.membership.token, rng=rng
    )
    return Collector(
        node.store,
        node.state,
        node.membership,
        endpoints,
        node.host,
        reservations=node.service.reservations,
        witness=Witness(node.store, node.state, node.membership, (ears or Ears()).stats),
    )


async def dead_host(cluster: Cluster, survivor: Node) -> Node:
    """A host that had one endpoint, and crashed."""
    dead = await cluster.start(2)
    dead.net.add("c1")
    await survivor.service.create_network(NetworkSpec("n1"))
    await dead.service.attach(AttachSpec("n1", "c1", EndpointSpec(name="b")))
    await cluster.expire(dead)
    await survivor.until(lambda: dead.host.id not in survivor.state.alive)
    return dead


async def test_dead_host_is_collected_after_the_grace_time(cluster: Cluster) -> None:
    one = await cluster.start(1)
    dead = await dead_host(cluster, one)
    collecting = collector(one)
    await collecting.observe(0)
    await collecting.observe(GRACE_S - 1)
    assert len(await one.service.endpoints()) == 1
    await collecting.observe(GRACE_S)
    assert await one.service.endpoints() == []
    left = await cluster.store.list("")
    assert not any(dead.host.id in key for key in left)
    assert records.vtep_key(dead.host.vtep) not in left
    await one.service.remove_network("n1")


async def test_first_observation_never_collects(cluster: Cluster) -> None:
    one = await cluster.start(1)
    await dead_host(cluster, one)
    await collector(one).observe(1e9)
    assert len(await one.service.endpoints()) == 1


async def test_outage_of_the_observer_starts_the_grace_time_anew(cluster: Cluster) -> None:
    one = await cluster.start(1)
    await dead_host(cluster, one)
    collecting = collector(one)
    await collecting.observe(0)
    follower = one.state._follower
    hosts = follower._watches[records.HOSTS]
    await follower._take(hosts, Stale("away"))
    await collecting.observe(GRACE_S / 2)
    await follower._take(hosts, Live())
    await collecting.observe(GRACE_S)
    assert len(await one.service.endpoints()) == 1
    await collecting.observe(2 * GRACE_S)
    assert await one.service.endpoints() == []


async def test_host_that_returned_is_not_collected(cluster: Cluster) -> None:
    one = await cluster.start(1)
    await dead_host(cluster, one)
    collecting = collector(one)
    await collecting.observe(0)
    again = await cluster.start(2)
    await collecting.observe(GRACE_S)
    assert len(await one.service.endpoints()) == 1
    assert again.host.id in (await cluster.store.get(records.alive_key(again.host.id))).key  # type: ignore[union-attr]


async def test_host_that_the_leader_does_not_see_alive_yet_is_not_collected(
    cluster: Cluster,
) -> None:
    one = await cluster.start(1)
    dead = await dead_host(cluster, one)
    collecting = collector(one)
    await collecting.observe(0)
    await cluster.start(2)
    await one.until(lambda: dead.host.id in one.state.alive)
    one.state._alive.values.pop(dead.host.id)
    collecting._absent_since = {dead.host.id: 0}
    await collecting.observe(GRACE_S)
    assert len(await one.service.endpoints()) == 1


async def test_hosts_are_given_a_day_if_most_are_absent(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """All but two were cut off from the store at once; then one more comes back."""
    one, _two = await cluster.start(1), await cluster.start(2)
    for number in (3, 4, 5):
        crashed = await cluster.start(number)
        await cluster.stop(crashed, crash=True)
        await cluster.store.txn([], [Delete(records.alive_key(crashed.host.id))])
    await one.until(lambda: len(one.state.hosts) == 5 and len(one.state.alive) == 2)
    collecting = collector(one)
    for at_s in (0, GRACE_S, 2 * GRACE_S):
        await collecting.observe(at_s)
    assert len(await cluster.store.list(records.HOSTS)) == 5
    assert caplog.text.count("collection held back hosts_absent=3 of=5") == 1
    await cluster.start(3)
    await one.until(lambda: len(one.state.alive) == 3)
    await collecting.observe(3 * GRACE_S)
    assert len(await cluster.store.list(records.HOSTS)) == 3


async def test_what_is_absent_for_a_day_is_collected_all_the_same(cluster: Cluster) -> None:
    one = await cluster.start(1)
    for number in range(5):
        absent = replace(one.host, id=f"{number:032x}", vtep=ip_address(f"198.18.1.{number}"))
        write = Write(records.host_key(absent.id), records.emit_host(absent))
        await cluster.store.txn([], [write])
    await one.until(lambda: len(one.state.hosts) == 6)
    collecting = collector(one)
    await collecting.observe(0)
    await collecting.observe(MOST_GRACE_S - 1)
    assert len(await cluster.store.list(records.HOSTS)) == 6
    await collecting.observe(MOST_GRACE_S)
    assert len(await cluster.store.list(records.HOSTS)) == 1


async def test_short_grace_time_counts_down_to_that_of_a_session(cluster: Cluster) -> None:
    one = await cluster.start(1)
    await dead_host(cluster, one)
    await cluster.store.txn([], [Write(records.CFG, b'{"v":1,"gc_grace_s":1,"session_ttl_s":20}')])
    await one.until(lambda: one.state.config.gc_grace_s == 1)
    collecting = collector(one)
    await collecting.observe(0)
    await collecting.observe(19)
    assert len(await one.service.endpoints()) == 1
    await collecting.observe(20)
    assert await one.service.endpoints() == []


async def test_only_one_host_leads(cluster: Cluster) -> None:
    one, three = await cluster.start(1), await cluster.start(3)
    await dead_host(cluster, one)
    first, second = collector(one), collector(three)
    await first.observe(0)
    await second.observe(0)
    await second.observe(GRACE_S)
    assert len(await one.service.endpoints()) == 1
    await cluster.stop(one)
    await second.observe(GRACE_S)
    await three.until(lambda: one.host.id not in three.state.alive)
    await second.observe(2 * GRACE_S)
    assert await three.service.endpoints() == []


async def test_endpoints_of_a_host_without_a_record_are_collected(cluster: Cluster) -> None:
    one = await cluster.start(1)
    dead = await dead_host(cluster, one)
    again = await cluster.start(2, fresh="again")
    assert again.host.id != dead.host.id
    collecting = collector(one)
    await asyncio.sleep(0)
    await collecting.observe(0)
    await collecting.observe(GRACE_S)
    assert await one.service.endpoints() == []
    claim = await cluster.store.get(records.vtep_key(again.host.vtep))
    assert claim is not None
    assert records.parse_claim(claim.value) == again.host.id


async def test_host_that_somebody_hears_is_not_collected(cluster: Cluster) -> None:
    """Not the leader hears it, but another host does; when it is silent, its time begins."""
    leader, other = await cluster.start(1), await cluster.start(3)
    cut_off = await dead_host(cluster, leader)
    ears, vtep = Ears(), str(cut_off.host.vtep)
    leading, hearing = collector(leader), collector(other, ears)
    ears.received[vtep] = 7
    await leading.observe(0)
    await hearing.observe(0)
    for turn in range(1, 4):
        ears.received[vtep] += 1
        await hearing.observe(turn * GRACE_S)
        await leading.observe(turn * GRACE_S)
    assert len(await leader.service.endpoints()) == 1
    said = await cluster.store.get(records.heard_key(cut_off.host.id))
    assert said is not None
    assert records.parse_claim(said.value) == other.host.id
    await hearing.observe(4 * GRACE_S - 1)
    assert await cluster.store.get(said.key) is None
    await leading.observe(4 * GRACE_S - 1)
    assert len(await leader.service.endpoints()) == 1
    await leading.observe(4 * GRACE_S)
    assert await leader.service.endpoints() == []


async def test_what_a_witness_said_ends_with_it(cluster: Cluster) -> None:
    leader, other = await cluster.start(1), await cluster.start(3)
    cut_off = await dead_host(cluster, leader)
    ears = Ears()
    hearing = collector(other, ears)
    await hearing.observe(0)
    ears.received[str(cut_off.host.vtep)] = 1
    await hearing.observe(1)
    key = records.heard_key(cut_off.host.id)
    assert await cluster.store.get(key)
    await cluster.stop(other)
    assert await cluster.store.get(key) is None


async def test_host_that_returned_is_heard_no_more(cluster: Cluster) -> None:
    one = await cluster.start(1)
    cut_off = await dead_host(cluster, one)
    ears = Ears()
    collecting = collector(one, ears)
    await collecting.observe(0)
    ears.received[str(cut_off.host.vtep)] = 1
    await collecting.observe(1)
    assert await cluster.store.get(records.heard_key(cut_off.host.id))
    await cluster.start(2)
    await one.until(lambda: cut_off.host.id in one.state.alive)
    await collecting.observe(2)
    assert await cluster.store.get(records.heard_key(cut_off.host.id)) is None
