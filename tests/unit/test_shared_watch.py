"""One watch of all endpoints in the place of many, where a host is on very many networks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from pyvxlan.daemon import following, records
from pyvxlan.daemon.following import is_wide
from pyvxlan.daemon.kv import Delete
from pyvxlan.daemon.kv.memory import MemoryStore
from pyvxlan.daemon.kv.mirror import Mirror
from pyvxlan.daemon.kv.url import parse_url
from pyvxlan.daemon.state import State
from tests.unit.test_state import HOST, endpoint, network, publish

NETWORKS = [network(number) for number in range(1, 7)]
BASE = 5
"""Watches that every host has."""


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryStore]:
    monkeypatch.setattr(following, "WIDE_ABOVE", 3)
    made = MemoryStore()
    await publish(made, HOST, *NETWORKS, *(endpoint(one, 2) for one in NETWORKS))
    yield made
    await made.close()


@pytest.fixture
async def state(store: MemoryStore) -> AsyncIterator[State]:
    made = State(store, HOST, hold_s=0.3, settle_s=0.1, wide=lambda: True)
    yield made
    await made.close()


async def until(state: State, condition: Callable[[], bool]) -> None:
    await state.wait_for(condition, timeout_s=10)


def known(state: State) -> dict[str, set[str]]:
    return {network_id: set(of_one) for network_id, of_one in state.endpoints.items()}


@pytest.mark.parametrize(
    ("own", "whole", "already", "wide"),
    [
        (1, 1, False, False),
        (32, 32, False, False),
        (33, 132, False, True),
        (33, 133, False, False),
        (256, 1025, False, False),
        (257, 100_000, False, True),
        (257, 0, False, True),
        (40, 0, False, False),
        (129, 100_000, True, True),
        (128, 100_000, True, False),
        (17, 130, True, True),
        (16, 16, True, False),
    ],
)
def test_watch_is_shared_by_very_many_tables_or_by_a_large_part(
    own: int, whole: int, already: bool, wide: bool
) -> None:
    assert is_wide(own, whole, already=already) is wide


@pytest.mark.parametrize(
    ("url", "wide"),
    [
        ("etcd://h1", True),
        ("consul://h1", False),
        ("zk://h1", False),
        ("sqlite:///s.db", False),
    ],
)
def test_watch_is_shared_where_it_costs_the_store_no_more(url: str, wide: bool) -> None:
    assert parse_url(url).wide_watches is wide


async def test_few_networks_have_watches_of_their_own(state: State) -> None:
    await state.start([one.id for one in NETWORKS[:3]])
    assert state._follower.watches == BASE + 3


async def test_store_that_can_not_has_watches_of_their_own(store: MemoryStore) -> None:
    state = State(store, HOST)
    await state.start([one.id for one in NETWORKS])
    assert state._follower.watches == BASE + 6
    await state.close()


async def test_many_networks_share_one_watch_and_know_what_they_would(
    store: MemoryStore, state: State
) -> None:
    joined = NETWORKS[:4]
    assert await state.start([one.id for one in joined])
    assert state._follower.watches == BASE + 1
    assert known(state) == {one.id: {endpoint(one, 2).id} for one in joined}
    state.take_dirty()
    await publish(store, endpoint(NETWORKS[5], 3), endpoint(joined[1], 3))
    await until(state, lambda: len(state.endpoints[joined[1].id]) == 2)
    assert state.take_dirty() == {joined[1].id}
    await store.txn([], [Delete(records.endpoint_key(joined[1].id, endpoint(joined[1], 2).id))])
    await until(state, lambda: len(state.endpoints[joined[1].id]) == 1)
    assert set(state.endpoints) == {one.id for one in joined}


async def test_network_joined_later_is_watched_alone_until_they_are_many(
    store: MemoryStore, state: State
) -> None:
    assert await state.start([one.id for one in NETWORKS[:4]])
    state.join(NETWORKS[4].id)
    assert state._follower.watches == BASE + 2
    await until(state, lambda: state.joined(NETWORKS[4].id))
    await publish(store, endpoint(NETWORKS[4], 3))
    await until(state, lambda: len(state.endpoints[NETWORKS[4].id]) == 2)
    state.join(NETWORKS[5].id)
    assert state._follower.watches == BASE + 1
    await until(state, lambda: state.joined(NETWORKS[5].id) and state.synced)
    await publish(store, *(endpoint(one, 4) for one in NETWORKS))
    await until(state, lambda: all(endpoint(one, 4).id in known(state)[one.id] for one in NETWORKS))


async def test_host_that_left_most_networks_watches_the_rest_alone(
    store: MemoryStore, state: State
) -> None:
    assert await state.start([one.id for one in NETWORKS[:4]])
    for gone in NETWORKS[1:4]:
        state.leave(gone.id)
    assert state._follower.watches == BASE + 1
    assert f"ep/{NETWORKS[0].id}/" in state._follower._watches
    await publish(store, endpoint(NETWORKS[0], 3))
    await until(state, lambda: len(state.endpoints[NETWORKS[0].id]) == 2)
    assert set(state.endpoints) == {NETWORKS[0].id}


async def test_what_changes_while_watches_are_exchanged_is_not_missed(
    store: MemoryStore, state: State
) -> None:
    assert await state.start([one.id for one in NETWORKS[:3]])
    first = NETWORKS[0]
    state.join(NETWORKS[3].id)  # ends three watches; the shared one has not begun yet
    await publish(store, endpoint(first, 3))
    await store.txn([], [Delete(records.endpoint_key(first.id, endpoint(first, 2).id))])
    await until(state, lambda: known(state)[first.id] == {endpoint(first, 3).id})
    assert state.held == 0


async def test_what_changed_during_an_outage_is_told_to_each_network(
    store: MemoryStore, state: State
) -> None:
    joined = NETWORKS[:4]
    assert await state.start([one.id for one in joined])
    gone, peer = endpoint(joined[2], 2), store.peer()
    store.lose("cut")
    await until(state, lambda: state.stale_since is not None)
    await peer.txn([], [Delete(records.endpoint_key(gone.network_id, gone.id))])
    await publish(peer, endpoint(joined[0], 3))
    store.recover()
    await until(state, lambda: state.synced and len(state.endpoints[joined[0].id]) == 2)
    assert [len(state.endpoints[one.id]) for one in joined] == [2, 1, 0, 1]
    assert state.stale_since is None


async def test_what_a_list_lacks_is_held_and_looked_for_again(
    store: MemoryStore, state: State
) -> None:
    joined = NETWORKS[:4]
    assert await state.start([one.id for one in joined])
    gone, peer = endpoint(joined[2], 2), store.peer()
    store.lose("cut")
    await until(state, lambda: state.stale_since is not None)
    await peer.txn([], [Delete(records.endpoint_key(gone.network_id, gone.id))])
    store.reset()
    store.recover()
    await until(state, lambda: state.held == 1)
    assert known(state)[gone.network_id] == {gone.id}
    await until(state, lambda: state.held == 0)
    assert [len(state.endpoints[one.id]) for one in joined] == [1, 1, 0, 1]


async def test_mirror_keeps_each_network_by_itself(store: MemoryStore, tmp_path: Path) -> None:
    joined = [one.id for one in NETWORKS[:4]]
    mirror = await Mirror.open(tmp_path / "mirror.db", "memory:")
    first = State(store, HOST, mirror, wide=lambda: True)
    assert await first.start(joined)
    before = known(first)
    await first.close()
    await mirror.close()
    mirror = await Mirror.open(tmp_path / "mirror.db", "memory:")
    store.lose("cut")
    second = State(store, HOST, mirror, wide=lambda: True)
    assert not await second.start(joined, timeout_s=0.05)
    assert known(second) == before
    store.recover()
    await until(second, lambda: second.synced)
    assert known(second) == before
    await second.close()
    await mirror.close()


async def test_loop_runs_while_a_shared_watch_is_read(store: MemoryStore, state: State) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    assert await state.start([one.id for one in NETWORKS])
    counter.cancel()
    assert turns >= len(NETWORKS)
