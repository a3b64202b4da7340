"""The SQLite file: shared by processes, deleted, damaged, full, and over a reboot."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pyvxlan.daemon.errors import (
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import ABSENT, PRESENT, Check, Delete, Live, Put, Snapshot, Stale, Write
from pyvxlan.daemon.kv.embedded import EmbeddedStore
from pyvxlan.daemon.kv.open import open_store
from tests.kv.conftest import eventually
from tests.kv.labs.local import SqliteLab
from tests.kv.mirror import Mirror

WRITER = """
import asyncio, pathlib, sys, time
from pyvxlan.daemon.kv import Write
from pyvxlan.daemon.kv.embedded import EmbeddedStore

async def main(path, count):
    store = await EmbeddedStore.open(pathlib.Path(path))
    print("ready", flush=True)
    for _ in range(count):
        sys.stdin.readline()
        await store.txn([], [Write("tick/now", str(time.monotonic()).encode())])
    await store.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
COUNTER = """
import asyncio, pathlib, sys
from pyvxlan.daemon.errors import StoreConflictError
from pyvxlan.daemon.kv import Check, Write
from pyvxlan.daemon.kv.embedded import EmbeddedStore

async def main(path, count):
    store = await EmbeddedStore.open(pathlib.Path(path))
    while count:
        item = await store.get("counter")
        try:
            value = str(int(item.value) + 1).encode()
            await store.txn([Check("counter", item.revision)], [Write("counter", value)])
            count -= 1
        except StoreConflictError:
            pass
    await store.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def process(script: str, *args: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        *map(str, args),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def test_another_process_sees_a_change_within_50_ms(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "store.db")
    writer = await process(WRITER, tmp_path / "store.db", 20)
    assert writer.stdin
    assert writer.stdout
    await writer.stdout.readline()
    delays_s = []
    watch = store.watch("tick/")
    assert isinstance(await anext(watch), Snapshot)
    for _ in range(20):
        writer.stdin.write(b"\n")
        await writer.stdin.drain()
        event = await anext(watch)
        assert isinstance(event, Put)
        delays_s.append(time.monotonic() - float(event.item.value))
    assert await writer.wait() == 0
    await store.close()
    # The time stamp is taken before the commit; the median leaves out a busy machine's moments.
    assert sorted(delays_s)[10] < 0.05


async def test_processes_that_share_a_file_lose_no_increment(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "store.db")
    await store.txn([], [Write("counter", b"0")])
    counters = [await process(COUNTER, tmp_path / "store.db", 25) for _ in range(3)]
    assert [await counter.wait() for counter in counters] == [0, 0, 0]
    item = await store.get("counter")
    assert item is not None
    assert item.value == b"75"
    await store.close()


async def test_idle_store_uses_no_cpu(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "store.db")
    mirrors = [Mirror(store, f"{number}/") for number in range(20)]
    await mirrors[-1].until(lambda: bool(mirrors[-1].events))
    before = time.process_time()
    await asyncio.sleep(2)
    assert time.process_time() - before < 0.1
    for mirror in mirrors:
        await mirror.stop()
    await store.close()


async def test_file_is_its_owners_alone(sqlite_lab: SqliteLab) -> None:
    await (await sqlite_lab.open()).txn([], [Write("a", b"1")])
    for path in sqlite_lab.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_data_outlives_the_store(sqlite_lab: SqliteLab) -> None:
    first = await sqlite_lab.open()
    await first.txn([], [Write("a", b"1")])
    before = await first.get("a")
    await first.close()
    assert await (await sqlite_lab.open()).get("a") == before


async def test_reboot_expires_every_session(sqlite_lab: SqliteLab) -> None:
    owner = await sqlite_lab.open()
    session = await owner.session(10)
    await owner.txn([], [Write("alive", b"1", bound=True), Write("host", b"1")], session=session)
    await owner.close()
    sqlite_lab.boot_id = "second boot"
    sqlite_lab.time_s = 1.0
    after = await sqlite_lab.open()
    assert set(await after.list("")) == {"host"}


async def test_session_of_a_killed_process_survives_until_its_deadline(
    sqlite_lab: SqliteLab,
) -> None:
    owner = await sqlite_lab.open()
    session = await owner.session(10)
    await owner.txn([], [Write("alive", b"1", bound=True)], session=session)
    await owner.close()
    await sqlite_lab.pass_time(9)
    other = await sqlite_lab.open()
    assert await other.get("alive") is not None


async def test_deleted_file_is_reported_and_made_anew(sqlite_lab: SqliteLab) -> None:
    store = await sqlite_lab.open()
    await store.txn([], [Write("a", b"1")])
    session = await store.session(10)
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events))
    for path in sqlite_lab.path.parent.iterdir():
        path.unlink()
    await mirror.until(lambda: isinstance(mirror.events[-1], Live))
    stale, snapshot, _ = mirror.events[1:]
    assert isinstance(stale, Stale)
    assert str(sqlite_lab.path) in stale.reason
    assert isinstance(snapshot, Snapshot)
    assert snapshot.items == {}
    async with asyncio.timeout(5):
        await session.lost()
    await store.txn([], [Write("b", b"2")])
    await mirror.until(lambda: mirror.values == {"b": b"2"})
    assert sqlite_lab.path.exists()
    await mirror.stop()


async def test_nothing_is_written_to_a_deleted_file(sqlite_lab: SqliteLab) -> None:
    store = await sqlite_lab.open()
    await store.txn([], [Write("a", b"1")])
    item = await store.get("a")
    assert item is not None
    sqlite_lab.path.unlink()
    with pytest.raises(StoreError):
        await store.txn([Check("a", item.revision)], [Write("a", b"2")])
    await eventually(sqlite_lab.path.exists)
    with pytest.raises(StoreError):
        await store.txn([Check("a", item.revision)], [Write("a", b"2")])


async def test_others_notice_a_replaced_file_too(sqlite_lab: SqliteLab) -> None:
    one, other = await sqlite_lab.open(), await sqlite_lab.open()
    mirrors = [Mirror(one, ""), Mirror(other, "")]
    for mirror in mirrors:
        await mirror.until(lambda mirror=mirror: bool(mirror.events))  # type: ignore[misc]
    for path in sqlite_lab.path.parent.iterdir():
        path.unlink()
    for mirror in mirrors:
        await mirror.until(lambda mirror=mirror: isinstance(mirror.events[-1], Live))  # type: ignore[misc]
    await one.txn([], [Write("a", b"1")])
    for mirror in mirrors:
        await mirror.until(lambda mirror=mirror: mirror.values == {"a": b"1"})  # type: ignore[misc]
        await mirror.stop()


async def test_full_disk_is_reported_and_survived(sqlite_lab: SqliteLab) -> None:
    store = await sqlite_lab.open()
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events))

    def limit(pages: int) -> None:
        connection = store._database._connection
        assert connection is not None
        connection.execute(f"PRAGMA max_page_count = {pages}")

    await store._call(lambda: limit(1))
    with pytest.raises(StoreUnavailableError, match=r"store\.db: the disk is full: free some"):
        await store.txn([], [Write("big", bytes(60_000))])
    await store._call(lambda: limit(1_000_000))
    await mirror.until(lambda: isinstance(mirror.events[-1], Live))
    assert isinstance(mirror.events[1], Stale)
    assert await store.get("big") is None
    await store.txn([], [Write("big", bytes(60_000))])
    await mirror.until(lambda: "big" in mirror.values)
    await mirror.stop()


async def test_change_that_may_not_be_on_disk_is_uncertain(
    sqlite_lab: SqliteLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await sqlite_lab.open()

    def fails(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(StoreUncertainError, match=r"store\.db: what was .* not be on disk"):
        await store.txn([], [Write("a", b"1")])
    monkeypatch.undo()
    await store.txn([Check("a", PRESENT)], [Write("a", b"2")])


async def test_only_what_was_written_waits_for_the_disk(
    sqlite_lab: SqliteLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await sqlite_lab.open()
    log = sqlite_lab.path.with_name(f"{sqlite_lab.path.name}-wal")
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_ino))
    await store.txn([Check("a", ABSENT)], [Write("a", b"1")])
    assert synced == [log.stat().st_ino]
    with pytest.raises(StoreConflictError):
        await store.txn([Check("a", ABSENT)], [Write("a", b"1")])
    await store.get("a")
    assert len(synced) == 1


@asynccontextmanager
async def held_up(store: EmbeddedStore) -> AsyncIterator[None]:
    """Keeps the store's thread busy, so that what is asked meanwhile waits for the end."""
    go_on = threading.Event()
    holding = asyncio.create_task(store._call(go_on.wait))
    try:
        yield
        await asyncio.sleep(0.01)  # so that what was begun as a task is asked
    finally:
        go_on.set()
    await holding


