"""This host's place in the cluster: its host record, its VTEP's claim, and its session.

`alive/<host>` lives with the session, and its revision is the host's fencing token: a transaction
that checks it can't be applied once the host was taken for dead. Losing the session changes
nothing in the data plane; the host registers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from datetime import UTC, datetime

from pyvxlan.daemon import records
from pyvxlan.daemon.claims import put_back
from pyvxlan.daemon.errors import (
    ConflictError,
    DaemonError,
    InvalidError,
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
)
from pyvxlan.daemon.kv import ABSENT, Check, Delete, Item, Session, Store, Write
from pyvxlan.daemon.kv.store import Revision
from pyvxlan.daemon.model import Host
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)

ATTEMPTS = 8
RETRY_S = 0.5
REGISTER_S = 5.0
"""How long a start waits for the store to take the registration."""
CLOSE_S = 2.0
WARN_AGAIN_S = 60.0
NO_ANSWER = StoreUnavailableError("the store does not answer")


class Membership:
    """Keeps this host registered from `register` until `close`.

    Args:
        store: Where to register.
        state: What this host sees of it; its own records are compared with every change.
        host: The record to publish.
    """

    def __init__(self, store: Store, state: State, host: Host) -> None:
        self.cluster = ""
        """The cluster's id, known after `register`."""
        self.created_s = 0.0
        """When the cluster's store was begun, by the wall clock of the host that did."""
        self._store = store
        self._state = state
        self._host = host
        self._incarnation = secrets.token_hex(16)
        """Tells this process from those before it."""
        self._session: Session | None = None
        self._token: Revision | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._problem = ""
        self._warned_at = 0.0

    @property
    def host_id(self) -> str:
        """Id of the host that is registered."""
        return self._host.id

    @property
    def session(self) -> Session | None:
        """The session with the store, for other keys that shall live with this daemon."""
        return self._session

    @property
    def session_valid_s(self) -> float:
        """Seconds for which the session surely lives still; 0 without one."""
        return max(0.0, self._session.valid_until - time.monotonic()) if self._session else 0.0

    def token(self) -> Revision:
        """Gives the fencing token: the revision of `alive/<host>`.

        Raises:
            StoreUnavailableError: The host is not registered at the moment.
        """
        if self._token is None:
            raise StoreUnavailableError(
                f"host {self._host.name} has no session with the store: try again shortly"
            )
        return self._token

    @property
    def problem(self) -> str:
        """Why this host is not registered, for people; empty if it is."""
        return self._problem

    async def register(self, *, timeout_s: float = REGISTER_S) -> bool:
        """Publishes the host and stays registered; tells whether that is done.

        With the store away it goes on trying by itself.

        Raises:
            ConflictError: Another host holds this VTEP address.
            InvalidError: The store's schema is newer than this daemon.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._enrol()
        except (StoreError, TimeoutError) as error:
            self._note(error if isinstance(error, StoreError) else NO_ANSWER)
        self._keeper = asyncio.create_task(self._keep(), name="membership")
        return self._session is not None

    async def confirm(self) -> None:
        """Makes sure that this host is registered in the store as it is now.

        Raises:
            StoreUnavailableError: It is not, since its session was lost or the store was
                replaced; it registers again by itself.
        """
        alive = await self._store.get(records.alive_key(self._host.id))
        if alive is None or alive.revision != self.token():
            raise StoreUnavailableError(
                f"host {self._host.name} is about to register again: try again shortly"
            )

    async def reclaim(self) -> None:
        """Claims this host's VTEP address again if somebody deleted the claim alone.

        Raises:
            StoreError: The store failed; try again.
        """
        record = await self._store.get(records.host_key(self._host.id))
        if record:
            await put_back(self._store, record, [records.vtep_key(self._host.vtep)])

    async def close(self) -> None:
        """Ends the session: the host counts as down. Its records and endpoints stay."""
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await self._drop_session()

    async def withdraw(self) -> None:
        """Removes the host's records for good; its endpoints are the caller's to remove first."""
        await self.close()
        claim = await self._store.get(records.vtep_key(self._host.vtep))
        ops: list[Write | Delete] = [Delete(records.host_key(self._host.id))]
        checks = []
        if claim and records.parse_claim(claim.value) == self._host.id:
            checks.append(Check(claim.key, claim.revision))
            ops.append(Delete(claim.key))
        await self._store.txn(checks, ops)
        log.info("host withdrawn host=%s", self._host.id)

    async def _keep(self) -> None:
        """Registers, and again whenever the session is lost or a record of this host is gone."""
        while True:
            if self._session is None:
                try:
                    await self._enrol()
                except DaemonError as error:
                    self._note(error)
                    await asyncio.sleep(RETRY_S)
                    continue
            await self._seen()
            await self._ended(self._session)
            self._token = None
            log.warning("host registers again host=%s", self._host.id)
            await self._drop_session()

    async def _ended(self, session: Session | None) -> None:
        """Returns when the session is lost or a record of this host is gone."""
        gone = asyncio.create_task(self._state.wait_for(self._missing, timeout_s=None))
        lost = asyncio.create_task(session.lost() if session else asyncio.sleep(0))
        try:
            await asyncio.wait((gone, lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, lost):
                task.cancel()
            await asyncio.gather(gone, lost, return_exceptions=True)

    def _note(self, error: DaemonError) -> None:
        """Says why this host is not registered: each cause once a minute.

        That the store is away is said by whoever follows it.
        """
        now = time.monotonic()
        if error.retry and not self._state.synced:
            self._problem = str(error)
            log.debug("host not registered yet host=%s cause=%s", self._host.id, error)
            return
        if self._problem == str(error) and now - self._warned_at < WARN_AGAIN_S:
            return
        self._problem, self._warned_at = str(error), now
        level = logging.WARNING if error.retry else logging.ERROR
        log.log(level, "host not registered yet host=%s cause=%s", self._host.id, error)

    async def _seen(self) -> None:
        """Waits until this host's own view shows what it just published."""
        with contextlib.suppress(DaemonError):
            await self._state.wait_for(lambda: not self._missing(), timeout_s=5)

    def _missing(self) -> bool:
        own = self._state.hosts.get(self._host.id)
        return self._state.synced and not (
            own == self._host
            and self._state.recorded(records.host_key(self._host.id))
            and self._host.id in self._state.alive
        )

    async def _enrol(self) -> None:
        meta = await self._ensure_meta()
        self.cluster, self.created_s = meta.cluster, meta.created_s
        self._state.note_cluster(meta.cluster)
        session = await self._store.session(self._state.config.session_ttl_s)
        try:
            await self._publish(session)
            alive = await self._store.get(records.alive_key(self._host.id))
        except BaseException:
            await _close(session)
            raise
        self._session = session
        self._token = alive.revision if alive else None
        self._problem = ""
        log.info(
            "host registered host=%s name=%s vtep=%s",
            self._host.id,
            self._host.name,
            self._host.vtep,
        )

    async def _ensure_meta(self) -> records.Meta:
        while True:
            item = await self._store.get(records.META)
            if item:
                try:
                    return records.parse_meta(item.value)
                except InvalidError as error:
                    raise InvalidError(f"store record {records.META}: {error}") from error
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            fresh = records.Meta(cluster=secrets.token_hex(16), created=now)
            with contextlib.suppress(StoreConflictError):
                await self._store.txn(
                    [Check(records.META, ABSENT)], [Write(records.META, records.emit_meta(fresh))]
                )

    async def _publish(self, session: Session) -> None:
        """Writes the session, and of the records what is not so already.

        Every host is told of each write, so thousands that start again should make one each.
        """
        host, value, own = self._host, records.emit_host(self._host), records.emit(self._host.id)
        alive = records.emit({"inc": self._incarnation})
        for _ in range(ATTEMPTS):
            ops: list[Write | Delete] = [Write(records.alive_key(host.id), alive, bound=True)]
            claim = await self._store.get(records.vtep_key(host.vtep))
            if claim:
                await self._check_claim(records.parse_claim(claim.value))
            checks = [Check(records.vtep_key(host.vtep), claim.revision if claim else ABSENT)]
            if claim is None or claim.value != own:
                ops.append(Write(records.vtep_key(host.vtep), own))
            found = await self._store.get(records.host_key(host.id))
            if found and found.value == value:
                checks.append(Check(found.key, found.revision))
            else:
                ops.append(Write(records.host_key(host.id), value))
                await self._release_former_vtep(found, checks, ops)
            try:
                await self._store.txn(checks, ops, session=session)
            except StoreConflictError:
                continue
            return
        raise StoreConflictError(f"host {host.name}: its records keep changing; try again")

    async def _check_claim(self, owner: str) -> None:
        """Lets a claim be retaken by its host, or by a host of that name if the owner is dead."""
        host = self._host
        if owner == host.id:
            return
        item = await self._store.get(records.host_key(owner))
        try:
            name = records.parse_host(owner, item.value).name if item else ""
        except InvalidError:
            name = ""
        if await self._store.get(records.alive_key(owner)):
            raise ConflictError(
                f"VTEP address {host.vtep} belongs to host {name or owner}, which is alive: give "
                "this host another one with --advertise, or its own store with --store"
            )
        if item and name != host.name:
            raise ConflictError(
                f"VTEP address {host.vtep} belongs to host {name or owner}, which is down: start "
                "that host, give this one another address with --advertise, or wait until the "
                f"records of {name or owner} are collected ({self._state.config.gc_grace_s:g} s)"
            )
        log.warning("vtep retaken vtep=%s from=%s", host.vtep, owner)

    async def _release_former_vtep(
        self, found: Item | None, checks: list[Check], ops: list[Write | Delete]
    ) -> None:
        """Adds the removal of the claim on the address that this host's record names, if any."""
        if found is None:
            return
        try:
            former = records.parse_host(self._host.id, found.value).vtep
        except InvalidError:
            return
        claim = (
            await self._store.get(records.vtep_key(former)) if former != self._host.vtep else None
        )
        if claim and records.parse_claim(claim.value) == self._host.id:
            checks.append(Check(claim.key, claim.revision))
            ops.append(Delete(claim.key))

    async def _drop_session(self) -> None:
        session, self._session, self._token = self._session, None, None
        if session:
            await _close(session)


async def _close(session: Session) -> None:
    """Ends a session; one that the store can't be told of expires by itself."""
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await session.close()
