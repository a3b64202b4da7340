"""The verbs: what the API, the CLI and plug-ins may ask of this host.

A verb changes the store, or what this host wants of itself, and nothing else; the effect arrives
by the reconciler. A verb that fails puts back what it did: store, local record and kernel. One
module, because the verbs undo one another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from random import Random
from typing import NoReturn, Protocol

from pyvxlan.daemon import ipam, joining, records
from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.endpoints import Endpoints
from pyvxlan.daemon.errors import (
    ConflictError,
    DaemonError,
    InUseError,
    NotFoundError,
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import Store
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.membership import Membership
from pyvxlan.daemon.model import (
    DOCKER_BRIDGE,
    OVERHEAD_BYTES,
    Address,
    Cidr,
    Endpoint,
    Host,
    LocalEndpoint,
    Network,
    Sandbox,
    Surroundings,
)
from pyvxlan.daemon.networks import Networks, SeenPools, SubnetBounds
from pyvxlan.daemon.repair import FENCE_S, Repair
from pyvxlan.daemon.requests import (
    AttachSpec,
    EndpointSpec,
    Mtu,
    NetworkSpec,
    NetworkWish,
    parse_endpoint_spec,
    parse_network_spec,
)
from pyvxlan.daemon.reservations import Reservations
from pyvxlan.daemon.state import State
from pyvxlan.daemon.timings import Timings

__all__ = [
    "AttachSpec",
    "EndpointSpec",
    "HostNet",
    "HostStatus",
    "NetworkSpec",
    "Service",
    "Settler",
]

log = logging.getLogger(__name__)

SETTLE_S = 10.0


class HostNet(Protocol):
    """What the verbs ask of the kernel; `daemon.net.Net` is the one that does it."""

    async def resolve_sandbox(self, text: str) -> Sandbox:
        """Finds a network namespace by name, path or pid."""

    async def sandbox_links(self, sandbox: Sandbox) -> Sequence[str]:
        """Names of the interfaces inside a sandbox."""

    async def surroundings(self, underlay: Address) -> Surroundings:
        """What the host routes over which link, and the MTU behind an underlay address."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """A subnet that this host has reserved, and the MTU that the host had then."""

    cidr: Cidr
    mtu: Mtu


@dataclass(frozen=True, slots=True)
class Groundwork:
    """What creating a network needs whatever it is like, read ahead."""

    mtu: Mtu
    pools: SeenPools


class Settler(Protocol):
    """What the verbs ask of the reconciler."""

    def poke(self, nid: str = "*", /) -> None:
        """Asks for a comparison now."""

    async def settled(self, nid: str, /, timeout_s: float = SETTLE_S) -> None:
        """Returns when what is wanted of a network now is so; raises the cause if not in time."""


@dataclass(frozen=True, slots=True)
class HostStatus:
    """A host of the cluster, whether its daemon holds a session, and whether it is this one."""

    host: Host
    alive: bool
    is_self: bool


class Service:
    """The verbs of this host's daemon. Every method may run beside any other."""

    def __init__(
        self,
        *,
        store: Store,
        state: State,
        local: LocalRecords,
        membership: Membership,
        reconciler: Settler,
        net: HostNet,
        settings: Settings,
        host: Host,
        timings: Timings | None = None,
        rng: Random | None = None,
        fence_s: float = FENCE_S,
    ) -> None:
        self._timings = timings or Timings()
        rng = rng or Random(secrets.randbits(64))  # noqa: S311 - spreads load, guards nothing
        self._state = state
        self._local = local
        self._membership = membership
        self._reconciler = reconciler
        self._net = net
        self._settings = settings
        self._host = host
        self._networks = Networks(store, state, host, cluster=lambda: membership.cluster, rng=rng)
        self._endpoints = Endpoints(
            store, state, host, self._networks, token=membership.token, rng=rng
        )
        self.reservations = Reservations(
            store,
            state,
            host,
            self._networks,
            self._endpoints,
            token=membership.token,
            rng=rng,
        )
        self._repair = Repair(
            state=state,
            local=local,
            membership=membership,
            networks=self._networks,
            endpoints=self._endpoints,
            disconnect=self.leave,
            fence_s=fence_s,
        )

    @property
    def upkeep(self) -> Repair:
        """Keeps this host's part of the store right."""
        return self._repair

    @property
    def registry(self) -> Endpoints:
        """The endpoints in the store, for whoever removes those of other hosts."""
        return self._endpoints

    @property
    def stale_s(self) -> float | None:
        """For how long the store has not answered; None while answers come from it."""
        since = self._state.silent_since
        return None if since is None else time.monotonic() - since

    async def keep(self) -> NoReturn:
        """Keeps this host's part of the store right; see `Repair`."""
        await self._repair.keep()

    async def repair(self) -> None:
        """Compares this host's part of the store once; see `Repair`."""
        await self._repair.repair()

    async def groundwork(self, mtu: Mtu) -> Groundwork:
        """Reads what a network whose subnets are reserved is made from, before the rest is known.

        Raises:
            StoreError: The store does not answer.
        """
        return Groundwork(mtu, await self._networks.see_pools())

    async def create_network(
        self,
        spec: NetworkSpec,
        *,
        held: Collection[Cidr] = (),
        groundwork: Groundwork | None = None,
    ) -> Network:
        """Creates a network for the whole cluster; `held` are subnets reserved for it.

        A reserved one was checked when it was reserved, and is not checked again. `groundwork` was
        laid after that; without it, it is laid now.

        Raises:
            InvalidError: A value of the spec is not acceptable.
            ConflictError: The name, the VNI or a subnet is taken.
            ExhaustedError: No pool has a free subnet.
        """
        if groundwork:
            mtu, seen = groundwork.mtu, groundwork.pools
        else:
            mtu, seen = self._mtu(await self._net.surroundings(self._host.vtep)), None
        wish = parse_network_spec(spec, mtu)
        return await self._networks.create(wish, self._subnet_bounds, held=held, seen=seen)

    def check_network(self, spec: NetworkSpec, mtu: Mtu) -> NetworkWish:
        """Checks what can be told of a wish for a network without the store.

        Raises:
            InvalidError: A value is not acceptable.
        """
        return parse_network_spec(spec, mtu)

    def _mtu(self, around: Surroundings) -> Mtu:
        underlay = self._settings.mtu_bytes or around.mtu_bytes
        overhead = OVERHEAD_BYTES[self._host.vtep.version]
        return Mtu(underlay, overhead, self._state.config.mtu_bytes)

    async def reserve_subnet(self, cidr: Cidr | None, *, version: int) -> Reserved:
        """Reserves a subnet for a network to be: the one given, or a free one of the pools.

        Raises:
            ConflictError: It touches another network's, or what this host needs itself.
            ExhaustedError: The pools have none left.
        """
        # The store answers while the kernel is asked.
        seen, around = await asyncio.gather(
            self._networks.see_pools(), self._net.surroundings(self._host.vtep)
        )
        bounds = await self._subnet_bounds(around)
        pools = [pool for pool in bounds.pools if pool.base.version == version]
        if version == 6 and not pools:
            pools = [ipam.unique_local_pool(self._membership.cluster)]
        chosen = await self.reservations.reserve_subnet(
            cidr, pools=pools, routed=bounds.routed, reserved=bounds.reserved, seen=seen
        )
        return Reserved(chosen, self._mtu(around))

    async def _subnet_bounds(self, around: Surroundings | None = None) -> SubnetBounds:
        """Says where subnets come from, and what they must not touch."""
        around = around or await self._net.surroundings(self._host.vtep)
        pools = self._state.config.pools
        if pools is None:
            pools = tuple(records.parse_pool(text) for text in self._settings.pools)
        routes = [route for route, _ in around.routes]
        gateway = await self._gateway_subnet(routes)
        routed = [*routes, gateway]
        reserved: list[tuple[Cidr, str]] = [
            (gateway, "the gateway bridge (setting gateway_subnet)")
        ]
        reserved += [
            (ipam.as_cidr(host.vtep), f"host {host.name}'s underlay")
            for host in {self._host.id: self._host, **self._state.hosts}.values()
        ]
        reserved += [
            (route, f"{link}, Docker's way out of containers on this host")
            for route, link in around.routes
            if link == DOCKER_BRIDGE
        ]
        return SubnetBounds(pools, routed, reserved)

    async def remove_network(self, ref: str) -> Network:
        """Removes a network from the whole cluster.

        Raises:
            InUseError: It has endpoints; the message names them and their hosts.
            NotFoundError: There is none.
        """
        return await self._networks.remove(ref)

    async def prune_networks(self) -> list[Network]:
        """Removes every network without endpoints; returns those removed."""
        removed = []
        for network in await self._networks.all():
            with contextlib.suppress(InUseError, NotFoundError):
                removed.append(await self._networks.remove(network.id))
        return removed

    async def networks(self) -> list[Network]:
        """All networks, by name; what was last known while the store is away."""
        return await self._networks.all()

    async def find_network(self, ref: str) -> Network:
        """Finds a network by name, id, or unambiguous prefix of the id."""
        return await self._networks.look_up(ref)

    async def endpoints(self, network_ref: str | None = None) -> list[Endpoint]:
        """Endpoints of one network or of all, on all hosts.

        While the store is away, those that were known last: of the networks on this host.
        """
        network_id = (await self.find_network(network_ref)).id if network_ref is not None else None
        found = await self._endpoints.all(network_id)
        return [endpoint for endpoint in found if endpoint.id not in self._local.withdrawn]

    async def attached(self, network_ref: str | None = None) -> list[Endpoint]:
        """This host's endpoints in one network or in all, by name; asks no store for them."""
        network_id = (await self.find_network(network_ref)).id if network_ref is not None else None
        found = [
            endpoint
            for id_, endpoint in self._local.records.items()
            if id_ in self._local.endpoints and network_id in {None, endpoint.network_id}
        ]
        return sorted(found, key=lambda endpoint: (endpoint.network_id, endpoint.name, endpoint.id))

    async def find_endpoint(self, ref: str) -> Endpoint:
        """Finds an endpoint by id, unambiguous prefix of it, name, or NAME.NETWORK."""
        return await self._endpoints.find(ref)

    async def hosts(self) -> list[HostStatus]:
        """All hosts, by name; those that were known last while the store is away."""
        if not self._state.known:
            raise StoreUnavailableError(
                f"store {self._settings.store} was never reached "
                f"({self._state.stale_reason or 'no answer'}): start it or repair the way to it"
            )
        hosts = sorted(self._state.hosts.values(), key=lambda host: (host.name, host.id))
        return [
            HostStatus(host, host.id in self._state.alive, host.id == self._host.id)
            for host in hosts
        ]

    async def create_endpoint(self, network_ref: str, spec: EndpointSpec) -> Endpoint:
        """Creates an endpoint of this host in the store; nothing in the kernel yet.

        With the store away, one that was removed meanwhile comes back, if it fits.

        Raises:
            InvalidError: A value of the spec is not acceptable.
            ConflictError: The name, address or MAC is taken.
            ExhaustedError: No address is free, or this host's bridge has no free port.
            StoreError: The store is away, and none fits.
        """
        wish = parse_endpoint_spec(spec)
        network = self._networks.known(network_ref) or await self.find_network(network_ref)
        joining.check_bridge(self._local, network)
        if revived := await self._repair.revive(network.id, wish):
            return revived
        endpoint_id = secrets.token_hex(16)
        self._repair.unattached[endpoint_id] = network.id
        try:
            try:
                return await self._endpoints.create(network.id, wish, endpoint_id)
            except NotFoundError:
                network = await self.find_network(network_ref)  # The name means another by now.
                self._repair.unattached[endpoint_id] = network.id
                return await self._endpoints.create(network.id, wish, endpoint_id)
        except BaseException:
            self._repair.unattached.pop(endpoint_id, None)
            raise

    async def join(self, endpoint: Endpoint, sandbox: Sandbox, ifname: str = "") -> LocalEndpoint:
        """Connects a sandbox to an endpoint of this host; returns when frames can flow.

        Raises:
            ConflictError: The sandbox is in that network already, or has such an interface.
            DaemonError: The kernel or the forwarder refused; nothing of it is left.
        """
        network = self._networks.known(endpoint.network_id)
        network = network or await self.find_network(endpoint.network_id)
        gateway_subnet = await self._gateway_subnet()
        links = await self._net.sandbox_links(sandbox)
        # From here to `put` nothing else runs: two joins never choose the same name or address.
        joining.check_bridge(self._local, network)
        joining.check_twice(self._local, network, sandbox)
        local = joining.plan_join(
            self._local, network, endpoint, sandbox, ifname, links, gateway_subnet
        )
        self._local.put(local, endpoint=endpoint, network=network)
        self._state.join(network.id)
        try:
            key = records.endpoint_key(network.id, endpoint.id)
            await self._state.wait_for(lambda: self._state.recorded(key), timeout_s=SETTLE_S)
            await self._settle(network.id)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._undo_join(local)))
            raise
        log.info(
            "endpoint joined endpoint=%s network=%s sandbox=%s", local.id, network.id, sandbox.path
        )
        return local

    async def leave(self, endpoint_id: str) -> None:
        """Disconnects an endpoint from its sandbox; its record, name and address stay.

        Raises:
            DaemonError: Something could not be removed; the reconciler goes on trying.
        """
        local = self._local.endpoints.get(endpoint_id)
        if local is None:
            return
        if heir := joining.gateway_heir(self._local, local):
            self._local.put(replace(local, gateway_ifname="", gateway_address=None))
            self._local.put(heir)
            self._reconciler.poke(heir.network_id)
        self._repair.unattached[endpoint_id] = local.network_id
        self._local.remove(endpoint_id)
        try:
            await self._settle(local.network_id)
        finally:
            self._repair.leave_network(local.network_id)

    async def delete_endpoint(self, endpoint_id: str) -> None:
        """Disconnects an endpoint of this host if need be, and removes it from the store.

        With the store away, the record goes as soon as it is back.

        Raises:
            NotFoundError: There is none.
            DaemonError: A part of it failed; the rest was done.
        """
        endpoint = self._local.records.get(endpoint_id)
        endpoint = endpoint or await self._endpoints.find(endpoint_id)
        failures: list[DaemonError] = []
        try:
            await self.leave(endpoint.id)
        except DaemonError as error:
            failures.append(error)
        try:
            await self._repair.withdraw(endpoint)
        except (StoreUnavailableError, StoreUncertainError) as error:
            log.warning("endpoint withdrawn later endpoint=%s cause=%s", endpoint.id, error)
        except StoreError as error:
            failures.append(error)
        if failures:
            log.warning("endpoint removed in part endpoint=%s", endpoint.id)
            raise failures[-1]

    async def attach(self, spec: AttachSpec) -> Endpoint:
        """Creates an endpoint and connects a sandbox to it: all of it or nothing."""
        with self._timings.attach.timed():
            return await self._attach(spec)

    async def detach(self, ref: str, *, force: bool = False) -> Endpoint:
        """Removes an endpoint. One of another host only with `force`, and only if that is down.

        Raises:
            ConflictError: It runs on another host.
            NotFoundError: There is none.
        """
        endpoint = self._local.records.get(ref) or await self._endpoints.find(ref)
        if endpoint.host_id == self._host.id:
            await self.delete_endpoint(endpoint.id)
            return endpoint
        owner = self._state.hosts.get(endpoint.host_id)
        name = owner.name if owner else endpoint.host_id[:12]
        label = endpoint.name or endpoint.id[:12]
        if not force:
            raise ConflictError(
                f"endpoint {label} runs on host {name}: detach it there, or with --force if that "
                "host is down"
            )
        try:
            await self._endpoints.delete(endpoint, orphan=True)
        except StoreConflictError as error:
            raise ConflictError(
                f"endpoint {label} runs on host {name}, which is alive: detach it there"
            ) from error
        return endpoint

    async def _attach(self, spec: AttachSpec) -> Endpoint:
        parse_endpoint_spec(spec.endpoint)
        sandbox = await self._net.resolve_sandbox(spec.sandbox)
        network = self._networks.known(spec.network) or await self.find_network(spec.network)
        joining.check_twice(self._local, network, sandbox)
        links = await self._net.sandbox_links(sandbox)
        joining.check_ifname(self._local, sandbox, spec.ifname, links)
        endpoint = await self.create_endpoint(network.id, spec.endpoint)
        try:
            await self.join(endpoint, sandbox, spec.ifname)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._undo_create(endpoint)))
            raise
        return endpoint

    async def _undo_join(self, local: LocalEndpoint) -> None:
        try:
            await self.leave(local.id)
        except DaemonError as error:
            log.warning("join not undone yet endpoint=%s cause=%s", local.id, error)

    async def _undo_create(self, endpoint: Endpoint) -> None:
        try:
            await self._repair.withdraw(endpoint)
        except StoreError as error:
            log.warning("endpoint not withdrawn yet endpoint=%s cause=%s", endpoint.id, error)

    async def _settle(self, network_id: str) -> None:
        self._reconciler.poke(network_id)
        await self._reconciler.settled(network_id, SETTLE_S)

    async def _gateway_subnet(self, routes: Sequence[Cidr] | None = None) -> IPv4Network:
        """Gives the gateway bridge's subnet; chooses it once, then keeps it while it is in use.

        `routes` are the host's, if they were read already.
        """
        if self._local.gateway_subnet is None or not self._local.gateway_addresses:
            wanted = IPv4Network(self._settings.gateway_subnet)
            if routes is None:
                around = await self._net.surroundings(self._host.vtep)
                routes = [route for route, _ in around.routes]
            kept = self._local.gateway_subnet
            if kept is None or any(ipam.overlap(kept, route) for route in routes):
                chosen = ipam.next_gateway_subnet(wanted, routes)
                self._local.remember_gateway_subnet(chosen)
        subnet = self._local.gateway_subnet
        assert subnet is not None
        return subnet
