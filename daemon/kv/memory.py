"""`MemoryStore`: a store in this process, for tests and for trying things out.

It keeps every promise of the Protocol and can be made to fail: `lose` is an outage, `recover`
its end.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import NoReturn

from pyvxlan.daemon.errors import StoreConflictError, StoreUnavailableError
from pyvxlan.daemon.kv.health import Health, MemberHealth
from pyvxlan.daemon.kv.lease import Lease
from pyvxlan.daemon.kv.store import (
    ABSENT,
    PRESENT,
    Change,
    Check,
    Delete,
    Event,
    Item,
    Put,
    Removal,
    Revision,
    Session,
    Snapshot,
    Write,
)
from pyvxlan.daemon.kv.watching import Missed, Watchers, check_key, check_ttl, check_txn

TICK_S = 1.0


class _Shared:
    """What all stores on the same data hold in common."""

    def __init__(self, clock: Callable[[], float], log_limit: int) -> None:
        self.clock = clock
        self.items: dict[str, Item] = {}
        self.bound: dict[str, str] = {}
        self.deadlines: dict[str, float] = {}
        self.revision = 0
        self.log: deque[tuple[Revision, str]] = deque()
        self.log_limit = log_limit
        self.floor = 0
        self.stores: set[MemoryStore] = set()

    def expire(self) -> None:
        now = self.clock()
        for session_id in [id_ for id_, deadline in self.deadlines.items() if deadline < now]:
            self.end(session_id)

    def end(self, session_id: str) -> None:
        self.deadlines.pop(session_id, None)
        self.apply([Delete(key) for key, id_ in self.bound.items() if id_ == session_id], None)

    def apply(self, ops: Sequence[Write | Delete], session_id: str | None) -> None:
        changes: list[Change] = []
        revision = self.revision + 1
        for op in ops:
            if isinstance(op, Write):
                self.bound.pop(op.key, None)
                if op.bound and session_id:
                    self.bound[op.key] = session_id
                self.items[op.key] = Item(op.key, op.value, revision)
                changes.append(Put(self.items[op.key]))
            elif self.items.pop(op.key, None):
                self.bound.pop(op.key, None)
                changes.append(Removal(op.key, revision))
            else:
                continue
            self.log.append((revision, op.key))
        if not changes:
            return
        self.revision = revision
        while len(self.log) > self.log_limit:
            self.floor = self.log.popleft()[0]
        for store in self.stores:
            store.publish(changes)


class MemoryStore:
    """A `Store` whose data lives as long as one of the stores on it.

    Args:
        clock: Seconds by which sessions expire.
        log_limit: How many changes are kept for `watch(since=...)`.
        tick_s: How often sessions are looked at.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        log_limit: int = 10_000,
        tick_s: float = TICK_S,
        shared: _Shared | None = None,
    ) -> None:
        self._shared = shared or _Shared(clock, log_limit)
        self._shared.stores.add(self)
        self._tick_s = tick_s
        self._watchers = Watchers()
        self._leases: set[Lease] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._outage: str | None = None
        self._closed = False

    def peer(self) -> MemoryStore:
        """Gives another store on the same data, as another process would have it."""
        return MemoryStore(tick_s=self._tick_s, shared=self._shared)

    def lose(self, reason: str = "the store is away") -> None:
        """Makes every call fail until `recover`; watchers are told."""
        self._outage = reason
        self._watchers.mark_stale(reason)

    def recover(self) -> None:
        """Ends an outage."""
        self._outage = None
        self._watchers.mark_live()

    def wipe(self) -> None:
        """Loses all data, as a store does that was replaced by an empty one."""
        shared = self._shared
        shared.items.clear()
        shared.bound.clear()
        shared.deadlines.clear()
        shared.log.clear()
        shared.revision += 1
        shared.floor = shared.revision
        for store in shared.stores:
            store.reset()

    def save(self) -> Callable[[], None]:
        """Takes a copy of all data; gives what puts it back, as a restored backup would."""
        shared = self._shared
        items, bound, deadlines = dict(shared.items), dict(shared.bound), dict(shared.deadlines)

        def put_back() -> None:
            shared.items = dict(items)
            shared.bound = dict(bound)
            shared.deadlines = dict(deadlines)
            shared.log.clear()
            shared.revision += 1
            shared.floor = shared.revision
            for store in shared.stores:
                store.reset()

        return put_back

    def reset(self) -> None:
        """Makes watchers read anew and notes sessions that are gone."""
        for lease in self._leases:
            if lease.id not in self._shared.deadlines:
                lease.mark_lost()
        self._watchers.reset()

    def publish(self, changes: Sequence[Change]) -> None:
        """Hands changes to the watchers of this store."""
        self._watchers.publish(changes)

    async def get(self, key: str) -> Item | None:
        """Reads one key."""
        check_key(key)
        self._require()
        return self._shared.items.get(key)

    async def list(self, prefix: str) -> Mapping[str, Item]:
        """Reads every key that starts with `prefix`, by key."""
        self._require()
        return self._below(prefix)

    async def txn(
        self,
        checks: Sequence[Check],
        ops: Sequence[Write | Delete],
        *,
        session: Session | None = None,
    ) -> None:
        """Applies all `ops` if all `checks` hold, else nothing."""
        check_txn(checks, ops, session)
        self._require()
        shared = self._shared
        for check in checks:
            if not _holds(check, shared.items.get(check.key)):
                raise StoreConflictError(f"{check.key} is not as expected: {check.expect}")
        if session and session.id not in shared.deadlines:
            raise StoreConflictError(f"session {session.id} has expired")
        shared.apply(ops, session.id if session else None)

    async def session(self, ttl_s: float) -> Lease:
        """Opens a session; it is renewed until it or the store is closed."""
        check_ttl(ttl_s)
        self._require()
        lease = Lease(ttl_s, self._end)
        now = self._shared.clock()
        self._shared.deadlines[lease.id] = now + ttl_s
        lease.renewed(now, time.monotonic())
        self._leases.add(lease)
        return lease

    def watch(self, prefix: str, *, since: Revision | None = None) -> AsyncIterator[Event]:
        """Yields a `Snapshot`, then changes in order; a new `Snapshot` after any gap."""
        return self._watchers.watch(prefix, since, self._read)

    async def health(self) -> Health:
        """Tells of an outage, and else that all is well."""
        return Health("memory", (MemberHealth("memory", self._outage or "", latency_s=0.0),))

    async def close(self) -> None:
        """Ends watches. Sessions that are open are left to expire."""
        self._closed = True
        self._watchers.close()
        self._shared.stores.discard(self)
        if self._ticker:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)

    def _require(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick(), name="memory store")
        if self._outage is not None:
            raise StoreUnavailableError(self._outage)
        self._shared.expire()

    def _below(self, prefix: str) -> dict[str, Item]:
        items = self._shared.items
        return {key: items[key] for key in sorted(items) if key.startswith(prefix)}

    async def _read(self, prefix: str, since: Revision | None) -> Snapshot | Missed:
        self._require()
        shared = self._shared
        if since is None or not shared.floor <= since <= shared.revision:
            return Snapshot(self._below(prefix), shared.revision)
        latest = {
            key: revision
            for revision, key in shared.log
            if revision > since and key.startswith(prefix)
        }
        changes: list[Change] = [
            Put(item) if (item := shared.items.get(key)) else Removal(key, revision)
            for key, revision in sorted(latest.items(), key=lambda entry: entry[1])
        ]
        return Missed(changes, shared.revision)

    async def _end(self, lease: Lease) -> None:
        self._require()
        self._leases.discard(lease)
        self._shared.end(lease.id)

    async def _tick(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._tick_s)
            if self._outage is not None:
                continue
            now = self._shared.clock()
            self._shared.expire()
            for lease in [lease for lease in self._leases if lease.due(now)]:
                if lease.id in self._shared.deadlines:
                    self._shared.deadlines[lease.id] = now + lease.ttl_s
                    lease.renewed(now, time.monotonic())
                else:
                    self._leases.discard(lease)
                    lease.mark_lost()


def _holds(check: Check, item: Item | None) -> bool:
    if check.expect is ABSENT:
        return item is None
    return item is not None and check.expect in {PRESENT, item.revision}
