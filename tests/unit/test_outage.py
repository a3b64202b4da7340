"""What a host does while its store is away, and when it comes back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import (
    ConflictError,
    NotFoundError,
    StoreUnavailableError,
)
from pyvxlan.daemon.kv import Delete, Item, Write
from pyvxlan.daemon.model import Cidr, Endpoint, Network
from pyvxlan.daemon.networks import Networks
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec
from pyvxlan.daemon.state import ANSWER_S, SILENT_S
from pyvxlan.daemon.upkeep.integrity import errors
from tests.unit.cluster import Cluster, Node


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    made.fence_s = 4.0
    yield made
    await made.close()


@pytest.fixture
async def one(cluster: Cluster) -> Node:
    return await cluster.start(1)


@pytest.fixture
async def two(cluster: Cluster, one: Node) -> Node:
    return await cluster.start(2)


async def attached(node: Node, sandbox: str, **wishes: object) -> Endpoint:
    """An endpoint of a new sandbox on n1."""
    if sandbox not in node.net.sandboxes:
        node.net.add(sandbox)
    wish = replace(EndpointSpec(), **wishes)  # type: ignore[arg-type]
    return await node.service.attach(AttachSpec("n1", sandbox, wish))


async def overlay(one: Node, two: Node) -> tuple[Endpoint, Endpoint]:
    """n1 with an endpoint on each host, seen by both."""
    network = await one.service.create_network(NetworkSpec("n1"))
    made = await attached(one, "c1", name="on-one"), await attached(two, "c1", name="on-two")
    for node in (one, two):
        await node.until(lambda node=node: len(node.state.endpoints[network.id]) == 2)  # type: ignore[misc]
    return made


# A store that is silent, and not yet found to be away


async def test_readers_do_not_wait_until_a_silent_store_is_found_away(
    one: Node, two: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = await overlay(one, two)
    silence = asyncio.Event()

    async def silent(*_: object) -> NoReturn:
        await silence.wait()
        raise AssertionError("nobody waits for it")

    for call in ("get", "list"):
        monkeypatch.setattr(one.store, call, silent)
    asked_at = time.monotonic()
    assert [network.name for network in await one.service.networks()] == ["n1"]
    assert (await one.service.find_network("n1")).id == mine.network_id
    assert {e.id for e in await one.service.endpoints("n1")} == {mine.id, theirs.id}
    assert {e.id for e in await one.service.endpoints()} == {mine.id, theirs.id}
    assert await one.service.find_endpoint("on-two") == theirs
    assert time.monotonic() - asked_at < 1, "it took the time of one question"
    assert one.state.stale_since is None
    assert one.service.stale_s, "the answer says what it is"
    monkeypatch.undo()
    await asyncio.sleep(SILENT_S)
    assert [network.name for network in await one.service.networks()] == ["n1"]
    assert one.service.stale_s is None


async def test_long_list_is_waited_for(
    one: Node, two: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.service.create_network(NetworkSpec("n1"))
    theirs = await attached(two, "c1", name="on-two")
    listed = one.store.list

    async def slow(prefix: str) -> Mapping[str, Item]:
        await asyncio.sleep(3 * ANSWER_S)
        return await listed(prefix)

    monkeypatch.setattr(one.store, "list", slow)
    assert one.state.endpoints == {}
    assert await one.service.endpoints() == [theirs]
    assert one.service.stale_s is None


# A start without the store


async def test_daemon_starts_without_its_store_from_what_it_knew(
    cluster: Cluster, one: Node, two: Node, caplog: pytest.LogCaptureFixture
) -> None:
    mine, theirs = await overlay(one, two)
    await one.service.create_network(NetworkSpec("n2"))
    await one.until(lambda: len(one.state.networks) == 2 and len(one.state.alive) == 2)
    await cluster.stop(one, crash=True)
    again = await cluster.start(1, away="cable cut")
    assert again.state.known
    assert not again.state.synced
    assert again.state.stale_since is not None
    assert again.state.stale_reason == "cable cut"
    assert [network.name for network in await again.service.networks()] == ["n1", "n2"]
    assert {e.id for e in await again.service.endpoints()} == {mine.id, theirs.id}
    assert {e.id for e in await again.service.endpoints("n1")} == {mine.id, theirs.id}
    assert await again.service.find_endpoint("on-two") == theirs
    assert [status.host.name for status in await again.service.hosts()] == ["host1", "host2"]
    assert "*" in again.state.take_dirty()
    assert again.state.joined(mine.network_id)
    assert "store stale" not in caplog.text, "the daemon says so itself"


async def test_daemon_that_started_without_its_store_catches_up(
    cluster: Cluster, one: Node, two: Node
) -> None:
    mine, theirs = await overlay(one, two)
    await cluster.stop(one, crash=True)
    again = await cluster.start(1, away="cable cut")
    late = await attached(two, "c2", name="late")
    await two.service.detach("on-two")
    assert again.membership.problem == "cable cut"
    again.store.recover()
    await again.until(lambda: set(again.state.endpoints[mine.network_id]) == {mine.id, late.id})
    await again.until(lambda: again.state.synced)
    assert again.state.resyncs["resume"], "went on where it was left"
    await again.until(lambda: again.membership.problem == "")
    assert await attached(again, "c9")
    assert theirs.id not in again.state.endpoints[mine.network_id]


async def test_resumed_watch_is_checked_by_a_new_list(cluster: Cluster, one: Node) -> None:
    await one.service.create_network(NetworkSpec("n1"))
    one.store.lose("cable cut")
    await one.until(lambda: not one.state.synced)
    one.store.recover()
    await one.until(lambda: one.state.synced and one.state.resyncs["check"] >= 4)
    assert [network.name for network in one.state.networks.values()] == ["n1"]


async def test_watch_goes_on_where_it_was_if_the_store_goes_away_during_a_check(
    one: Node, two: Node
) -> None:
    """A list would lack what was removed meanwhile, and hold it; the watch tells of the removal."""
    mine, _ = await overlay(one, two)
    one.store.lose("cable cut")
    one.state._follower.check()
    await one.until(lambda: not one.state.synced)
    await two.service.detach("on-two")
    resumed = one.state.resyncs["resume"]
    one.store.recover()
    await one.until(lambda: one.state.resyncs["resume"] > resumed)
    await one.until(lambda: one.state.synced)
    assert one.state.held == 0
    assert set(one.state.endpoints[mine.network_id]) == {mine.id}


async def test_daemon_that_never_saw_its_store_says_so(cluster: Cluster) -> None:
    node = await cluster.start(1, away="cable cut")
    assert not node.state.known
    for verb in (
        node.service.networks(),
        node.service.endpoints(),
        node.service.hosts(),
        node.service.find_network("n1"),
        node.service.create_network(NetworkSpec("n1")),
    ):
        with pytest.raises(StoreUnavailableError, match="cable cut"):
            await verb
    node.store.recover()
    await node.until(lambda: node.state.synced and node.host.id in node.state.alive)
    await node.service.create_network(NetworkSpec("n1"))


async def test_vtep_of_another_is_noticed_late_and_said(cluster: Cluster, one: Node) -> None:
    again = await cluster.start(1, fresh="again", away="cable cut")
    again.store.recover()
    await again.until(lambda: "198.18.0.1 belongs to host host1" in again.membership.problem)
    assert one.host.id in one.state.alive


# Verbs without the store


async def test_new_endpoint_and_network_are_refused(one: Node, two: Node) -> None:
    await overlay(one, two)
    one.net.add("new")
    one.store.lose("cable cut")
    for wait in (False, True):
        if wait:
            await one.until(lambda: one.state.stale_since is not None)
        with pytest.raises(StoreUnavailableError, match="cable cut"):
            await one.service.attach(AttachSpec("n1", "new", EndpointSpec(name="new")))
        with pytest.raises(StoreUnavailableError, match="cable cut"):
            await one.service.create_network(NetworkSpec("n2"))
        with pytest.raises(StoreUnavailableError, match="cable cut"):
            await one.service.remove_network("n1")
    with pytest.raises(NotFoundError, match="no network 'n7' was known when the store went away"):
        await one.service.find_network("n7")
    assert len(one.local.endpoints) == 1


@pytest.mark.parametrize("name", ["on-one", ""])
@pytest.mark.parametrize("restart", [False, True])
async def test_container_restarts_with_its_address(
    cluster: Cluster, one: Node, two: Node, name: str, restart: bool
) -> None:
    await one.service.create_network(NetworkSpec("n1"))
    await attached(two, "c1", name="on-two")
    before = await attached(one, "c1", name=name, hostname="first")
    await one.until(lambda: len(one.state.endpoints[before.network_id]) == 2)
    node = one
    node.store.lose("cable cut")
    await node.until(lambda: node.state.stale_since is not None)
    await node.service.detach(before.id)
    assert before.id not in {endpoint.id for endpoint in await node.service.endpoints()}
    if restart:
        await cluster.stop(node, crash=True)
        node = await cluster.start(1, away="cable cut")
    after = await attached(node, "c2", name=name, hostname="second")
    assert after == replace(before, hostname="second")
    assert node.local.endpoints[after.id].sandbox == node.net.sandboxes["c2"]
    with pytest.raises(StoreUnavailableError):
        await attached(node, "c3", name=name)
    keeper = asyncio.create_task(node.service.keep())
    node.store.recover()
    await two.until(lambda: two.state.endpoint(after.network_id, after.id) == after)
    await asyncio.sleep(0.5)
    assert after.id in node.local.endpoints
    assert len(await two.service.endpoints()) == 2
    keeper.cancel()


async def test_only_what_fits_is_revived(one: Node, two: Node) -> None:
    mine, _ = await overlay(one, two)
    one.store.lose("cable cut")
    await one.until(lambda: one.state.stale_since is not None)
    await one.service.detach("on-one")
    for wish in (
        {"name": "other"},
        {"name": "on-one", "ip": "10.0.0.77"},
        {"name": "on-one", "mac": "02:00:00:00:00:09"},
        {},
    ):
        with pytest.raises(StoreUnavailableError):
            await attached(one, "c2", **wish)
    assert (await attached(one, "c2", name="on-one", ip=str(mine.addresses[0].ip))).id == mine.id


async def test_detached_record_goes_after_a_restart_and_the_return_of_the_store(
    cluster: Cluster, one: Node, two: Node
) -> None:
    mine, theirs = await overlay(one, two)
    one.store.lose("cable cut")
    await one.service.detach("on-one")
    await cluster.stop(one, crash=True)
    again = await cluster.start(1, away="cable cut")
    assert set(again.local.withdrawn) == {mine.id}
    keeper = asyncio.create_task(again.service.keep())
    again.store.recover()
    await two.until(lambda: set(two.state.endpoints[mine.network_id]) == {theirs.id})
    assert not any(mine.id in key for key in await cluster.store.list(""))
    await again.until(lambda: not again.local.withdrawn)
    assert not again.state.joined(mine.network_id), "left when the store was back"
    keeper.cancel()


async def test_detached_record_goes_though_nothing_lists_it_as_this_hosts(
    cluster: Cluster, one: Node, two: Node
) -> None:
    mine, theirs = await overlay(one, two)
    one.store.lose("cable cut")
    await one.service.detach("on-one")
    await cluster.store.txn([], [Delete(records.owned_key(mine))])
    keeper = asyncio.create_task(one.service.keep())
    one.store.recover()
    await two.until(lambda: set(two.state.endpoints[mine.network_id]) == {theirs.id})
    await one.until(lambda: not one.local.withdrawn)
    keeper.cancel()


async def test_container_that_starts_again_as_records_go_keeps_its_own(
    one: Node, two: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await overlay(one, two)
    more = await attached(one, "c2", name="more")
    await one.until(lambda: more.id in one.state.endpoints[more.network_id])
    one.store.lose("cable cut")
    await one.until(lambda: not one.state.synced)
    for name in ("on-one", "more"):
        await one.service.detach(name)
    withdrawn = set(one.local.withdrawn)
    for endpoint_id in withdrawn:
        endpoint = one.local.withdrawn[endpoint_id]
        await two.store.txn([], [Delete(records.owned_key(endpoint))])
    delete, gone = one.service.registry.delete, []

    async def slow(endpoint: Endpoint) -> bool:
        gone.append(endpoint.id)
        for other in withdrawn - set(gone):
            one.local.forget_withdrawn(other)  # as whoever takes it back does
        return await delete(endpoint)

    monkeypatch.setattr(one.service.registry, "delete", slow)
    one.store.recover()
    await one.until(lambda: one.state.synced)
    await one.service.repair()
    assert len(gone) == 1


async def test_network_left_without_the_store_is_kept_until_it_is_back(
    one: Node, two: Node
) -> None:
    mine, _ = await overlay(one, two)
    one.store.lose("cable cut")
    await one.until(lambda: one.state.stale_since is not None)
    await one.service.detach("on-one")
    assert len(one.state.endpoints[mine.network_id]) == 2
    keeper = asyncio.create_task(one.service.keep())
    one.store.recover()
    await one.until(lambda: mine.network_id not in one.state.endpoints)
    keeper.cancel()


async def test_lists_go_on_from_memory_and_detach_of_another_is_refused(
    one: Node, two: Node
) -> None:
    _, theirs = await overlay(one, two)
    one.store.lose("cable cut")
    assert theirs in await one.service.endpoints()
    await one.until(lambda: one.service.stale_s is not None)
    with pytest.raises(ConflictError, match="host2"):
        await one.service.detach("on-two")
    with pytest.raises(StoreUnavailableError):
        await one.service.detach("on-two", force=True)
    one.store.recover()
    await one.until(lambda: one.service.stale_s is None)


async def test_daemon_that_starts_anew_knows_a_network_that_was_deleted_by_hand(
    cluster: Cluster, one: Node
) -> None:
    network = await one.service.create_network(NetworkSpec("n1"))
    await one.until(lambda: len(one.state.networks) == 1)
    await cluster.store.txn([], [Delete(records.network_key(network.id))])
    await one.until(lambda: one.state.held == 1)
    await cluster.stop(one)
    again = await cluster.start(1)
    assert network.id in again.state.networks
    await again.until(lambda: again.state.held == 1)
    await again.service.repair()
    await again.until(lambda: not again.state.held)
    assert [network.name for network in await again.service.networks()] == ["n1"]


# The store comes back another


@pytest.fixture
async def kept(one: Node, two: Node) -> AsyncIterator[None]:
    """Both hosts keep their part of the store right, as daemons do."""
    keepers = [asyncio.create_task(node.service.keep()) for node in (one, two)]
    yield
    for keeper in keepers:
        keeper.cancel()
    await asyncio.gather(*keepers, return_exceptions=True)


async def content(cluster: Cluster) -> dict[str, bytes]:
    """What outlives sessions; of notes of what was removed, only that they are there."""
    return {
        key: b"" if key.startswith(records.GONE) else item.value
        for key, item in (await cluster.store.list("")).items()
        if not key.startswith(("alive/", "gc/", "meta"))
    }


async def mistakes(cluster: Cluster) -> list[str]:
    """What does not fit in the store."""
    return errors({key: item.value for key, item in (await cluster.store.list("")).items()})


async def comes_back(cluster: Cluster, wanted: dict[str, bytes], within_s: float = 5) -> None:
    """Returns when the store holds just what it held before."""
    found: dict[str, bytes] = {}
    try:
        async with asyncio.timeout(within_s):
            while (found := await content(cluster)) != wanted:
                await asyncio.sleep(0.02)
    except TimeoutError:
        missing, more = wanted.keys() - found.keys(), found.keys() - wanted.keys()
        raise AssertionError(f"missing {missing}, more {more}, or changed") from None


async def test_lost_store_is_alarmed_and_held(
    cluster: Cluster, one: Node, two: Node, caplog: pytest.LogCaptureFixture
) -> None:
    mine, theirs = await overlay(one, two)
    await cluster.stop(two)
    with caplog.at_level(logging.ERROR):
        cluster.store.wipe()
        await one.until(lambda: one.state.held >= 3)
    assert "removal held back" in caplog.text
    await asyncio.sleep(1.5)
    assert set(one.state.endpoints[mine.network_id]) == {mine.id, theirs.id}
    assert not one.state.recorded(records.endpoint_key(theirs.network_id, theirs.id))


async def test_lost_store_is_filled_again_with_everything(
    cluster: Cluster, one: Node, two: Node, kept: None, caplog: pytest.LogCaptureFixture
) -> None:
    mine, theirs = await overlay(one, two)
    await one.service.create_network(NetworkSpec("nobody-in-it", ipv6=True, labels={"a": "b"}))
    await one.service.create_network(NetworkSpec("gone"))
    await one.service.remove_network("gone")
    config = b'{"v":1,"gc_grace_s":77,"of_a_newer_version":1}'
    await cluster.store.txn([], [Write(records.CFG, config)])
    await one.until(lambda: two.state.config.gc_grace_s == one.state.config.gc_grace_s == 77)
    await one.until(lambda: len(one.state.removed) == len(two.state.removed) == 1)
    before = await content(cluster)
    cluster.store.wipe()
    await comes_back(cluster, before)
    for node in (one, two):
        assert set(node.state.endpoints[mine.network_id]) == {mine.id, theirs.id}
        await node.until(lambda node=node: node.state.held == 0)  # type: ignore[misc]
        assert node.state.config.gc_grace_s == 77
    assert "store was lost and begun anew" in caplog.text
    await attached(one, "c5", name="goes-on")


@pytest.mark.parametrize("kinds", [("ep/",), ("ep/", "net/")])
async def test_records_that_were_deleted_without_their_claims_are_put_back(
    cluster: Cluster, one: Node, two: Node, kept: None, kinds: tuple[str, ...]
) -> None:
    await overlay(one, two)
    before = await content(cluster)
    deleted = [Delete(key) for key in before if key.startswith(kinds)]
    assert deleted
    await cluster.store.txn([], deleted)
    await comes_back(cluster, before)


async def test_lost_store_is_filled_again_after_all_daemons_were_down(
    cluster: Cluster, one: Node, two: Node
) -> None:
    await overlay(one, two)
    await one.service.create_network(NetworkSpec("nobody-in-it"))
    before = await content(cluster)
    for node in (one, two):
        await node.until(lambda node=node: len(node.state.networks) == 2)  # type: ignore[misc]
        await cluster.stop(node)
    cluster.store.wipe()
    again = [await cluster.start(1), await cluster.start(2)]
    keepers = [asyncio.create_task(node.service.keep()) for node in again]
    names = {key for key in before if not key.startswith("host/")}
    async with asyncio.timeout(8):
        while not names <= (await content(cluster)).keys():
            await asyncio.sleep(0.02)
    for keeper in keepers:
        keeper.cancel()


async def test_old_copy_is_brought_up_to_date(
    cluster: Cluster, one: Node, two: Node, kept: None
) -> None:
    """Newer records are missing, removed ones are back, and a name means another network."""
    mine, theirs = await overlay(one, two)
    await one.service.create_network(NetworkSpec("reused", subnets=("10.9.0.0/24",), vni=77))
    two.net.add("z")
    await two.service.attach(AttachSpec("reused", "z", EndpointSpec(name="zombie")))
    await attached(two, "c2", name="old", ip="10.0.0.9")
    put_back = cluster.store.save()
    await two.service.detach("zombie")
    await one.service.remove_network("reused")
    await two.service.detach("old")
    await one.service.create_network(NetworkSpec("reused", subnets=("10.9.0.0/24",), vni=77))
    one.net.add("z")
    await one.service.attach(AttachSpec("reused", "z", EndpointSpec(name="zombie")))
    heir = await attached(one, "c3", name="old", ip="10.0.0.9")
    for node in (one, two):
        await node.until(lambda node=node: node.state.endpoint(heir.network_id, heir.id))  # type: ignore[misc]
        await node.until(lambda node=node: len(node.state.removed) == 1)  # type: ignore[misc]
    before = await content(cluster)
    shown = []
    put_back()
    watcher = asyncio.create_task(_watch_names(one, two, shown))
    await comes_back(cluster, before)
    living = {mine.id, theirs.id, heir.id}
    for node in (one, two):
        await node.until(lambda node=node: node.state.held == 0)  # type: ignore[misc]
        await node.until(lambda node=node: set(node.state.endpoints[mine.network_id]) == living)  # type: ignore[misc]
    watcher.cancel()
    assert shown
    assert all(living <= ids for ids in shown), "no flow lost its entry meanwhile"
    assert heir.id in one.local.endpoints


async def _watch_names(one: Node, two: Node, shown: list[set[str]]) -> None:
    network_id = next(iter(two.local.endpoints.values())).network_id
    while True:
        for node in (one, two):
            shown.append(set(node.state.endpoints[network_id]))
        await asyncio.sleep(0.005)


async def test_new_network_leaves_alone_what_a_lost_one_is_about_to_take_back(
    cluster: Cluster, one: Node, two: Node, kept: None
) -> None:
    mine, theirs = await overlay(one, two)
    (lost,) = one.state.networks[mine.network_id].subnets
    cluster.store.wipe()
    with pytest.raises(ConflictError, match=r"network n1 .* has this name, and the store has lost"):
        await one.service.create_network(NetworkSpec("n1", subnets=("10.9.0.0/24",)))
    with pytest.raises(ConflictError, match=f"overlaps {lost.cidr} of network {mine.network_id}"):
        await one.service.create_network(NetworkSpec("n2", subnets=(str(lost.cidr),)))
    made = await one.service.create_network(NetworkSpec("n2"))
    assert made.subnets[0].cidr != lost.cidr
    async with asyncio.timeout(8):
        while len(await one.service.endpoints()) != 2:
            await asyncio.sleep(0.02)
    assert {e.id for e in await one.service.endpoints()} == {mine.id, theirs.id}
    assert await mistakes(cluster) == []


@pytest.mark.parametrize("claim", ["netname/n1", "vni/77"])
async def test_new_network_takes_nothing_whose_claim_was_deleted_by_hand(
    cluster: Cluster, one: Node, two: Node, claim: str
) -> None:
    first = await one.service.create_network(NetworkSpec("n1", vni=77))
    await two.until(lambda: first.id in two.state.networks)
    await cluster.store.txn([], [Delete(claim)])
    wish = NetworkSpec("n1") if claim.startswith("netname") else NetworkSpec("n2", vni=77)
    with pytest.raises(ConflictError, match=rf"network n1 \({first.id[:12]}\) has this"):
        await two.service.create_network(wish)
    await one.service.remove_network(first.id)
    assert (await two.service.create_network(wish)).name == wish.name


async def test_endpoint_is_fenced_whose_network_was_removed_while_the_store_lacked_it(
    cluster: Cluster, one: Node, two: Node, kept: None
) -> None:
    """Its host has put the network back, not knowing of the removal."""
    one.service.upkeep._fence_s = 0.5
    mine, _ = await overlay(one, two)
    network_id = mine.network_id
    await two.service.detach("on-two")
    gone = records.Gone("n1", time.time())
    await cluster.store.txn([], [Write(records.gone_key(network_id), records.emit_gone(gone))])
    await one.until(lambda: mine.id not in one.local.endpoints, within_s=9)
    await two.until(lambda: network_id not in two.state.networks, within_s=9)
    assert await mistakes(cluster) == []


async def test_endpoints_of_a_network_that_can_not_be_put_back_are_fenced(
    cluster: Cluster, one: Node, two: Node, kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that knew nothing of it has made another one in its place."""
    mine, theirs = await overlay(one, two)

    async def nothing(_networks: Networks, _used: object) -> dict[Cidr, Network]:
        return {}

    monkeypatch.setattr(Networks, "lost", nothing)
    cluster.store.wipe()
    subnets = tuple(str(subnet.cidr) for subnet in one.state.networks[mine.network_id].subnets)
    await one.service.create_network(NetworkSpec("usurper", subnets=subnets))
    for node, endpoint in ((one, mine), (two, theirs)):
        await node.until(lambda n=node, e=endpoint: e.id not in n.local.endpoints, within_s=9)  # type: ignore[misc]
    assert [network.name for network in await two.service.networks()] == ["usurper"]


