"""`Etcd3Store`: keys, transactions and sessions through python-etcd3."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from pyvxlan.daemon.errors import StoreConflictError, StoreError
from pyvxlan.daemon.kv.etcd.keys import Keys
from pyvxlan.daemon.kv.etcd3.connection import Connection
from pyvxlan.daemon.kv.etcd3.health import examine
from pyvxlan.daemon.kv.etcd3.watch import Watches
from pyvxlan.daemon.kv.etcd3.watcher import Client
from pyvxlan.daemon.kv.health import Health
from pyvxlan.daemon.kv.lease import Lease
from pyvxlan.daemon.kv.store import (
    ABSENT,
    PRESENT,
    Check,
    Delete,
    Event,
    Item,
    Revision,
    Session,
    Write,
)
from pyvxlan.daemon.kv.url import StoreUrl
from pyvxlan.daemon.kv.watching import check_key, check_ttl, check_txn

log = logging.getLogger(__name__)

LIST_S = 10.0
"""How long a list may take."""
LISTS_AT_ONCE = 4
"""So that a host that reads everything anew leaves threads, and etcd time, for the rest."""
TICK_S = 0.5
"""Between two looks at which sessions are due."""


class Etcd3Store:
    """A `Store` in etcd, through python-etcd3; make one with `open`."""

    def __init__(self, url: StoreUrl) -> None:
        self._keys = Keys(url.prefix)
        self._watches = Watches(self._keys, self._read_all)
        self._connection = Connection(
            url,
            self._keys,
            up=self._watches.up,
            down=self._watches.down,
            replaced=self._lose_sessions,
        )
        self._listing = asyncio.Semaphore(LISTS_AT_ONCE)
        self._leases: dict[int, Lease] = {}
        self._renewer = asyncio.create_task(self._renew(), name=f"sessions {url}")

    @classmethod
    async def open(cls, url: StoreUrl) -> Etcd3Store:
        """Begins to connect; no server need answer yet.

        Raises:
            ConfigError: A file that the URL names can't be used.
        """
        return cls(url)

    async def get(self, key: str) -> Item | None:
        """Reads one key, linearizably."""
        check_key(key)
        name = self._keys.key(key)
        answer = await self._connection.call(
            lambda client: client.get_response(name), repeatable=True
        )
        self._connection.note(answer.header)
        return self._keys.item(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Mapping[str, Item]:
        """Reads every key that starts with `prefix`, by key; a snapshot."""
        items, _ = await self._read_all(prefix)
        return items

    async def txn(
        self,
        checks: Sequence[Check],
        ops: Sequence[Write | Delete],
        *,
        session: Session | None = None,
    ) -> None:
        """Applies all `ops` if all `checks` hold, else nothing; on most members' disks then."""
        check_txn(checks, ops, session)
        lease_id = int(session.id, 16) if session else 0
        owner = [self._keys.session(session.id)] if session else []

        def commit(client: Client) -> bool:
            make = client.transactions
            compare = [make.version(name) > 0 for name in owner]
            for check in checks:
                name = self._keys.key(check.key)
                if check.expect is ABSENT:
                    compare.append(make.version(name) == 0)
                elif check.expect is PRESENT:
                    compare.append(make.version(name) > 0)
                else:
                    compare.append(make.mod(name) == check.expect)
            success = [
                make.put(self._keys.key(op.key), op.value, lease_id if op.bound else 0)
                if isinstance(op, Write)
                else make.delete(self._keys.key(op.key))
                for op in ops
            ]
            # Without an operation etcd would answer from what one member knows.
            succeeded, _ = client.transaction(
                compare, success or [make.get(self._keys.key(""))], []
            )
            return bool(succeeded)

        if not await self._connection.call(commit, repeatable=not ops):
            keys = ", ".join(check.key for check in checks)
            expired = f", or session {session.id} has expired" if session else ""
            raise StoreConflictError(f"not as expected: {keys}{expired}")

    async def session(self, ttl_s: float) -> Lease:
        """Opens a session; it is renewed until it or the store is closed."""
        check_ttl(ttl_s)
        asked_at = time.monotonic()
        # If the answer to the first try is lost, its lease expires without having been used.
        granted = await self._connection.call(
            lambda client: client.lease(math.ceil(ttl_s)), repeatable=True
        )
        lease = Lease(ttl_s, self._end, session_id=f"{granted.id:016x}")
        name = self._keys.session(lease.id)
        await self._connection.call(
            lambda client: client.put(name, b"", granted.id), repeatable=True
        )
        lease.renewed(asked_at, asked_at)
        self._leases[granted.id] = lease
        return lease

    def watch(self, prefix: str, *, since: Revision | None = None) -> AsyncIterator[Event]:
        """Yields a `Snapshot`, then changes in order; a new `Snapshot` after any gap.

        `since` changes nothing: every watch begins with a `Snapshot`.
        """
        del since
        return self._watches.watch(self._connection, prefix)

    async def health(self) -> Health:
        """Looks at every member."""
        return await examine(self._connection, self._keys)

    async def close(self) -> None:
        """Ends watches. Sessions that are open are left to expire."""
        self._renewer.cancel()
        await asyncio.gather(self._renewer, return_exceptions=True)
        await self._watches.close()
        await self._connection.close()

    async def _read_all(self, prefix: str) -> tuple[Mapping[str, Item], Revision]:
        """Reads a prefix in one answer: python-etcd3 can't ask for a revision, so for no parts."""
        start, end = self._keys.below(prefix)

        def read(client: Client) -> tuple[Mapping[str, Item], Any]:
            answer = client.get_range_response(start, end)
            items = (self._keys.item(record) for record in answer.kvs)
            return {item.key: item for item in items}, answer.header

        async with self._listing:
            items, header = await self._connection.call(read, repeatable=True, within_s=LIST_S)
        self._connection.note(header)
        return items, header.revision

    async def _renew(self) -> None:
        """Keeps the sessions alive."""
        while True:
            now = time.monotonic()
            due = [lease_id for lease_id, lease in self._leases.items() if lease.due(now)]
            await asyncio.gather(*map(self._renew_one, due))
            await asyncio.sleep(TICK_S)

    async def _renew_one(self, lease_id: int) -> None:
        asked_at = time.monotonic()
        try:
            answers = await self._connection.call(
                lambda client: list(client.refresh_lease(lease_id)), repeatable=True
            )
        except StoreError as error:
            log.debug("session not renewed id=%016x cause=%s", lease_id, error)
            return
        lease = self._leases.get(lease_id)
        if lease is None or not answers:
            return
        if answers[0].TTL > 0:
            lease.renewed(asked_at, asked_at)
        else:
            del self._leases[lease_id]
            lease.mark_lost()
            log.warning("session lost id=%s", lease.id)

    def _lose_sessions(self, reason: str) -> None:
        """Counts every session as lost: the store is another one."""
        log.warning("store replaced url=%s cause=%s", self._connection.url, reason)
        for lease in self._leases.values():
            lease.mark_lost()
        self._leases.clear()

    async def _end(self, lease: Lease) -> None:
        lease_id = int(lease.id, 16)
        self._leases.pop(lease_id, None)
        with contextlib.suppress(StoreConflictError):  # it has ended already
            await self._connection.call(
                lambda client: client.revoke_lease(lease_id), repeatable=True
            )
