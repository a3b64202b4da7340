"""Docker Engines in memory: they call the plug-in as dockerd 20.10 does, in its order."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

from pyvxlan.daemon.errors import ConflictError, NotFoundError
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.handover import Handover
from pyvxlan.daemon.model import Network, Sandbox
from pyvxlan.daemon.net import Route
from pyvxlan.daemon.plugin import Engine, Plugin
from pyvxlan.daemon.plugin.codec import GATEWAY_TYPE, GENERIC
from pyvxlan.daemon.plugin.engine import (
    EngineContainer,
    EngineEndpoint,
    EngineError,
    EngineEvent,
    EngineNetwork,
)
from tests.unit.cluster import Cluster, Node

NAMES_ADDRESS = "169.254.53.53"


@dataclass
class Attached:
    """A container's endpoint on one network."""

    endpoint_id: str
    pool_ids: tuple[str, ...]
    addresses: tuple[str, ...]


@dataclass
class Disk:
    """What Docker keeps on its disk: networks and containers, by id."""

    networks: dict[str, EngineNetwork] = field(default_factory=dict)
    containers: dict[str, EngineContainer] = field(default_factory=dict)
    attached: dict[tuple[str, str], Attached] = field(default_factory=dict)
    """By ids of container and network."""


class MemoryDocker(Engine):
    """One Docker Engine, whose plug-in is given; implements what is asked of `Engine`."""

    def __init__(self, plugin: Plugin) -> None:
        super().__init__(Path("/nowhere/docker.sock"), "pyvxlan")
        self.plugin = plugin
        self.disk = Disk()
        self.down = ""
        """Why it does not answer; empty while it does."""
        self.deleting = asyncio.Event()
        """While clear, networks stay in the list after the plug-in was told of their end."""
        self.deleting.set()
        self.telling = asyncio.Event()
        """While clear, networks are in the list no more, and the plug-in was not told."""
        self.telling.set()
        self._vanished: set[str] = set()
        self._queue: asyncio.Queue[EngineEvent | None] = asyncio.Queue()

    async def call(self, method: str, **body: object) -> Mapping[str, Any]:
        """Calls the plug-in; what it refuses, Docker refuses."""
        answer = await self.plugin.answer(method, json.dumps(body).encode())
        if text := answer.get("Err") or answer.get("Error"):
            raise ConflictError(f"remote: {text}")
        return answer

    # What the daemon asks

    async def close(self) -> None:
        self.reachable = False

    async def networks(self) -> list[EngineNetwork]:
        self._answer()
        return [replace(one, endpoints={}) for one in self._listed()]

    async def network(self, engine_id: str, *, timeout_s: float = 0) -> EngineNetwork:
        self._answer()
        if engine_id not in self.disk.networks:
            raise NotFoundError(f"no network {engine_id}")
        return self.disk.networks[engine_id]

    async def container(self, container_id: str) -> EngineContainer:
        self._answer()
        if container_id not in self.disk.containers:
            raise NotFoundError(f"no container {container_id}")
        return self.disk.containers[container_id]

    async def create(self, network: Network) -> str:
        return await self.create_network(
            network.name,
            *((str(subnet.cidr), str(subnet.gateway)) for subnet in network.subnets),
            options=network.options,
            attachable=network.attachable,
        )

    async def remove(self, engine_id: str) -> None:
        if engine_id in self.disk.networks:
            await self.remove_network(engine_id)

    async def events(self) -> AsyncIterator[EngineEvent | None]:
        self._answer()
        self.reachable = True
        yield None
        while (event := await self._queue.get()) is not None:
            yield event
        self.reachable = False

    # What users do

    async def create_network(
        self,
        name: str,
        *subnets: tuple[str, str],
        options: Mapping[str, str] | None = None,
        ipv6: bool = False,
        attachable: bool = False,
    ) -> str:
        """`docker network create`, with subnets and their gateways (empty: to be chosen)."""
        self._answer()
        if any(one.name == name for one in self._listed()):
            raise ConflictError(f"network with name {name} already exists")
        engine_id = _random_id()
        wished = list(subnets) or [("", "")]
        if ipv6 and not any(":" in subnet for subnet, _ in wished):
            wished.append(("", ""))
        pools: list[tuple[str, str, str]] = []
        try:
            for number, (subnet, gateway) in enumerate(wished):
                v6 = ":" in subnet or (ipv6 and not subnet and number == len(wished) - 1)
                pool = await self.call(
                    "IpamDriver.RequestPool",
                    AddressSpace="pyvxlan",
                    Pool=subnet,
                    SubPool="",
                    Options={},
                    V6=v6,
                )
                pools.append((pool["PoolID"], pool["Pool"], ""))
                chosen = await self.call(
                    "IpamDriver.RequestAddress",
                    PoolID=pool["PoolID"],
                    Address=gateway,
                    Options={"RequestAddressType": GATEWAY_TYPE},
                )
                pools[-1] = (pool["PoolID"], pool["Pool"], chosen["Address"])
            data = [
                {"AddressSpace": "pyvxlan", "Gateway": gateway, "Pool": cidr}
                for _, cidr, gateway in pools
            ]
            await self.call(
                "NetworkDriver.CreateNetwork",
                NetworkID=engine_id,
                Options={GENERIC: dict(options or {})},
                IPv4Data=[one for one in data if ":" not in one["Pool"]],
                IPv6Data=[one for one in data if ":" in one["Pool"]],
            )
        except ConflictError:
            for pool_id, _, _ in pools:
                await self.call("IpamDriver.ReleasePool", PoolID=pool_id)
            raise
        self.disk.networks[engine_id] = EngineNetwork(
            engine_id,
            name,
            frozenset(ip_network(cidr) for _, cidr, _ in pools),
            gateways=tuple(gateway.partition("/")[0] for _, _, gateway in pools),
            options=dict(options or {}),
            attachable=attachable,
            ipv6=any(":" in cidr for _, cidr, _ in pools),
        )
        self._happened("network", "create", engine_id)
        return engine_id

    async def remove_network(self, engine_id: str) -> None:
        """`docker network rm`."""
        self._answer()
        shown = self.disk.networks[engine_id]
        if shown.endpoints:
            raise ConflictError(f"network {shown.name} has active endpoints")
        if not self.telling.is_set():
            self._vanished.add(engine_id)
            await self.telling.wait()
        for cidr in shown.subnets:
            await self.call("IpamDriver.ReleasePool", PoolID=f"pyvxlan/{cidr}")
        await self.call("NetworkDriver.DeleteNetwork", NetworkID=engine_id)
        await self.deleting.wait()
        del self.disk.networks[engine_id]
        self._happened("network", "destroy", engine_id)

    async def run(
        self, name: str, *engine_ids: str, ip: str = "", aliases: Sequence[str] = ()
    ) -> str:
        """`docker run`; gives the container's id."""
        container_id = _random_id()
        for engine_id in engine_ids:
            await self._connect(container_id, name, engine_id, ip)
        self.disk.containers[container_id] = EngineContainer(
            container_id,
            name,
            container_id[:12],
            {self.disk.attached[container_id, one].endpoint_id: tuple(aliases)
             for one in engine_ids},
        )  # fmt: skip
        for engine_id in engine_ids:
            self._happened(
                "network", "connect", engine_id, container=container_id, type=self.driver
            )
        return container_id

    async def _connect(self, container_id: str, name: str, engine_id: str, ip: str) -> None:
        shown = self.disk.networks[engine_id]
        endpoint_id = _random_id()
        pool_ids, addresses = [], []
        for version in sorted({cidr.version for cidr in shown.subnets}):
            cidr = min(cidr for cidr in shown.subnets if cidr.version == version)
            pool_id = f"pyvxlan/{cidr}"
            answer = await self.call(
                "IpamDriver.RequestAddress",
                PoolID=pool_id,
                Address=ip if cidr.version == 4 else "",
                Options=None,
            )
            pool_ids.append(pool_id)
            addresses.append(answer["Address"])
        made = Attached(endpoint_id, tuple(pool_ids), tuple(addresses))
        try:
            answer = await self.call(
                "NetworkDriver.CreateEndpoint",
                NetworkID=engine_id,
                EndpointID=endpoint_id,
                Interface={
                    "Address": next((one for one in addresses if ":" not in one), ""),
                    "AddressIPv6": next((one for one in addresses if ":" in one), ""),
                    "MacAddress": "",
                },
                Options={},
            )
            endpoint = EngineEndpoint(
                endpoint_id, name, "", answer["Interface"]["MacAddress"], tuple(addresses)
            )
            self._list(engine_id, {**shown.endpoints, endpoint_id: endpoint})
            await self.call(
                "NetworkDriver.Join",
                NetworkID=engine_id,
                EndpointID=endpoint_id,
                SandboxKey=f"/var/run/docker/netns/{container_id[:12]}",
                Options={},
            )
        except ConflictError:
            await self._end(engine_id, made, joined=False)
            raise
        self.disk.attached[container_id, engine_id] = made
        here = self.disk.networks[engine_id].endpoints
        self._list(engine_id, {**here, endpoint_id: replace(endpoint, container_id=container_id)})

    async def rm(self, container_id: str) -> None:
        """`docker rm -f`."""
        for at, made in list(self.disk.attached.items()):
            if at[0] == container_id:
                await self._end(at[1], made)
                del self.disk.attached[at]
        del self.disk.containers[container_id]

    async def _end(self, engine_id: str, made: Attached, *, joined: bool = True) -> None:
        ids = {"NetworkID": engine_id, "EndpointID": made.endpoint_id}
        if joined:
            await self.call("NetworkDriver.Leave", **ids)
        await self.call("NetworkDriver.DeleteEndpoint", **ids)
        for pool_id, address in zip(made.pool_ids, made.addresses, strict=True):
            await self.call(
                "IpamDriver.ReleaseAddress", PoolID=pool_id, Address=address.partition("/")[0]
            )
        here = self.disk.networks[engine_id].endpoints
        self._list(engine_id, {id_: e for id_, e in here.items() if id_ != made.endpoint_id})

    def _list(self, engine_id: str, endpoints: Mapping[str, EngineEndpoint]) -> None:
        self.disk.networks[engine_id] = replace(
            self.disk.networks[engine_id], endpoints=dict(endpoints)
        )

    # What befalls it

    def restart(self, disk: Disk | None = None) -> None:
        """Ends its events and begins anew, perhaps with another disk."""
        if disk is not None:
            self.disk = disk
        self._queue.put_nowait(None)

    def of_name(self, name: str) -> EngineNetwork | None:
        """The network that it lists under a name; fails if there are two."""
        found = [one for one in self._listed() if one.name == name]
        assert len(found) < 2, found
        return found[0] if found else None

    def _listed(self) -> list[EngineNetwork]:
        return [one for one in self.disk.networks.values() if one.id not in self._vanished]

    def _answer(self) -> None:
        if self.down:
            raise EngineError(self.down)

    def _happened(self, kind: str, action: str, id_: str, **attributes: str) -> None:
        self._queue.put_nowait(EngineEvent(kind, action, id_, attributes))