async def test_what_was_removed_during_an_outage_goes_soon(
    cluster: Cluster, one: Node, two: Node, kept: None
) -> None:
    mine, _ = await overlay(one, two)
    await two.service.create_network(NetworkSpec("n2"))
    await one.until(lambda: len(one.state.networks) == 2)
    one.store.lose("cable cut")
    await one.until(lambda: not one.state.synced)
    await two.service.remove_network("n2")
    await two.service.detach("on-two")
    one.store.reset()
    one.store.recover()
    await one.until(lambda: set(one.state.endpoints[mine.network_id]) == {mine.id}, within_s=5)
    await one.until(lambda: len(one.state.networks) == 1, within_s=5)
    await asyncio.sleep(0.7)
    assert [network.name for network in await two.service.networks()] == ["n1"]


async def test_networks_removed_during_an_outage_go_at_once_although_they_are_most_of_all(
    cluster: Cluster, one: Node, two: Node
) -> None:
    """A new list lacks so many that the store could have been lost; but each has its note."""
    names = [f"n{number}" for number in range(6)]
    for name in names:
        await two.service.create_network(NetworkSpec(name))
    await one.until(lambda: len(one.state.networks) == 6)
    one.store.lose("cable cut")
    await one.until(lambda: not one.state.synced)
    for name in names[1:]:
        await two.service.remove_network(name)
    one.store.reset()
    one.store.recover()
    await one.until(lambda: [n.name for n in one.state.networks.values()] == ["n0"], within_s=5)
    await one.until(lambda: one.state.synced and not one.state.held)
    await cluster.stop(one)
    again = await cluster.start(1, away="cable cut")
    assert [network.name for network in again.state.networks.values()] == ["n0"]


