"""The network half of the plug-in: networks and endpoints.

Docker tells a network's name to nobody while it makes it; `steward` learns it right after and tells
the cluster. An endpoint's name is learnt from Docker when it joins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from ipaddress import ip_interface, ip_network
from typing import Any

from pyvxlan.daemon import ipam, records
from pyvxlan.daemon.errors import (
    ConflictError,
    DaemonError,
    InUseError,
    InvalidError,
    NotFoundError,
)
from pyvxlan.daemon.handover import GOODBYE_S, Arrival, Handover, endpoint_id
from pyvxlan.daemon.model import Interface, Network, format_mac, handover_ifname
from pyvxlan.daemon.plugin.codec import (
    EndpointCall,
    EndpointCreation,
    JoinCall,
    NetworkCreation,
    NetworkDeletion,
)
from pyvxlan.daemon.plugin.engine import QUICK_S, Engine, EngineError
from pyvxlan.daemon.plugin.ipam import SPACE, IpamDriver, PendingPool
from pyvxlan.daemon.plugin.pairing import Pairing
from pyvxlan.daemon.requests import Mtu, NetworkSpec, check_dns_name
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)

PROVISIONAL = "new"
"""Stands for the name that Docker does not tell yet."""


class NetworkDriver:
    """Answers Docker's calls for networks and endpoints.

    Args:
        handover: Does what is asked of endpoints.
        addresses: The other half, which knows the subnets that a new network has.
        pairing: Which networks Docker has.
        state: Which networks the cluster has.
        engine: Tells names.
        names_address: Where containers ask for names.
        publish: Called with Docker's id of a new network, which should be told to the cluster, and
            the MTU that it was checked against.
    """

    def __init__(
        self,
        *,
        handover: Handover,
        addresses: IpamDriver,
        pairing: Pairing,
        state: State,
        engine: Engine,
        names_address: str,
        publish: Callable[[str, Mtu], None],
    ) -> None:
        self.removing: set[str] = set()
        """Networks that this daemon itself takes out of Docker."""
        self.deleted: set[str] = set()
        """Networks, by Docker's id, that Docker has deleted; it may list them a moment longer."""
        self.arriving: dict[str, EndpointCreation] = {}
        """Endpoints, by Docker's id, between their creation and the end of their joining."""
        self.gone: set[str] = set()
        """Networks that this host has removed from the cluster; it may see them a moment longer."""
        self._ending: set[str] = set()
        """Networks of the cluster that are just being removed from it."""
        self._handover = handover
        self._addresses = addresses
        self._pairing = pairing
        self._state = state
        self._engine = engine
        self._names_address = names_address
        self._publish = publish

    async def create_network(self, request: NetworkCreation) -> None:
        """Takes in a network of Docker's: a copy of the cluster's, or a new one.

        Raises:
            InvalidError: An option is not acceptable, or the addresses are not ours.
        """
        if any(pool.space != SPACE for pool in request.pools) or not request.pools:
            driver = self._engine.driver
            raise InvalidError(
                f"driver {driver} gives out addresses itself, so that no two hosts give the same "
                f"one: add --ipam-driver {driver} (in a compose file: ipam: {{driver: {driver}}})"
            )
        pools = [self._pool(pool.pool) for pool in request.pools]
        copies = {pool.copy_of.id: pool.copy_of for pool in pools if pool.copy_of}
        if copies:
            ((_, network),) = copies.items() if len(copies) == 1 else (("", None),)
            if network is None or {pool.cidr for pool in pools} != _cidrs(network):
                raise ConflictError("the subnets are those of other networks: choose others")
            self._pairing.join(request.network_id, network)
            for pool in pools:
                self._addresses.pending.pop(pool.cidr, None)
            return
        (mtu, *_) = [pool.mtu for pool in pools if pool.mtu]
        wish = self._handover.service.check_network(_spec(request), mtu)
        for known in self._state.networks.values():
            if wish.vni is not None and known.vni == wish.vni:
                raise ConflictError(f"VNI {wish.vni} is taken by network {known.name}")
        for pool in pools:
            pool.engine_id = request.network_id
        self._publish(request.network_id, mtu)

    async def delete_network(self, request: NetworkDeletion) -> None:
        """Removes a network from the cluster, if a user removed it and nobody uses it.

        This call, and nothing else, says that somebody wanted it removed: a network that merely
        lacks in Docker's list may be lost with its disk. Never fails, and waits a little only.
        """
        self.deleted.add(request.network_id)
        for pool in list(self._addresses.pending.values()):
            if pool.engine_id == request.network_id:
                # What Docker could not finish it takes back in the other order: subnets last.
                await self._addresses.drop(pool.cidr)
        by_user = request.network_id not in self.removing
        network = self._pairing.part(request.network_id, doomed=by_user)
        if network is None or not by_user:
            return
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self.remove_doomed(network.id)
        except (DaemonError, TimeoutError) as error:
            log.warning("network removed later network=%s cause=%s", network.id, error)

    async def remove_doomed(self, network_id: str) -> None:
        """Removes a network that a user has removed from Docker from the cluster.

        One that is in use on another host stays there, and is hidden on this one. Does nothing if
        that is under way already.

        Raises:
            DaemonError: Not now; it stays doomed.
        """
        if network_id in self._ending:
            return
        self._ending.add(network_id)
        try:
            await self._remove_doomed(network_id)
        finally:
            self._ending.discard(network_id)

    async def _remove_doomed(self, network_id: str) -> None:
        hidden = False
        await self._handover.clear(network_id)
        try:
            await self._handover.service.remove_network(network_id)
            self.gone.add(network_id)
        except InUseError as error:
            log.warning("network hidden on this host network=%s cause=%s", network_id, error)
            hidden = True
        except NotFoundError:
            log.info("network was removed already network=%s", network_id)
        self._pairing.settle(network_id, hidden=hidden)

    async def create_endpoint(self, request: EndpointCreation) -> dict[str, Any]:
        """Notes an endpoint; gives the MAC unless one was chosen."""
        addresses = _addresses(request)
        await self._addresses.published(addresses[0].network)
        self.arriving[request.endpoint_id] = request
        if request.mac:
            records.parse_mac(request.mac)
            return {}
        return {"Interface": {"MacAddress": format_mac(ipam.mac_for(addresses[0].ip))}}

    async def join(self, request: JoinCall) -> dict[str, Any]:
        """Makes the endpoint and its interface, and tells Docker where to fetch it."""
        creation = self.arriving.get(request.endpoint_id)
        name = ""
        try:
            # An Engine that starts calls us and answers nobody, for as long as we wait for it.
            if not self._engine.reachable:
                raise EngineError("Docker is starting")
            shown = await self._engine.network(request.network_id, timeout_s=QUICK_S)
            if told := shown.endpoints.get(request.endpoint_id):
                name = told.name
                creation = creation or EndpointCreation(
                    request.network_id,
                    request.endpoint_id,
                    next((a for a in told.addresses if ":" not in a), ""),
                    next((a for a in told.addresses if ":" in a), ""),
                    told.mac,
                )
        except DaemonError as error:
            log.warning("name learnt later endpoint=%s cause=%s", request.endpoint_id[:12], error)
        if creation is None:
            raise NotFoundError(f"endpoint {request.endpoint_id[:12]} was never created")
        addresses = _addresses(creation)
        network = await self._addresses.published(addresses[0].network)
        arrival = Arrival(
            request.endpoint_id,
            network.id,
            addresses,
            records.parse_mac(creation.mac) if creation.mac else b"",
            request.sandbox_key,
            usable_name(name),
        )
        try:
            local = await self._join(request.network_id, arrival)
        finally:
            self.arriving.pop(request.endpoint_id, None)
        answer: dict[str, Any] = {
            "InterfaceName": {"SrcName": handover_ifname(local.id), "DstPrefix": "eth"}
        }
        held = {address.network for address in addresses}
        versions = {address.version for address in addresses}
        on_link = [
            str(subnet.cidr)
            for subnet in network.subnets
            if subnet.cidr not in held and subnet.cidr.version in versions
        ]
        if local.names_route:
            # The name server's address is on the bridge of every overlay.
            on_link.append(f"{self._names_address}/32")
        answer["StaticRoutes"] = [{"Destination": to, "RouteType": 1} for to in on_link]
        return answer

    async def leave(self, request: EndpointCall) -> None:
        """Does nothing yet: Docker gives the interface back first, then deletes the endpoint."""

    async def delete_endpoint(self, request: EndpointCall) -> None:
        """Removes an endpoint; its addresses go when Docker gives them back. Never fails."""
        self.arriving.pop(request.endpoint_id, None)
        await self._handover.leave(request.endpoint_id)

    async def drop_unknown(self, engine_id: str) -> int:
        """Removes the endpoints of a network that Docker does not know any more; counts them."""
        network = self._pairing.pairs.get(engine_id)
        here = [
            local
            for local in self._handover.endpoints
            if network and local.network_id == network.id and local.engine_id not in self.arriving
        ]
        if not here:
            return 0
        try:
            shown = (await self._engine.network(engine_id)).endpoints
        except NotFoundError:
            shown = {}
        lost = [local for local in here if local.engine_id not in shown]
        for local in lost:
            if local.engine_id not in self.arriving:
                await self._handover.drop(local)
        return len(lost)

    async def _join(self, engine_id: str, arrival: Arrival) -> Any:
        try:
            return await self._handover.join(arrival)
        except ConflictError:
            # Perhaps with what a container left that ended while this daemon was down.
            if not await self.drop_unknown(engine_id):
                raise
            return await self._handover.join(arrival)

    def _pool(self, text: str) -> PendingPool:
        pool = self._addresses.pending.get(ip_network(text))
        if pool is None:
            raise InvalidError(f"subnet {text} was not asked for: create the network again")
        return pool


def usable_name(name: str) -> str:
    """Gives a name that Docker allows if it can be looked up, else nothing."""
    try:
        return check_dns_name(name, "name") if name else ""
    except InvalidError:
        return ""


def _spec(request: NetworkCreation) -> NetworkSpec:
    return NetworkSpec(
        PROVISIONAL,
        subnets=tuple(pool.pool for pool in request.pools),
        gateways=tuple(pool.gateway.partition("/")[0] for pool in request.pools if pool.gateway),
        aux_addresses={
            name: address.partition("/")[0]
            for pool in request.pools
            for name, address in pool.aux.items()
        },
        ipv6=request.ipv6,
        internal=request.internal,
        options=request.options,
    )


def _addresses(request: EndpointCreation) -> tuple[Interface, ...]:
    texts = [text for text in (request.address, request.address6) if text]
    if not texts:
        raise InvalidError(f"endpoint {request.endpoint_id[:12]} has no address")
    return tuple(ip_interface(text) for text in texts)


def _cidrs(network: Network) -> set[Any]:
    return {subnet.cidr for subnet in network.subnets}


__all__ = ["NetworkDriver", "endpoint_id", "usable_name"]
