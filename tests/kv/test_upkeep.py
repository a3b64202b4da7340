"""Work on whole stores, on every kind of store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from random import Random

import pytest

from pyvxlan.daemon import records
from pyvxlan.daemon.clusterstore import ClusterStore
from pyvxlan.daemon.errors import (
    ConflictError,
    NotFoundError,
    StoreConflictError,
    StoreUnavailableError,
)
from pyvxlan.daemon.kv import ABSENT, Check, Delete, Item, Store, Write
from pyvxlan.daemon.records import Phase, Transition
from pyvxlan.daemon.upkeep import content
from pyvxlan.daemon.upkeep.dump import Dump, take
from pyvxlan.daemon.upkeep.restore import claim, restore_into
from tests.kv.labs.lab import Lab
from tests.unit import stored
from tests.unit.memory_net import endpoint, host, network


def kind_of(lab: Lab) -> str:
    return "memory" if lab.snapshots else "zk"


def quiet(_: str) -> None:
    pass


def dump_of(values: Mapping[str, bytes]) -> Dump:
    return Dump(values, secrets.token_hex(16))


async def held(store: Store) -> dict[str, bytes]:
    return {key: item.value for key, item in (await store.list("")).items()}


async def put(store: Store, values: Mapping[str, bytes]) -> None:
    for key, value in values.items():
        await store.txn([], [Write(key, value)])


async def restore(lab: Lab, store: Store, dump: Dump, *, replace: bool = False) -> None:
    await restore_into(store, dump, kind=kind_of(lab), replace=replace, say=quiet)


async def register(store: Store, number: int = 1) -> None:
    """Makes a host alive, as its daemon does."""
    session = await store.session(15)
    await store.txn(
        [], [Write(records.alive_key(host(number).id), b"{}", bound=True)], session=session
    )


class CutError(Exception):
    """The process ends here."""


class Cutting:
    """A store whose user is killed before or after a number of transactions."""

    def __init__(self, store: Store, left: int, *, applied: bool) -> None:
        self._store = store
        self._left = left
        self._applied = applied
        self.get, self.list = store.get, store.list

    async def txn(self, checks, ops, *, session=None) -> None:  # type: ignore[no-untyped-def]
        self._left -= 1
        if self._left < 0 and not self._applied:
            raise CutError
        await self._store.txn(checks, ops, session=session)
        if self._left < 0:
            raise CutError


async def test_restored_store_holds_what_the_dump_did(lab: Lab, store: Store) -> None:
    values = stored.cluster(networks=3, hosts=3, endpoints=20)
    await restore(lab, store, dump_of(values))
    found = await held(store)
    meta = records.parse_meta(found.pop(records.META))
    values.pop(records.META)
    assert found == values
    assert meta.transition is None
    assert meta.cluster != stored.CLUSTER


async def test_dump_of_a_restored_store_is_the_dump(lab: Lab, store: Store) -> None:
    values = stored.cluster()
    await restore(lab, store, dump_of(values))
    await register(store)
    taken = await take(store, kind=kind_of(lab), say=quiet)
    assert {**taken, records.META: b""} == {**values, records.META: b""}


async def test_restoring_again_changes_nothing(lab: Lab, store: Store) -> None:
    dump = dump_of(stored.cluster())
    await restore(lab, store, dump)
    with pytest.raises(ConflictError, match="not empty: it holds 2 networks, 2 hosts, 6 endpoints"):
        await restore(lab, store, dump)


async def test_replacing_removes_what_the_dump_lacks(lab: Lab, store: Store) -> None:
    await restore(lab, store, dump_of(stored.cluster(networks=4, endpoints=9)))
    await put(store, {"else/where": b"mine"})
    values = stored.cluster(networks=2, endpoints=3)
    await restore(lab, store, dump_of(values), replace=True)
    found = await held(store)
    assert found.pop("else/where") == b"mine"
    assert {**found, records.META: b""} == {**values, records.META: b""}


async def test_store_in_use_is_not_replaced(lab: Lab, store: Store) -> None:
    values = stored.cluster()
    await put(store, values)
    await register(store)
    before = await held(store)
    with pytest.raises(ConflictError, match="hosts use the store: host1; stop their daemons"):
        await restore(lab, store, dump_of(stored.cluster(networks=1)), replace=True)
    assert await held(store) == before


@pytest.mark.parametrize("applied", [False, True])
async def test_restoration_that_broke_off_is_finished_by_the_same(
    lab: Lab, store: Store, applied: bool
) -> None:
    values = stored.cluster(networks=3, endpoints=30)
    dump = dump_of(values)
    for step in range(8):
        await put_back(store)
        cutting = Cutting(store, step, applied=applied)
        with pytest.raises((CutError, ExceptionGroup)):
            await restore_into(cutting, dump, kind=kind_of(lab), replace=False, say=quiet)  # type: ignore[arg-type]
        if await store.get(records.META):
            with pytest.raises(ConflictError, match="the store is not empty"):
                await restore(lab, store, dump_of(values))
            with pytest.raises(StoreUnavailableError, match="the store is being filled"):
                await ClusterStore(store).txn([], [Write("cfg", b"{}")])
        await restore(lab, store, dump)
        found = await held(store)
        assert {**found, records.META: b""} == {**values, records.META: b""}


async def put_back(store: Store) -> None:
    """Empties the store."""
    for key in await store.list(""):
        await store.txn([], [Delete(key)])


async def test_two_restorations_at_once_do_not_mix(lab: Lab, store: Store) -> None:
    one, two = dump_of(stored.cluster(networks=1)), dump_of(stored.cluster(networks=5))
    ended = await asyncio.gather(
        restore(lab, store, one), restore(lab, store, two), return_exceptions=True
    )
    lost = [error for error in ended if error is not None]
    assert len(lost) == 1
    assert isinstance(lost[0], ConflictError | StoreConflictError)
    winner = one if ended[0] is None else two
    found = await held(store)
    assert {**found, records.META: b""} == {**winner.values, records.META: b""}


async def test_another_writer_is_noticed(lab: Lab, store: Store) -> None:
    dump = dump_of(stored.cluster())
    meta = await claim(store, dump, kind=kind_of(lab), replace=False)
    guard = Check(records.META, meta.revision)
    await store.txn([], [Write(records.META, b"{}")])
    with pytest.raises(StoreConflictError):
        await content.fill(store, dump.values, kind=kind_of(lab), guard=guard, say=quiet)


async def test_owner_and_claims_are_written_in_one_transaction(lab: Lab, store: Store) -> None:
    values = stored.cluster(networks=3, endpoints=40)
    written: list[set[str]] = []

    class Noting(Cutting):
        async def txn(self, checks, ops, *, session=None) -> None:  # type: ignore[no-untyped-def]
            written.append({op.key for op in ops})
            await super().txn(checks, ops, session=session)

    noting = Noting(store, 10**6, applied=False)
    await restore_into(noting, dump_of(values), kind=kind_of(lab), replace=False, say=quiet)  # type: ignore[arg-type]
    for key, value in values.items():
        owner = content.owner_of(key, value)
        together = {k for k, v in values.items() if content.owner_of(k, v) == owner}
        assert sum(bool(together & keys) for keys in written) == 1 or key == records.META


async def test_dump_is_of_one_moment(lab: Lab, store: Store) -> None:
    """Endpoints come and go meanwhile: each is there with all its claims, or not at all."""
    await put(store, stored.cluster(networks=1, endpoints=0))
    busy = await lab.open()
    rng, stop = Random(5), False

    async def churn() -> None:
        there: set[int] = set()
        while not stop:
            number = rng.randrange(2, 40)
            keys = stored.of_endpoint(endpoint(number, network(1), host(1)))
            if number in there:
                await busy.txn([], [Delete(key) for key in keys])
                there.discard(number)
            else:
                await busy.txn([], [Write(key, value) for key, value in keys.items()])
                there.add(number)
            await asyncio.sleep(rng.choice((0, 0, 0, 0.5)))

    task = asyncio.create_task(churn())
    try:
        said: list[str] = []
        for _ in range(10):
            await take(store, kind=kind_of(lab), say=said.append)
    finally:
        stop = True
        await task
    assert said == []


async def test_store_that_keeps_changing_is_said_to(store: Store) -> None:
    class Restless:
        async def list(self, prefix: str) -> Mapping[str, Item]:
            await store.txn([], [Write("cfg", secrets.token_hex(4).encode())])
            return await store.list(prefix)

    with pytest.raises(StoreConflictError, match=r"changed during each reading for 0\.3 s"):
        await content.read_all(Restless(), kind="zk", settle_s=0.3)  # type: ignore[arg-type]


async def test_empty_store_has_nothing_to_dump(lab: Lab, store: Store) -> None:
    with pytest.raises(NotFoundError, match="holds no cluster"):
        await take(store, kind=kind_of(lab), say=quiet)


async def test_half_a_store_is_not_dumped(lab: Lab, store: Store) -> None:
    values = stored.cluster()
    values[records.META] = records.with_transition(
        values[records.META], Transition(Phase.FILLING, "x")
    )
    await put(store, values)
    with pytest.raises(ConflictError, match="being filled"):
        await take(store, kind=kind_of(lab), say=quiet)


async def test_foreign_keys_are_left_out_and_named(lab: Lab, store: Store) -> None:
    await put(store, stored.cluster() | {"else/where": b"x"})
    said: list[str] = []
    taken = await take(store, kind=kind_of(lab), say=said.append)
    assert "else/where" not in taken
    assert said == ["left out, as they are not pyvxlan's: else/where"]


# The fence


async def test_change_under_another_meta_is_tried_with_the_new_one(store: Store) -> None:
    await put(store, stored.cluster())
    fenced = ClusterStore(store)
    await fenced.txn([], [Write("cfg", b"1")])
    await put(store, {records.META: stored.cluster()[records.META]})
    await fenced.txn([], [Write("cfg", b"2")])
    assert (await held(store))["cfg"] == b"2"


async def test_conflict_of_its_own_is_the_callers(store: Store) -> None:
    await put(store, stored.cluster())
    fenced = ClusterStore(store)
    with pytest.raises(StoreConflictError):
        await fenced.txn([Check(records.POOLS, ABSENT)], [Write("cfg", b"1")])


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("phase", [Phase.FILLING, Phase.MOVED, Phase.FROZEN])
async def test_nothing_changes_in_a_store_that_is_held(
    store: Store, phase: Phase, known: bool
) -> None:
    values = stored.cluster()
    await put(store, values)
    fenced = ClusterStore(store)
    if known:
        await fenced.txn([], [Write("cfg", b"1")])
    session = await store.session(15)
    keeper = Write(records.MOVE_KEEPER, b'"x"', bound=True)
    meta = records.with_transition(values[records.META], Transition(phase, "x", "sqlite:///other"))
    await store.txn([], [Write(records.META, meta), keeper], session=session)
    before = await held(store)
    with pytest.raises(StoreUnavailableError):
        await fenced.txn([], [Write("cfg", b"2")])
    assert await held(store) == before


async def test_freeze_ends_with_its_keeper(store: Store) -> None:
    values = stored.cluster()
    await put(store, values)
    meta = records.with_transition(values[records.META], Transition(Phase.FROZEN, "x", "to"))
    await put(store, {records.META: meta})
    await ClusterStore(store).txn([], [Write("cfg", b"2")])
    found = await held(store)
    assert found["cfg"] == b"2"
    assert found[records.META] == values[records.META]