async def test_list_that_is_newer_than_the_note_of_a_removal_holds_nothing(
    cluster: Cluster, one: Node, two: Node
) -> None:
    """The watch of the notes told already, and the networks are listed once more then."""
    for name in ("n0", "n1"):
        await two.service.create_network(NetworkSpec(name))
    await one.until(lambda: len(one.state.networks) == 2)
    table = one.state._networks
    watch = one.state._follower._watches[table.prefix]
    one.state._follower._stop(watch)
    await two.service.remove_network("n1")
    await one.until(lambda: len(one.state.removed) == 1)
    assert len(one.state.networks) == 2, "else nobody missed anything"
    checks = one.state.resyncs["check"]
    one.state._follower._begin(watch, "check")
    await one.until(lambda: one.state.resyncs["check"] > checks)
    assert [network.name for network in one.state.networks.values()] == ["n0"]


async def test_network_that_was_removed_stays_so_for_a_host_that_was_away(
    cluster: Cluster, one: Node, two: Node
) -> None:
    """The store was lost meanwhile, too: the host that was away knows neither."""
    await overlay(one, two)
    await two.service.create_network(NetworkSpec("n2"))
    await one.until(lambda: len(one.state.networks) == 2)
    keeper = asyncio.create_task(two.service.keep())
    await cluster.stop(one)
    await two.service.remove_network("n2")
    await two.until(lambda: len(two.state.removed) == 1)
    cluster.store.wipe()
    await two.until(lambda: two.state.held <= 1 and len(two.state.removed) == 1)
    again = await cluster.start(1)
    keepers = [keeper, asyncio.create_task(again.service.keep())]
    await again.until(lambda: len(again.state.removed) == 1)
    await asyncio.sleep(2)
    assert [network.name for network in await two.service.networks()] == ["n1"]
    for each in keepers:
        each.cancel()


