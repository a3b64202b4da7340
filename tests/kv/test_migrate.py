"""A cluster moves to another store while its hosts run, from and to every kind of store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from pyvxlan.daemon import clusterstore, records
from pyvxlan.daemon.clusterstore import ClusterStore
from pyvxlan.daemon.errors import ConflictError, DaemonError, StoreUnavailableError
from pyvxlan.daemon.kv import Check, Delete, Session, Store, Write
from pyvxlan.daemon.kv.mirror import Mirror
from pyvxlan.daemon.model import Network
from pyvxlan.daemon.records import Phase, Transition
from pyvxlan.daemon.requests import EndpointSpec, NetworkSpec
from pyvxlan.daemon.upkeep import integrity, migrate
from pyvxlan.daemon.upkeep.migrate import Move
from tests.kv.labs.lab import Lab
from tests.kv.labs.local import SqliteLab
from tests.unit.cluster import MemoryNet, Node
from tests.unit.memory_net import hex_id


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that only spare the store."""
    monkeypatch.setattr(clusterstore, "RETRY_S", 0.05)
    monkeypatch.setattr(migrate, "POLL_S", 0.02)


class CutError(Exception):
    """The process that moves the cluster is killed here."""


class Budget:
    """How many transactions are left, and whether the last one is applied."""

    def __init__(self, left: int, *, applied: bool) -> None:
        self.left = left
        self.applied = applied


class Cutting:
    """A store whose user is killed; what it holds with a session is left to expire."""

    def __init__(self, store: Store, budget: Budget) -> None:
        self._store = store
        self._budget = budget
        self.get, self.list = store.get, store.list

    async def session(self, ttl_s: float) -> Session:
        return await self._store.session(ttl_s)

    async def txn(self, checks, ops, *, session=None) -> None:  # type: ignore[no-untyped-def]
        self._budget.left -= 1
        if self._budget.left < 0 and not self._budget.applied:
            raise CutError
        await self._store.txn(checks, ops, session=session)
        if self._budget.left < 0:
            raise CutError


class World:
    """Two labs, and hosts that use the one that their cluster is in."""

    def __init__(self, one: Lab, other: Lab, directory: Path) -> None:
        self.labs = {url_of(one, "one"): one, url_of(other, "other"): other}
        self.one, self.other = self.labs
        self.directory = directory
        self.nodes: list[Node] = []
        self.refused: dict[int, str] = {}
        self.made: set[str] = set()
        """Endpoints that a host was told are there."""
        self.said: list[str] = []
        self.creating = 0
        self.open = asyncio.Event()
        """Cleared to let no host create anything."""
        self.open.set()

    def opener(self, number: int) -> Callable[[str], Awaitable[Store]]:
        async def open_lab(url: str) -> Store:
            if why := self.refused.get(number):
                raise DaemonError(why)
            return await self.labs[url].open()

        return open_lab

    async def start(self, number: int, url: str = "") -> Node:
        directory = self.directory / f"host{number}"
        directory.mkdir(exist_ok=True)
        (directory / "host-id").write_text(hex_id(0xB00 + number))
        store = await ClusterStore.open(
            url or self.one, host_id=hex_id(0xB00 + number), opener=self.opener(number)
        )
        mirror = await Mirror.open(directory / "mirror.db", store.url)
        node = Node(store, mirror, MemoryNet(), directory, number)
        self.nodes.append(node)
        await node.start()
        return node

    async def move(
        self, source: str, target: str, *, replace: bool = False, budget: Budget | None = None
    ) -> str:
        stores = [await self.labs[url].open() for url in (source, target)]
        if budget:
            stores = [Cutting(store, budget) for store in stores]  # type: ignore[misc]
        return await Move(*stores, source, target, self.said.append).run(replace=replace)

    async def abort(self, source: str, target: str) -> str:
        stores = [await self.labs[url].open() for url in (source, target)]
        return await Move(*stores, source, target, self.said.append).abort()

    async def held(self, url: str) -> dict[str, bytes]:
        store = await self.labs[url].open()
        return {key: item.value for key, item in (await store.list("")).items()}

    async def transition(self, url: str) -> Transition | None:
        return records.parse_meta((await self.held(url))[records.META]).transition

    async def create(self, node: Node, network: Network) -> None:
        await self.open.wait()
        self.creating += 1
        try:
            made = await node.service.create_endpoint(network.id, EndpointSpec())
        finally:
            self.creating -= 1
        self.made.add(records.endpoint_key(network.id, made.id))

    async def at_rest(self, url: str) -> dict[str, bytes]:
        """All of a store, read while no host creates anything: not every store shows one moment."""
        self.open.clear()
        try:
            while self.creating:
                await asyncio.sleep(0.01)
            return await self.held(url)
        finally:
            self.open.set()

    async def settled(self, url: str) -> None:
        """Returns when every host is registered in a store; all of it must be whole there."""
        async with asyncio.timeout(10):
            for node in self.nodes:
                while not await self._registered(node, url):
                    await asyncio.sleep(0.01)
        made = set(self.made)
        found = await self.at_rest(url)
        assert made <= found.keys()
        assert integrity.errors(found) == []
        assert await self.transition(url) is None

    async def _registered(self, node: Node, url: str) -> bool:
        try:
            await node.membership.confirm()
        except DaemonError:
            return False
        return node.store.url == url and node.state.synced  # type: ignore[attr-defined,no-any-return]

    async def close(self) -> None:
        for node in self.nodes:
            await node.stop()


