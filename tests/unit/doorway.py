"""A daemon's API on a real socket, with a store, a kernel and a data plane in memory behind it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pyvxlan.daemon import api
from pyvxlan.daemon.capturing import Capturing
from pyvxlan.daemon.clusterstore import ClusterStore
from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.dataplane.memory import MemoryDataplane
from pyvxlan.daemon.matrix import Matrix
from pyvxlan.daemon.peering import Peering
from pyvxlan.daemon.requests import WhySpec
from pyvxlan.daemon.status import Status
from tests.unit.cluster import Cluster, Node

T = TypeVar("T")


class Progress:
    """A reconciler that has nothing to say but what a test puts in."""

    def __init__(self) -> None:
        self.repairs = 0
        self.told: list[str] = []

    def problems(self) -> list[str]:
        return self.told


class NoNames:
    """Name servers that serve nobody."""

    serving = 0

    def __init__(self) -> None:
        self.outcomes = Counter({"answered": 3})


class Doorway:
    """Two hosts; the API of the first one is served at `run_dir`/api.sock by a thread."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.settings = Settings(run_dir=run_dir, state_dir=run_dir / "state")
        self.dataplane = MemoryDataplane()
        self.progress = Progress()
        self.node: Node
        self.other: Node
        self.status: Status
        self.capturing: Capturing
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._stop: asyncio.Event

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the daemon's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def start(self) -> None:
        self._thread.start()
        started = threading.Event()
        self._serving = asyncio.run_coroutine_threadsafe(self._serve(started), self._loop)
        if not started.wait(10):
            self._serving.result(0)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._serving.result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def why(self, spec: WhySpec) -> dict[str, Any]:
        """Answers a question with itself."""
        return {"asked": [spec.a, spec.b, spec.network]}

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        cluster = Cluster(self.run_dir / "hosts")
        self.node, self.other = await cluster.start(1), await cluster.start(2)
        await self.node.until(lambda: len(self.node.state.hosts) == 2)
        node = self.node
        self.status = Status(
            settings=self.settings,
            store=ClusterStore(node.store, self.settings.store),
            state=node.state,
            local=node.local,
            membership=node.membership,
            dataplane=self.dataplane,
            progress=self.progress,
            names=NoNames(),
            events=node.events,
        )
        peers = Peering(lambda: node.state.hosts, node.host, None)
        self.capturing = Capturing(node.service, self.dataplane, peers, node.host)
        handlers = api.Api(
            node.service,
            lambda: node.local.endpoints,
            node.net,
            partial(self.status.document, "9.9.9"),
            events=self.status.events,
            why=self.why,
            capturing=self.capturing,
            peers=self.status.peers_document,
            matrix=Matrix(node.service.hosts, self.status.peers_document, peers).document,
        )
        async with api.serving(handlers.application(), self.settings.api_socket):
            started.set()
            await self._stop.wait()
        await cluster.close()


@contextmanager
def doorway() -> Iterator[Doorway]:
    """A `Doorway` in a directory of its own, short enough for a socket's path."""
    run_dir = Path(tempfile.mkdtemp(prefix="pyvxlan-"))
    made = Doorway(run_dir)
    try:
        made.start()
        try:
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(run_dir)