async def test_host_that_was_away_for_days_puts_nothing_back(
    cluster: Cluster, one: Node, two: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two.service.create_network(NetworkSpec("n2"))
    await one.until(lambda: len(one.state.networks) == 1)
    await cluster.stop(one)
    await two.service.remove_network("n2")
    keys = list(await cluster.store.list(records.GONE))
    await cluster.store.txn([], [Delete(key) for key in keys])  # as its collection does
    monkeypatch.setattr("pyvxlan.daemon.refill.COVERED_S", 0.5)
    await asyncio.sleep(0.6)
    again = await cluster.start(1)
    keeper = asyncio.create_task(again.service.keep())
    await asyncio.sleep(0.3)
    assert again.state.held == 1
    await again.until(lambda: again.state.held == 0)
    assert await two.service.networks() == []
    keeper.cancel()


async def test_store_of_another_cluster_is_said_and_filled_with_what_runs_only(
    cluster: Cluster, one: Node, two: Node, kept: None, caplog: pytest.LogCaptureFixture
) -> None:
    mine, theirs = await overlay(one, two)
    await one.service.create_network(NetworkSpec("nobody-in-it"))
    other = records.Meta("d" * 32, created="2020-01-01T00:00:00Z")
    await one.until(lambda: len(one.state.networks) == len(two.state.networks) == 2)
    cluster.store.wipe()
    await cluster.store.txn([], [Write(records.META, records.emit_meta(other))])
    async with asyncio.timeout(8):
        while len(await one.service.endpoints()) != 2:
            await asyncio.sleep(0.02)
    assert {e.id for e in await one.service.endpoints()} == {mine.id, theirs.id}
    assert [network.name for network in await one.service.networks()] == ["n1"]
    assert f"store is of another cluster cluster={'d' * 32}" in caplog.text
