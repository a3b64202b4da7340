"""What the store says, as typed values."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_network

import pytest

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import NotSettledError
from pyvxlan.daemon.kv import Delete, Write
from pyvxlan.daemon.kv.memory import MemoryStore
from pyvxlan.daemon.model import Endpoint, Host, Network, Subnet
from pyvxlan.daemon.state import State

HOST = Host("b" * 32, "host1", ip_address("198.18.0.1"), 4789, "0.1.0")
OTHER = Host("c" * 32, "host2", ip_address("198.18.0.2"), 4789, "0.1.0")


def network(number: int, name: str = "") -> Network:
    cidr = ip_network(f"10.0.{number}.0/24")
    return Network(
        f"{number:032x}", name or f"n{number}", 5000 + number, (Subnet(cidr, cidr[1]),), 1450
    )


def endpoint(in_network: Network, number: int, host: Host = HOST) -> Endpoint:
    address = IPv4Interface((in_network.subnets[0].cidr[number].packed, 24))
    return Endpoint(
        f"{number:032x}", in_network.id, host.id, records.derived_mac(address), (address,)
    )


async def publish(store: MemoryStore, *values: Network | Host | Endpoint) -> None:
    for value in values:
        match value:
            case Network():
                op = Write(records.network_key(value.id), records.emit_network(value))
            case Host():
                op = Write(records.host_key(value.id), records.emit_host(value))
            case Endpoint():
                key = records.endpoint_key(value.network_id, value.id)
                op = Write(key, records.emit_endpoint(value))
        await store.txn([], [op])


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    made = MemoryStore()
    yield made
    await made.close()


@pytest.fixture
async def state(store: MemoryStore) -> AsyncIterator[State]:
    made = State(store, HOST, hold_s=0.3, settle_s=0.1)
    yield made
    await made.close()


async def test_start_reads_what_is_there(store: MemoryStore, state: State) -> None:
    await publish(store, network(1), HOST, endpoint(network(1), 2))
    await state.start([network(1).id])
    assert dict(state.networks) == {network(1).id: network(1)}
    assert dict(state.hosts) == {HOST.id: HOST}
    assert state.endpoints[network(1).id] == {endpoint(network(1), 2).id: endpoint(network(1), 2)}
    assert state.synced
    assert state.joined(network(1).id)


async def test_everything_is_dirty_after_the_start(store: MemoryStore, state: State) -> None:
    await state.start()
    assert state.dirty.is_set()
    assert "*" in state.take_dirty()
    assert not state.dirty.is_set()
    assert state.take_dirty() == set()


async def test_change_marks_only_its_network_dirty(store: MemoryStore, state: State) -> None:
    await publish(store, network(1), network(2))
    await state.start([network(1).id, network(2).id])
    state.take_dirty()
    await publish(store, endpoint(network(2), 2))
    await state.wait_for(lambda: bool(state.endpoints[network(2).id]))
    assert state.take_dirty() == {network(2).id}


async def test_moved_host_marks_the_networks_of_its_endpoints(
    store: MemoryStore, state: State
) -> None:
    await publish(store, HOST, OTHER, network(1), network(2), endpoint(network(1), 2, OTHER))
    await state.start([network(1).id, network(2).id])
    state.take_dirty()
    moved = Host(OTHER.id, OTHER.name, ip_address("198.18.0.9"), 4789, "0.1.0")
    await publish(store, moved)
    await state.wait_for(lambda: state.hosts[OTHER.id] == moved)
    assert state.take_dirty() == {network(1).id}


async def test_record_written_anew_without_a_change_marks_nothing(
    store: MemoryStore, state: State
) -> None:
    await publish(store, network(1))
    await state.start()
    state.take_dirty()
    await publish(store, network(1), network(2))
    await state.wait_for(lambda: len(state.networks) == 2)
    assert state.take_dirty() == {network(2).id}


async def test_endpoints_are_known_of_joined_networks_only(
    store: MemoryStore, state: State
) -> None:
    await publish(store, network(1), endpoint(network(1), 2))
    await state.start()
    assert dict(state.endpoints) == {}
    assert not state.joined(network(1).id)
    state.join(network(1).id)
    state.join(network(1).id)
    await state.wait_for(lambda: state.joined(network(1).id))
    assert len(state.endpoints[network(1).id]) == 1
    state.take_dirty()
    state.leave(network(1).id)
    state.leave(network(1).id)
    assert dict(state.endpoints) == {}
    assert state.take_dirty() == {network(1).id}


async def test_invalid_records_are_left_out_and_warned_of_once(
    store: MemoryStore, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    bad = records.network_key("d" * 32)
    with caplog.at_level(logging.WARNING):
        await store.txn(
            [], [Write(bad, b"{}"), Write("host/nonsense", b"\xff"), Write("cfg", b"1")]
        )
        await state.start()
        await publish(store, network(1))
        await store.txn([], [Write(bad, b"{}")])
        await publish(store, network(2))
        await state.wait_for(lambda: len(state.networks) == 2)
    assert set(state.invalid) == {bad, "host/nonsense", "cfg"}
    assert caplog.text.count(bad) == 1
    assert state.config == records.ClusterConfig()
    await publish(store, Network("d" * 32, "good", 7000, network(3).subnets, 1450))
    await state.wait_for(lambda: len(state.networks) == 3)
    assert set(state.invalid) == {"host/nonsense", "cfg"}


async def test_record_of_a_newer_version_asks_for_an_upgrade(
    store: MemoryStore, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    bad = records.network_key("d" * 32)
    await store.txn([], [Write(bad, b'{"v":2,"name":"newer"}')])
    await state.start()
    (told,) = [line for line in caplog.messages if bad in line]
    assert told.endswith(": a newer pyvxlan has written it, upgrade this one")


async def test_record_that_becomes_invalid_is_withdrawn(store: MemoryStore, state: State) -> None:
    await publish(store, network(1))
    await state.start()
    await store.txn([], [Write(records.network_key(network(1).id), b"{}")])
    await state.wait_for(lambda: not state.networks)
    await store.txn([], [Delete(records.network_key(network(1).id))])
    await state.wait_for(lambda: not state.invalid)


async def test_outage_changes_nothing_but_the_age(store: MemoryStore, state: State) -> None:
    await publish(store, network(1), endpoint(network(1), 2))
    await state.start([network(1).id])
    state.take_dirty()
    store.lose("cable cut")
    await state.wait_for(lambda: state.stale_since is not None)
    assert not state.synced
    assert len(state.networks) == len(state.endpoints[network(1).id]) == 1
    assert state.take_dirty() == set()
    store.recover()
    await state.wait_for(lambda: state.synced)
    assert state.stale_since is None


async def test_cluster_config_is_read(store: MemoryStore, state: State) -> None:
    await store.txn([], [Write("cfg", b'{"v":1,"gc_grace_s":60}')])
    await state.start()
    assert state.config.gc_grace_s == 60


async def test_lost_store_does_not_take_the_overlay_with_it(
    store: MemoryStore, state: State
) -> None:
    await publish(store, HOST, network(1), endpoint(network(1), 2))
    await state.start([network(1).id])
    state.take_dirty()
    store.wipe()
    await state.wait_for(lambda: not state.recorded(records.host_key(HOST.id)))
    await asyncio.sleep(0)
    assert len(state.networks) == len(state.endpoints[network(1).id]) == 1
    await publish(store, network(1))
    await state.wait_for(lambda: state.recorded(records.network_key(network(1).id)))
    # Each table is swept by a timer of its own, in no order.
    await state.wait_for(lambda: not state.endpoints[network(1).id], timeout_s=2)
    await state.wait_for(lambda: not state.hosts, timeout_s=2)
    assert set(state.networks) == {network(1).id}
    assert network(1).id in state.take_dirty()


async def test_snapshot_that_removes_little_is_believed(store: MemoryStore, state: State) -> None:
    await publish(store, network(1), network(2), network(3))
    await state.start()
    await publish(store, network(4))
    store._shared.items.pop(records.network_key(network(1).id))
    store.reset()
    await state.wait_for(lambda: network(1).id not in state.networks)
    assert set(state.networks) == {network(number).id for number in (2, 3, 4)}


async def test_endpoints_with_a_claim_in_common_are_doubled(
    store: MemoryStore, state: State
) -> None:
    one, two = endpoint(network(1), 2), replace(endpoint(network(1), 3, OTHER), name="Web")
    same_name = replace(endpoint(network(1), 4), name="web")
    same_address = replace(endpoint(network(1), 5, OTHER), addresses=one.addresses, name="db")
    elsewhere = replace(endpoint(network(2), 6), name="web")
    alone = replace(endpoint(network(1), 7), name="alone")
    await publish(store, network(1), network(2), one, two, same_name, elsewhere, alone)
    await publish(store, same_address)
    await state.start([network(1).id, network(2).id])
    assert state.doubled(network(1).id) == {one.id, same_address.id, two.id, same_name.id}
    assert state.doubled(network(2).id) == set()
    assert state.doubled(network(3).id) == set()


async def test_waiting_in_vain_is_an_error_that_says_for_what(state: State) -> None:
    await state.start()
    with pytest.raises(NotSettledError, match=r"not within 0\.01 s: the moon is blue"):
        await state.wait_for(lambda: False, timeout_s=0.01, what="the moon is blue")


async def test_store_that_never_answers_is_told(store: MemoryStore, state: State) -> None:
    store.lose("cable cut")
    assert not await state.start(timeout_s=0.05)
    assert not state.known
    assert state.stale_reason == "cable cut"
    store.recover()
    await state.wait_for(lambda: state.synced)


async def test_what_comes_back_from_an_old_copy_hides_nothing_newer(
    store: MemoryStore, state: State
) -> None:
    """An endpoint that was removed, and one with its address since: the store shows the former."""
    n1 = network(1)
    former, heir = endpoint(n1, 7, HOST), replace(endpoint(n1, 7, OTHER), id=f"{8:032x}")
    await publish(store, n1, former)
    put_back = store.save()
    await state.start([n1.id])
    await store.txn([], [Delete(records.endpoint_key(n1.id, former.id))])
    await publish(store, heir)
    await state.wait_for(lambda: set(state.endpoints[n1.id]) == {heir.id})
    put_back()
    await state.wait_for(lambda: len(state.endpoints[n1.id]) == 2)
    assert list(state.endpoints[n1.id].values()) == [former, heir], "the last one counts"
