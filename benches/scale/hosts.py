"""Hosts of the simulation: a daemon's whole control plane each, without kernel and data plane."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_interface, ip_network
from math import gcd

from benches.scale.gauges import rss
from pyvxlan.daemon import ipam, records
from pyvxlan.daemon.clusterstore import ClusterStore
from pyvxlan.daemon.endpoints import Endpoints
from pyvxlan.daemon.membership import Membership
from pyvxlan.daemon.model import Endpoint, Host, Network, Subnet
from pyvxlan.daemon.networks import Networks
from pyvxlan.daemon.requests import EndpointWish
from pyvxlan.daemon.state import EVERYTHING, State
from tests.kv.conftest import eventually

SESSION_TTL_S = 120
"""Hosts that share a processor are late by as many as they are; sessions of 15 s would end."""
ANY_ENDPOINT = EndpointWish("", "", "", None, (), "", "")


@dataclass(frozen=True)
class Size:
    """How large the cluster is. Every network has as many endpoints, each on another host."""

    hosts: int
    networks: int
    endpoints: int

    def __post_init__(self) -> None:
        if not 0 < self.per_network <= min(self.hosts, 250):
            raise ValueError(
                f"{self.per_network} endpoints per network: must be from 1 to {self.hosts} hosts, "
                "and at most 250, so that a /24 has room for more"
            )

    @property
    def per_network(self) -> int:
        return self.endpoints // self.networks

    @cached_property
    def members(self) -> Sequence[Sequence[int]]:
        """Which hosts have an endpoint in each network: as many networks for every host."""
        stride = self.hosts // 3 + 1
        while gcd(stride, self.hosts) > 1:
            stride += 1
        return [
            [
                (n * self.per_network + step * stride) % self.hosts
                for step in range(self.per_network)
            ]
            for n in range(self.networks)
        ]

    @cached_property
    def joined(self) -> Sequence[Sequence[int]]:
        """Which networks each host has an endpoint in."""
        joined: list[list[int]] = [[] for _ in range(self.hosts)]
        for network, hosts in enumerate(self.members):
            for host in hosts:
                joined[host].append(network)
        return joined


def host_id(number: int) -> str:
    return f"{number:010x}" + "a" * 22


def network_id(number: int) -> str:
    return f"{number:010x}" + "b" * 22


def model_host(number: int) -> Host:
    vtep = ip_address("198.18.0.0") + 1 + number
    return Host(host_id(number), f"host{number}", vtep, 4789, "0.1.0")


def model_network(number: int) -> Network:
    cidr = ip_network(f"10.{number >> 8}.{number & 255}.0/24")
    subnet = Subnet(cidr, cidr.network_address + 1)
    name = f"network{number}"
    return Network(network_id(number), name, 4096 + number, (subnet,), 1450, created="2026-11-25")


def records_of(size: Size) -> dict[str, bytes]:
    """Everything that the cluster has in its store before the hosts start, `meta` aside."""
    values: dict[str, bytes] = {}
    used = {}
    for number in range(size.networks):
        network = model_network(number)
        owner = records.emit(network.id)
        used[network.subnets[0].cidr] = network.id
        values[records.network_key(network.id)] = records.emit_network(network)
        values[records.network_name_key(network.name)] = owner
        values[records.vni_key(network.vni)] = owner
        values[records.address_key(network.id, network.subnets[0].gateway)] = owner
        for step, host in enumerate(size.members[number]):
            endpoint = model_endpoint(network, step, host)
            key = records.endpoint_key(network.id, endpoint.id)
            values[key] = records.emit_endpoint(endpoint)
            values |= dict.fromkeys(records.endpoint_claims(endpoint), records.emit(endpoint.id))
    values[records.CFG] = records.emit({"v": 1, "session_ttl_s": SESSION_TTL_S})
    values[records.POOLS] = records.emit_pools(records.PoolUse(used))
    return values


def model_endpoint(network: Network, step: int, host: int) -> Endpoint:
    cidr = network.subnets[0].cidr
    address = ip_interface((cidr.network_address + 2 + step, cidr.prefixlen))
    return Endpoint(
        id=f"{int(network.id[:10], 16):010x}{step:010x}" + "c" * 12,
        network_id=network.id,
        host_id=host_id(host),
        mac=ipam.mac_for(address.ip),
        addresses=(address,),
        name=f"web{step}",
        aliases=("web",),
        container_id=f"{step:012x}",
    )


def nobody(_host: SimulatedHost, _network: str) -> None:
    """Sees nothing."""


class SimulatedHost:
    """One daemon's store, state, membership, networks and endpoints.

    Args:
        number: Which of the hosts.
        joined: Numbers of the networks that it has endpoints in.
        url: The store.
        seen: Called with the host and a network whenever that became dirty.
    """

    def __init__(
        self,
        number: int,
        joined: Sequence[int],
        url: str,
        seen: Callable[[SimulatedHost, str], None],
    ) -> None:
        self.number = number
        self.joined = [network_id(n) for n in joined]
        self._url = url
        self._seen = seen
        self._host = model_host(number)
        self.late = ""
        """Why its registration took more than one try; empty if it did not."""
        self.state: State
        self.endpoints: Endpoints
        self._store: ClusterStore
        self._membership: Membership

    async def start(self, *, within_s: float = 120) -> None:
        """Starts as a daemon does; returns when everything was read and the host registered."""
        host = self._host
        self._store = await ClusterStore.open(self._url, host_id=host.id)
        self.state = State(self._store, host)
        mark = self.state.mark

        def mark_and_tell(network: str = EVERYTHING) -> None:
            mark(network)
            self._seen(self, network)

        self.state.mark = mark_and_tell  # type: ignore[method-assign]
        read = await self.state.start(self.joined, timeout_s=within_s)
        assert read, self.state.stale_reason
        self._membership = Membership(self._store, self.state, host)
        if not await self._membership.register(timeout_s=within_s):
            # As a daemon whose first try failed it goes on trying by itself.
            self.late = self._membership.problem
            await eventually(lambda: self._membership.session is not None, within_s)
        rng = random.Random(self.number)
        membership = self._membership
        networks = Networks(
            self._store, self.state, host, cluster=lambda: membership.cluster, rng=rng
        )
        self.endpoints = Endpoints(
            self._store, self.state, host, networks, token=membership.token, rng=rng
        )

    async def close(self) -> None:
        await self._membership.close()
        await self.state.close()
        await self._store.close()

    async def create(self, network: str) -> Endpoint:
        """Makes an endpoint as `attach` does."""
        return await self.endpoints.create(network, ANY_ENDPOINT, secrets.token_hex(16))

    @property
    def known(self) -> int:
        """How many endpoints it knows, on all hosts."""
        return sum(len(of_one) for of_one in self.state.endpoints.values())


async def start_hosts(
    hosts: dict[int, SimulatedHost],
    numbers: Iterable[int],
    size: Size,
    url: str,
    seen: Callable[[SimulatedHost, str], None],
    *,
    at_once: int,
    within_s: float,
    memory: int,
) -> None:
    """Starts hosts, some at one time, and adds them to `hosts` by number.

    Raises:
        MemoryError: This process has more than `memory` bytes by now.
    """
    slots = asyncio.Semaphore(at_once)

    async def start(number: int) -> None:
        async with slots:
            host = SimulatedHost(number, size.joined[number], url, seen)
            await host.start(within_s=within_s)
            hosts[number] = host
            if rss(os.getpid()) > memory:
                raise MemoryError(f"{len(hosts)} hosts take more than {memory} bytes")

    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(start(number))


def share_parsing() -> None:
    """Lets all hosts of this process share what they parse, which no host changes."""
    for name in ("parse_endpoint", "parse_network", "parse_host"):
        setattr(records, name, functools.lru_cache(maxsize=None)(getattr(records, name)))


async def all_lost(hosts: Iterable[SimulatedHost], within_s: float) -> None:
    """Returns when no host hears from the store any more."""
    for host in hosts:
        await host.state.wait_for(lambda host=host: not host.state.synced, timeout_s=within_s)  # type: ignore[misc]


async def in_step(hosts: Iterable[SimulatedHost], within_s: float) -> None:
    """Returns when every host has read everything and hears from the store."""
    async with asyncio.timeout(within_s):
        for host in hosts:
            await host.state.wait_for(lambda host=host: host.state.synced, timeout_s=within_s)  # type: ignore[misc]
