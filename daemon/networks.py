"""Networks in the store: found, created, removed, each by exact transactions (docs/schema.md).

A name, a VNI, a subnet and a gateway address are each a claim: a key that is created only if
absent, in one transaction with the network's record, and deleted with it. That is why no two
hosts can both get one, and why nothing half-made stays behind. A transaction that meets a
conflict is tried again with a fresh view, a bounded number of times.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import Random
from types import MappingProxyType
from typing import Literal

from pyvxlan.daemon import ipam, records
from pyvxlan.daemon.claims import lacking, put_back
from pyvxlan.daemon.errors import (
    ConflictError,
    InUseError,
    InvalidError,
    NotFoundError,
    StoreConflictError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import ABSENT, PRESENT, Check, Delete, Item, Store, Write
from pyvxlan.daemon.kv.store import Revision
from pyvxlan.daemon.model import Cidr, Endpoint, Host, Network, Subnet
from pyvxlan.daemon.requests import NetworkWish
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)

ATTEMPTS = 16
SHOWN = 5
"""Endpoints that a message names before it counts the rest."""


@dataclass(frozen=True, slots=True)
class Found:
    """A network with the item that it was read from."""

    network: Network
    item: Item


@dataclass(frozen=True, slots=True)
class SubnetBounds:
    """Where subnets come from, what this host routes already, and what is spoken for by whom."""

    pools: Sequence[records.Pool]
    routed: Sequence[Cidr]
    reserved: Sequence[tuple[Cidr, str]]


@dataclass(frozen=True, slots=True)
class SeenPools:
    """The record of used subnets, read ahead. A transaction tells if it has changed since."""

    item: Item | None


class Networks:
    """What this host may do with networks.

    Args:
        store: The shared store.
        state: What this host knows already; spares reads, decides nothing.
        host: This host.
        cluster: Gives the cluster's id.
        rng: For VNIs.
    """

    def __init__(
        self,
        store: Store,
        state: State,
        host: Host,
        *,
        cluster: Callable[[], str],
        rng: Random,
    ) -> None:
        self._store = store
        self._state = state
        self._host = host
        self._cluster = cluster
        self._rng = rng

    async def all(self) -> list[Network]:
        """Gives all networks, by name; those that were known last while the store is away."""

        async def stored() -> list[Network]:
            items = await self._store.list(records.NETWORKS)
            return [network for item in items.values() if (network := _parsed_network(item))]

        networks = await self._state.recall(stored, lambda: list(self._state.networks.values()))
        return sorted(networks, key=lambda network: network.name)

    def known(self, ref: str) -> Network | None:
        """Finds a network by its name or id in memory alone; it may be gone by now."""
        networks = self._state.networks
        if ref in networks:
            return networks[ref]
        return next((network for network in networks.values() if network.name == ref), None)

    async def look_up(self, ref: str) -> Network:
        """Finds a network as `find` does; among those known last while the store is away."""

        async def stored() -> Network:
            return (await self.find(ref)).network

        return await self._state.recall(stored, lambda: self._remembered(ref))

    async def read(self, network_id: str) -> Found:
        """Reads a network from the store by its whole id.

        Raises:
            NotFoundError: There is none.
            InvalidError: Its record is not valid.
        """
        item = await self._store.get(records.network_key(network_id))
        if item is None:
            raise NotFoundError(f"no network {network_id!r}: see pyvxlan network ls")
        return found(item)

    async def open(self, network_id: str, *, fresh: bool) -> tuple[Network, Revision]:
        """Gives a network that takes endpoints, and the revision at which it does.

        Without `fresh`, what the watch told last is enough, since whoever checks the revision
        finds out whether that is still so.

        Raises:
            NotFoundError: There is none.
            ConflictError: It is being removed.
            InvalidError: Its record is not valid.
        """
        if not fresh and (at_hand := self._state.network_at(network_id)):
            network, revision = at_hand
            if network.state == "up":
                return network, revision
        found = await self.read(network_id)
        if found.network.state != "up":
            raise ConflictError(
                f"network {found.network.name} is being removed: run network rm again to finish"
            )
        return found.network, found.item.revision

    async def find(self, ref: str) -> Found:
        """Finds a network in the store by name, id, or a prefix of the id that fits only one.

        Raises:
            NotFoundError: There is none.
            ConflictError: The prefix fits several.
            InvalidError: Its record is not valid.
        """
        name_claim = (
            await self._store.get(records.network_name_key(ref))
            if records.is_network_name(ref)
            else None
        )
        if name_claim:
            item = await self._store.get(records.network_key(records.parse_claim(name_claim.value)))
            if item:
                return found(item)
        if records.ID.fullmatch(ref):
            item = await self._store.get(records.network_key(ref))
            fitting = [item] if item else []
        elif _is_id_prefix(ref):
            fitting = list((await self._store.list(records.network_key(ref))).values())
        else:
            fitting = []
        ids = [item.key.removeprefix(records.NETWORKS) for item in fitting]
        return found(fitting[ids.index(_only(ref, ids))])

    def _remembered(self, ref: str) -> Network:
        if network := self.known(ref):
            return network
        networks = self._state.networks
        fitting = [id_ for id_ in networks if _is_id_prefix(ref) and id_.startswith(ref)]
        if not fitting:
            raise NotFoundError(f"no network {ref!r} was known when the store went away")
        return networks[_only(ref, fitting)]

    async def see_pools(self) -> SeenPools:
        """Reads which subnets are used, for whoever is about to take one."""
        return SeenPools(await self._store.get(records.POOLS))

    async def lost(self, used: Mapping[Cidr, str]) -> Mapping[Cidr, Network]:
        """Gives the subnets of networks that the store has lost and hosts may be about to put back.

        They are known here, the store does not have them as `used`, and nobody noted that they were
        removed. Whoever took one now would cut its network off.
        """
        unused = {
            subnet.cidr: network
            for network in self._state.networks.values()
            for subnet in network.subnets
            if subnet.cidr not in used
        }
        if not unused:
            return {}
        removed = await self._store.list(records.GONE)
        return {
            cidr: network
            for cidr, network in unused.items()
            if records.gone_key(network.id) not in removed
        }

    async def create(
        self,
        wish: NetworkWish,
        bounds: Callable[[], Awaitable[SubnetBounds]],
        *,
        held: Collection[Cidr] = (),
        seen: SeenPools | None = None,
    ) -> Network:
        """Creates a network: record, name, VNI, subnets and gateway addresses in one step.

        Args:
            wish: What is wanted.
            bounds: Says what the subnets must keep to; not asked if all of them are reserved.
            held: Subnets of the wish that this host should have reserved for it.
            seen: Which subnets were used after those were reserved; spares a read.

        Raises:
            ConflictError: The name, the VNI or a subnet is taken.
            ExhaustedError: No subnet is free.
        """
        for _ in range(ATTEMPTS):
            used_item = (seen or await self.see_pools()).item
            seen = None
            used = parsed_pools(used_item)
            lost = await self.lost(used)
            mine = {cidr for cidr in held if used.get(cidr) == self._host.id}
            used = {cidr: owner for cidr, owner in used.items() if cidr not in mine}
            spoken_for = used | {cidr: network.id for cidr, network in lost.items()}
            network = Network(
                id=secrets.token_hex(16),
                name=wish.name,
                vni=wish.vni or self._rng.randint(*self._state.config.vni),
                subnets=await self._choose_subnets(wish, bounds, spoken_for, mine),
                mtu_bytes=wish.mtu_bytes,
                internal=wish.internal,
                attachable=wish.attachable,
                multicast=wish.multicast,
                options=wish.options,
                labels=wish.labels,
                created_by=self._host.id,
                created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
            rivals = [
                one
                for one in self._state.networks.values()
                if one.name == network.name or one.vni == network.vni
            ]
            try:
                await self._publish_network(network, used_item, used, rivals=rivals)
            except StoreConflictError:
                await self._explain_network(network, rivals, chosen_vni=wish.vni is not None)
            else:
                log.info("network created network=%s name=%s", network.id, network.name)
                return network
        raise StoreConflictError(f"network {wish.name}: too many others create networks; try again")

    async def restore(self, network: Network) -> None:
        """Puts back a network whose record was lost with the store.

        Raises:
            ConflictError: Its name, VNI or subnet belongs to another network by now.
            NotFoundError: It was not lost but removed.
            StoreConflictError: Another host was faster; look again.
        """
        used_item = await self._store.get(records.POOLS)
        used = parsed_pools(used_item)
        others = [(cidr, f"network {owner}") for cidr, owner in used.items() if owner != network.id]
        for subnet in network.subnets:
            ipam.check_disjoint(subnet.cidr, others)
        held = {}
        for key in (records.network_name_key(network.name), records.vni_key(network.vni)):
            claim = await self._store.get(key)
            if claim and (owner := records.parse_claim(claim.value)) != network.id:
                raise ConflictError(f"{key} belongs to network {owner} by now")
            if claim:  # Somebody deleted the record alone.
                held[key] = claim.revision
        if await self._store.get(records.gone_key(network.id)):
            raise NotFoundError(f"network {network.name} was removed")
        await self._publish_network(replace(network, state="up"), used_item, used, held=held)
        log.warning("network restored network=%s name=%s", network.id, network.name)

    async def reclaim(self) -> None:
        """Claims again what somebody deleted of the claims of networks alone.

        What is another's by then stays so: `store check` names it.

        Raises:
            StoreError: The store failed; try again.
        """
        claims = {network.id: _claims(network) for network in self._state.networks.values()}
        for network_id in await lacking(self._store, claims):
            with contextlib.suppress(NotFoundError):
                stored = await self.read(network_id)
                await put_back(self._store, stored.item, _claims(stored.network))
        item = await self._store.get(records.POOLS)
        used = parsed_pools(item)
        for network in self._state.networks.values():
            lost = {s.cidr: network.id for s in network.subnets if s.cidr not in used}
            if not lost:
                continue
            value = records.emit_pools(records.PoolUse({**used, **lost}))
            checks = [
                Check(records.POOLS, item.revision if item else ABSENT),
                Check(records.network_key(network.id), PRESENT),
            ]
            with contextlib.suppress(StoreConflictError):
                await self._store.txn(checks, [Write(records.POOLS, value)])
                log.warning("subnets put back subnets=%s", ",".join(map(str, lost)))
            item = await self._store.get(records.POOLS)
            used = parsed_pools(item)

    async def mark_gone(self, network_id: str, gone: records.Gone) -> None:
        """Notes again that a network was removed, where the store has lost the note."""
        key = records.gone_key(network_id)
        with contextlib.suppress(StoreConflictError):
            await self._store.txn([Check(key, ABSENT)], [Write(key, records.emit_gone(gone))])

    async def restore_config(self, value: bytes) -> None:
        """Puts back the `cfg` record if there is none."""
        with contextlib.suppress(StoreConflictError):
            await self._store.txn([Check(records.CFG, ABSENT)], [Write(records.CFG, value)])

    async def remove(self, ref: str) -> Network:
        """Removes a network: first closes it to new endpoints, then deletes it with its claims.

        Raises:
            InUseError: It has endpoints; the network stays as it was.
        """
        for _ in range(ATTEMPTS):
            known = ref in self._state.networks
            network_id = ref if known else (await self.find(ref)).network.id
            held, endpoints = await asyncio.gather(
                self.read(network_id), self._endpoints_on(network_id)
            )
            network = held.network
            try:
                self._check_unused(network, endpoints)
            except InUseError:
                if network.state == "down":  # A removal broke off here.
                    await self._set_state(held.item, "up")
                raise
            try:
                await self._set_state(held.item, "down")
                down = await self.read(network_id)
                if down.network.state == "up":
                    continue
                # After that was read: it has none from then on, or another revision.
                endpoints, pools = await asyncio.gather(
                    self._endpoints_on(network_id), self._store.get(records.POOLS)
                )
                try:
                    self._check_unused(network, endpoints)
                except InUseError:
                    await self._set_state(down.item, "up")
                    raise
                await self._delete_network(network, down.item, pools)
            except StoreConflictError:
                continue
            log.info("network removed network=%s name=%s", network.id, network.name)
            return network
        raise StoreConflictError(f"network {ref}: its record keeps changing; try again")

    async def _endpoints_on(self, network_id: str) -> list[Endpoint]:
        items = await self._store.list(records.endpoints_prefix(network_id))
        return [endpoint for item in items.values() if (endpoint := parsed_endpoint(item))]

    def _check_unused(self, network: Network, endpoints: Sequence[Endpoint]) -> None:
        """Raises `InUseError` if a network has endpoints; the message names them and the hosts."""
        if not endpoints:
            return
        hosts = {id_: host.name for id_, host in self._state.hosts.items()}
        shown = [
            f"{e.name or e.id[:12]} on {hosts.get(e.host_id, e.host_id[:12])}"
            for e in endpoints[:SHOWN]
        ]
        if len(endpoints) > SHOWN:
            shown.append(f"and {len(endpoints) - SHOWN} more")
        raise InUseError(
            f"network {network.name} is in use by {', '.join(shown)}: detach them first"
        )

    async def check_disjoint(
        self, cidr: Cidr, used: Mapping[Cidr, str], reserved: Sequence[tuple[Cidr, str]]
    ) -> None:
        """Refuses a subnet that touches a used or a reserved one.

        Raises:
            ConflictError: It does; the message names both, and whose the other is.
        """
        ipam.check_disjoint(cidr, reserved)
        if any(ipam.overlap(cidr, other) for other in used):
            ipam.check_disjoint(cidr, await self._owned(used))

    async def _owned(self, used: Mapping[Cidr, str]) -> list[tuple[Cidr, str]]:
        """Gives used subnets with a name for each one's owner."""
        names = {network.id: f"network {network.name}" for network in await self.all()}
        names |= {
            host.id: f"a network that host {host.name} is making"
            for host in self._state.hosts.values()
        }
        return [(cidr, names.get(owner, f"network {owner}")) for cidr, owner in used.items()]

    async def _choose_subnets(
        self,
        wish: NetworkWish,
        bounds: Callable[[], Awaitable[SubnetBounds]],
        used: Mapping[Cidr, str],
        reserved: Collection[Cidr],
    ) -> tuple[Subnet, ...]:
        subnets = list(wish.subnets)
        unchecked = [cidr for cidr in subnets if cidr not in reserved]
        lacks_v6 = wish.ipv6 and not any(cidr.version == 6 for cidr in subnets)
        if subnets and not unchecked and not lacks_v6:
            return ipam.plan_subnets(subnets, wish.gateways, wish.ip_ranges, wish.aux_addresses)
        keep_to = await bounds()
        if unchecked:
            for cidr in unchecked:
                await self.check_disjoint(cidr, used, keep_to.reserved)
        if not subnets:
            v4 = [pool for pool in keep_to.pools if pool.base.version == 4]
            subnets.append(ipam.next_pool(v4, used, keep_to.routed))
        if lacks_v6:
            v6 = [pool for pool in keep_to.pools if pool.base.version == 6]
            v6 = v6 or [ipam.unique_local_pool(self._cluster())]
            subnets.append(ipam.next_pool(v6, used, keep_to.routed))
        return ipam.plan_subnets(subnets, wish.gateways, wish.ip_ranges, wish.aux_addresses)

    async def _publish_network(
        self,
        network: Network,
        used_item: Item | None,
        used: Mapping[Cidr, str],
        *,
        held: Mapping[str, Revision] = MappingProxyType({}),
        rivals: Sequence[Network] = (),
    ) -> None:
        """Writes a network with its claims, of which `held` are its own already.

        `rivals` were known with its name or VNI: it has them only if those were removed, and not if
        just their claims are lost.
        """
        key = records.network_key(network.id)
        name_key = records.network_name_key(network.name)
        vni_key = records.vni_key(network.vni)
        gone_key = records.gone_key(network.id)
        now_used = dict(used) | {subnet.cidr: network.id for subnet in network.subnets}
        owner = records.emit(network.id)
        pools = records.emit_pools(records.PoolUse(now_used))
        try:
            await self._store.txn(
                [
                    Check(records.POOLS, used_item.revision if used_item else ABSENT),
                    *(Check(absent, ABSENT) for absent in (key, gone_key)),
                    *(Check(claim, held.get(claim, ABSENT)) for claim in (name_key, vni_key)),
                    *(Check(records.gone_key(rival.id), PRESENT) for rival in rivals),
                ],
                [
                    Write(records.POOLS, pools),
                    Write(key, records.emit_network(network)),
                    Write(name_key, owner),
                    Write(vni_key, owner),
                    *(Write(claim, owner) for claim in records.network_claims(network)),
                ],
            )
        except StoreUncertainError:
            if await self._store.get(key) is None:
                raise

    async def _explain_network(
        self, network: Network, rivals: Sequence[Network], *, chosen_vni: bool
    ) -> None:
        """Raises if a name or a chosen VNI is taken; else it was a race worth another try."""
        if claim := await self._store.get(records.network_name_key(network.name)):
            owner = records.parse_claim(claim.value)
            raise ConflictError(
                f"network name {network.name} is taken by network {owner[:12]}: "
                "choose another name or remove that network"
            )
        claim = await self._store.get(records.vni_key(network.vni)) if chosen_vni else None
        if claim:
            owner = records.parse_claim(claim.value)
            raise ConflictError(
                f"VNI {network.vni} is taken by network {owner[:12]}: choose another, or leave "
                "out --vni to get a free one"
            )
        for rival in rivals:
            if rival.name == network.name or chosen_vni:
                what = "name" if rival.name == network.name else "VNI"
                if await self._store.get(records.gone_key(rival.id)) is None:
                    raise ConflictError(
                        f"network {rival.name} ({rival.id[:12]}) has this {what}, and the store "
                        "has lost that; it may be put back: try again shortly"
                    )

    async def _set_state(self, item: Item, state: Literal["up", "down"]) -> None:
        value = records.with_state(item.value, state)
        if value != item.value:
            await self._store.txn([Check(item.key, item.revision)], [Write(item.key, value)])

    async def _delete_network(self, network: Network, item: Item, used_item: Item | None) -> None:
        used = {
            cidr: owner for cidr, owner in parsed_pools(used_item).items() if owner != network.id
        }
        pools = records.emit_pools(records.PoolUse(used))
        gone = records.Gone(network.name, time.time())
        await self._store.txn(
            [
                Check(item.key, item.revision),
                Check(records.POOLS, used_item.revision if used_item else ABSENT),
            ],
            [
                Delete(item.key),
                Write(records.gone_key(network.id), records.emit_gone(gone)),
                Delete(records.network_name_key(network.name)),
                Delete(records.vni_key(network.vni)),
                Write(records.POOLS, pools),
                *(Delete(claim) for claim in records.network_claims(network)),
            ],
        )