async def test_what_waits_at_once_shares_one_write_to_the_disk(
    sqlite_lab: SqliteLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await sqlite_lab.open()
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    async with held_up(store):
        claims = [
            asyncio.create_task(
                store.txn(
                    [Check("claim", ABSENT)], [Write("claim", b"%d" % n), Write(f"n/{n}", b"")]
                )
            )
            for n in range(8)
        ]
        others = [asyncio.create_task(store.txn([], [Write(f"m/{n}", b"")])) for n in range(8)]
    outcomes = await asyncio.gather(*claims, return_exceptions=True)
    await asyncio.gather(*others)
    assert len(synced) == 1
    assert [type(outcome) for outcome in outcomes] == [type(None)] + 7 * [StoreConflictError]
    items = await store.list("")
    assert items.keys() == {"claim", "n/0", *(f"m/{n}" for n in range(8))}
    assert items["claim"].value == b"0"
    assert len({items[f"m/{n}"].revision for n in range(8)}) == 8


async def test_what_shares_a_write_that_fails_is_told_so_alike(
    sqlite_lab: SqliteLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await sqlite_lab.open()

    def fails(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fails)
    async with held_up(store):
        asked = [asyncio.create_task(store.txn([], [Write(f"{n}", b"")])) for n in range(4)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == 4 * [StoreUncertainError]


async def test_what_was_given_up_while_it_waited_is_not_applied(sqlite_lab: SqliteLab) -> None:
    store = await sqlite_lab.open()
    async with held_up(store):
        first = asyncio.create_task(store.txn([], [Write("first", b"")]))
        given_up = asyncio.create_task(store.txn([], [Write("given-up", b"")]))
        await asyncio.sleep(0.01)
        given_up.cancel()
    await first
    assert (await store.list("")).keys() == {"first"}


async def test_damaged_file_is_reported_by_path_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"this is no database at all" * 1000)
    with pytest.raises(StoreError, match=r"store\.db: it is not a store: choose another path"):
        await EmbeddedStore.open(path)


@pytest.mark.parametrize(
    ("version", "told"), [(0, "is the database of another program"), (1, "it is not a store")]
)
async def test_database_of_another_program_is_refused_and_left_alone(
    tmp_path: Path, version: int, told: str
) -> None:
    path = tmp_path / "store.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"CREATE TABLE meta (a); PRAGMA user_version = {version}")
    with pytest.raises(StoreError, match=rf"store\.db:? {told}: choose another path"):
        await EmbeddedStore.open(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("meta",)]


async def test_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="format 99"):
        await EmbeddedStore.open(path)


async def test_path_that_can_not_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/store\.db: .*; check the path"):
        await EmbeddedStore.open(tmp_path / "file" / "store.db")


async def test_path_that_is_no_file_is_refused_and_gets_no_doorbell(tmp_path: Path) -> None:
    path = tmp_path / "directory"
    path.mkdir()
    with pytest.raises(StoreError, match="directory is no regular file"):
        await EmbeddedStore.open(path)
    assert list(tmp_path.iterdir()) == [path]


async def test_lock_held_by_another_process_delays_and_does_not_block_the_loop(
    sqlite_lab: SqliteLab,
) -> None:
    store = await sqlite_lab.open()
    await store.txn([], [Write("a", b"1")])
    holder = sqlite3.connect(sqlite_lab.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(store.txn([], [Write("b", b"1")]))
    started = time.monotonic()
    await asyncio.sleep(0.05)
    assert time.monotonic() - started < 1
    assert not writing.done()
    holder.execute("COMMIT")
    holder.close()
    await writing
    assert await store.get("b") is not None


async def test_lost_doorbell_only_delays(sqlite_lab: SqliteLab) -> None:
    one, other = await sqlite_lab.open(), await sqlite_lab.open()
    mirror = Mirror(other, "")
    await mirror.until(lambda: bool(mirror.events))
    one._database.bell.unlink()
    await one.txn([], [Write("a", b"1")])
    await mirror.until(lambda: "a" in mirror.values)
    await one.txn([], [Write("b", b"1"), Delete("a")])
    await mirror.until(lambda: mirror.values == {"b": b"1"})
    await mirror.stop()


async def test_revisions_never_repeat_after_the_file_was_made_anew(sqlite_lab: SqliteLab) -> None:
    seen = set()
    for _ in range(3):
        store = await sqlite_lab.open()
        for number in range(5):
            await store.txn([Check(f"k/{number}", ABSENT)], [Write(f"k/{number}", b"x")])
        seen |= {item.revision for item in (await store.list("")).values()}
        await store.close()
        for path in sqlite_lab.path.parent.iterdir():
            path.unlink()
    assert len(seen) == 15


async def test_url_leads_to_the_store(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:///{tmp_path}/a%20b.db")
    assert (await store.health()).kind == "sqlite"
    assert os.path.exists(tmp_path / "a b.db")
    await store.close()
    assert (await (await open_store("memory:")).health()).kind == "memory"
