"""Removes what hosts left behind that are gone for good: endpoints, claims, their own records.

One host of the cluster does it, the one that holds `gc/leader`. It takes a host for dead only
after it has seen `alive/<host>` absent for the whole grace time of its own clock, in every one of
several looks, while its own view was fresh all along, and nobody heard of it (`witness`). Every
removal is checked again in the store. If most hosts are absent, it rather is the way to the store
that is cut: they are given a day.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NoReturn

from pyvxlan.daemon import records
from pyvxlan.daemon.endpoints import Endpoints
from pyvxlan.daemon.errors import DaemonError, InvalidError, StoreConflictError
from pyvxlan.daemon.kv import ABSENT, Check, Delete, Store, Write
from pyvxlan.daemon.membership import Membership
from pyvxlan.daemon.model import Host
from pyvxlan.daemon.refill import COVERED_S
from pyvxlan.daemon.reservations import Reservations
from pyvxlan.daemon.state import State
from pyvxlan.daemon.witness import Witness

log = logging.getLogger(__name__)

OBSERVE_S = 30.0
"""Between two looks; a quarter of the grace time if that is shorter."""
MOST_GRACE_S = 24 * 3600.0
"""The grace time if most hosts are absent."""
SMALL = 4
"""Up to so many hosts, losing most of them is an ordinary thing."""
KEEP_GONE_S = 2 * COVERED_S
"""How long it is noted that a network was removed: longer than anybody looks back."""


class Collector:
    """Collects on behalf of the cluster, while this host leads.

    Args:
        store: The shared store.
        state: Tells who is alive, and whether that is fresh.
        membership: Its session carries the leadership.
        endpoints: Removes endpoints.
        host: This host.
        reservations: Gives back what dead hosts had reserved.
        witness: Tells which absent hosts are not dead.
    """

    def __init__(
        self,
        store: Store,
        state: State,
        membership: Membership,
        endpoints: Endpoints,
        host: Host,
        *,
        reservations: Reservations,
        witness: Witness,
    ) -> None:
        self._store = store
        self._state = state
        self._membership = membership
        self._endpoints = endpoints
        self._reservations = reservations
        self._witness = witness
        self._host = host
        self._absent_since: dict[str, float] = {}
        self._alarmed = False

    @property
    def _grace_s(self) -> float:
        """How long a host must be absent; it may take as long as a session to register again."""
        return max(self._state.config.session_ttl_s, self._state.config.gc_grace_s)

    async def run(self) -> NoReturn:
        """Observes again and again."""
        while True:
            await asyncio.sleep(min(OBSERVE_S, self._grace_s / 4))
            try:
                await self.observe(time.monotonic())
            except DaemonError as error:
                log.warning("collection broke off cause=%s", error)

    async def observe(self, now_s: float) -> None:
        """Looks who is absent, and collects those who are for longer than the grace time.

        `now_s` is any clock that runs steadily; the first look at an absent host only notes it.

        Raises:
            DaemonError: The store failed, or another host leads by now; nothing is half-removed.
        """
        heard = await self._witness.heard()
        guard = await self._lead()
        if guard is None or not self._state.synced:
            self._absent_since.clear()
            return
        absent = {*self._state.hosts, *await self._endpoints.owners()} - set(self._state.alive)
        absent.discard(self._host.id)
        self._absent_since = {
            id_: now_s if id_ in heard else self._absent_since.get(id_, now_s) for id_ in absent
        }
        grace_s = max(MOST_GRACE_S, self._grace_s) if self._most_absent() else self._grace_s
        for host_id, since_s in self._absent_since.items():
            if now_s - since_s >= grace_s:
                await self._collect(host_id, guard)
        await self._collect_notes(guard)

    def _most_absent(self) -> bool:
        """Tells whether most hosts are absent; says so once."""
        absent = len(self._absent_since)
        known = absent + len(self._state.alive)
        most = known > SMALL and 2 * absent > known
        if most and not self._alarmed:
            log.error(
                "collection held back hosts_absent=%d of=%d hold_s=%g: is the way from them to the "
                "store cut? What runs on them goes on",
                absent,
                known,
                MOST_GRACE_S,
            )
        self._alarmed = most
        return most

    async def _collect_notes(self, guard: Check) -> None:
        """Removes notes of removed networks that nobody needs any more."""
        for network_id, gone in list(self._state.removed.items()):
            key = records.gone_key(network_id)
            if time.time() - gone.at_s > KEEP_GONE_S and self._state.recorded(key):
                await self._store.txn([guard], [Delete(key)])

    async def _lead(self) -> Check | None:
        """Takes or keeps the leadership; gives the check that proves it, or None."""
        session = self._membership.session
        if session is None:
            return None
        item = await self._store.get(records.GC_LEADER)
        value = records.emit({"hid": self._host.id, "session": session.id})
        if item is None:
            write = Write(records.GC_LEADER, value, bound=True)
            try:
                await self._store.txn([Check(records.GC_LEADER, ABSENT)], [write], session=session)
            except StoreConflictError:
                return None
            item = await self._store.get(records.GC_LEADER)
        if item is None or item.value != value:
            return None
        return Check(records.GC_LEADER, item.revision)

    async def _collect(self, host_id: str, guard: Check) -> None:
        """Removes a dead host's endpoints, then its records; stops if it turns out to be alive."""
        owned = await self._endpoints.owned(host_id)
        try:
            for endpoint_id, network_id in owned.items():
                endpoint = await self._endpoints.read(network_id, endpoint_id)
                if endpoint:
                    await self._endpoints.delete(endpoint, orphan=True, guard=guard)
            checks = [Check(records.alive_key(host_id), ABSENT), guard]
            await self._reservations.collect(host_id, checks)
            ops = [Delete(records.host_key(host_id))]
            host = self._state.hosts.get(host_id)
            claim = await self._store.get(records.vtep_key(host.vtep)) if host else None
            if claim and _owner(claim.value) == host_id:
                checks.append(Check(claim.key, claim.revision))
                ops.append(Delete(claim.key))
            await self._store.txn(checks, ops)
        except StoreConflictError as error:
            log.info("host not collected host=%s cause=%s", host_id, error)
            return
        log.warning("host collected host=%s endpoints=%d", host_id, len(owned))


def _owner(value: bytes) -> str:
    try:
        return records.parse_claim(value)
    except InvalidError:
        return ""
