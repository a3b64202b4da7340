"""The IPAM half of the plug-in: subnets and addresses.

A pool's id names its subnet, since no two networks of a cluster share one. A subnet without a
network yet is reserved in the store for this host; `pending` remembers what else Docker said of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from pyvxlan.daemon import ipam
from pyvxlan.daemon.errors import ConflictError, DaemonError, InvalidError, NotFoundError
from pyvxlan.daemon.handover import Handover
from pyvxlan.daemon.model import Address, Cidr, Network
from pyvxlan.daemon.plugin.codec import AddressRelease, AddressRequest, PoolRelease, PoolRequest
from pyvxlan.daemon.plugin.pairing import Pairing, held_by_itself
from pyvxlan.daemon.requests import Mtu
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)

SPACE = "pyvxlan"
ALONE = "--ipam-driver pyvxlan goes with -d pyvxlan alone"
"""Docker asks for the subnets of a bridge's network in the same way."""
PUBLISH_S = 5.0
"""How long a container's start waits until its network, just made, is known to the cluster."""


@dataclass(slots=True)
class PendingPool:
    """A subnet that Docker has asked for.

    `copy_of` is the cluster's network that has it, if any, else `mtu` is there; `engine_id` is
    Docker's network, once it was told.
    """

    cidr: Cidr
    copy_of: Network | None = None
    mtu: Mtu | None = None
    gateway: Address | None = None
    spared: set[Address] = field(default_factory=set)
    engine_id: str = ""
    since_s: float = field(default_factory=time.monotonic)


class IpamDriver:
    """Answers Docker's questions for subnets and addresses.

    Args:
        handover: Reserves them.
        pairing: Which networks Docker has.
        state: Which networks the cluster has.
        publish: Called when a network should be told to the cluster now.
    """

    def __init__(
        self, handover: Handover, pairing: Pairing, state: State, publish: Callable[[], None]
    ) -> None:
        self.pending: dict[Cidr, PendingPool] = {}
        self.copying: dict[str, Network] = {}
        """Networks of the cluster, by id, that this daemon is just making in Docker.

        No option says it to `request_pool`: whoever compares a network with what they would have
        made (docker-compose does) would take the copy for another one.
        """
        self._handover = handover
        self._pairing = pairing
        self._state = state
        self._publish = publish

    async def request_pool(self, request: PoolRequest) -> tuple[str, Cidr]:
        """Reserves a subnet; each call without one gives another, so that asking again ends."""
        cidr = ipam.parse_subnet(request.pool) if request.pool else None
        version = 6 if request.v6 else 4
        if cidr and cidr.version != version:
            raise InvalidError(f"subnet {cidr} is not IPv{version}")
        if request.sub_pool and cidr is None:
            raise InvalidError(f"--ip-range {request.sub_pool} needs a --subnet that it lies in")
        copy_of = (self._to_copy(cidr) or self._uncopied(cidr)) if cidr else None
        mtu = None
        if copy_of is None:
            reserved = await self._handover.service.reserve_subnet(cidr, version=version)
            cidr, mtu = reserved.cidr, reserved.mtu
        assert cidr is not None
        if copy_of and cidr in self.pending:
            raise ConflictError(f"subnet {cidr} is asked for twice at the same time: try again")
        self.pending[cidr] = PendingPool(cidr, copy_of, mtu)
        return f"{SPACE}/{cidr}", cidr

    async def release_pool(self, request: PoolRelease) -> None:
        """Gives a subnet back that no network came for."""
        await self.drop(parse_pool_id(request.pool_id))

    async def drop(self, cidr: Cidr) -> None:
        """Gives a subnet back that Docker has asked for, if it is without a network still."""
        pool = self.pending.pop(cidr, None)
        if pool and pool.copy_of is None:
            try:
                await self._handover.service.reservations.release_subnet(cidr)
            except DaemonError as error:
                log.warning("subnet released later subnet=%s cause=%s", cidr, error)
                self.pending[cidr] = replace(pool, engine_id="")

    async def request_address(self, request: AddressRequest) -> str:
        """Gives an address with its prefix length: a gateway, a spared one, or an endpoint's."""
        cidr = parse_pool_id(request.pool_id)
        address = ipam.parse_address(request.address, "address") if request.address else None
        pool = self.pending.get(cidr)
        if pool and pool.copy_of:
            return _of_copy(pool.copy_of, cidr, address, gateway=request.gateway)
        if pool and not pool.engine_id:
            return _of_new(pool, address, gateway=request.gateway)
        network = await self.published(cidr)
        return str(await self._handover.reserve_address(network.id, cidr, address))

    async def release_address(self, request: AddressRelease) -> None:
        """Gives an address back; never fails."""
        cidr = parse_pool_id(request.pool_id)
        address = ipam.parse_address(request.address, "address")
        network = self._pairing.of_subnet(cidr)
        if network is None or address in held_by_itself(network):
            return
        await self._handover.release_address(network.id, address)

    async def published(self, cidr: Cidr) -> Network:
        """Gives the cluster's network that has a subnet in Docker, which may be about to come.

        Raises:
            NotFoundError: There is none.
        """
        deadline = time.monotonic() + PUBLISH_S
        while (network := self._pairing.of_subnet(cidr)) is None:
            if cidr not in self.pending:
                raise NotFoundError(
                    f"the network with subnet {cidr} is not in the cluster any more; if it was "
                    f"made on two hosts at once, it is about to be replaced: try again ({ALONE})"
                )
            if time.monotonic() > deadline:
                raise NotFoundError(
                    f"the network with subnet {cidr} is not known to the cluster yet: is the "
                    "store reachable? See pyvxlan status"
                )
            self._publish()
            await asyncio.sleep(0.02)
        return network

    def _to_copy(self, cidr: Cidr) -> Network | None:
        """The network that this daemon is copying; one that is gone meanwhile is refused."""
        for network in self.copying.values():
            if not _has(network, cidr):
                continue
            current = self._state.networks.get(network.id)
            if current is None or current.state != "up" or network.id in self._pairing.doomed:
                raise ConflictError(f"network {network.name} was just removed")
            if self._pairing.engine_id(network.id):
                raise ConflictError(f"network {network.name} is in Docker already")
            return current
        return None

    def _uncopied(self, cidr: Cidr) -> Network | None:
        """The cluster's network with exactly this subnet, unless Docker has it here already."""
        for network in self._state.networks.values():
            if _has(network, cidr):
                if self._pairing.engine_id(network.id):
                    raise ConflictError(f"subnet {cidr} is that of network {network.name}")
                return network
        return None


