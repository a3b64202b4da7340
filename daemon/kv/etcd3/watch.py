"""Watches through python-etcd3: each begins anew, with a `Snapshot`, on every new connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from etcd3.events import DeleteEvent
from etcd3.exceptions import Etcd3Exception, RevisionCompactedError

from pyvxlan.daemon.errors import StoreUnavailableError
from pyvxlan.daemon.kv.etcd.keys import Keys
from pyvxlan.daemon.kv.etcd3.connection import Connection, Generation
from pyvxlan.daemon.kv.store import Change, Event, Item, Put, Removal, Revision, Snapshot
from pyvxlan.daemon.kv.watching import Missed, Watchers

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Before a watch that could not begin tries again."""
TRIES = 2
"""How often it tries before it says so: a stream whose token has expired refuses the first time."""

Lister = Callable[[str], Awaitable[tuple[Mapping[str, Item], Revision]]]
"""Reads what is below a prefix, and tells at which revision of the store."""


class _Feed:
    """One watch of a prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.watchers = Watchers()
        self.subscription: _Subscription | None = None


class _Subscription:
    """What a feed has of one generation; what comes for an earlier one is not taken."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.id: int | None = None

    def cancel(self) -> None:
        """Ends it at the server; does nothing if it has not begun, or ended with its stream."""
        if self.id is not None and not self.generation.broken.is_set():
            self.generation.watcher.cancel(self.id)


class Watches:
    """All watches of one store, on the stream of the generation in use.

    Args:
        keys: Translates keys.
        read_all: Lists a prefix.
    """

    def __init__(self, keys: Keys, read_all: Lister) -> None:
        self._keys = keys
        self._read_all = read_all
        self._feeds: set[_Feed] = set()
        self._one_by_one = asyncio.Lock()
        self._beginnings: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._reviver = asyncio.create_task(self._revive(), name="watches")
        self._connected = False
        self._closed = False

    async def watch(self, connection: Connection, prefix: str) -> AsyncIterator[Event]:
        """Yields the events of one watch, as `Store.watch` promises them."""
        if self._closed:
            return
        feed = _Feed(prefix)
        self._feeds.add(feed)

        async def read(_prefix: str, _since: Revision | None) -> Snapshot | Missed:
            return await self._begin(connection, feed)

        try:
            async with aclosing(feed.watchers.watch(prefix, None, read)) as events:
                async for event in events:
                    yield event
        finally:
            self._feeds.discard(feed)
            self._leave(feed)

    def up(self) -> None:
        """Begins every watch anew: there is a new generation."""
        self._connected = True
        for feed in self._feeds:
            feed.watchers.reset()
            feed.watchers.mark_live()

    def down(self, reason: str) -> None:
        """Tells every watch that the store does not answer."""
        self._connected = False
        for feed in self._feeds:
            feed.watchers.mark_stale(reason)

    async def close(self) -> None:
        """Ends every watch."""
        self._closed = True
        for feed in self._feeds:
            feed.watchers.close()
        tasks = [*self._beginnings, self._reviver]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _revive(self) -> None:
        """Lets watches try again that could not begin though the connection stands."""
        while True:
            await asyncio.sleep(RETRY_S)
            if self._connected:
                for feed in self._feeds:
                    feed.watchers.mark_live()

    async def _begin(self, connection: Connection, feed: _Feed) -> Snapshot:
        """Reads what a watch begins with, and starts it there."""
        tries = TRIES
        while True:
            self._leave(feed)
            generation = await connection.settled()
            subscription = feed.subscription = _Subscription(generation)
            items, revision = await self._read_all(feed.prefix)
            # Not cancelled if the watch ends meanwhile: what was begun still has to be ended.
            beginning = asyncio.create_task(
                self._subscribe(connection, feed, subscription, revision + 1)
            )
            self._beginnings.add(beginning)
            beginning.add_done_callback(self._begun)
            try:
                await asyncio.shield(beginning)
            except RevisionCompactedError:
                log.info("watch begins anew prefix=%s cause=compacted meanwhile", feed.prefix)
                continue
            except Etcd3Exception as error:
                reason = f"etcd {generation.name} begins no watch: {error or type(error).__name__}"
                generation.break_off(reason)
                tries -= 1
                if not tries:
                    raise StoreUnavailableError(reason) from error
                continue
            return Snapshot(items)

    async def _subscribe(
        self, connection: Connection, feed: _Feed, subscription: _Subscription, start: Revision
    ) -> None:
        key, end = self._keys.below(feed.prefix)
        watcher = subscription.generation.watcher
        take = partial(self._take, connection, feed, subscription)

        def told(response: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed under a store left open
                self._loop.call_soon_threadsafe(take, response)

        async with self._one_by_one:  # the library makes one at a time, and a thread waits for it
            subscription.id = await connection.in_thread(
                lambda: watcher.add_callback(key, told, range_end=end, start_revision=start)
            )
        if feed.subscription is not subscription:
            subscription.cancel()

    def _begun(self, beginning: asyncio.Task[None]) -> None:
        self._beginnings.discard(beginning)
        if not beginning.cancelled() and (error := beginning.exception()):
            log.debug("watch not begun cause=%s", error)

    def _leave(self, feed: _Feed) -> None:
        subscription, feed.subscription = feed.subscription, None
        if subscription is not None:
            subscription.cancel()

    def _take(
        self, connection: Connection, feed: _Feed, subscription: _Subscription, response: Any
    ) -> None:
        if feed.subscription is not subscription:
            return
        if isinstance(response, RevisionCompactedError):  # the watch was begun, and then ended
            feed.subscription = None
            feed.watchers.reset()
        else:
            connection.note(response.header)
            feed.watchers.publish(map(self._change, response.events))

    def _change(self, event: Any) -> Change:
        item: Item = self._keys.item(event)
        if isinstance(event, DeleteEvent):
            return Removal(item.key, item.revision)
        return Put(item)
