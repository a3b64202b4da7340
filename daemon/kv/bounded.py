"""`BoundedStore`: a store whose calls end in time and whose errors name it and the remedy.

A server that is frozen, or behind a cut cable, answers nothing at all; whoever waits for it would
wait for good. Its client notices sooner or later, but each by rules of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import TypeVar

from pyvxlan.daemon.errors import (
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
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

T = TypeVar("T")
CALL_S = 3.0
"""How long a read or a change of single keys may take."""
LIST_S = 5.0
"""How long a list may take: that of 20,000 endpoints takes some 3 s on the slowest store."""
REMEDY = "start it or repair the way to it, then try again; what runs goes on meanwhile"


class BoundedStore:
    """A `Store` in front of another one.

    Args:
        store: Does the work; closed together with this one.
        name: What errors call it: its URL, which holds no secret.
        call_s: Seconds for everything but lists.
        list_s: Seconds for a list.
    """

    def __init__(
        self, store: Store, name: str, *, call_s: float = CALL_S, list_s: float = LIST_S
    ) -> None:
        self._store = store
        self._name = name
        self._call_s = call_s
        self._list_s = list_s

    async def get(self, key: str) -> Item | None:
        """Reads one key, linearizably."""
        return await self._read(self._store.get(key), self._call_s)

    async def list(self, prefix: str) -> Mapping[str, Item]:
        """Reads every key that starts with `prefix`, by key."""
        return await self._read(self._store.list(prefix), self._list_s)

    async def txn(
        self,
        checks: Sequence[Check],
        ops: Sequence[Write | Delete],
        *,
        session: Session | None = None,
    ) -> None:
        """Applies all `ops` if all `checks` hold, else nothing."""
        try:
            async with asyncio.timeout(self._call_s):
                await self._store.txn(checks, ops, session=session)
        except StoreUnavailableError as error:
            raise self._unavailable(error) from error
        except StoreUncertainError as error:
            raise StoreUncertainError(self._told(error)) from error
        except TimeoutError as error:
            raise StoreUncertainError(self._told(self._silence(self._call_s))) from error

    async def session(self, ttl_s: float) -> Session:
        """Opens a session that expires `ttl_s` seconds after its owner died."""
        return await self._read(self._store.session(ttl_s), self._call_s)

    def watch(self, prefix: str, *, since: Revision | None = None) -> AsyncIterator[Event]:
        """Yields a `Snapshot`, then changes in order; a new `Snapshot` after any gap."""
        return self._store.watch(prefix, since=since)

    async def health(self) -> Health:
        """Looks at the servers and their settings now."""
        return await self._store.health()

    async def close(self) -> None:
        """Releases everything; ends watches."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._call_s):
                await self._store.close()

    async def _read(self, call: Awaitable[T], within_s: float) -> T:
        try:
            async with asyncio.timeout(within_s):
                return await call
        except (StoreUnavailableError, StoreUncertainError) as error:
            raise self._unavailable(error) from error
        except TimeoutError as error:
            raise StoreUnavailableError(self._told(self._silence(within_s))) from error

    def _unavailable(self, error: StoreError) -> StoreUnavailableError:
        if isinstance(error, StoreDeniedError):  # It has a remedy of its own.
            return StoreDeniedError(f"store {self._name}: {error}")
        return StoreUnavailableError(self._told(error))

    def _told(self, cause: object) -> str:
        text = str(cause)
        return text if self._name in text else f"store {self._name} is away ({text}): {REMEDY}"

    @staticmethod
    def _silence(within_s: float) -> str:
        return f"no answer within {within_s:g} s"