def _claims(network: Network) -> list[str]:
    return [
        records.network_name_key(network.name),
        records.vni_key(network.vni),
        *records.network_claims(network),
    ]


def _is_id_prefix(ref: str) -> bool:
    return bool(ref) and set(ref) <= set("0123456789abcdef")


def _only(ref: str, ids: Sequence[str]) -> str:
    """Gives the only id that a reference fits."""
    if len(ids) > 1:
        shown = ", ".join(id_[:12] for id_ in ids)
        raise ConflictError(f"network id {ref!r} is ambiguous: {shown}; give more digits")
    if not ids:
        raise NotFoundError(f"no network {ref!r}: see pyvxlan network ls")
    return ids[0]


def parsed_endpoint(item: Item) -> Endpoint | None:
    """Reads an endpoint's item, or gives None if it is not valid (`State` warns of it)."""
    try:
        _, network_id, endpoint_id = item.key.split("/")
        return records.parse_endpoint(network_id, endpoint_id, item.value)
    except (ValueError, InvalidError):
        return None


def found(item: Item) -> Found:
    """Reads a network's item; one that is not valid is an error that names it."""
    try:
        network = records.parse_network(item.key.removeprefix(records.NETWORKS), item.value)
    except InvalidError as error:
        raise InvalidError(
            f"store record {item.key} is not valid ({error}): repair or delete it in the store"
        ) from error
    return Found(network, item)


def _parsed_network(item: Item) -> Network | None:
    try:
        return records.parse_network(item.key.removeprefix(records.NETWORKS), item.value)
    except InvalidError:
        return None


def parsed_pools(item: Item | None) -> Mapping[Cidr, str]:
    """Reads the record of used subnets; one that is not there is empty."""
    if item is None:
        return {}
    try:
        return records.parse_pools(item.value).used
    except InvalidError as error:
        raise InvalidError(
            f"store record {item.key} is not valid ({error}): repair it in the store"
        ) from error