def url_of(lab: Lab, name: str) -> str:
    return f"sqlite:////{name}" if lab.snapshots else f"zk://{name}"


@pytest.fixture
async def second(tmp_path: Path) -> AsyncIterator[SqliteLab]:
    lab = SqliteLab(tmp_path / "second" / "store.db")
    yield lab
    await lab.close()


@pytest.fixture(params=["from", "to"])
async def world(
    request: pytest.FixtureRequest, lab: Lab, second: SqliteLab, tmp_path: Path
) -> AsyncIterator[World]:
    labs = (lab, second) if request.param == "from" else (second, lab)
    made = World(*labs, tmp_path / "hosts")
    made.directory.mkdir()
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def busy(world: World, network: Network) -> AsyncIterator[None]:
    """Every host goes on making endpoints, and is told now and then to try again."""
    stop = asyncio.Event()

    async def work(node: Node) -> None:
        while not stop.is_set():
            try:
                await world.create(node, network)
            except DaemonError as error:
                if not error.retry:
                    raise
            await asyncio.sleep(0.01 if len(world.made) < 40 else 0.3)

    async with asyncio.TaskGroup() as group:
        for node in world.nodes:
            group.create_task(work(node))
        try:
            yield
        finally:
            stop.set()


async def test_hosts_go_with_their_cluster(world: World) -> None:
    one, two = await world.start(1), await world.start(2)
    network = await one.service.create_network(NetworkSpec("n1"))
    await world.create(one, network)
    before = await world.held(world.one)
    text = await world.move(world.one, world.other)
    assert text.startswith(f"moved to {world.other}: 1 network, 2 hosts, 1 endpoint; set it as")
    await world.settled(world.other)
    after = await world.held(world.other)
    bound = (records.ALIVE, records.READY, records.MOVE_KEEPER, records.META)
    assert {k: v for k, v in after.items() if not k.startswith(bound)} == {
        k: v for k, v in before.items() if not k.startswith(bound)
    }
    assert records.parse_meta(after[records.META]).cluster == (
        records.parse_meta(before[records.META]).cluster
    )
    await world.create(two, network)
    assert world.made <= (await world.held(world.other)).keys()
    assert not world.made <= (await world.held(world.one)).keys()


async def test_nothing_that_was_answered_is_lost(world: World) -> None:
    for number in (1, 2, 3):
        await world.start(number)
    network = await world.nodes[0].service.create_network(
        NetworkSpec("n1", subnets=("10.0.0.0/16",))
    )
    async with busy(world, network):
        await asyncio.sleep(0.3)
        await world.move(world.one, world.other)
        count = len(world.made)
        async with asyncio.timeout(10):
            while len(world.made) == count:
                await asyncio.sleep(0.01)
    await world.settled(world.other)


async def test_views_of_the_hosts_never_shrink(world: World) -> None:
    one, two = await world.start(1), await world.start(2)
    network = await one.service.create_network(NetworkSpec("n1"))
    for _ in range(5):
        await world.create(one, network)
    two.state.join(network.id)
    await two.until(lambda: len(two.state.endpoints[network.id]) == 5)
    seen: list[tuple[int, int, int]] = []

    async def look() -> None:
        while True:
            state = two.state
            seen.append((len(state.networks), len(state.hosts), len(state.endpoints[network.id])))
            await asyncio.sleep(0)

    task = asyncio.create_task(look())
    await world.move(world.one, world.other)
    await world.settled(world.other)
    task.cancel()
    assert set(seen) == {(1, 2, 5)}


