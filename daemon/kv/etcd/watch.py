"""Watches on etcd: all of a store share one stream, and each goes on where it was after a break.

A watch goes on from the last event that it had, and is in step as soon as that event came again:
then the history is the one that it knew, and what was missed followed in the same answer. (etcd's
progress reports can't tell that: before 3.4.25 and 3.5.8 they may overtake events.) If the event
does not come, since it was compacted or the store was replaced, everything is read anew.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing

from grpc import aio

from pyvxlan.daemon.errors import StoreError, StoreUnavailableError
from pyvxlan.daemon.kv.etcd import messages as pb
from pyvxlan.daemon.kv.etcd.channel import CALL_S, EtcdChannel, Stream, is_cancelled
from pyvxlan.daemon.kv.etcd.keys import Keys
from pyvxlan.daemon.kv.store import Change, Event, Item, Put, Removal, Revision, Snapshot
from pyvxlan.daemon.kv.watching import Missed, Watchers

log = logging.getLogger(__name__)

PROBE_S = 4.0
"""Between two questions whether the stream is alive; etcd allows a ping every 5 s without data."""
SILENT_S = 7.5
"""A stream that said nothing for so long is dead."""
LATE_S = 2.0
"""A watch whose last event did not come again for so long begins anew, unless those of others still
come: after an outage etcd goes through all watches of all hosts, some 500 at a time."""
RECENT_REVISIONS = 10_000
"""How far back a watch goes on from. For each 500 of all watches etcd reads all that has happened
since the oldest of their revisions; if that is more, a list of what they show is cheaper."""
TICK_S = 0.5
"""Between two looks at what is due."""
BACKOFF_S = (0.1, 1.0)
BATCH_REVISIONS = 1000
"""etcd's answer to a watch that goes on holds so many revisions; others follow."""
_PROGRESS = pb.WatchRequest(progress_request=pb.WatchProgressRequest())

Lister = Callable[[str], Awaitable[tuple[Mapping[str, Item], Revision]]]
"""Reads what is below a prefix, and tells at which revision of the store."""


