"""Puts right what the store says of this host: its endpoints there are those that are here.

Whatever befell the store - an outage, an old copy, all of it lost - the same comparison heals it:
an endpoint that is here and not there is published again under the conditions of its creation; one
that is there and not here is withdrawn. Nothing that another host owns is ever touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import uniform
from typing import NoReturn

from pyvxlan.daemon import records
from pyvxlan.daemon.endpoints import Endpoints
from pyvxlan.daemon.errors import (
    ConflictError,
    DaemonError,
    NotFoundError,
    NotSettledError,
    StoreConflictError,
)
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.membership import Membership
from pyvxlan.daemon.model import Endpoint
from pyvxlan.daemon.networks import Networks
from pyvxlan.daemon.refill import Refill
from pyvxlan.daemon.requests import EndpointWish
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)

COMPARE_S = 300.0
"""How often at least everything is compared, with or without a reason, and claims are looked at."""
WAIT_MIN_S = 10.0
PAUSE_S = 0.3
"""Between two comparisons, whatever the reasons."""
NOTE_S = 0.1
"""How much later than the removal of a network the note of it may be told: no reason meanwhile."""
WARN_AGAIN_S = 60.0
FENCE_S = 4.0
"""How long a claim must be another's before its former owner gives way: an old copy of the store
may show owners that are about to withdraw."""


class Repair:
    """Keeps this host's part of the store as it should be.

    Args:
        state: Tells when to compare.
        local: What is here.
        membership: Only a registered host may write.
        networks: The networks in the store.
        endpoints: The endpoints in the store.
        disconnect: Takes an endpoint from its sandbox.
        fence_s: Seconds for which a claim must be another's before its endpoint is fenced.
    """

    def __init__(
        self,
        *,
        state: State,
        local: LocalRecords,
        membership: Membership,
        networks: Networks,
        endpoints: Endpoints,
        disconnect: Callable[[str], Awaitable[None]],
        fence_s: float = FENCE_S,
    ) -> None:
        self.joining: set[str] = set()
        """Endpoints that are here, and whose record somebody else is about to write."""
        self.unattached: dict[str, str] = {}
        """Endpoints that this process knows to have no sandbox yet, or no longer, with their
        networks."""
        self._state = state
        self._local = local
        self._membership = membership
        self._refill = Refill(state, local, membership, networks)
        self._endpoints = endpoints
        self._disconnect = disconnect
        self._fence_s = fence_s
        self._fencing: dict[str, float] = {}
        """Since when claims of endpoints are another's, on the monotonic clock."""
        self._claimed_at = time.monotonic()
        """When claims were looked at last, or when it began to matter, on the monotonic clock."""
        self._claim_s = self._compare_s()
        """How long after that they are looked at again."""
        self._compared = 0
        """Resyncs of the state that were there at the last comparison."""

    async def keep(self) -> NoReturn:
        """Runs `repair` at the start, whenever there is a reason to, and now and then."""
        told, told_at = "", 0.0
        while True:
            try:
                await self.repair()
            except DaemonError as error:
                now = time.monotonic()
                if not self._state.synced:
                    # Whoever follows the store has said so.
                    log.debug("records not compared, tried again cause=%s", error)
                elif str(error) != told or now - told_at > WARN_AGAIN_S:
                    told, told_at = str(error), now
                    log.warning("records not compared, tried again cause=%s", error)
            await asyncio.sleep(PAUSE_S)
            with contextlib.suppress(NotSettledError):
                await self._reason()

    async def _reason(self) -> None:
        """Returns when there is a reason to compare.

        Raises:
            NotSettledError: There was none for long.
        """
        while True:
            left_s = self._claimed_at + self._claim_s - time.monotonic()
            await self._state.wait_for(self._due, timeout_s=max(left_s, WAIT_MIN_S))
            await asyncio.sleep(NOTE_S)
            if self._due():
                return

    async def repair(self) -> None:
        """Compares this host's own records with the store and puts right what differs.

        Local endpoints that the store has lost are published again if their claims are free;
        one whose name or address belongs to another by now is fenced: disconnected and reported.
        Records of this host that belong to no local endpoint are removed.

        Raises:
            DaemonError: The store did not answer, or a record could not be put right; the others
                were. Try again later.
        """
        resyncs = self._resyncs()
        await self._membership.confirm()
        await self._refill.refill()
        stored = await self._endpoints.owned(self._membership.host_id)
        failures: list[DaemonError] = []
        for endpoint_id, endpoint in list(self._local.records.items()):
            if endpoint_id in self.joining or endpoint_id not in self._local.endpoints:
                continue
            if endpoint_id in stored and self._in_place(endpoint):
                self._fencing.pop(endpoint_id, None)
                continue
            try:
                await self._restore(endpoint)
            except DaemonError as error:
                failures.append(error)
        for endpoint in self._outdated():
            await self._endpoints.revise(endpoint)
        for endpoint_id in self._local.withdrawn.keys() - stored.keys():
            # Its container may have started again meanwhile, and taken it back.
            if leaving := self._local.withdrawn.get(endpoint_id):
                try:
                    # It may be there all the same: somebody deleted what lists it as this host's.
                    await self.withdraw(leaving)
                except DaemonError as error:
                    failures.append(error)
        for endpoint_id, network_id in stored.items():
            if self._superfluous(endpoint_id):
                log.warning("endpoint without sandbox removed endpoint=%s", endpoint_id)
                await self._remove(network_id, endpoint_id)
        self._fencing = {
            id_: at for id_, at in self._fencing.items() if id_ in self._local.endpoints
        }
        if failures:
            raise failures[0]
        await self._reclaim()
        if not self._state.held:
            self._local.remember_cluster(self._membership.cluster)
        self._compared = resyncs

    async def _reclaim(self) -> None:
        """Sees to it now and then that nobody deleted claims of this host's endpoints.

        Hosts do so at different times: it would be much of what a store has to do when it is back.

        Raises:
            DaemonError: Some could not be put right.
        """
        now = time.monotonic()
        if now - self._claimed_at < self._claim_s:
            return
        recorded = [
            endpoint
            for id_, endpoint in self._local.records.items()
            if id_ in self._local.endpoints and id_ not in self.joining and self._shown(endpoint)
        ]
        suspects = {one.id: one for one in await self._endpoints.unclaimed(recorded)}
        networks = {one.network_id for one in recorded}
        doubled = {id_ for network_id in networks for id_ in self._state.doubled(network_id)}
        suspects |= {one.id: one for one in recorded if one.id in doubled}
        for endpoint in suspects.values():
            try:
                await self._endpoints.reclaim(endpoint)
            except ConflictError as error:
                await self._endpoints.give_way(endpoint)
                await self._fence(endpoint, error)
        await self._refill.reclaim()
        await self._membership.reclaim()
        self._claimed_at, self._claim_s = now, self._compare_s()

    @staticmethod
    def _compare_s() -> float:
        return uniform(0.5, 1) * COMPARE_S  # noqa: S311 - spreads load, guards nothing

    async def withdraw(self, endpoint: Endpoint) -> None:
        """Removes an endpoint of this host from the store, now or as soon as it answers.

        Raises:
            StoreError: Not now.
        """
        self._local.withdraw(endpoint)
        await self._endpoints.delete(endpoint)
        self._local.forget_withdrawn(endpoint.id)
        self.unattached.pop(endpoint.id, None)
        self.leave_network(endpoint.network_id)

    def leave_network(self, network_id: str) -> None:
        """Stops watching a network if this host has nothing in it, neither here nor there."""
        local = self._local
        here = {one.network_id for one in local.endpoints.values()}
        here |= {one.network_id for one in local.withdrawn.values()}
        if network_id not in here | set(self.unattached.values()):
            self._state.leave(network_id)

    async def revive(self, network_id: str, wish: EndpointWish) -> Endpoint | None:
        """Takes an endpoint back that shall go, and could not yet, for a wish that it fits.

        That is how a container keeps its address when it restarts while the store is away. With
        the store there, the endpoint goes now and there is none to take back.
        """
        for endpoint in self._local.withdrawn.values():
            key = records.endpoint_key(endpoint.network_id, endpoint.id)
            if endpoint.network_id != network_id or not _fits(endpoint, wish):
                continue
            if self._state.stale_since is None or not self._state.recorded(key):
                await self.withdraw(endpoint)
                return None
            self._local.forget_withdrawn(endpoint.id)
            self.unattached[endpoint.id] = endpoint.network_id
            log.info("endpoint revived endpoint=%s name=%s", endpoint.id, endpoint.name)
            return replace(
                endpoint,
                aliases=wish.aliases,
                hostname=wish.hostname,
                container_id=wish.container_id,
            )
        return None

    def _shown(self, endpoint: Endpoint) -> bool:
        """Whether the store has an endpoint's record, as far as is known."""
        key = records.endpoint_key(endpoint.network_id, endpoint.id)
        return not self._state.joined(endpoint.network_id) or self._state.recorded(key)

    def _in_place(self, endpoint: Endpoint) -> bool:
        """Whether the store has an endpoint's record, and in a network that is not to go."""
        return self._shown(endpoint) and endpoint.network_id not in self._refill.returned

    def _outdated(self) -> list[Endpoint]:
        """Local endpoints of which the store says something else: they were revived."""
        return [
            endpoint
            for endpoint in self._local.records.values()
            if (shown := self._state.endpoint(endpoint.network_id, endpoint.id))
            and shown != endpoint
            and endpoint.id in self._local.endpoints
        ]

    def _superfluous(self, endpoint_id: str) -> bool:
        known = endpoint_id in self._local.endpoints or endpoint_id in self.unattached
        return not known or endpoint_id in self._local.withdrawn

    async def _remove(self, network_id: str, endpoint_id: str) -> None:
        endpoint = self._local.withdrawn.get(endpoint_id)
        endpoint = endpoint or await self._endpoints.read(network_id, endpoint_id)
        if endpoint:
            await self.withdraw(endpoint)

    def _due(self) -> bool:
        """Whether there is a reason to compare."""
        state = self._state
        if not state.synced:
            return False
        return (
            self._compared != self._resyncs()
            or bool(self._local.withdrawn)
            or bool(self._outdated())
            or self._refill.due()
            or any(
                id_ in self._local.endpoints and not self._in_place(endpoint)
                for id_, endpoint in self._local.records.items()
                if id_ not in self.joining
            )
        )

    def _resyncs(self) -> int:
        return sum(self._state.resyncs.values())

    async def _restore(self, endpoint: Endpoint) -> None:
        removed = endpoint.network_id in self._refill.returned
        if not removed and await self._endpoints.confirm(endpoint):
            return
        try:
            if removed:
                # While the store lacked this endpoint; its host put the network back later.
                raise NotFoundError(f"network {endpoint.network_id} was removed")
            await self._refill.ensure(endpoint.network_id)
            await self._endpoints.restore(endpoint)
        except (ConflictError, NotFoundError) as error:
            since = self._fencing.setdefault(endpoint.id, time.monotonic())
            if time.monotonic() - since < self._fence_s:
                raise
            if removed:
                with contextlib.suppress(StoreConflictError):  # the store has no record of it
                    await self._endpoints.give_way(endpoint)
            await self._fence(endpoint, error)
        else:
            self._fencing.pop(endpoint.id, None)
            log.warning("endpoint restored endpoint=%s name=%s", endpoint.id, endpoint.name)

    async def _fence(self, endpoint: Endpoint, cause: DaemonError) -> None:
        self._fencing.pop(endpoint.id, None)
        if endpoint.id not in self._local.endpoints:
            return
        log.error(
            "endpoint fenced endpoint=%s name=%s addresses=%s cause=%s",
            endpoint.id,
            endpoint.name,
            ",".join(map(str, endpoint.addresses)),
            cause,
        )
        with contextlib.suppress(DaemonError):
            await self._disconnect(endpoint.id)


def _fits(endpoint: Endpoint, wish: EndpointWish) -> bool:
    """Whether an endpoint has the name and the addresses that are wished for."""
    addresses = {str(address.ip) for address in endpoint.addresses}
    return (
        endpoint.name == wish.name
        and {wish.ip, wish.ip6} - {""} <= addresses
        and (endpoint.mac == wish.mac if wish.mac else _has_derived_mac(endpoint))
    )


def _has_derived_mac(endpoint: Endpoint) -> bool:
    return any(endpoint.mac == records.derived_mac(address) for address in endpoint.addresses)