async def test_cluster_can_go_back(world: World) -> None:
    one = await world.start(1)
    network = await one.service.create_network(NetworkSpec("n1"))
    await world.move(world.one, world.other)
    await world.settled(world.other)
    await world.create(one, network)
    with pytest.raises(ConflictError, match=r"not empty: it holds 1 network, 1 host, 0 endpoints"):
        await world.move(world.other, world.one)
    await world.settled(world.other)
    await world.move(world.other, world.one, replace=True)
    await world.settled(world.one)


async def test_move_that_is_done_may_be_repeated(world: World) -> None:
    await world.start(1)
    await world.move(world.one, world.other)
    await world.move(world.one, world.other)
    await world.settled(world.other)


@pytest.mark.parametrize("applied", [False, True], ids=["lost", "applied"])
async def test_move_that_was_killed_anywhere_is_finished_by_another(
    world: World, applied: bool
) -> None:
    for number in (1, 2):
        await world.start(number)
    network = await world.nodes[0].service.create_network(
        NetworkSpec("n1", subnets=("10.0.0.0/16",))
    )
    places = [world.one, world.other]
    cut = True
    step = 0
    async with busy(world, network):
        while cut:
            source, target = places
            cut = False
            try:
                await world.move(
                    source, target, replace=step > 0, budget=Budget(step, applied=applied)
                )
            except* CutError:
                cut = True
            count = len(world.made)
            async with asyncio.timeout(10):
                while len(world.made) < count + 2:
                    await asyncio.sleep(0.01)
            await world.move(source, target, replace=step > 0)
            await world.settled(target)
            places.reverse()
            step += 1
    assert step >= 6


async def test_freeze_that_its_keeper_left_ends_by_itself(world: World) -> None:
    one = await world.start(1)
    network = await one.service.create_network(NetworkSpec("n1"))
    lab = world.labs[world.one]
    keeper = await lab.open()
    session = await keeper.session(15)
    held = (await world.held(world.one))[records.META]
    frozen = records.with_transition(held, Transition(Phase.FROZEN, "x", world.other))
    write = Write(records.MOVE_KEEPER, b'"x"', bound=True)
    await keeper.txn([], [Write(records.META, frozen), write], session=session)
    with pytest.raises(StoreUnavailableError) as refusal:
        await world.create(one, network)
    assert f"pyvxlan store migrate moves the cluster to {world.other}, 0 s" in str(refusal.value)
    assert "If that was killed, its session ends within 40 s" in str(refusal.value)
    assert f"pyvxlan store migrate --abort {world.one} {world.other} ends it" in str(refusal.value)
    await session.close()
    await world.create(one, network)
    assert await world.transition(world.one) is None


async def test_host_that_can_not_use_the_new_store_stops_the_move(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "READY_S", 0.5)
    one, _ = await world.start(1), await world.start(2)
    network = await one.service.create_network(NetworkSpec("n1"))
    world.refused[2] = "password file /x can't be read"
    with pytest.raises(ConflictError, match="host2: password file /x can't be read"):
        await world.move(world.one, world.other)
    await world.create(one, network)
    assert await world.transition(world.one) is None
    del world.refused[2]
    await world.move(world.one, world.other)
    await world.settled(world.other)


async def test_host_that_is_late_is_named_and_comes_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "ARRIVE_S", 0.5)
    _, two = await world.start(1), await world.start(2)
    become = migrate._rewrite_kept

    async def noting(store, meta, value, keeper, session):  # type: ignore[no-untyped-def]
        if records.parse_meta(value).transition.phase is Phase.MOVED:  # type: ignore[union-attr]
            world.refused[2] = "certificate expired"
        return await become(store, meta, value, keeper, session)

    monkeypatch.setattr(migrate, "_rewrite_kept", noting)
    with pytest.raises(ConflictError, match="has moved, and not with it: host2; see their logs"):
        await world.move(world.one, world.other)
    assert two.store.problem == "certificate expired"  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailableError, match="can't use: certificate expired"):
        await two.store.txn([], [Write("cfg", b"{}")])
    del world.refused[2]
    await world.move(world.one, world.other)
    await world.settled(world.other)
    assert two.store.problem == ""  # type: ignore[attr-defined]


