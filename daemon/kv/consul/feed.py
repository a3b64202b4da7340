"""`Feed`: follows one prefix by blocking queries, and tells its watchers what has changed.

Consul answers with all that is below the prefix, whatever has changed, and tells of no deletion.
So a feed keeps what it knows and compares.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import NoReturn

from pyvxlan.daemon.errors import StoreError, StoreUnavailableError
from pyvxlan.daemon.kv.store import Change, Event, Item, Put, Removal, Revision, Snapshot
from pyvxlan.daemon.kv.watching import Missed, Watchers

RETRY_S = 1.0
"""The longest wait between two tries; the first one is a tenth of it."""
RATE = 5.0
BURST = 10.0
"""Answers a second in the long run, and how many may come at once before that."""
PRICE_BYTES = 64 * 1024
"""An answer of this size counts as one more."""
PAUSE_MAX_S = 10.0
"""The longest wait before the next question, however large the answers are."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What is below a prefix at one index."""

    items: Mapping[str, Item]
    index: int
    size: int
    """Bytes of the answer."""


Fetch = Callable[[str, int], Awaitable[Listing]]
"""Reads what is below a prefix; with an index that is not 0, once there is something newer."""


class Feed:
    """Follows one prefix while it has watchers.

    Args:
        prefix: Below the store's own prefix.
        fetch: Reads it.
        verify: Makes sure that the store answers; calls `begin_anew` if it is another one now.
        restored: Called when an older state of the store has taken the place of the known one;
            calls `begin_anew`.
    """

    def __init__(
        self,
        prefix: str,
        fetch: Fetch,
        verify: Callable[[], Awaitable[None]],
        restored: Callable[[], None],
    ) -> None:
        self.prefix = prefix
        self._fetch = fetch
        self._verify = verify
        self._restored = restored
        self._watchers = Watchers()
        self._users = 0
        self._known: Listing | None = None
        self._anew = False
        self._tried = asyncio.Event()
        self._request: asyncio.Task[Listing] | None = None
        self._task: asyncio.Task[NoReturn] | None = None
        self._pace = Pace(RATE, BURST)

    @property
    def index(self) -> int:
        """Of the newest answer from the store as it is known; 0 before that."""
        return 0 if self._known is None or self._anew else self._known.index

    @property
    def idle(self) -> bool:
        """Whether nobody watches any more."""
        return self._users == 0

    async def watch(self, prefix: str) -> AsyncGenerator[Event, None]:
        """Yields the events below `prefix`, which begins with the feed's own."""
        self._users += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"consul watch {self.prefix}")
        try:
            async with aclosing(self._watchers.watch(prefix, None, self._read)) as events:
                async for event in events:
                    yield event
        finally:
            self._users -= 1

    def interrupt(self) -> None:
        """Begins again to ask, since the request under way may never be answered."""
        if self._request is not None:
            self._request.cancel()

    def begin_anew(self) -> None:
        """Notes that what is known is of another store: what comes next is a `Snapshot`."""
        self._anew = True
        self.interrupt()

    async def close(self) -> None:
        """Ends the watches."""
        self._watchers.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self, prefix: str, _: Revision | None) -> Snapshot | Missed:
        await self._tried.wait()
        if self._known is None:
            raise StoreUnavailableError("the store did not answer yet")
        items = self._known.items
        if prefix != self.prefix:
            items = {key: item for key, item in items.items() if key.startswith(prefix)}
        return Snapshot(items, self._known.index)

    async def _run(self) -> NoReturn:
        index, failures = 0, 0
        while True:
            try:
                if index == 0:
                    await self._verify()
                listing = await self._ask(index)
                index = await self._take(listing, index) if listing is not None else 0
                failures = 0
            except StoreError as error:
                index, failures = 0, failures + 1
                self._watchers.mark_stale(str(error))
                self._tried.set()
                await asyncio.sleep(backoff_s(failures))
            else:
                price = 1 + listing.size / PRICE_BYTES if listing is not None else 1
                await asyncio.sleep(self._pace.pay(price))

    async def _ask(self, index: int) -> Listing | None:
        """Reads what is newer than `index`; None if that was interrupted."""
        request = asyncio.ensure_future(self._fetch(self.prefix, index))
        self._request = request
        try:
            await asyncio.wait({request})
        finally:
            self._request = None
            request.cancel()
        return None if request.cancelled() else request.result()

    async def _take(self, listing: Listing, index: int) -> int:
        """Tells what is new; returns the index from which to go on, 0 if anew."""
        if self._known is None or self._anew:
            self._known, self._anew = listing, False
            self._watchers.reset()
        else:
            changes, is_older = compare(self._known, listing)
            gone = sum(isinstance(change, Removal) for change in changes)
            if is_older:
                self._restored()
            elif listing.index <= self._known.index or gone * 2 > len(self._known.items):
                # A restored server ends its queries with the old state, and waits in the next one
                # for an index that is far away.
                await self._verify()
            if self.index == 0:
                return 0
            self._known = listing
            self._watchers.publish(changes)
        self._tried.set()
        self._watchers.mark_live()
        # It goes back when the last deletions are forgotten, and would then be waited for in vain.
        return listing.index if listing.index >= index else 0


class Pace:
    """A token bucket: how long to wait before something that has a price.

    Args:
        rate: Tokens that come in each second.
        burst: Tokens that it holds.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = time.monotonic()

    def pay(self, price: float, now: float | None = None) -> float:
        """Takes tokens; returns the seconds until there are as many as were taken."""
        now = time.monotonic() if now is None else now
        tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - price
        self._tokens = max(tokens, -PAUSE_MAX_S * self._rate)
        self._at = now
        return max(0.0, -self._tokens / self._rate)


def compare(known: Listing, listing: Listing) -> tuple[Sequence[Change], bool]:
    """Tells what has changed, in order, and whether that can't be since the state is an older one.

    A server that was restored from a backup goes on with new indexes, but its keys are those of
    the past: they vanish without a deletion, which would have moved the index, or step back.
    """
    before, after = known.items, listing.items
    puts = [item for key, item in after.items() if before.get(key) != item]
    gone = [key for key in before if key not in after]
    is_older = bool(gone) and listing.index <= known.index
    for item in puts:
        old = before.get(item.key)
        is_older = is_older or (old is not None and item.revision <= old.revision)
    changes: list[Change] = [Put(item) for item in sorted(puts, key=lambda item: item.revision)]
    changes += [Removal(key, listing.index) for key in gone]
    return changes, is_older


def backoff_s(failures: int) -> float:
    """How long to wait after so many failures; not the same on every host."""
    longest_s: float = min(RETRY_S, RETRY_S / 10 * 2 ** min(failures, 10))
    return longest_s * random.uniform(0.5, 1)  # noqa: S311
