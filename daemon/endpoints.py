"""Endpoints in the store: found, created, removed, each by exact transactions (docs/schema.md).

An address, a name and a chosen MAC are claims, created and deleted in one transaction with the
endpoint's record. Creation checks the host's fencing token, so that a host that was taken for
dead can't write, and the network's revision, so that one being removed gets no new endpoint.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from random import Random
from types import MappingProxyType

from pyvxlan.daemon import ipam, records
from pyvxlan.daemon.claims import lacking, put_back
from pyvxlan.daemon.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
    StoreConflictError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import ABSENT, PRESENT, Check, Delete, Store, Write
from pyvxlan.daemon.kv.store import Revision
from pyvxlan.daemon.model import (
    Address,
    Endpoint,
    Host,
    Interface,
    Network,
    format_mac,
)
from pyvxlan.daemon.networks import Networks, parsed_endpoint
from pyvxlan.daemon.requests import EndpointWish
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)

ATTEMPTS = 16
LIST_AGAIN = 4
"""Attempt from which on it is not believed any more what was known of taken addresses."""
SHORT_ID = 12
"""Digits of an id that `endpoint ls` shows."""
SHOWN = 5
"""Endpoints that a message names before it counts the rest."""


class Endpoints:
    """What this host may do with endpoints.

    Args:
        store: The shared store.
        state: What this host knows already; spares reads, decides nothing.
        host: This host.
        networks: Finds the networks.
        token: Gives the fencing token, or raises while there is none.
        rng: For addresses after a conflict.
    """

    def __init__(
        self,
        store: Store,
        state: State,
        host: Host,
        networks: Networks,
        *,
        token: Callable[[], Revision],
        rng: Random,
    ) -> None:
        self._store = store
        self._state = state
        self._host = host
        self._networks = networks
        self._token = token
        self._rng = rng
        self._cursors = ipam.Cursors()

    async def all(self, network_id: str | None = None) -> list[Endpoint]:
        """Gives the endpoints of one network or of all, on all hosts, by name and id.

        While the store is away, those that were known last: of the networks on this host.
        """

        def remembered() -> list[Endpoint]:
            joined = self._state.endpoints
            of = [network_id] if network_id else joined
            return [endpoint for nid in of for endpoint in joined.get(nid, {}).values()]

        found = await self._state.recall(lambda: self.stored(network_id), remembered)
        return sorted(found, key=lambda endpoint: (endpoint.network_id, endpoint.name, endpoint.id))

    async def stored(self, network_id: str | None = None) -> list[Endpoint]:
        """Reads the endpoints of one network or of all from the store.

        Raises:
            StoreError: It does not answer.
        """
        prefix = records.endpoints_prefix(network_id) if network_id else records.ENDPOINTS
        items = await self._store.list(prefix)
        return [endpoint for item in items.values() if (endpoint := parsed_endpoint(item))]

    async def read(self, network_id: str, endpoint_id: str) -> Endpoint | None:
        """Reads one endpoint from the store; None if it has none, or none that is valid."""
        item = await self._store.get(records.endpoint_key(network_id, endpoint_id))
        return parsed_endpoint(item) if item else None

    async def owned(self, host_id: str) -> Mapping[str, str]:
        """Reads which endpoints a host has in the store: ids of their networks, by their own."""
        keys = await self._store.list(records.owned_prefix(host_id))
        return {key.split("/")[3]: key.split("/")[2] for key in keys if key.count("/") == 3}

    async def owners(self) -> set[str]:
        """Reads which hosts have endpoints in the store."""
        return {key.split("/")[1] for key in await self._store.list(records.OWNED)}

    async def find(self, ref: str) -> Endpoint:
        """Finds an endpoint by id, by a prefix of it, by name, or by `name.network`.

        What fits only one on the networks of this host is that one; else all of the cluster are
        read.

        Raises:
            NotFoundError: There is none.
            ConflictError: Several fit.
        """
        if at_hand := await self._at_hand(ref):
            return at_hand
        every = await self.all()
        names = {network.id: network.name for network in await self._networks.all()}
        fitting = _called(ref, every, names)
        fitting = fitting or [e for e in every if e.id.startswith(ref) and ref]
        if not fitting:
            raise NotFoundError(f"no endpoint {ref!r}: see pyvxlan endpoint ls")
        if len(fitting) > 1:
            shown = ", ".join(
                f"{e.name or '-'}.{names.get(e.network_id, e.network_id)} ({e.id[:12]})"
                for e in fitting[:SHOWN]
            )
            raise ConflictError(
                f"endpoint {ref!r} is ambiguous: {shown}; use NAME.NETWORK or an id"
            )
        return fitting[0]

    async def _at_hand(self, ref: str) -> Endpoint | None:
        """Finds the one on this host's networks that `ref` means, as the store has it now."""
        joined = [one for network in self._state.endpoints.values() for one in network.values()]
        names = {network.id: network.name for network in self._state.networks.values()}
        fitting = _called(ref, joined, names)
        if not fitting and len(ref) >= SHORT_ID:
            fitting = [endpoint for endpoint in joined if endpoint.id.startswith(ref)]
        if len(fitting) != 1:
            return None
        (found,) = fitting
        return await self._state.recall(
            lambda: self.read(found.network_id, found.id), lambda: found
        )

    async def create(self, network_id: str, wish: EndpointWish, endpoint_id: str) -> Endpoint:
        """Creates an endpoint of this host: record, addresses, name and MAC in one step.

        In a network that this host is on, that takes one transaction and no read.
        """
        taken: Set[Address] | None = None
        tried: set[Address] = set()
        for attempt in range(ATTEMPTS):
            network, revision = await self._networks.open(network_id, fresh=attempt > 0)
            if taken is None or attempt == LIST_AGAIN:
                taken = await self._taken(network, fresh=attempt > 0)
            try:
                addresses = self._choose_addresses(network, wish, taken, tried)
            except ExhaustedError:
                taken = await self._taken(network, fresh=True)
                addresses = self._choose_addresses(network, wish, taken, tried)
            mac = wish.mac or ipam.mac_for(addresses[0].ip)
            check_mac(network, addresses, mac)
            endpoint = Endpoint(
                id=endpoint_id,
                network_id=network.id,
                host_id=self._host.id,
                mac=mac,
                addresses=addresses,
                name=wish.name,
                aliases=wish.aliases,
                hostname=wish.hostname,
                container_id=wish.container_id,
            )
            try:
                await self.publish(endpoint, revision)
            except StoreConflictError:
                await self._explain_endpoint(network, endpoint, wish)
                tried |= {address.ip for address in addresses}
                continue
            for address in addresses:
                if not (wish.ip if address.version == 4 else wish.ip6):
                    self._cursors.note(network.id, address.network, address.ip)
            log.info("endpoint created endpoint=%s network=%s", endpoint.id, network.id)
            return endpoint
        raise StoreConflictError(f"network {network_id}: too many others take addresses; try again")

    async def publish(
        self,
        endpoint: Endpoint,
        network_revision: Revision | None = None,
        *,
        held: Mapping[str, Revision] = MappingProxyType({}),
    ) -> None:
        """Writes an endpoint of this host and its claims, if all of them are free.

        `held` lists claims that are this host's already, with their revisions.

        Raises:
            StoreConflictError: Something is taken, the network changed, or this host was
                taken for dead; nothing was written.
        """
        key = records.endpoint_key(endpoint.network_id, endpoint.id)
        claims = records.endpoint_claims(endpoint)
        checks = [
            Check(records.alive_key(self._host.id), self._token()),
            Check(
                records.network_key(endpoint.network_id),
                PRESENT if network_revision is None else network_revision,
            ),
            Check(key, ABSENT),
            *(Check(claim, held.get(claim, ABSENT)) for claim in claims),
        ]
        ops = [
            Write(key, records.emit_endpoint(endpoint)),
            *(Write(claim, records.emit(endpoint.id)) for claim in claims),
        ]
        try:
            await self._store.txn(checks, ops)
        except StoreUncertainError:
            if await self._store.get(key) is None:
                raise

    async def take_over(self, endpoint: Endpoint) -> None:
        """Publishes an endpoint of this host whose addresses this host has reserved.

        An address that is not reserved any more is claimed anew.

        Raises:
            ConflictError: A name, address or MAC is taken, or the network is being removed.
            NotFoundError: The network is gone.
        """
        wanted = [
            records.address_key(endpoint.network_id, address.ip) for address in endpoint.addresses
        ]
        for _ in range(ATTEMPTS):
            found = await self._networks.read(endpoint.network_id)
            network = found.network
            if network.state != "up":
                raise ConflictError(f"network {network.name} is being removed")
            check_mac(network, endpoint.addresses, endpoint.mac)
            items = await asyncio.gather(*(self._store.get(key) for key in wanted))
            mine = records.emit(self._host.id)
            held = {item.key: item.revision for item in items if item and item.value == mine}
            try:
                await self.publish(endpoint, found.item.revision, held=held)
            except StoreConflictError:
                if await self.read(network.id, endpoint.id):
                    return
                await self._explain_claims(network, endpoint)
                continue
            log.info("endpoint created endpoint=%s network=%s", endpoint.id, network.id)
            return
        raise StoreConflictError(f"endpoint {endpoint.id[:12]}: its claims keep changing")

    async def describe_anew(self, endpoint: Endpoint) -> Endpoint:
        """Replaces the names of an endpoint of this host in its record; the rest stays.

        Raises:
            ConflictError: Another endpoint of the network has the name.
            NotFoundError: There is no such endpoint.
        """
        key = records.endpoint_key(endpoint.network_id, endpoint.id)
        for _ in range(ATTEMPTS):
            item = await self._store.get(key)
            before = parsed_endpoint(item) if item else None
            if item is None or before is None:
                raise NotFoundError(f"no endpoint {endpoint.id[:12]}")
            after = replace(
                before,
                name=endpoint.name,
                aliases=endpoint.aliases,
                hostname=endpoint.hostname,
                container_id=endpoint.container_id,
            )
            if after == before:
                return before
            old, new = (set(records.endpoint_claims(one)) for one in (before, after))
            checks = [Check(key, item.revision), *(Check(claim, ABSENT) for claim in new - old)]
            ops: list[Write | Delete] = [Write(key, records.emit_endpoint(after))]
            ops += [Write(claim, records.emit(endpoint.id)) for claim in new - old]
            ops += [Delete(claim) for claim in old - new]
            try:
                await self._store.txn(checks, ops)
            except StoreConflictError:
                for claim in new - old:
                    taken = await self._store.get(claim)
                    owner = records.parse_claim(taken.value) if taken else endpoint.id
                    if owner != endpoint.id:
                        network = (await self._networks.find(endpoint.network_id)).network
                        holder = await self.describe(network, owner)
                        raise ConflictError(
                            f"name {after.name} is taken in network {network.name} by {holder}"
                        ) from None
                continue
            return after
        raise StoreConflictError(f"endpoint {endpoint.id[:12]}: its record keeps changing")

    async def restore(self, endpoint: Endpoint) -> None:
        """Publishes an endpoint of this host again whose record the store has lost.

        Raises:
            ConflictError: Its name, address or MAC belongs to another by now.
            StoreConflictError: Something else is in the way; try again.
        """
        try:
            await self.publish(endpoint)
        except StoreConflictError:
            own = {}
            for claim in records.endpoint_claims(endpoint):
                item = await self._store.get(claim)
                if item and (owner := records.parse_claim(item.value)) != endpoint.id:
                    network = (await self._networks.read(endpoint.network_id)).network
                    holder = await self.describe(network, owner)
                    raise ConflictError(f"{claim} belongs to {holder} by now") from None
                if item:
                    own[claim] = item.revision
            if not own:
                raise
            # Somebody deleted the record alone; its id is never used again, so these are its own.
            await self.publish(endpoint, held=own)

    async def confirm(self, endpoint: Endpoint) -> bool:
        """Tells whether the store has an endpoint's record; lists it as its host's if so."""
        key = records.endpoint_key(endpoint.network_id, endpoint.id)
        listed = Write(records.owned_key(endpoint), records.emit(endpoint.id))
        try:
            await self._store.txn([Check(key, PRESENT)], [listed])
        except StoreConflictError:
            return False
        return True

    async def unclaimed(self, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
        """Finds those of this host's endpoints whose claims may not all be in the store.

        Raises:
            StoreError: It does not answer.
        """
        claims = {one.id: records.endpoint_claims(one) for one in endpoints}
        suspects = set(await lacking(self._store, claims))
        return [endpoint for endpoint in endpoints if endpoint.id in suspects]

    async def reclaim(self, endpoint: Endpoint) -> None:
        """Claims again what somebody deleted of the claims of an endpoint of this host alone.

        Raises:
            ConflictError: One belongs to another by now.
            StoreError: The store failed; try again.
        """
        item = await self._store.get(records.endpoint_key(endpoint.network_id, endpoint.id))
        stored = parsed_endpoint(item) if item else None
        if item is None or stored is None:
            return
        others = await put_back(self._store, item, records.endpoint_claims(stored))
        for claim, owner in others.items():
            network = (await self._networks.read(endpoint.network_id)).network
            holder = await self.describe(network, owner)
            raise ConflictError(f"{claim} belongs to {holder} by now")

    async def give_way(self, endpoint: Endpoint) -> None:
        """Removes an endpoint of this host with those of its claims that are its own still.

        Raises:
            StoreError: It was not removed.
        """
        key, own = records.endpoint_key(endpoint.network_id, endpoint.id), records.emit(endpoint.id)
        items = [await self._store.get(claim) for claim in records.endpoint_claims(endpoint)]
        held = [item for item in items if item and item.value == own]
        checks = [Check(key, PRESENT), *(Check(item.key, item.revision) for item in held)]
        await self._store.txn(checks, [Delete(key), *(Delete(item.key) for item in held)])

    async def revise(self, endpoint: Endpoint) -> None:
        """Rewrites an endpoint of this host whose claims are the same as before.

        Raises:
            StoreConflictError: It is gone, or this host was taken for dead; nothing was written.
        """
        key = records.endpoint_key(endpoint.network_id, endpoint.id)
        checks = [Check(records.alive_key(self._host.id), self._token()), Check(key, PRESENT)]
        await self._store.txn(checks, [Write(key, records.emit_endpoint(endpoint))])

    async def delete(
        self, endpoint: Endpoint, *, orphan: bool = False, guard: Check | None = None
    ) -> bool:
        """Removes an endpoint with its claims; tells whether it was there.

        With `orphan`, only if its host is not alive; with `guard`, only if that holds too.

        Raises:
            StoreConflictError: The host is alive after all, or `guard` does not hold.
        """
        key = records.endpoint_key(endpoint.network_id, endpoint.id)
        checks = [Check(key, PRESENT)]
        if orphan:
            checks.append(Check(records.alive_key(endpoint.host_id), ABSENT))
        if guard:
            checks.append(guard)
        ops = [Delete(key), *(Delete(claim) for claim in records.endpoint_claims(endpoint))]
        try:
            await self._store.txn(checks, ops)
        except StoreConflictError:
            if await self._store.get(key) is None:
                return False
            raise
        except StoreUncertainError:
            if await self._store.get(key) is not None:
                raise
        log.info("endpoint removed endpoint=%s network=%s", endpoint.id, endpoint.network_id)
        return True

    async def _taken(self, network: Network, *, fresh: bool) -> Set[Address]:
        """Lists the addresses that are not free; without `fresh`, from memory where it can."""
        if not fresh and self._state.joined(network.id):
            return self._state.taken(network.id)
        prefix = records.addresses_prefix(network.id)
        # Claims alone would do, were they never deleted by hand.
        claims, endpoints = await asyncio.gather(self._store.list(prefix), self.stored(network.id))
        held = {address.ip for endpoint in endpoints for address in endpoint.addresses}
        return held | {ipam.parse_address(key.removeprefix(prefix), "claim") for key in claims}

    def _choose_addresses(
        self, network: Network, wish: EndpointWish, taken: Set[Address], tried: Set[Address]
    ) -> tuple[Interface, ...]:
        chosen: list[Interface] = []
        for version, text in ((4, wish.ip), (6, wish.ip6)):
            subnets = [subnet for subnet in network.subnets if subnet.cidr.version == version]
            if text:
                chosen.append(ipam.static_address(text, version, network.subnets))
                continue
            address = None
            for subnet in subnets:
                address = ipam.pick_address(
                    subnet,
                    taken,
                    tried,
                    cursor=self._cursors.last(network.id, subnet.cidr),
                    rng=self._rng if tried else None,
                )
                if address:
                    chosen.append(ipam.with_prefix(address, subnet.cidr))
                    break
            if subnets and address is None:
                shown = ", ".join(str(subnet.ip_range or subnet.cidr) for subnet in subnets)
                raise ExhaustedError(
                    f"network {network.name} has no free address in {shown}: detach endpoints, or "
                    "create a network with a larger subnet"
                )
        return tuple(chosen)

    async def _explain_claims(self, network: Network, endpoint: Endpoint) -> None:
        """Raises if something that an endpoint needs belongs to another."""
        what = {
            records.address_key(network.id, address.ip): f"address {address.ip}"
            for address in endpoint.addresses
        }
        if endpoint.name:
            what[records.endpoint_name_key(network.id, endpoint.name)] = f"name {endpoint.name}"
        what[records.mac_key(network.id, endpoint.mac)] = f"MAC {format_mac(endpoint.mac)}"
        for key, text in what.items():
            claim = await self._store.get(key)
            owner = records.parse_claim(claim.value) if claim else endpoint.id
            if owner not in {endpoint.id, self._host.id}:
                holder = await self.describe(network, owner)
                raise ConflictError(
                    f"{text} is taken in network {network.name} by {holder}: choose another"
                )

    async def _explain_endpoint(
        self, network: Network, endpoint: Endpoint, wish: EndpointWish
    ) -> None:
        """Raises if something that the user chose is taken; else it is worth another try."""
        chosen = [
            (records.address_key(network.id, address.ip), f"address {address.ip}")
            for address in endpoint.addresses
            if (wish.ip if address.version == 4 else wish.ip6)
        ]
        if wish.name:
            key = records.endpoint_name_key(network.id, wish.name)
            chosen.append((key, f"name {wish.name}"))
        if wish.mac:
            chosen.append((records.mac_key(network.id, wish.mac), f"MAC {format_mac(wish.mac)}"))
        for key, what in chosen:
            if claim := await self._store.get(key):
                holder = await self.describe(network, records.parse_claim(claim.value))
                raise ConflictError(
                    f"{what} is taken in network {network.name} by {holder}: choose another"
                )

    async def describe(self, network: Network, endpoint_id: str) -> str:
        """Names an endpoint and its host, for people."""
        item = await self._store.get(records.endpoint_key(network.id, endpoint_id))
        endpoint = parsed_endpoint(item) if item else None
        if endpoint is None:
            return f"endpoint {endpoint_id[:12]}"
        host = self._state.hosts.get(endpoint.host_id)
        return (
            f"endpoint {endpoint.name or endpoint.id[:12]} on host "
            f"{host.name if host else endpoint.host_id[:12]}"
        )


def _called(ref: str, endpoints: Sequence[Endpoint], networks: Mapping[str, str]) -> list[Endpoint]:
    """Gives the endpoint whose id is `ref`, or else those with that name, or `name.network`.

    Args:
        ref: What is looked for.
        endpoints: Among which.
        networks: Names of networks, by id.
    """
    return [endpoint for endpoint in endpoints if endpoint.id == ref] or [
        endpoint
        for endpoint in endpoints
        if endpoint.name
        and ref
        in {
            endpoint.name,
            f"{endpoint.name}.{networks.get(endpoint.network_id, endpoint.network_id)}",
        }
    ]


def check_mac(network: Network, addresses: Sequence[Interface], mac: bytes) -> None:
    """Refuses a chosen MAC that belongs by rule to another address of the network."""
    for subnet in network.subnets:
        if subnet.cidr.version == 6 or mac[:2] != b"\x02\x42":
            continue
        owner = ipam.address_in(subnet.cidr, mac[2:])
        if owner and all(address.ip != owner for address in addresses):
            raise InvalidError(
                f"MAC {format_mac(mac)} is that of address {owner} in network {network.name}: "
                f"choose another, or take --ip {owner} with it"
            )