async def test_host_that_was_down_finds_its_cluster(world: World) -> None:
    await world.start(1)
    await world.move(world.one, world.other)
    await world.start(2, world.one)
    await world.settled(world.other)


async def test_host_that_comes_up_during_the_move_goes_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start(1)
    late: list[Node] = []
    ready = Move._all_ready

    async def surprise(self: Move, move: Transition) -> None:
        await ready(self, move)
        if not late:
            late.append(await world.start(2))
            late.append(late[0])

    monkeypatch.setattr(Move, "_all_ready", surprise)
    await world.move(world.one, world.other)
    await world.settled(world.other)


async def test_abort_gives_the_new_store_back_empty(world: World) -> None:
    one = await world.start(1)
    network = await one.service.create_network(NetworkSpec("n1"))
    with pytest.raises((CutError, ExceptionGroup)):
        await world.move(world.one, world.other, budget=Budget(4, applied=True))
    assert await world.held(world.other)
    assert await world.abort(world.one, world.other) == f"given up; {world.other} is empty again"
    assert await world.held(world.other) == {}
    await world.settled(world.one)
    await world.create(one, network)
    assert await world.abort(world.one, world.other) == "given up; there was nothing to empty"


async def test_abort_after_the_move_is_refused(world: World) -> None:
    await world.start(1)
    await world.move(world.one, world.other)
    with pytest.raises(ConflictError, match=r"has moved to .*; to go back, migrate from there"):
        await world.abort(world.one, world.other)
    await world.settled(world.other)


async def test_abort_stops_a_move_that_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await world.start(1)
    ready = Move._all_ready

    async def aborted(self: Move, move: Transition) -> None:
        await ready(self, move)
        await world.abort(world.one, world.other)

    monkeypatch.setattr(Move, "_all_ready", aborted)
    with pytest.raises(DaemonError, match="ended by somebody else"):
        await world.move(world.one, world.other)
    assert await world.held(world.other) == {}
    assert await world.transition(world.one) is None
    assert one.store.url == world.one  # type: ignore[attr-defined]


async def test_one_move_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "KEEPER_S", 0.3)
    await world.start(1)
    keeper = await world.labs[world.one].open()
    session = await keeper.session(15)
    write = Write(records.MOVE_KEEPER, b'"x"', bound=True)
    await keeper.txn([], [write], session=session)
    with pytest.raises(ConflictError, match="another pyvxlan store migrate is at it"):
        await world.move(world.one, world.other)
    await session.close()
    await world.move(world.one, world.other)


async def test_store_of_others_is_not_overwritten(world: World) -> None:
    one = await world.start(1)
    store = await world.labs[world.other].open()
    await store.txn([], [Write("else/where", b"mine")])
    with pytest.raises(ConflictError, match="keys that are not pyvxlan's: else/where"):
        await world.move(world.one, world.other)
    with pytest.raises(ConflictError, match="both URLs lead to this very cluster"):
        await world.move(world.one, world.one)
    await one.service.create_network(NetworkSpec("n1"))


async def test_new_store_that_is_another_one_from_a_host_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A SQLite file on another machine has the same URL, and is another store."""
    monkeypatch.setattr(migrate, "READY_S", 0.5)
    await world.start(1)
    elsewhere = SqliteLab(tmp_path / "elsewhere" / "store.db")
    labs = dict(world.labs)
    node = world.nodes[0]

    async def open_elsewhere(url: str) -> Store:
        return await (elsewhere if url == world.other else labs[url]).open()

    node.store._opener = open_elsewhere  # type: ignore[attr-defined]
    with pytest.raises(ConflictError, match=r"host1: store .* is empty, seen from this host"):
        await world.move(world.one, world.other)
    await elsewhere.close()


async def test_keys_of_sessions_stay_behind(world: World) -> None:
    await world.start(1)
    await world.move(world.one, world.other)
    found = await world.held(world.one)
    assert [key for key in found if key.startswith((records.ALIVE, "move/"))] == []
    store = await world.labs[world.other].open()
    await store.txn([Check(records.META, (await store.get(records.META)).revision)], [Delete("x")])  # type: ignore[union-attr]
