"""Endpoints that Docker attaches by itself: we make the interface, Docker moves it.

An address comes first, reserved for this host; then the endpoint, which takes the address over;
then the interface, which waits in the host's namespace. What goes, goes on this host at once and
always; the store follows when it can, and `Service.repair` sees to what was missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from pyvxlan.daemon import ipam, joining, records
from pyvxlan.daemon.errors import DaemonError, NotFoundError, StoreError
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.model import (
    Address,
    Cidr,
    Endpoint,
    Host,
    Interface,
    LocalEndpoint,
    Network,
    Sandbox,
    host_ifname,
)
from pyvxlan.daemon.net import Route
from pyvxlan.daemon.service import Service, Settler
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)

SETTLE_S = 5.0
GOODBYE_S = 2.0
"""How long a removal waits for the store before it leaves the rest to the background."""
PATIENCE_S = 10.0
"""How long Docker may take between the end of an endpoint and that of its addresses."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What Docker says of an endpoint that it is about to attach. `mac` empty: to be chosen."""

    engine_id: str
    network_id: str
    addresses: tuple[Interface, ...]
    mac: bytes
    sandbox_path: str
    name: str = ""

    @property
    def id(self) -> str:
        """Our id: as many of Docker's random digits as we use."""
        return endpoint_id(self.engine_id)


class Wires(Protocol):
    """What is asked of `daemon.net.Net` beside the reconciler's work."""

    async def docker_ifname(self, netns: str, outer_name: str, sandbox: Sandbox) -> str:
        """Finds how Docker has named the inner end of a pair."""

    async def add_route(self, sandbox: Sandbox, ifname: str, route: Route) -> None:
        """Adds a route to a sandbox."""


