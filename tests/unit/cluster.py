"""A cluster in one process: hosts with real state and verbs, a store and a kernel in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from random import Random

from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.errors import NotFoundError
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.kv import Store
from pyvxlan.daemon.kv.memory import MemoryStore
from pyvxlan.daemon.kv.mirror import Mirror
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.membership import Membership
from pyvxlan.daemon.model import Address, Cidr, Host, Network, Sandbox, Surroundings
from pyvxlan.daemon.net import Carried
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec
from pyvxlan.daemon.service import Service
from pyvxlan.daemon.state import State

SESSION_TTL_S = 15


class MemoryNet:
    """A kernel with the sandboxes that a test gives it; implements `HostNet`."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        self.links: dict[int, list[str]] = {}
        self.routes: list[tuple[Cidr, str]] = []
        self.mtu = 1500
        self.ports: dict[str, Carried] = {}

    def add(self, name: str, *links: str) -> Sandbox:
        sandbox = Sandbox(f"/run/netns/{name}", inode=100 + len(self.sandboxes))
        self.sandboxes[name] = sandbox
        self.links[sandbox.inode] = ["lo", *links]
        return sandbox

    async def resolve_sandbox(self, text: str) -> Sandbox:
        if text not in self.sandboxes:
            raise NotFoundError(f"no namespace {text!r}")
        return self.sandboxes[text]

    async def sandbox_links(self, sandbox: Sandbox) -> Sequence[str]:
        await asyncio.sleep(0)
        return self.links[sandbox.inode]

    async def carried(self) -> Mapping[str, Carried]:
        return self.ports

    async def surroundings(self, underlay: Address) -> Surroundings:
        return Surroundings(self.routes, self.mtu)


class MemoryReconciler:
    """A reconciler whose kernel is ready, unless a test says `fail`; implements `Settler`."""

    def __init__(self) -> None:
        self.pokes: list[str] = []
        self.fail: Exception | None = None

    def poke(self, nid: str = "*", /) -> None:
        self.pokes.append(nid)

    async def settled(self, nid: str, /, timeout_s: float = 10) -> None:
        await asyncio.sleep(0)
        if self.fail:
            failure, self.fail = self.fail, None
            raise failure


class Member:
    """One host's daemon on any store, without a data plane."""

    def __init__(
        self,
        store: Store,
        mirror: Mirror,
        net: MemoryNet,
        directory: Path,
        number: int,
        fence_s: float = 0,
    ) -> None:
        self.store = store
        self.events = Events()
        self.local = LocalRecords(directory, self.events)
        self.host = Host(
            id=self.local.host_id,
            name=f"host{number}",
            vtep=ip_address(f"198.18.0.{number}"),
            port=4789,
            version="0.1.0",
        )
        self.mirror = mirror
        self.state = State(store, self.host, mirror, events=self.events, hold_s=30, settle_s=1)
        self.membership = Membership(store, self.state, self.host)
        self.net = net
        self.reconciler = MemoryReconciler()
        self.service = Service(
            store=store,
            state=self.state,
            local=self.local,
            membership=self.membership,
            reconciler=self.reconciler,
            net=self.net,
            settings=Settings(),
            host=self.host,
            rng=Random(number),
            fence_s=fence_s,
        )

    async def start(self, *, timeout_s: float = 5) -> None:
        kept = [*self.local.endpoints.values(), *self.local.withdrawn.values()]
        if await self.state.start({e.network_id for e in kept}, timeout_s=timeout_s):
            await self.membership.register()
            await self.until(lambda: self.host.id in self.state.alive)
        else:
            await self.membership.register(timeout_s=0.05)

    async def stop(self, *, crash: bool = False) -> None:
        """Ends the daemon; after a crash its session is left to expire."""
        if crash and self.membership._keeper:
            self.membership._keeper.cancel()
            await asyncio.gather(self.membership._keeper, return_exceptions=True)
        elif not crash:
            await self.membership.close()
        await self.state.close()
        await self.mirror.close()
        self.local.close()
        await self.store.close()

    async def until(self, condition: Callable[[], bool], within_s: float = 5) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.005)


class Node(Member):
    """A host on a store in memory, which a test may take away from it."""

    store: MemoryStore


class Cluster:
    """Hosts on one store; `time_s` is the clock by which sessions expire."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.time_s = 1000.0
        self.store = MemoryStore(clock=lambda: self.time_s, tick_s=0.02)
        self.fence_s = 0.0
        """For how long a host's claims may be another's before it gives way."""
        self.nodes: list[Node] = []
        self.nets: dict[Path, MemoryNet] = {}
        """The kernels of the hosts, by directory: they outlive the daemons."""

    async def start(self, number: int, *, fresh: str = "", away: str = "") -> Node:
        """Starts a host's daemon; with `away`, its store does not answer, for that reason."""
        store, directory = self.store.peer(), self.directory / f"host{number}{fresh}"
        directory.mkdir(parents=True, exist_ok=True)
        if away:
            store.lose(away)
        mirror = await Mirror.open(directory / "mirror.db", "memory:")
        net = self.nets.setdefault(directory, MemoryNet())
        node = Node(store, mirror, net, directory, number, self.fence_s)
        self.nodes.append(node)
        await node.start(timeout_s=0.2)
        return node

    async def stop(self, node: Node, *, crash: bool = False) -> None:
        self.nodes.remove(node)
        await node.stop(crash=crash)

    async def expire(self, node: Node) -> None:
        """Crashes a host and lets its session run out, while all others keep theirs."""
        await self.stop(node, crash=True)
        for _ in range(6):
            self.time_s += SESSION_TTL_S / 3
            await asyncio.sleep(0.06)

    async def close(self) -> None:
        for node in list(self.nodes):
            await self.stop(node)
        await self.store.close()


async def keys(cluster: Cluster) -> set[str]:
    """Everything in the store but the hosts' own records and notes of what was removed."""
    return {
        key
        for key in await cluster.store.list("")
        if not key.startswith(("host/", "vtep/", "alive/", "meta", "pools", "gone/"))
    }


async def network(node: Node, name: str = "n1", **wishes: object) -> Network:
    """Makes a network from one node."""
    return await node.service.create_network(replace(NetworkSpec(name), **wishes))  # type: ignore[arg-type]


def attach_spec(
    sandbox: str, network: str = "n1", ifname: str = "", **wishes: object
) -> AttachSpec:
    """Wishes for an endpoint in a sandbox."""
    return AttachSpec(network, sandbox, replace(EndpointSpec(), **wishes), ifname)  # type: ignore[arg-type]
