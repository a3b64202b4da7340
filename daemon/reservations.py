"""What this host holds in the store for somebody who has not said yet what it is for.

Docker asks for a subnet before it tells of the network, and for an address before it tells of the
endpoint. Until then the claim belongs to the host: its value is the host's id. The network's or
endpoint's own transaction takes it over (`held` there). What nobody took over is given back by
whoever asked, by `sweep` after a crash, and by the collector when the host is dead; so no journal
is needed beside the store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from random import Random

from pyvxlan.daemon import ipam, records
from pyvxlan.daemon.endpoints import Endpoints
from pyvxlan.daemon.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    StoreConflictError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import ABSENT, Check, Delete, Item, Store, Write
from pyvxlan.daemon.kv.store import Revision
from pyvxlan.daemon.model import Address, Cidr, Host, Interface, Network
from pyvxlan.daemon.networks import Networks, SeenPools, parsed_pools
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)

ATTEMPTS = 24


class Reservations:
    """What this host may do with subnets and addresses that have no owner yet.

    Args:
        store: The shared store.
        state: What this host knows already; spares reads, decides nothing.
        host: This host.
        networks: Finds the networks.
        endpoints: Says who holds an address.
        token: Gives the fencing token, or raises while there is none.
        rng: For addresses after a conflict.
    """

    def __init__(
        self,
        store: Store,
        state: State,
        host: Host,
        networks: Networks,
        endpoints: Endpoints,
        *,
        token: Callable[[], Revision],
        rng: Random,
    ) -> None:
        self._store = store
        self._state = state
        self._host = host
        self._networks = networks
        self._endpoints = endpoints
        self._token = token
        self._rng = rng
        self._mine = records.emit(host.id)
        self._cursors = ipam.Cursors()
        self._trying: dict[str, dict[Address, float]] = {}
        """Addresses by network that this process is about to claim or holds, and since when."""

    # Subnets

    async def reserve_subnet(
        self,
        cidr: Cidr | None,
        *,
        pools: Sequence[records.Pool],
        routed: Sequence[Cidr],
        reserved: Sequence[tuple[Cidr, str]],
        seen: SeenPools | None = None,
    ) -> Cidr:
        """Reserves a subnet: the one given, or the next free one of the pools.

        `seen` spares a read.

        Raises:
            ConflictError: It touches another network's.
            ExhaustedError: The pools have none left.
        """
        for _ in range(ATTEMPTS):
            item = (seen or await self._networks.see_pools()).item
            seen = None
            used = parsed_pools(item)
            lost = await self._networks.lost(used)
            spoken_for = {**used, **{subnet: network.id for subnet, network in lost.items()}}
            if cidr is None:
                chosen = ipam.next_pool(pools, spoken_for, routed)
            else:
                await self._networks.check_disjoint(cidr, spoken_for, reserved)
                chosen = cidr
            checks = [
                Check(records.alive_key(self._host.id), self._token()),
                Check(records.POOLS, item.revision if item else ABSENT),
            ]
            value = records.emit_pools(records.PoolUse({**used, chosen: self._host.id}))
            try:
                await self._store.txn(checks, [Write(records.POOLS, value)])
            except StoreConflictError:
                continue
            except StoreUncertainError:
                if parsed_pools(await self._store.get(records.POOLS)).get(chosen) != self._host.id:
                    raise
            log.info("subnet reserved subnet=%s", chosen)
            return chosen
        raise StoreConflictError("too many others create networks; try again")

    async def release_subnet(self, cidr: Cidr) -> None:
        """Gives a reserved subnet back; one that has an owner by now, or none, stays as it is."""
        for _ in range(ATTEMPTS):
            item = await self._store.get(records.POOLS)
            used = dict(parsed_pools(item))
            if item is None or used.get(cidr) != self._host.id:
                return
            del used[cidr]
            write = Write(records.POOLS, records.emit_pools(records.PoolUse(used)))
            try:
                await self._store.txn([Check(records.POOLS, item.revision)], [write])
            except StoreConflictError:
                continue
            log.info("subnet released subnet=%s", cidr)
            return
        raise StoreConflictError(f"subnet {cidr}: too many others create networks; try again")

    async def subnets(self) -> set[Cidr]:
        """Lists the subnets that this host has reserved."""
        used = parsed_pools(await self._store.get(records.POOLS))
        return {cidr for cidr, owner in used.items() if owner == self._host.id}

    # Addresses

    async def reserve_address(
        self, network_id: str, cidr: Cidr, address: Address | None
    ) -> Interface:
        """Reserves an address of a network's subnet: the one given, or a free one.

        If the subnet has no free one, it is of the network's next one: Docker, which asks of one
        subnet only, would not ask of the others.

        Raises:
            InvalidError: The given one is not one that an endpoint may have.
            ConflictError: It is taken; or the network is being removed.
            ExhaustedError: No subnet of its version has a free one.
        """
        for attempt in range(ATTEMPTS):
            network, revision = await self._networks.open(network_id, fresh=attempt > 0)
            chosen = await self._choose(network, cidr, address, fresh=attempt > 0)
            held = self._trying.setdefault(network_id, {})
            held[chosen.ip] = time.monotonic()
            try:
                await self._claim(network, chosen.ip, revision)
            except StoreConflictError:
                held.pop(chosen.ip, None)
                if address is not None:
                    await self._explain(network, address)
                continue
            except BaseException:
                held.pop(chosen.ip, None)
                raise
            if address is None:
                self._cursors.note(network_id, chosen.network, chosen.ip)
            return chosen
        raise StoreConflictError(
            f"network {network_id[:12]}: too many others take addresses; try again"
        )

    async def release_address(self, network_id: str, address: Address) -> None:
        """Gives a reserved address back; one that has an owner by now, or none, stays as it is."""
        key = records.address_key(network_id, address)
        item = await self._store.get(key)
        if item is not None and item.value == self._mine:
            await self._delete(item)
        self.forget(network_id, address)

    def forget(self, network_id: str, address: Address) -> None:
        """Notes that an address is this process's concern no longer: it has an owner, or none."""
        self._trying.get(network_id, {}).pop(address, None)

    def holds(self, network_id: str, address: Address) -> bool:
        """Whether this process has reserved an address, and nobody has taken it over yet."""
        return address in self._trying.get(network_id, {})

    async def release_stale(self, age_s: float) -> None:
        """Gives back the addresses that nobody has taken over for so long."""
        now_s = time.monotonic()
        for network_id, held in list(self._trying.items()):
            for address in [ip for ip, since_s in held.items() if now_s - since_s > age_s]:
                log.info("address was not taken network=%s address=%s", network_id, address)
                await self.release_address(network_id, address)

    async def sweep(self) -> None:
        """Gives back the addresses that an earlier process of this host left reserved."""
        for key, item in (await self._store.list("ip/")).items():
            if item.value != self._mine:
                continue
            _, network_id, text = key.split("/")
            try:
                address = ipam.parse_address(text, "claim")
            except InvalidError:
                continue
            if not self.holds(network_id, address):
                log.warning("reserved address released network=%s address=%s", network_id, text)
                await self._delete(item)

    async def collect(self, host_id: str, guard: Sequence[Check]) -> None:
        """Gives back all that a dead host has reserved, while `guard` holds.

        Raises:
            StoreConflictError: It does not, or something changed meanwhile; try again.
        """
        owner = records.emit(host_id)
        for item in (await self._store.list("ip/")).values():
            if item.value == owner:
                checks = [*guard, Check(item.key, item.revision)]
                await self._store.txn(checks, [Delete(item.key)])
        pools = await self._store.get(records.POOLS)
        used = parsed_pools(pools)
        if pools and host_id in used.values():
            kept = {cidr: holder for cidr, holder in used.items() if holder != host_id}
            write = Write(records.POOLS, records.emit_pools(records.PoolUse(kept)))
            await self._store.txn([*guard, Check(records.POOLS, pools.revision)], [write])

    async def _choose(
        self, network: Network, cidr: Cidr, address: Address | None, *, fresh: bool
    ) -> Interface:
        (subnet,) = (subnet for subnet in network.subnets if subnet.cidr == cidr)
        if address is not None:
            return ipam.static_address(str(address), address.version, [subnet])
        held = self._trying.setdefault(network.id, {}).keys()
        taken = self._state.taken(network.id)
        if fresh or not self._state.joined(network.id):
            prefix = records.addresses_prefix(network.id)
            claims = await self._store.list(prefix)
            taken = {ipam.parse_address(key.removeprefix(prefix), "claim") for key in claims}
        others = [s for s in network.subnets if s.cidr.version == cidr.version and s != subnet]
        for one in (subnet, *others):
            picked = ipam.pick_address(
                one,
                taken,
                held,
                cursor=self._cursors.last(network.id, one.cidr),
                rng=self._rng if fresh else None,
            )
            if picked is not None:
                return ipam.with_prefix(picked, one.cidr)
        ranges = ", ".join(str(one.ip_range or one.cidr) for one in (subnet, *others))
        raise ExhaustedError(
            f"network {network.name} has no free address in {ranges}: remove containers, or create "
            "a network with a larger subnet"
        )

    async def _claim(self, network: Network, address: Address, revision: Revision) -> None:
        key = records.address_key(network.id, address)
        checks = [
            Check(records.alive_key(self._host.id), self._token()),
            Check(records.network_key(network.id), revision),
            Check(key, ABSENT),
        ]
        try:
            await self._store.txn(checks, [Write(key, self._mine)])
        except StoreUncertainError:
            item = await self._store.get(key)
            if item is None or item.value != self._mine:
                raise

    async def _explain(self, network: Network, address: Address) -> None:
        """Raises if a chosen address is taken; else it was a race worth another try."""
        item = await self._store.get(records.address_key(network.id, address))
        if item is None:
            return
        owner = records.parse_claim(item.value)
        if owner == network.id:
            holder = "the network itself (gateway or aux address)"
        elif host := self._state.hosts.get(owner):
            holder = f"a container that is starting on host {host.name}"
        else:
            holder = await self._endpoints.describe(network, owner)
        raise ConflictError(
            f"address {address} is taken in network {network.name} by {holder}: choose another"
        )

    async def _delete(self, item: Item) -> None:
        try:
            await self._store.txn([Check(item.key, item.revision)], [Delete(item.key)])
        except StoreConflictError:
            log.info("claim changed hands before it was released key=%s", item.key)
