"""`ClusterStore`: the store as a daemon uses it, fenced by the record `meta`.

Each transaction also checks that `meta` is as it was when last read. Whoever restores or moves a
store writes `meta` first: from then on no daemon can change anything, whether it has heard of that
or not.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import InvalidError, StoreConflictError, StoreUnavailableError
from pyvxlan.daemon.kv import ABSENT, Check, Delete, Event, Item, Session, Store, Write
from pyvxlan.daemon.kv.health import Health
from pyvxlan.daemon.kv.store import Revision
from pyvxlan.daemon.records import Phase, Transition

log = logging.getLogger(__name__)

ATTEMPTS = 4
"""How often `meta` may change under one transaction."""


class ClusterStore:
    """A `Store` that refuses changes while its store is being restored or moved.

    Args:
        store: The store itself; `close` closes it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._meta: Item | None = None

    async def get(self, key: str) -> Item | None:
        """Reads one key, linearizably."""
        return await self._store.get(key)

    async def list(self, prefix: str) -> Mapping[str, Item]:
        """Reads every key that starts with `prefix`, by key."""
        return await self._store.list(prefix)

    async def txn(
        self,
        checks: Sequence[Check],
        ops: Sequence[Write | Delete],
        *,
        session: Session | None = None,
    ) -> None:
        """Applies all `ops` if all `checks` and the fence hold, else nothing.

        There is room for one check less than in the store itself. A change of `meta` is not fenced.

        Raises:
            StoreUnavailableError: Also while the store is being restored or moved.
        """
        if any(op.key == records.META for op in ops):
            await self._store.txn(checks, ops, session=session)
            return
        for attempt in range(1, ATTEMPTS + 1):
            fence = await self._fence()
            try:
                await self._store.txn([fence, *checks], ops, session=session)
            except StoreConflictError:
                self._meta = meta = await self._store.get(records.META)
                unchanged = fence.expect == (meta.revision if meta else ABSENT)
                if unchanged or attempt == ATTEMPTS:
                    raise
            else:
                return

    async def session(self, ttl_s: float) -> Session:
        """Opens a session that expires `ttl_s` seconds after its owner died."""
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

    async def _fence(self) -> Check:
        """Gives the check that each change carries.

        Raises:
            StoreUnavailableError: Nobody may change anything at the moment.
        """
        meta = self._meta or await self._store.get(records.META)
        self._meta = meta
        if meta is None:
            return Check(records.META, ABSENT)
        transition = _transition(meta)
        if transition and transition.phase in {Phase.FILLING, Phase.FROZEN, Phase.MOVED}:
            self._meta = None
            meta = await self._lifted(meta, transition)
        return Check(records.META, meta.revision)

    async def _lifted(self, meta: Item, transition: Transition) -> Item:
        """Ends a freeze whose keeper is gone; gives `meta` as it is then.

        Raises:
            StoreUnavailableError: It stands.
        """
        if transition.phase is Phase.FILLING:
            raise StoreUnavailableError(
                "the store is being filled: wait for pyvxlan store restore or migrate, or run it "
                "again if it broke off"
            )
        if transition.phase is Phase.MOVED:
            raise StoreUnavailableError(
                f"the cluster has moved to store {transition.to}: set this host's store to that"
            )
        value = records.with_transition(meta.value, None)
        try:
            await self._store.txn(
                [Check(records.META, meta.revision), Check(records.MOVE_KEEPER, ABSENT)],
                [Write(records.META, value)],
            )
        except StoreConflictError as error:
            raise StoreUnavailableError(
                f"the store is being moved to {transition.to}: try again shortly"
            ) from error
        log.warning("freeze lifted, its keeper is gone to=%s", transition.to)
        lifted = await self._store.get(records.META)
        if lifted is None or lifted.value != value:
            raise StoreUnavailableError("the store changes hands: try again shortly")
        self._meta = lifted
        return lifted


def _transition(meta: Item) -> Transition | None:
    try:
        return records.parse_meta(meta.value).transition
    except InvalidError as error:
        raise StoreUnavailableError(f"store record {records.META}: {error}") from error
