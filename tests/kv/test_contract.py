"""What every store promises. New stores join by a `Lab` in conftest.py."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from pyvxlan.daemon.errors import StoreConflictError, StoreError, StoreUnavailableError
from pyvxlan.daemon.kv import (
    ABSENT,
    PRESENT,
    Check,
    Delete,
    Live,
    Put,
    Removal,
    Snapshot,
    Store,
    Write,
)
from tests.kv.conftest import eventually
from tests.kv.labs.lab import Lab
from tests.kv.mirror import Mirror

SESSION_DEAD_S = 40.0
"""By when a key of a session of 10 s must be gone: twice its TTL, 10 s more, and some slack."""


async def put(store: Store, key: str, value: bytes = b"1") -> None:
    await store.txn([], [Write(key, value)])


async def revision(store: Store, key: str) -> int:
    item = await store.get(key)
    assert item is not None
    return item.revision


async def test_of_eight_racers_one_creates_the_key(lab: Lab) -> None:
    stores = [await lab.open() for _ in range(8)]

    async def race(number: int) -> bool:
        try:
            await stores[number].txn([Check("a/b", ABSENT)], [Write("a/b", str(number).encode())])
        except StoreConflictError:
            return False
        return True

    won = await asyncio.gather(*(race(number) for number in range(8)))
    item = await stores[0].get("a/b")
    assert won.count(True) == 1
    assert item is not None
    assert item.value == str(won.index(True)).encode()


async def test_counter_by_compare_and_swap_loses_no_increment(lab: Lab) -> None:
    stores = [await lab.open() for _ in range(6)]
    await put(stores[0], "counter", b"0")

    async def add(store: Store) -> None:
        for _ in range(15):
            while True:
                item = await store.get("counter")
                assert item is not None
                value = str(int(item.value) + 1).encode()
                try:
                    await store.txn([Check("counter", item.revision)], [Write("counter", value)])
                except StoreConflictError:
                    continue
                break

    await asyncio.gather(*(add(store) for store in stores))
    item = await stores[0].get("counter")
    assert item is not None
    assert item.value == b"90"


async def test_failed_check_applies_nothing(store: Store) -> None:
    await put(store, "taken")
    ops = [Write("one", b"1"), Write("two", b"2"), Delete("taken")]
    with pytest.raises(StoreConflictError):
        await store.txn([Check("free", ABSENT), Check("taken", ABSENT)], ops)
    assert set(await store.list("")) == {"taken"}


async def test_all_kinds_of_checks_hold_together(store: Store) -> None:
    await put(store, "a")
    await put(store, "b")
    checks = [Check("a", PRESENT), Check("b", await revision(store, "b")), Check("c", ABSENT)]
    await store.txn(checks, [Write("c", b"3"), Delete("a")])
    assert set(await store.list("")) == {"b", "c"}
    with pytest.raises(StoreConflictError):
        await store.txn([Check("a", PRESENT)], [Write("d", b"4")])


async def test_checks_alone_are_a_transaction(store: Store) -> None:
    await store.txn([Check("a", ABSENT)], [])
    with pytest.raises(StoreConflictError):
        await store.txn([Check("a", PRESENT)], [])


async def test_write_is_read_by_others_at_once(lab: Lab) -> None:
    one, other = await lab.open(), await lab.open()
    for number in range(20):
        await put(one, "key", str(number).encode())
        item = await other.get("key")
        assert item is not None
        assert item.value == str(number).encode()


async def test_owner_record_fences_its_claims(store: Store) -> None:
    await store.txn([Check("ep/1", ABSENT)], [Write("ep/1", b"x"), Write("ip/1", b"1")])
    await store.txn([Check("ep/1", PRESENT)], [Delete("ep/1"), Delete("ip/1")])
    await store.txn([Check("ep/2", ABSENT)], [Write("ep/2", b"y"), Write("ip/1", b"2")])
    with pytest.raises(StoreConflictError):
        await store.txn([Check("ep/1", PRESENT)], [Delete("ep/1"), Delete("ip/1")])
    item = await store.get("ip/1")
    assert item is not None
    assert item.value == b"2"


async def test_token_from_before_a_new_creation_is_refused(store: Store) -> None:
    await put(store, "key")
    token = await revision(store, "key")
    await store.txn([], [Delete("key")])
    await put(store, "key")
    with pytest.raises(StoreConflictError):
        await store.txn([Check("key", token)], [Delete("key")])


async def test_deleting_what_is_not_there_does_nothing(store: Store) -> None:
    await store.txn([], [Delete("never")])
    assert await store.get("never") is None


async def test_list_takes_keys_and_prefix_literally(store: Store) -> None:
    for key in ("net/a", "net/b", "net", "network/a", "neu", "ne", "net/%2F~"):
        await put(store, key)
    assert list(await store.list("net/")) == ["net/%2F~", "net/a", "net/b"]
    assert list(await store.list("net")) == ["net", "net/%2F~", "net/a", "net/b", "network/a"]
    assert await store.get("net/%2F~")
    assert len(await store.list("")) == 7
    assert await store.list("nothing") == {}


async def test_watch_converges_over_random_operations(lab: Lab) -> None:
    random = Random(7)
    stores = [await lab.open() for _ in range(3)]
    mirrors = [Mirror(store, "k/") for store in stores]
    late: list[Mirror] = []
    for number in range(600):
        key = f"k/{random.randrange(40)}"
        op = Delete(key) if random.random() < 0.3 else Write(key, str(number).encode())
        await random.choice(stores).txn([], [op, Write("other/key", b"x")])
        if number == 300:
            late.append(Mirror(stores[0], "k/"))
    wanted = {key: item.value for key, item in (await stores[0].list("k/")).items()}
    for mirror in mirrors + late:
        await mirror.until(lambda mirror=mirror: mirror.values == wanted)  # type: ignore[misc]
        assert isinstance(mirror.events[0], Snapshot)
        await mirror.stop()


async def test_watch_tells_a_change_after_the_snapshot(store: Store) -> None:
    await put(store, "a/1")
    mirror = Mirror(store, "a/")
    await mirror.until(lambda: bool(mirror.events))
    await store.txn([], [Write("a/2", b"2"), Delete("a/1"), Write("b/1", b"3")])
    await mirror.until(lambda: mirror.values == {"a/2": b"2"})
    assert [type(event) for event in mirror.events] == [Snapshot, Put, Removal]
    await mirror.stop()


async def test_watch_tells_records_as_a_read_does(store: Store) -> None:
    await put(store, "a/1")
    watch = store.watch("a/")
    snapshot = await anext(watch)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.items["a/1"] == await store.get("a/1")
    await put(store, "a/1", b"2")
    event = await anext(watch)
    assert isinstance(event, Put)
    assert event.item == await store.get("a/1")


async def test_slow_watcher_gets_the_newest_value_only(store: Store) -> None:
    watch = store.watch("a/")
    assert isinstance(await anext(watch), Snapshot)
    for number in range(50):
        await put(store, "a/1", str(number).encode())
    mirror = Mirror(store, "a/")
    await mirror.until(lambda: mirror.values == {"a/1": b"49"})
    await asyncio.sleep(0.1)
    event = await anext(watch)
    assert isinstance(event, Put)
    assert event.item.value == b"49"
    await mirror.stop()


async def test_watch_goes_on_from_a_revision(lab: Lab) -> None:
    store = await lab.open()
    await put(store, "a/1")
    first = await anext(store.watch("a/"))
    assert isinstance(first, Snapshot)
    await put(store, "a/2", b"2")
    await store.txn([], [Delete("a/1")])
    await put(store, "b/1")
    mirror = Mirror(store, "a/", since=first.revision)
    if not lab.resumes:
        await mirror.until(lambda: mirror.values == {"a/2": b"2"})
        assert [type(event) for event in mirror.events] == [Snapshot]
        await mirror.stop()
        return
    await mirror.until(lambda: len(mirror.events) == 3)
    put_event, removal, live = mirror.events
    assert isinstance(live, Live)
    assert isinstance(put_event, Put)
    assert put_event.item.key == "a/2"
    assert isinstance(removal, Removal)
    assert removal.key == "a/1"
    await mirror.stop()


async def test_watch_that_goes_on_with_nothing_missed_says_so(lab: Lab) -> None:
    store = await lab.open()
    await put(store, "a/1")
    first = await anext(store.watch("a/"))
    assert isinstance(first, Snapshot)
    mirror = Mirror(store, "a/", since=first.revision)
    await mirror.until(lambda: bool(mirror.events))
    assert isinstance(mirror.events[0], Live if lab.resumes else Snapshot)
    await mirror.stop()


async def test_watch_from_a_forgotten_revision_begins_with_a_snapshot(lab: Lab) -> None:
    store = await lab.open()
    await put(store, "a/1")
    first = await anext(store.watch("a/"))
    assert isinstance(first, Snapshot)
    await put(store, "a/2", b"2")
    await lab.forget()
    mirror = Mirror(store, "a/", since=first.revision)
    await mirror.until(lambda: bool(mirror.events))
    assert isinstance(mirror.events[0], Snapshot)
    assert set(mirror.values) == {"a/1", "a/2"}
    await mirror.stop()


async def test_watch_from_an_unknown_revision_begins_with_a_snapshot(store: Store) -> None:
    await put(store, "a/1")
    mirror = Mirror(store, "a/", since=2**60)
    await mirror.until(lambda: mirror.values == {"a/1": b"1"})
    assert isinstance(mirror.events[0], Snapshot)
    await mirror.stop()


async def test_watch_ends_when_the_store_closes(lab: Lab) -> None:
    store = await lab.open()
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events))
    await store.close()
    await mirror.until(lambda: mirror.ended)


async def test_closed_store_refuses_everything(lab: Lab) -> None:
    store = await lab.open()
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailableError):
        await store.get("a")
    with pytest.raises(StoreUnavailableError):
        await put(store, "a")


async def test_bound_key_dies_with_its_owner(lab: Lab) -> None:
    owner, other = await lab.open(), await lab.open()
    session = await owner.session(10)
    await owner.txn(
        [], [Write("alive/1", b"x", bound=True), Write("host/1", b"x")], session=session
    )
    mirror = Mirror(other, "")
    await mirror.until(lambda: "alive/1" in mirror.values)
    await lab.silence(owner)
    await lab.pass_time(6)
    await asyncio.sleep(0.1)
    assert "alive/1" in mirror.values
    await lab.pass_time(5)
    await mirror.until(lambda: set(mirror.values) == {"host/1"}, within_s=SESSION_DEAD_S)
    assert await other.get("alive/1") is None
    await mirror.stop()


async def test_store_keeps_its_sessions_alive(lab: Lab) -> None:
    owner, other = await lab.open(), await lab.open()
    session = await owner.session(10)
    await owner.txn([], [Write("alive/1", b"x", bound=True)], session=session)
    for _ in range(3):
        await lab.pass_time(5)
        before = session.valid_until
        await eventually(lambda before=before: session.valid_until > before)  # type: ignore[misc]
    assert await other.get("alive/1") is not None


async def test_owner_learns_that_its_session_expired(lab: Lab) -> None:
    owner = await lab.open()
    session = await owner.session(10)
    await owner.txn([], [Write("alive/1", b"x", bound=True)], session=session)
    await lab.expire(owner)
    async with asyncio.timeout(15):
        await session.lost()
    assert await owner.get("alive/1") is None
    with pytest.raises(StoreConflictError):
        await owner.txn([], [Write("alive/1", b"y", bound=True)], session=session)
    assert await owner.get("alive/1") is None


async def test_closing_a_session_deletes_its_keys(lab: Lab) -> None:
    owner = await lab.open()
    session = await owner.session(10)
    await owner.txn([], [Write("a", b"x", bound=True), Write("b", b"x")], session=session)
    await session.close()
    await session.close()
    assert set(await owner.list("")) == {"b"}


async def test_key_written_anew_without_a_session_outlives_it(lab: Lab) -> None:
    owner = await lab.open()
    session = await owner.session(10)
    await owner.txn([], [Write("a", b"x", bound=True)], session=session)
    await put(owner, "a", b"y")
    await session.close()
    assert set(await owner.list("")) == {"a"}


async def test_no_refused_write_arrives_later(store: Store) -> None:
    mirror = Mirror(store, "")
    await put(store, "held")
    for number in range(20):
        with pytest.raises(StoreConflictError):
            await store.txn([Check("held", ABSENT)], [Write(f"late/{number}", b"x")])
    await asyncio.sleep(0.1)
    assert set(await store.list("")) == {"held"}
    assert set(mirror.values) == {"held"}
    await mirror.stop()


async def test_value_of_64_kib_is_kept_and_a_longer_one_refused(store: Store) -> None:
    value = bytes(range(256)) * 256
    await put(store, "big", value)
    item = await store.get("big")
    assert item is not None
    assert item.value == value
    with pytest.raises(StoreError, match="65537 bytes"):
        await put(store, "big", value + b"x")


async def test_thirty_operations_are_one_transaction(store: Store) -> None:
    mirror = Mirror(store, "")
    await store.txn([], [Write(f"k/{number}", b"x") for number in range(30)])
    assert len(await store.list("k/")) == 30
    assert len({item.revision for item in (await store.list("k/")).values()}) == 1
    await mirror.until(lambda: len(mirror.values) == 30)
    await mirror.stop()
    with pytest.raises(StoreError, match="33 checks and operations"):
        await store.txn([], [Write(f"k/{number}", b"x") for number in range(33)])


async def test_ten_thousand_keys_are_listed_and_watched(store: Store) -> None:
    keys = [f"ep/{number:05}" for number in range(10_000)]
    for start in range(0, len(keys), 32):
        await store.txn([], [Write(key, b"x" * 100) for key in keys[start : start + 32]])
    assert list(await store.list("ep/")) == keys
    first = await anext(store.watch("ep/"))
    assert isinstance(first, Snapshot)
    assert len(first.items) == 10_000


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "a/../b", ".", "a b", "ä", "a\n", "x" * 600]
)
async def test_key_that_some_store_could_not_hold_is_refused(store: Store, key: str) -> None:
    with pytest.raises(StoreError, match="key"):
        await put(store, key)


async def test_misuse_is_refused_before_anything_is_written(store: Store) -> None:
    with pytest.raises(StoreError, match="bound to a session"):
        await store.txn([], [Write("a", b"x", bound=True)])
    with pytest.raises(StoreError, match="at most once"):
        await store.txn([], [Write("a", b"x"), Delete("a")])
    with pytest.raises(StoreError, match="at least 10 s"):
        await store.session(1)
    assert await store.list("") == {}


async def test_cancelled_watch_leaves_the_store_usable(store: Store) -> None:
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events))
    await mirror.stop()
    await put(store, "a")
    assert await store.get("a") is not None
    assert Live not in map(type, mirror.events)


async def test_healthy_store_says_so(store: Store) -> None:
    health = await store.health()
    assert health.members
    assert [member.error for member in health.members] == [""] * len(health.members)
    assert all(member.latency_s is not None for member in health.members)
