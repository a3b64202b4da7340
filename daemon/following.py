"""Keeps tables in step with the store: watches, resumes, lists again where that is wiser.

A table starts from what the mirror has, and its watch goes on from there where the store can. Since
no store can prove that it is the one that a revision came from, a watch that was resumed is checked
by a new list soon after. What a list lacks is held, and listed again before it goes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias, TypeVar

from pyvxlan.daemon.errors import NotSettledError, StoreError
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.kv import Event, Live, Put, Removal, Snapshot, Stale, Store
from pyvxlan.daemon.kv.mirror import Mirror
from pyvxlan.daemon.kv.store import Revision
from pyvxlan.daemon.tables import Table, Watched

log = logging.getLogger(__name__)

T = TypeVar("T")
Changed: TypeAlias = Callable[[str, T | None, T | None], None]
"""Called with an id and what its record was before and is now."""
RETRY_S = 1.0
HOLD_S = 60.0
"""How long a removal is held back if the store looks lost: time for every host to publish its own
records again."""
SETTLE_S = 3.0
"""The same if it does not: time for the owners to publish again what an old copy lacks."""
CHECK_S_PER_LIST = 0.005
"""A resumed watch is checked within this time for each host of the cluster and each table here, so
that all hosts together ask for some two hundred lists a second."""
START, RESUME, GAP, CHECK = "start", "resume", "gap", "check"
REASONS = (START, RESUME, GAP, CHECK)
"""Why a prefix was taken up again: listed at the start; gone on with where it was left; listed
because the store could not tell what was missed; listed once more to make sure."""


@dataclass(eq=False, slots=True)
class _Followed:
    table: Table[Any]
    changed: Changed[Any]
    when_known: Callable[[], None]
    reason: str = START
    task: asyncio.Task[None] | None = None
    check: asyncio.TimerHandle | None = None
    held_since: float | None = None
    alarmed: bool = False


class Follower:
    """Follows tables from `follow` until `drop` or `close`.

    Args:
        store: What is watched; stays the caller's to close.
        mirror: What was known before, and where to note what is known; the caller's too.
        lost: Tells whether the store looks as if it had lost what it held.
        hosts: Tells how many hosts there are.
        live: Called when everything is in step again.
        events: Where it is noted that the store is lost, and back.
        news: Called with what a record was before and is now, once its table is known: not for what
            is read first.
        hold_s: Seconds for which a removal is held back if the store looks lost.
        settle_s: The same if it does not.
    """

    def __init__(
        self,
        store: Store,
        mirror: Mirror | None,
        *,
        lost: Callable[[], bool],
        hosts: Callable[[], int],
        live: Callable[[], None],
        events: Events,
        news: Callable[[Any, Any], None],
        hold_s: float,
        settle_s: float,
    ) -> None:
        self.resyncs: Counter[str] = Counter()
        """How often a prefix was taken up again, by reason."""
        self.stale_since: float | None = None
        """When the store stopped answering, on the monotonic clock; None while it answers."""
        self.stale_reason = ""
        """Why it does not answer, as far as is known."""
        self.left_step_s = mirror.seen_s if mirror else None
        """When this was last in step, by the wall clock; None while it is, or if it never was."""
        self._store = store
        self._mirror = mirror
        self._lost = lost
        self._hosts = hosts
        self._live = live
        self._events = events
        self._news = news
        self._hold_s = hold_s
        self._settle_s = settle_s
        self._rng = Random()  # noqa: S311 - spreads load, guards nothing
        self._followed: dict[str, _Followed] = {}
        self._pulse = asyncio.Event()
        if mirror and mirror.seen_s is not None:
            self.stale_since = time.monotonic() - max(0.0, time.time() - mirror.seen_s)

    @property
    def tables(self) -> Sequence[Watched]:
        """All tables that are followed."""
        return [one.table for one in self._followed.values()]

    @property
    def synced(self) -> bool:
        """Whether everything watched was read and the store answers."""
        return all(one.table.fresh for one in self._followed.values())

    def follow(self, table: Table[T], changed: Changed[T], when_known: Callable[[], None]) -> None:
        """Begins to watch what a table shows.

        Args:
            table: Is kept in step.
            changed: Called for every record that changes.
            when_known: Called once there is something to go by.
        """
        one = _Followed(table, changed, when_known)
        self._followed[table.prefix] = one
        kept = self._mirror.take(table.prefix) if self._mirror else None
        if kept:
            for id_, (before, after) in table.restore(kept.items, kept.revision).items():
                changed(id_, before, after)
            when_known()
        self._watch(one, START)

    def drop(self, prefix: str) -> None:
        """Stops watching a prefix."""
        if one := self._followed.pop(prefix, None):
            self._stop(one)
        if self._mirror:
            self._mirror.forget(prefix)

    def drop_others(self) -> None:
        """Forgets what the mirror has of prefixes that nobody follows any more."""
        for prefix in tuple(self._mirror.prefixes) if self._mirror else ():
            self.drop(prefix)

    def check(self) -> None:
        """Lists everything anew, now."""
        for one in self._followed.values():
            self._watch(one, CHECK)

    def believe(self, table: Table[Any], id_: str) -> None:
        """Lets go of a record that is held: its removal is known from elsewhere."""
        one = self._followed[table.prefix]
        changes = table.believe(id_)
        if not changes:
            return
        for before, after in changes.values():
            one.changed(id_, before, after)
        if self._mirror:
            revision = None if table.held else table.revision
            self._mirror.change(table.prefix, f"{table.prefix}{id_}", None, revision)
        self._guard(one)

    async def close(self) -> None:
        """Ends all watches."""
        followed = list(self._followed.values())
        self._followed.clear()
        for one in followed:
            self._stop(one)
        tasks = [one.task for one in followed if one.task]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_for(
        self, predicate: Callable[[], bool], *, timeout_s: float | None, what: str
    ) -> None:
        """Returns once `predicate` holds; asks it again after every event.

        Raises:
            NotSettledError: Not within `timeout_s`; the message says `what`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate():
                    await self._pulse.wait()
        except TimeoutError as error:
            raise NotSettledError(
                f"not within {timeout_s:g} s: {what}; is the store reachable? See pyvxlan status"
            ) from error

    def _watch(self, one: _Followed, reason: str) -> None:
        """Begins a watch, in the place of the one that there was."""
        self._stop(one)
        one.reason = reason
        one.task = asyncio.create_task(self._run(one), name=f"watch {one.table.prefix}")

    def _stop(self, one: _Followed) -> None:
        if one.task:
            one.task.cancel()
        if one.check:
            one.check.cancel()
            one.check = None

    async def _run(self, one: _Followed) -> None:
        table = one.table
        since = None if one.reason == CHECK else table.revision
        while True:
            try:
                async for event in self._store.watch(table.prefix, since=since):
                    self._take(one, event)
                return
            except StoreError as error:
                self._take(one, Stale(str(error)))
                await asyncio.sleep(RETRY_S * self._rng.uniform(0.5, 1))
                since = table.revision

    def _take(self, one: _Followed, event: Event) -> None:
        table = one.table
        was_known, was_stale = table.known, table.stale
        for id_, (before, after) in table.apply(event).items():
            one.changed(id_, before, after)
            if was_known:
                self._news(before, after)
        if self._mirror:
            self._note(table, event)
        if isinstance(event, Snapshot):
            self.resyncs[one.reason] += 1
            one.reason = GAP
            one.held_since = None
        elif isinstance(event, Live) and was_stale:
            self.resyncs[RESUME] += 1
            one.reason = GAP
            lists = self._hosts() * len(self._followed)
            self._check_in(one, self._rng.uniform(0, CHECK_S_PER_LIST * lists))
        if table.known and not was_known:
            one.when_known()
        self._guard(one)
        self._tell(event)
        if isinstance(event, Stale) and one.reason == CHECK:
            # The list did not come. What is missed meanwhile is told better by going on.
            self._watch(one, GAP)

    def _note(self, table: Table[Any], event: Event) -> None:
        """Hands an event on to the mirror, with the revision from which nothing is missed."""
        assert self._mirror
        revision: Revision | None = None if table.held else table.revision
        match event:
            case Snapshot(items):
                spared = {f"{table.prefix}{id_}" for id_ in table.held}
                values = {key: item.value for key, item in items.items()}
                self._mirror.replace(table.prefix, values, revision, spared=spared)
            case Put(item):
                self._mirror.change(table.prefix, item.key, item.value, revision)
            case Removal(key):
                self._mirror.change(table.prefix, key, None, revision)
            case Stale() | Live():
                pass

    def _guard(self, one: _Followed) -> None:
        """Sees to it that what is held is looked for again in time."""
        table = one.table
        if not table.held:
            if one.held_since is not None:
                one.held_since, one.alarmed = None, False
        elif one.held_since is None:
            one.held_since = time.monotonic()
            one.alarmed = False
            self._check_in(one, self._hold_left_s(one))

    def _hold_left_s(self, one: _Followed) -> float:
        """How long what is held is to be held still; says aloud if the store looks lost."""
        assert one.held_since is not None
        table, lost = one.table, self._lost()
        if (lost or table.mass) and not one.alarmed:
            one.alarmed = True
            log.error(
                "removal held back prefix=%s records=%d of=%d hold_s=%g: was the store lost, or "
                "put back from an old copy? What runs goes on; hosts publish their records again",
                table.prefix,
                len(table.held),
                len(table.values),
                self._hold_s,
            )
        full_s = self._hold_s if lost or table.mass else self._settle_s
        return min(one.held_since + full_s - time.monotonic(), self._settle_s)

    def _check_in(self, one: _Followed, delay_s: float) -> None:
        if one.check:
            one.check.cancel()
        loop = asyncio.get_running_loop()
        one.check = loop.call_later(delay_s, self._check_now, one)

    def _check_now(self, one: _Followed) -> None:
        one.check = None
        table = one.table
        if table.stale:
            return
        if table.held:
            left_s = self._hold_left_s(one)
            if left_s > 0:
                self._check_in(one, left_s)
                return
            log.warning("removal believed prefix=%s records=%d", table.prefix, len(table.held))
            table.doubted = set(table.held)
        self._watch(one, CHECK)

    def _tell(self, event: Event) -> None:
        """Notes whether the store answers, and wakes whoever waits."""
        stale = any(one.table.stale for one in self._followed.values())
        if isinstance(event, Stale):
            self.stale_reason = event.reason
            self.left_step_s = self.left_step_s or time.time()
        elif self.synced and not any(table.held for table in self.tables):
            self.left_step_s = None
        if stale and self.stale_since is None:
            self.stale_since = time.monotonic()
            log.warning("store stale cause=%s", self.stale_reason)
            self._events.note("store_lost", self.stale_reason)
        elif not stale and self.stale_since is not None:
            stale_s = time.monotonic() - self.stale_since
            log.info("store live stale_s=%.1f", stale_s)
            self._events.note("store_back", f"after {stale_s:.1f} s")
            self.stale_since, self.stale_reason = None, ""
            self._live()
        if self._mirror:
            self._mirror.mark(in_step=self.synced)
        self._pulse.set()
        self._pulse = asyncio.Event()