class Handover:
    """The verbs for endpoints of Docker's.

    Args:
        service: The other verbs.
        state: What the store says.
        local: What is attached here.
        reconciler: Makes the interfaces.
        net: For what Docker does not tell of an interface.
        host: This host.
        names_address: Where the containers ask for names.
    """

    def __init__(
        self,
        *,
        service: Service,
        state: State,
        local: LocalRecords,
        reconciler: Settler,
        net: Wires,
        host: Host,
        names_address: IPv4Address,
    ) -> None:
        self.service = service
        self._state = state
        self._local = local
        self._reconciler = reconciler
        self._net = net
        self._host = host
        self._names_route = Route(IPv4Network((names_address, 32)))
        self._leaving: dict[str, Endpoint] = {}
        """Endpoints that are gone here, and whose addresses Docker has not given back yet."""
        self._left_s: dict[str, float] = {}

    @property
    def endpoints(self) -> Sequence[LocalEndpoint]:
        """Docker's endpoints on this host."""
        return [here for here in self._local.endpoints.values() if here.engine_id]

    def endpoint(self, local: LocalEndpoint) -> Endpoint | None:
        """What is published of one."""
        return self._local.records.get(local.id)

    async def reserve_address(
        self, network_id: str, cidr: Cidr, address: Address | None
    ) -> Interface:
        """Reserves an address for an endpoint that Docker has not told of yet."""
        self._state.join(network_id)
        return await self.service.reservations.reserve_address(network_id, cidr, address)

    async def release_address(self, network_id: str, address: Address) -> None:
        """Gives an address back, with the endpoint that had it. Never fails; may finish later."""
        try:
            async with asyncio.timeout(GOODBYE_S):
                for endpoint in list(self._leaving.values()):
                    if endpoint.network_id == network_id and _has(endpoint, address):
                        await self._forget(endpoint)
                        return
                if not self._in_use(network_id, address):
                    await self.service.reservations.release_address(network_id, address)
        except (DaemonError, TimeoutError) as error:
            self.service.reservations.forget(network_id, address)
            log.warning("address released later address=%s cause=%s", address, error)

    async def join(self, arrival: Arrival) -> LocalEndpoint:
        """Makes an endpoint and its interface; returns when frames can flow.

        Raises:
            ConflictError: Its name, address or MAC is taken.
            DaemonError: It can't be; nothing of it is left.
        """
        network = self._network(arrival.network_id)
        joining.check_bridge(self._local, network)
        endpoint = Endpoint(
            id=arrival.id,
            network_id=network.id,
            host_id=self._host.id,
            mac=arrival.mac or ipam.mac_for(arrival.addresses[0].ip),
            addresses=arrival.addresses,
            name=arrival.name,
        )
        local = LocalEndpoint(
            endpoint.id,
            network.id,
            Sandbox(arrival.sandbox_path, inode=0),
            ifname="",
            engine_id=arrival.engine_id,
            names_route=not any(
                other.names_route and other.sandbox.path == arrival.sandbox_path
                for other in self.endpoints
            ),
        )
        self.service.upkeep.joining.add(endpoint.id)
        try:
            self._local.put(local, endpoint=endpoint, network=network)
            self._state.join(network.id)
            self._reconciler.poke(network.id)
            await self.service.registry.take_over(endpoint)
            for address in endpoint.addresses:
                self.service.reservations.forget(network.id, address.ip)
            key = records.endpoint_key(network.id, endpoint.id)
            await self._state.wait_for(lambda: self._state.recorded(key), timeout_s=SETTLE_S)
            await self._reconciler.settled(network.id, SETTLE_S)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._undo(local)))
            raise
        finally:
            self.service.upkeep.joining.discard(endpoint.id)
        log.info("endpoint handed over endpoint=%s network=%s", endpoint.id, network.id)
        return local

    async def leave(self, engine_id: str) -> None:
        """Removes an endpoint from this host. Its address stays its own until it is released."""
        local = self._local.endpoints.get(endpoint_id(engine_id))
        if local is None:
            return
        if endpoint := self._local.records.get(local.id):
            self._leaving[local.id] = endpoint
            self._left_s[local.id] = time.monotonic()
            self.service.upkeep.unattached[local.id] = local.network_id
        await self._remove(local)

    async def drop(self, local: LocalEndpoint) -> None:
        """Removes an endpoint that Docker does not know any more, here and in the store."""
        log.warning("endpoint unknown to Docker removed endpoint=%s", local.id)
        await self.leave(local.engine_id)
        if endpoint := self._leaving.get(local.id):
            await self._forget(endpoint)

    async def clear(self, network_id: str) -> None:
        """Withdraws what has left a network, whose addresses Docker gives back no more.

        Raises:
            StoreError: Not now; try again.
        """
        left = {**self._local.withdrawn, **self._leaving}
        for endpoint in left.values():
            if endpoint.network_id == network_id:
                await self._forget(endpoint)

    async def settle(self) -> None:
        """Withdraws endpoints that left, and whose addresses were not given back in time."""
        for endpoint in list(self._leaving.values()):
            if time.monotonic() - self._left_s[endpoint.id] > PATIENCE_S:
                with contextlib.suppress(StoreError):
                    await self._forget(endpoint)

    async def describe(
        self,
        local: LocalEndpoint,
        *,
        name: str,
        aliases: Iterable[str],
        hostname: str,
        container_id: str,
    ) -> None:
        """Publishes what an endpoint is called now; an empty name is none."""
        endpoint = self._local.records.get(local.id)
        if endpoint is None:
            return
        wanted = replace(
            endpoint,
            name=name,
            aliases=tuple(aliases),
            hostname=hostname,
            container_id=container_id,
        )
        if wanted == endpoint:
            return
        after = await self.service.registry.describe_anew(wanted)
        if current := self._local.endpoints.get(local.id):
            self._local.put(current, endpoint=after)

    async def note_ifname(self, local: LocalEndpoint) -> None:
        """Remembers how Docker has named the interface, so that it can be made anew."""
        netns = self._local.netns_names.get(local.network_id, "")
        name = ""
        with contextlib.suppress(DaemonError):
            name = await self._net.docker_ifname(netns, host_ifname(local.id), local.sandbox)
        current = self._local.endpoints.get(local.id)
        if name and current and current.ifname != name:
            self._local.put(replace(current, ifname=name))

    def _network(self, network_id: str) -> Network:
        network = self._state.networks.get(network_id) or self._local.networks.get(network_id)
        if network is None:
            raise NotFoundError(f"network {network_id[:12]} is gone: remove it from Docker too")
        return network

    def _in_use(self, network_id: str, address: Address) -> bool:
        return any(
            endpoint.network_id == network_id and _has(endpoint, address)
            for endpoint in self._local.records.values()
        )

    async def _forget(self, endpoint: Endpoint) -> None:
        await self.service.upkeep.withdraw(endpoint)
        self._leaving.pop(endpoint.id, None)
        self._left_s.pop(endpoint.id, None)

    async def _undo(self, local: LocalEndpoint) -> None:
        """Takes a join back; Docker gives the addresses back by itself."""
        endpoint = self._local.records.get(local.id)
        await self._remove(local)
        if endpoint is None:
            return
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self.service.upkeep.withdraw(endpoint)
        except (DaemonError, TimeoutError) as error:
            log.warning("endpoint withdrawn later endpoint=%s cause=%s", local.id, error)

    async def _remove(self, local: LocalEndpoint) -> None:
        """Takes an endpoint off this host; the kernel needs some 20 ms for it, and nobody waits."""
        self._local.remove(local.id)
        if local.names_route:
            await self._hand_on_names(local)
        self._reconciler.poke(local.network_id)
        self.service.upkeep.leave_network(local.network_id)

    async def _hand_on_names(self, leaving: LocalEndpoint) -> None:
        """Lets another interface of the same container lead to the name server."""
        for other in self.endpoints:
            if other.sandbox.path != leaving.sandbox.path:
                continue
            self._local.put(replace(other, names_route=True))
            if not other.ifname:
                return
            try:
                await self._net.add_route(other.sandbox, other.ifname, self._names_route)
            except DaemonError as error:
                log.info("names not led over endpoint=%s cause=%s", other.id, error)
            return


def endpoint_id(engine_id: str) -> str:
    """Our id of an endpoint, made of Docker's 64 random digits."""
    return engine_id[:32]


def _has(endpoint: Endpoint, address: Address) -> bool:
    return any(address == held.ip for held in endpoint.addresses)
