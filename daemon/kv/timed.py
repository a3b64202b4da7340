"""`TimedStore`: a store that notes how long its calls take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from pyvxlan.daemon.errors import StoreConflictError
from pyvxlan.daemon.kv.health import Health
from pyvxlan.daemon.kv.store import (
    Check,
    Delete,
    Event,
    Item,
    Revision,
    Session,
    Store,
    Write,
)
from pyvxlan.daemon.timings import Timings


class TimedStore:
    """A `Store` in front of another one, which `close` closes."""

    def __init__(self, store: Store, timings: Timings) -> None:
        self._store = store
        self._timed = timings.store.timed

    async def get(self, key: str) -> Item | None:
        """Reads one key, linearizably."""
        with self._timed("get"):
            return await self._store.get(key)

    async def list(self, prefix: str) -> Mapping[str, Item]:
        """Reads every key that starts with `prefix`, by key."""
        with self._timed("list"):
            return await self._store.list(prefix)

    async def txn(
        self,
        checks: Sequence[Check],
        ops: Sequence[Write | Delete],
        *,
        session: Session | None = None,
    ) -> None:
        """Applies all `ops` if all `checks` hold, else nothing; a conflict is no failure."""
        with self._timed("txn", fine=StoreConflictError):
            await self._store.txn(checks, ops, session=session)

    async def session(self, ttl_s: float) -> Session:
        """Opens a session that expires `ttl_s` seconds after its owner died."""
        with self._timed("session"):
            return await self._store.session(ttl_s)

    def watch(self, prefix: str, *, since: Revision | None = None) -> AsyncIterator[Event]:
        """Yields a `Snapshot`, then changes in order; a new `Snapshot` after any gap."""
        return self._store.watch(prefix, since=since)

    async def health(self) -> Health:
        """Looks at the servers and their settings now."""
        return await self._store.health()

    async def close(self) -> None:
        """Releases everything; ends watches."""
        await self._store.close()