class _Feed:
    """One watch of a prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.watchers = Watchers(warns=True)
        self.revision: Revision | None = None
        """Of the newest event that was delivered; None if there is nothing to go on from."""
        self.last: Change | None = None
        """That event, if it is known."""
        self.awaits_last = False
        """Whether it has to come again before anything else, after a break."""
        self.id = 0
        """Of the watch in the stream; 0 if it has none."""
        self.asked_at = 0.0
        self.reading = False
        """Whether its beginning is being read."""
        self.begun = False
        self.in_step: asyncio.Future[bool | None] | None = None
        """While `reading`: whether the watch began, or else its history is gone (False)."""

    def settle(self, *, in_step: bool | None) -> bool:
        """Answers whoever reads its beginning; tells whether somebody does."""
        waits = self.in_step is not None and not self.in_step.done()
        if self.in_step is not None and waits:
            self.in_step.set_result(in_step)
        return waits

    def is_last(self, change: Change) -> bool:
        """Tells whether a change is the event to go on from."""
        return change == self.last if self.last else _revision(change) == self.revision


class WatchStream:
    """All watches of one store.

    Args:
        channel: The connection.
        keys: Translates keys.
        read_all: Lists a prefix.
    """

    def __init__(self, channel: EtcdChannel, keys: Keys, read_all: Lister) -> None:
        self._channel = channel
        self._keys = keys
        self._read_all = read_all
        self._feeds: set[_Feed] = set()
        self._by_id: dict[int, _Feed] = {}
        self._next_id = 1
        self._outbox: asyncio.Queue[pb.Message] | None = None
        self._connected = asyncio.Event()
        self._clock_s = 0.0
        """Runs while a stream is served, by the ticks of the loop: one that is late, as after a
        pause of the process, has not heard the others yet, and must not take them for dead."""
        self._heard_at = 0.0
        self._went_on_at = 0.0
        """When the last event of a watch came again last."""
        self._broken = ""
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def watch(self, prefix: str, since: Revision | None) -> AsyncIterator[Event]:
        """Yields the events of one watch, as `Store.watch` promises them."""
        if self._closed:
            return
        feed = _Feed(prefix)
        self._feeds.add(feed)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"watches {self._channel.url}")

        async def read(_prefix: str, after: Revision | None) -> Snapshot | Missed:
            return await self._read(feed, after)

        try:
            async with aclosing(feed.watchers.watch(prefix, since, read)) as events:
                async for event in events:
                    yield event
        finally:
            self._feeds.discard(feed)
            self._cancel(feed)

    def read_anew(self) -> None:
        """Makes every watch begin with a `Snapshot`: the store is another one."""
        for feed in self._feeds:
            self._begin_anew(feed)

    async def close(self) -> None:
        """Ends every watch."""
        self._closed = True
        for feed in self._feeds:
            feed.watchers.close()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self, feed: _Feed, since: Revision | None) -> Snapshot | Missed:
        """Reads what a watch begins with, and starts it there."""
        self._cancel(feed)
        feed.reading = True
        try:
            return await self._start(feed, since)
        finally:
            feed.reading = False

    async def _start(self, feed: _Feed, since: Revision | None) -> Snapshot | Missed:
        if since is not None and await self._knows(feed, since):
            feed.revision, feed.last = since, None
            if await self._follow(feed, since, awaits_last=True):
                feed.begun = True
                return Missed((), since)
        while True:
            items, revision = await self._read_all(feed.prefix)
            newest = max(items.values(), key=lambda item: item.revision, default=None)
            feed.revision = newest.revision if newest else None
            feed.last = Put(newest) if newest else None
            if await self._follow(feed, revision + 1):
                feed.begun = True
                return Snapshot(items, newest.revision if newest else revision)

    async def _knows(self, feed: _Feed, since: Revision) -> bool:
        """Tells whether it is worth trying to go on: an empty prefix is read as fast."""
        key, end = self._keys.below(feed.prefix)
        request = pb.RangeRequest(key=key, range_end=end, limit=1, keys_only=True)
        answer = await self._channel.call(pb.RANGE, request, repeatable=True)
        return bool(answer.count) and since <= answer.header.revision and self._recent(since)

    def _recent(self, revision: Revision) -> bool:
        return self._channel.seen.revision - revision <= RECENT_REVISIONS

    async def _follow(self, feed: _Feed, start: Revision, *, awaits_last: bool = False) -> bool:
        """Starts the watch in the stream; tells whether it is in step, or its history is gone."""
        in_step: bool | None = None
        try:
            async with asyncio.timeout(CALL_S):
                while in_step is None:
                    await self._connected.wait()
                    feed.in_step = asyncio.get_running_loop().create_future()
                    self._ask(feed, start, awaits_last=awaits_last)
                    in_step = await feed.in_step
        except TimeoutError:
            in_step = False
            if not awaits_last:
                raise StoreUnavailableError(
                    f"store {self._channel.url} confirms no watch: {self._broken}"
                ) from None
        finally:
            feed.in_step = None
            if not in_step:
                self._cancel(feed)
        if not in_step:
            log.info("watch begins anew prefix=%s cause=no history", feed.prefix)
        return in_step

    def _ask(self, feed: _Feed, start: Revision, *, awaits_last: bool) -> None:
        assert self._outbox is not None
        feed.awaits_last, feed.asked_at = awaits_last, self._clock_s
        feed.id = self._next_id
        self._next_id += 1
        self._by_id[feed.id] = feed
        key, end = self._keys.below(feed.prefix)
        self._outbox.put_nowait(
            pb.WatchRequest(
                create_request=pb.WatchCreateRequest(
                    key=key, range_end=end, start_revision=start, watch_id=feed.id
                )
            )
        )

    def _cancel(self, feed: _Feed) -> None:
        if self._by_id.pop(feed.id, None) and self._outbox is not None:
            request = pb.WatchCancelRequest(watch_id=feed.id)
            self._outbox.put_nowait(pb.WatchRequest(cancel_request=request))
        feed.id = 0

    async def _run(self) -> None:
        """Keeps the stream: connects, serves, and connects again with growing pauses."""
        pause_s = 0.0
        while not self._closed:
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311
            try:
                await self._check()
                member, call = await self._channel.stream(pb.WATCH)
            except StoreError as error:
                self._mark_stale(str(error))
                pause_s = min(max(BACKOFF_S[0], 2 * pause_s), BACKOFF_S[1])
                continue
            pause_s = BACKOFF_S[0]
            try:
                await self._serve(call)
            except aio.AioRpcError as error:
                reason = str(self._channel.failure(error, member))
            except StoreUnavailableError as error:
                self._channel.avoid(member)
                reason = f"etcd {member}: {error}"
            else:
                self._channel.avoid(member)
                reason = f"etcd {member} ended the stream of watches"
            finally:
                self._disconnect()
            log.info("watch stream broken cause=%s", reason)

    async def _serve(self, call: Stream) -> None:
        """Serves one stream until it ends."""
        outbox: asyncio.Queue[pb.Message] = asyncio.Queue()
        self._outbox = outbox
        self._heard_at, self._broken = self._clock_s, "the stream of watches broke"
        self._resume()
        self._connected.set()
        helpers = [
            asyncio.create_task(_write(call, outbox)),
            asyncio.create_task(self._probe(call, outbox)),
        ]
        try:
            while (response := await call.read()) is not aio.EOF:
                self._heard_at = self._clock_s
                self._answered(call, response)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise StoreUnavailableError(self._broken) from None
        finally:
            for helper in helpers:
                helper.cancel()
            call.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _check(self) -> None:
        """Reads something, which proves that most members answer and tells a store's identity."""
        request = pb.RangeRequest(key=self._keys.key(""), count_only=True)
        await self._channel.call(pb.RANGE, request, repeatable=True)

    def _resume(self) -> None:
        """Lets every watch go on, or begin, on a new stream."""
        for feed in self._feeds:
            if feed.reading or not feed.begun:
                feed.watchers.mark_live()
            elif feed.revision is None or not self._recent(feed.revision):
                self._begin_anew(feed)
            else:
                self._ask(feed, feed.revision, awaits_last=True)

    def _disconnect(self) -> None:
        self._connected.clear()
        self._outbox = None
        self._by_id.clear()
        for feed in self._feeds:
            feed.id = 0
            feed.settle(in_step=None)

    def _mark_stale(self, reason: str) -> None:
        new = [feed.watchers.mark_stale(reason) for feed in self._feeds]
        if any(new):
            log.info("watches stale count=%d cause=%s", len(new), reason)

    async def _probe(self, call: Stream, outbox: asyncio.Queue[pb.Message]) -> None:
        """Asks for signs of life, and looks after watches that wait for something."""
        probed_at = self._clock_s
        while True:
            await asyncio.sleep(TICK_S)
            self._clock_s += TICK_S
            now = self._clock_s
            if now > self._heard_at + SILENT_S:
                self._break(call, "the stream of watches is silent")
                return
            feeds = [feed for feed in self._feeds if not feed.reading]
            for feed in feeds:
                if feed.awaits_last and now > max(feed.asked_at, self._went_on_at) + LATE_S:
                    log.info("watch begins anew prefix=%s cause=no history", feed.prefix)
                    self._begin_anew(feed)
            if now < probed_at + PROBE_S:
                continue
            probed_at = now
            if self._by_id:
                outbox.put_nowait(_PROGRESS)
            else:
                self._heard_at = now  # without watches etcd does not answer
            for feed in feeds:
                if not feed.awaits_last:
                    feed.watchers.mark_live()

    def _break(self, call: Stream, reason: str) -> None:
        self._broken = reason
        call.cancel()

    def _begin_anew(self, feed: _Feed) -> None:
        """Makes a watch read everything again."""
        self._cancel(feed)
        feed.settle(in_step=False)
        feed.begun = feed.awaits_last = False
        feed.revision = feed.last = None
        feed.watchers.reset()
        feed.watchers.mark_live()

    def _answered(self, call: Stream, response: pb.Message) -> None:
        feed = self._by_id.get(response.watch_id)
        if feed is None:
            if response.created and response.canceled:  # refused: the stream's token has expired
                self._break(call, response.cancel_reason)
        elif response.canceled:
            self._ended(call, feed, response)
        elif not response.created:
            self._deliver(feed, [self._change(event) for event in response.events])
        elif not feed.awaits_last:
            feed.settle(in_step=True)

    def _ended(self, call: Stream, feed: _Feed, response: pb.Message) -> None:
        """Notes that the server ended a watch: its history is gone, or it is not permitted."""
        if not response.compact_revision:
            self._break(call, response.cancel_reason or "a watch was ended")
        elif not feed.settle(in_step=False):
            log.info(
                "watch begins anew prefix=%s cause=compacted revision=%d",
                feed.prefix,
                response.compact_revision,
            )
            self._begin_anew(feed)

    def _deliver(self, feed: _Feed, changes: Sequence[Change]) -> None:
        """Hands on what is new."""
        if feed.awaits_last and not any(map(feed.is_last, changes)):
            if feed.settle(in_step=False):
                return
            if isinstance(feed.last, Put):  # a removal may be compacted away, a value is kept
                self._channel.replaced(f"history differs at revision {feed.revision}")
            else:
                self._begin_anew(feed)
            return
        if feed.awaits_last:
            feed.awaits_last, self._went_on_at = False, self._clock_s
        known = feed.revision or 0
        new = [change for change in changes if _revision(change) > known]
        feed.watchers.publish(new)
        if new:
            feed.last = new[-1]
            feed.revision = _revision(new[-1])
        if len({_revision(change) for change in changes}) < BATCH_REVISIONS:
            feed.settle(in_step=True)
            feed.watchers.mark_live()

    def _change(self, event: pb.Message) -> Change:
        item = self._keys.item(event.kv)
        return Removal(item.key, item.revision) if event.type == pb.EVENT_DELETE else Put(item)


def _revision(change: Change) -> Revision:
    return change.item.revision if isinstance(change, Put) else change.revision


async def _write(call: Stream, outbox: asyncio.Queue[pb.Message]) -> None:
    while True:
        await call.write(await outbox.get())
