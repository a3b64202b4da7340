"""What every remote store does when its server fails; each test has a server of its own.

A store joins by a line in `REMOTES` in conftest.py.
"""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from pyroute2 import NetNS

from pyvxlan.daemon import kv
from pyvxlan.daemon.errors import StoreConflictError, StoreError, StoreUnavailableError
from pyvxlan.daemon.kv import Live, Snapshot, Stale, Store, Write
from pyvxlan.daemon.kv.open import open_store
from tests.kv.conftest import REMOTES
from tests.kv.mirror import Mirror
from tests.servers.island import Island
from tests.servers.process import Server

NOTICED_S = 12.0
"""By when an outage must be told, and every call have ended."""
HEALED_S = 5.0
"""By when all is well again after the server is back."""
SESSION_S = 10.0
SESSION_DEAD_S = 2 * SESSION_S + 15

Opener = Callable[[Server], Awaitable[Store]]


@pytest.fixture(params=list(REMOTES))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def server(kind: str, tmp_path: Path) -> Iterator[Server]:
    with REMOTES[kind](tmp_path / "server") as server:
        yield server


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Opens stores, and closes them at the end."""
    stores: list[Store] = []

    async def open_(server: Server) -> Store:
        stores.append(await open_store(server.url))
        return stores[-1]

    yield open_
    for store in stores:
        await store.close()


async def outcome(call: Awaitable[object]) -> type[BaseException] | None:
    """The kind of error with which a call ended; it must end in time, and with one of ours."""
    async with asyncio.timeout(NOTICED_S):
        try:
            await call
        except StoreError as error:
            return type(error)
    return None


def live(mirror: Mirror) -> bool:
    """Whether a watch has said that all is well since it last said that it is not."""
    told = [event for event in mirror.events if isinstance(event, (Stale, Live))]
    return not told or isinstance(told[-1], Live)


async def test_store_is_opened_while_its_server_is_down(server: Server, opened: Opener) -> None:
    server.kill()
    store = await opened(server)
    assert await outcome(store.get("a")) is StoreUnavailableError
    assert await outcome(store.txn([], [Write("a", b"0")])) is StoreUnavailableError
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events), within_s=NOTICED_S)
    assert isinstance(mirror.events[0], Stale)
    await asyncio.to_thread(server.start)
    await mirror.until(lambda: live(mirror), within_s=HEALED_S)
    assert [type(event) for event in mirror.events] == [Stale, Snapshot, Live]
    await store.txn([], [Write("a", b"1")])
    await mirror.until(lambda: mirror.values == {"a": b"1"})
    await mirror.stop()


async def test_watch_goes_on_when_a_killed_server_is_back(server: Server, opened: Opener) -> None:
    store = await opened(server)
    await store.txn([], [Write("a", b"1"), Write("b", b"1")])
    mirror, empty = Mirror(store, ""), Mirror(store, "nothing/")
    await mirror.until(lambda: bool(mirror.events and empty.events))
    server.kill()
    await mirror.until(lambda: len(mirror.seen(Stale)) == 1, within_s=NOTICED_S)
    assert await outcome(store.get("a")) is StoreUnavailableError
    await asyncio.to_thread(server.start)
    await mirror.until(lambda: live(mirror) and live(empty), within_s=HEALED_S)
    assert mirror.values == {"a": b"1", "b": b"1"}
    await store.txn([], [Write("a", b"2"), Write("nothing/yet", b"1")])
    await mirror.until(lambda: mirror.values.get("a") == b"2")
    await empty.until(lambda: empty.values == {"nothing/yet": b"1"})
    told = [event for event in mirror.seen(Stale) if isinstance(event, Stale) and not event.anew]
    assert len(told) == 1
    await mirror.stop()
    await empty.stop()


async def test_frozen_server_is_noticed_and_no_refused_write_arrives_later(
    server: Server, opened: Opener
) -> None:
    store = await opened(server)
    await store.txn([], [Write("a", b"1")])
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events))
    server.freeze()
    frozen_at = time.monotonic()
    writes = [outcome(store.txn([], [Write(f"late/{n}", b"x")])) for n in range(4)]
    first = await asyncio.gather(*writes, outcome(store.get("a")))
    assert first[-1] is StoreUnavailableError
    await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=NOTICED_S)
    writes = [outcome(store.txn([], [Write(f"late/{n}", b"x")])) for n in range(4, 8)]
    second = await asyncio.gather(*writes)
    await asyncio.sleep(max(0.0, frozen_at + 10 - time.monotonic()))
    server.thaw()
    await mirror.until(lambda: live(mirror), within_s=HEALED_S)
    await store.txn([], [Write("a", b"2")])
    await mirror.until(lambda: mirror.values["a"] == b"2")
    await asyncio.sleep(1)
    ends = [*first[:-1], *second]
    assert None not in ends
    refused = {f"late/{n}" for n, end in enumerate(ends) if end is StoreUnavailableError}
    assert refused.isdisjoint(mirror.values)
    assert {key: item.value for key, item in (await store.list("")).items()} == mirror.values
    await mirror.stop()


async def test_wiped_store_is_told_as_a_new_one(server: Server, opened: Opener) -> None:
    store = await opened(server)
    session = await store.session(SESSION_S)
    await store.txn([], [Write("alive", b"1", bound=True), Write("a", b"1")], session=session)
    mirror, since = Mirror(store, ""), (await anext(store.watch("a")))
    await mirror.until(lambda: set(mirror.values) == {"a", "alive"})
    server.kill()
    server.wipe()
    await asyncio.to_thread(server.start)
    await mirror.until(lambda: mirror.values == {} and live(mirror), within_s=NOTICED_S)
    async with asyncio.timeout(SESSION_DEAD_S):
        await session.lost()
    assert await outcome(store.txn([], [Write("b", b"1")], session=session)) is StoreConflictError
    await store.txn([], [Write("a", b"2")])
    await mirror.until(lambda: mirror.values == {"a": b"2"})
    assert isinstance(since, Snapshot)
    later = Mirror(store, "a", since=since.revision)
    await later.until(lambda: later.values == {"a": b"2"})
    await later.stop()
    await mirror.stop()


@pytest.mark.root
async def test_partition_longer_than_a_session(kind: str, tmp_path: Path, opened: Opener) -> None:
    with (
        Island() as island,
        REMOTES[kind](tmp_path / "server", address=island.address, netns=island.name) as server,
    ):
        store = await opened(server)
        session = await store.session(SESSION_S)
        ops = [Write("alive", b"1", bound=True), Write("kept", b"1"), Write("going", b"1")]
        await store.txn([], ops, session=session)
        mirror = Mirror(store, "")
        await mirror.until(lambda: "kept" in mirror.values)
        island.cut()
        visitor = asyncio.create_task(
            island.visit(server, puts="gap/1 gap/2", deletes="going", gone="alive")
        )
        ended = await outcome(store.txn([], [Write("late", b"x")], session=session))
        assert ended is not None
        await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=NOTICED_S)
        assert mirror.values.keys() == {"alive", "kept", "going"}
        await visitor
        assert time.monotonic() > session.valid_until
        island.heal()
        await mirror.until(lambda: live(mirror), within_s=HEALED_S)
        assert set(mirror.values) - {"late"} == {"kept", "gap/1", "gap/2"}
        assert ended is not StoreUnavailableError or "late" not in mirror.values
        async with asyncio.timeout(HEALED_S):
            await session.lost()
        end = await outcome(store.txn([], [Write("b", b"1", bound=True)], session=session))
        assert end is StoreConflictError
        await mirror.stop()
        await store.close()


@pytest.mark.root
async def test_process_may_fork_while_it_watches(server: Server, opened: Opener) -> None:
    store = await opened(server)
    session = await store.session(SESSION_S)
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events))
    with Island() as island:

        def look() -> None:
            with NetNS(island.name) as netns:
                assert len(netns.get_links()) == 2

        for number in range(40):
            await store.txn([], [Write("turn", str(number).encode())], session=session)
            await asyncio.to_thread(look)
        await mirror.until(lambda: mirror.values == {"turn": b"39"})
    assert mirror.seen(Stale) == []
    assert session.valid_until > time.monotonic()
    await mirror.stop()


def test_no_store_reads_a_clock_that_can_be_set() -> None:
    """A jump of the wall clock can't end a session or prolong one, as nobody looks at it.

    The mirror only tells people when it was last written.
    """
    banned = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}
    (directory,) = kv.__path__
    modules = sorted(set(Path(directory).rglob("*.py")) - {Path(directory, "mirror.py")})
    assert len(modules) > 10
    found = [
        f"{path.name}:{node.lineno}"
        for path in modules
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in banned
    ]
    assert found == []