def _has(network: Network, cidr: Cidr) -> bool:
    return any(subnet.cidr == cidr for subnet in network.subnets)


def parse_pool_id(text: str) -> Cidr:
    """Reads a pool's id."""
    space, _, cidr = text.partition("/")
    try:
        if space != SPACE:
            raise ValueError(space)
        return ip_network(cidr)
    except ValueError:
        raise InvalidError(f"pool {text!r} was not given out by this plug-in") from None


def _of_copy(network: Network, cidr: Cidr, address: Address | None, *, gateway: bool) -> str:
    (subnet,) = (subnet for subnet in network.subnets if subnet.cidr == cidr)
    if gateway and address in {None, subnet.gateway}:
        return str(ipam.with_prefix(subnet.gateway, cidr))
    if address and not gateway and any(address == spared for _, spared in subnet.aux):
        return str(ipam.with_prefix(address, cidr))
    raise ConflictError(
        f"address {address} does not fit network {network.name}, which has {cidr} with gateway "
        f"{subnet.gateway} already"
    )


def _of_new(pool: PendingPool, address: Address | None, *, gateway: bool) -> str:
    if address and address not in pool.cidr:
        raise InvalidError(f"address {address} is not in subnet {pool.cidr}")
    if gateway:
        pool.gateway = address or ipam.first_free(pool.cidr, pool.spared)
        return str(ipam.with_prefix(pool.gateway, pool.cidr))
    if address is None:
        raise InvalidError(f"subnet {pool.cidr} is that of no network of the cluster: {ALONE}")
    if address == pool.gateway or address in pool.spared:
        raise ConflictError(f"address {address} is the gateway or another aux address")
    pool.spared.add(address)
    return str(ipam.with_prefix(address, pool.cidr))