class MemoryWires:
    """Interfaces that Docker has not renamed; implements `Wires`."""

    def __init__(self) -> None:
        self.routes: list[str] = []

    async def docker_ifname(self, netns: str, outer_name: str, sandbox: Sandbox) -> str:
        return "eth0"

    async def add_route(self, sandbox: Sandbox, ifname: str, route: Route) -> None:
        self.routes.append(sandbox.path)


class DockerNode:
    """A host of a cluster with its plug-in and its Docker."""

    def __init__(self, node: Node, docker: MemoryDocker | None = None) -> None:
        self.node = node
        self.plugin = Plugin()
        self.docker = docker or MemoryDocker(self.plugin)
        self.docker.plugin = self.plugin
        self.wires = MemoryWires()
        self.handover = Handover(
            service=node.service,
            state=node.state,
            local=node.local,
            reconciler=node.reconciler,
            net=self.wires,
            host=node.host,
            names_address=IPv4Address(NAMES_ADDRESS),
        )
        self.events = Events()
        self._task: asyncio.Task[Any] | None = None

    def connect(self) -> None:
        """Lets the plug-in work; before, it is one whose daemon is starting."""
        self._task = self.plugin.connect(
            self.docker,
            self.handover,
            self.node.state,
            self.node.local,
            names_address=NAMES_ADDRESS,
            events=self.events,
        )

    async def disconnect(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def shows(self, name: str) -> EngineNetwork:
        """Returns once Docker lists a network."""
        await self.node.until(lambda: self.docker.of_name(name) is not None)
        found = self.docker.of_name(name)
        assert found
        return found

    async def hides(self, name: str) -> None:
        """Returns once Docker lists no such network."""
        await self.node.until(lambda: self.docker.of_name(name) is None)

    async def knows(self, name: str) -> Network:
        """Returns once the cluster has a network."""
        await self.node.until(lambda: self.has(name))
        return next(one for one in self.node.state.networks.values() if one.name == name)

    async def lacks(self, name: str) -> None:
        """Returns once the cluster has no such network."""
        await self.node.until(lambda: not self.has(name))

    def has(self, name: str) -> bool:
        return any(one.name == name for one in self.node.state.networks.values())


class DockerCluster(Cluster):
    """A cluster whose hosts have Docker."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.hosts: list[DockerNode] = []

    async def add(
        self, number: int, docker: MemoryDocker | None = None, *, connect: bool = True
    ) -> DockerNode:
        """Starts a host, perhaps with the Docker that it had before."""
        host = DockerNode(await self.start(number), docker)
        self.hosts.append(host)
        if connect:
            host.connect()
        return host

    async def end(self, host: DockerNode) -> None:
        """Stops a host's daemon; its Docker goes on."""
        self.hosts.remove(host)
        await host.disconnect()
        await self.stop(host.node)

    async def close(self) -> None:
        for host in self.hosts:
            await host.disconnect()
        await super().close()


_ids = itertools.count(1)


def _random_id() -> str:
    return f"{next(_ids):032x}" + "0" * 32
