"""Random operations and faults on three hosts at once: whatever happened, all ends in step."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from random import Random

import pytest

from pyvxlan.daemon.errors import DaemonError
from pyvxlan.daemon.kv import Delete
from pyvxlan.daemon.model import Endpoint
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec
from pyvxlan.daemon.upkeep import integrity
from tests.unit.cluster import Cluster, Node

HOSTS = (1, 2, 3)
NETWORKS = ("n0", "n1", "n2")
NAMES = ("a", "b", "c", "d")
OPERATIONS: Mapping[str, int] = {
    "create": 3,
    "remove": 2,
    "attach": 6,
    "detach": 4,
    "lose": 2,
    "recover": 2,
    "gap": 1,
    "wipe": 1,
    "save": 1,
    "put_back": 1,
    "delete_by_hand": 1,
    "stop": 2,
    "crash": 1,
    "start": 2,
    "pause": 1,
}
"""What may happen, and how often beside the others."""
HEALED_S = 60.0
"""Far more than it takes: for machines that are busy."""


class Faults:
    """Three hosts, and what happens to them."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.rng = Random(seed)
        self.nodes: dict[int, Node] = {}
        self.wanted: dict[str, Endpoint] = {}
        """Endpoints that nobody detached."""
        self.fenced: set[str] = set()
        self.diary: list[str] = []
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._changing: set[int] = set()
        """Hosts that start or stop just now."""
        self._copies: list[Callable[[], None]] = []
        self._boxes = 0

    async def start(self, number: int) -> None:
        """Starts a host that is down."""
        if number in self.nodes or number in self._changing:
            return
        self._changing.add(number)
        node = await self.cluster.start(number)
        node.state._hold_s = node.state._follower._hold_s = 4.0
        upkeep = node.service.upkeep
        fence = upkeep._fence

        async def noted(endpoint: Endpoint, cause: DaemonError) -> None:
            self.fenced.add(endpoint.id)
            await fence(endpoint, cause)

        upkeep._fence = noted  # type: ignore[method-assign]
        self.nodes[number] = node
        self._keepers[number] = asyncio.create_task(node.service.keep())
        self._changing.discard(number)

    async def stop(self, number: int, *, crash: bool = False) -> None:
        """Stops a host that is up."""
        if number not in self.nodes:
            return
        self._changing.add(number)
        node, keeper = self.nodes.pop(number), self._keepers.pop(number)
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        await self.cluster.stop(node, crash=crash)
        self._changing.discard(number)

    async def happen(self) -> None:
        """Lets one thing happen; errors that users are told are no fault."""
        rng = self.rng
        (kind,) = rng.choices(list(OPERATIONS), list(OPERATIONS.values()))
        number, name, endpoint_name = rng.choice(HOSTS), rng.choice(NETWORKS), rng.choice(NAMES)
        self.diary.append(f"{kind} host={number} network={name} name={endpoint_name}")
        try:
            await self._do(kind, number, name, endpoint_name)
        except DaemonError as error:
            self.diary.append(f"{kind}: {error}")
        await asyncio.sleep(rng.random() * 0.1)

    async def _do(self, kind: str, number: int, name: str, endpoint_name: str) -> None:
        store, node = self.cluster.store, self.nodes.get(number)
        match kind:
            case "start":
                await self.start(number)
            case "stop" | "crash":
                await self.stop(number, crash=kind == "crash")
            case "wipe":
                store.wipe()
            case "save":
                self._copies.append(store.save())
            case "put_back" if self._copies:
                self.rng.choice(self._copies)()
            case "delete_by_hand":
                # Of a network's record itself tests/kv/test_by_hand.py tells.
                kept = ("meta", "gone/", "net/")
                if keys := [key for key in await store.list("") if not key.startswith(kept)]:
                    await store.txn([], [Delete(self.rng.choice(keys))])
            case "pause":
                await asyncio.sleep(self.rng.random())
            case _ if node:
                await self._use(kind, node, name, endpoint_name)

    async def _use(self, kind: str, node: Node, name: str, endpoint_name: str) -> None:
        match kind:
            case "create":
                await node.service.create_network(NetworkSpec(name))
            case "remove":
                await node.service.remove_network(name)
            case "attach":
                self._boxes += 1
                node.net.add(f"box{self._boxes}")
                spec = AttachSpec(name, f"box{self._boxes}", EndpointSpec(name=endpoint_name))
                made = await node.service.attach(spec)
                self.wanted[made.id] = made
            case "detach" if node.local.endpoints:
                endpoint_id = self.rng.choice(list(node.local.endpoints))
                self.wanted.pop(endpoint_id, None)
                await node.service.detach(endpoint_id)
            case "lose":
                node.store.lose("cable cut")
            case "recover":
                node.store.recover()
            case "gap":
                node.store.reset()

    async def heal(self) -> None:
        """Ends all faults; returns when everything is in step, and stays so for a moment."""
        for number in HOSTS:
            await self.start(number)
            self.nodes[number].store.recover()
        began, good, wrong = time.monotonic(), 0, [""]
        while good < 3:
            wrong = await self.mistakes()
            good = 0 if wrong else good + 1
            assert time.monotonic() - began < HEALED_S, "\n".join([*self.diary, *wrong])
            await asyncio.sleep(0.05)
        for keeper in self._keepers.values():
            assert not keeper.done()

    async def mistakes(self) -> list[str]:
        """What is not as it should be, in the store, on the hosts, and between them."""
        values = {key: item.value for key, item in (await self.cluster.store.list("")).items()}
        stored = integrity.parse(values)
        found = integrity.errors(values)
        for number, node in self.nodes.items():
            state = node.state
            own = {one.id for one in stored.endpoints.values() if one.host_id == node.host.id}
            seen = {id_ for of_one in state.endpoints.values() for id_ in of_one}
            there = {id_ for id_, e in stored.endpoints.items() if e.network_id in state.endpoints}
            for what, right in (
                ("is not in step", state.synced and not state.held and not state.returned),
                ("has something to withdraw", not node.local.withdrawn),
                ("is not registered", f"alive/{node.host.id}" in values),
                ("knows other networks", state.networks.keys() == stored.networks.keys()),
                ("knows other endpoints", seen == there),
                ("has other endpoints than the store says", own == node.local.endpoints.keys()),
            ):
                if not right:
                    found.append(f"host {number} {what}")
        lost = self.wanted.keys() - stored.endpoints.keys() - self.fenced
        return found + [f"endpoint {self.wanted[id_].name} is lost" for id_ in lost]

    async def close(self) -> None:
        """Stops all hosts."""
        for number in HOSTS:
            await self.stop(number)


@pytest.fixture
async def faults(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Faults]:
    monkeypatch.setattr("pyvxlan.daemon.repair.COMPARE_S", 1.0)
    monkeypatch.setattr("pyvxlan.daemon.repair.WAIT_MIN_S", 0.5)
    cluster = Cluster(tmp_path)
    cluster.fence_s = 0.5
    made = Faults(cluster, request.param)
    for number in HOSTS:
        await made.start(number)
    yield made
    await made.close()
    await cluster.close()


@pytest.mark.parametrize("faults", range(7), indirect=True)
async def test_everything_ends_in_step(faults: Faults) -> None:
    for _ in range(4):
        for _ in range(faults.rng.randint(3, 12)):
            await asyncio.gather(*(faults.happen() for _ in range(faults.rng.randint(1, 4))))
        await faults.heal()
