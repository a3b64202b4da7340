"""Keeps tables in step with the store: watches, resumes, lists again where that is wiser.

A table starts from what the mirror has, and its watch goes on from there where the store can. Since
no store can prove that it is the one that a revision came from, a watch that was resumed is checked
by a new list soon after. What a list lacks is held, and listed again before it goes.

Each table has a watch of its own; when there are very many of one kind, they share one watch of
everything of that kind, where such a watch costs the store no more (docs/scale.md).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias, TypeVar

from pyvxlan.daemon.errors import NotSettledError, StoreError
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.kv import Event, Item, Live, Put, Removal, Snapshot, Stale, Store
from pyvxlan.daemon.kv.mirror import Mirror
from pyvxlan.daemon.kv.store import Revision
from pyvxlan.daemon.tables import Table, Watched

log = logging.getLogger(__name__)

T = TypeVar("T")
Changed: TypeAlias = Callable[[str, T | None, T | None], None]
"""Called with an id and what its record was before and is now."""
RETRY_S = 1.0
SAY_AGAIN_S = 60.0
"""Between two warnings of one outage, whose causes may differ from watch to watch."""
HOLD_S = 60.0
"""How long a removal is held back if the store looks lost: time for every host to publish its own
records again."""
SETTLE_S = 3.0
"""The same if it does not: time for the owners to publish again what an old copy lacks."""
CHECK_S_PER_LIST = 0.005
"""A resumed watch is checked within this time for each watch of each host of the cluster, so that
all hosts together ask for some 200 lists a second."""
ANEW_S_PER_LIST = 0.001
"""The same for what has to be read anew, as after a compaction: a list of 100 records is 1 ms of
etcd's CPU, and who asked at once with all others would give up, and ask again, before its turn."""
WIDE_ABOVE = 256
"""So many tables of one kind may have watches of their own."""
WIDE_SHARE = 4
"""More than `WIDE_LEAST` tables that are one in so many of all share a watch too."""
WIDE_LEAST = 32
START, RESUME, GAP, CHECK = "start", "resume", "gap", "check"
REASONS = (START, RESUME, GAP, CHECK)
"""Why a prefix was taken up again: listed at the start; gone on with where it was left; listed
because the store could not tell what was missed; listed once more to make sure."""


def is_wide(own: int, whole: int, *, already: bool = False) -> bool:
    """Tells whether tables should share one watch of everything of their kind.

    Args:
        own: How many tables there are.
        whole: How many there would be if all were followed.
        already: They do; it takes half as many to go on so.
    """
    counted = 2 * own if already else own
    return counted > WIDE_ABOVE or (counted > WIDE_LEAST and WIDE_SHARE * counted >= whole > 0)


@dataclass(eq=False, slots=True)
class _Followed:
    table: Table[Any]
    changed: Changed[Any]
    when_known: Callable[[], None]
    held_since: float | None = None
    alarmed: bool = False


@dataclass(eq=False, slots=True)
class _Watch:
    """A watch of the store, and the tables that it keeps in step, by prefix."""

    prefix: str
    followed: dict[str, _Followed] = field(default_factory=dict)
    reason: str = START
    task: asyncio.Task[None] | None = None
    check: asyncio.TimerHandle | None = None

    @property
    def revision(self) -> Revision | None:
        """Where it can go on from; a shared watch begins with a list."""
        own = self.followed.get(self.prefix)
        return own.table.revision if own else None

    @property
    def stale(self) -> bool:
        return any(one.table.stale for one in self.followed.values())

    @property
    def empty(self) -> bool:
        """Whether there is no record as far as is known."""
        return not any(one.table.values for one in self.followed.values())

    def parts(self, event: Event) -> Sequence[tuple[_Followed, Event]]:
        """What an event says of each table."""
        if own := self.followed.get(self.prefix):
            return ((own, event),)
        match event:
            case Snapshot(items):
                found: dict[str, dict[str, Item]] = {prefix: {} for prefix in self.followed}
                for key, item in items.items():
                    if (of_one := found.get(self._home(key))) is not None:
                        of_one[key] = item
                return [(self.followed[prefix], Snapshot(found[prefix])) for prefix in found]
            case Put(Item(key)) | Removal(key):
                one = self.followed.get(self._home(key))
                return ((one, event),) if one else ()
            case Stale() | Live():
                return [(one, event) for one in self.followed.values()]

    def _home(self, key: str) -> str:
        """Gives the prefix of the table that a key belongs to."""
        return key[: key.find("/", len(self.prefix)) + 1]


class Follower:
    """Follows tables from `follow` until `drop` or `close`.

    Args:
        store: What is watched; stays the caller's to close.
        mirror: What was known before, and where to note what is known; the caller's too.
        lost: Tells whether the store looks as if it had lost what it held.
        hosts: Tells how many hosts there are.
        kind: Prefix of the tables that may share a watch.
        whole: Tells how many of them there would be in all; None if they may not.
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
        kind: str,
        whole: Callable[[], int | None],
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
        self._kind = kind
        self._whole = whole
        self._live = live
        self._events = events
        self._news = news
        self._hold_s = hold_s
        self._settle_s = settle_s
        self._rng = Random()  # noqa: S311 - spreads load, guards nothing
        self._followed: dict[str, _Followed] = {}
        self._of_kind: dict[str, _Followed] = {}
        """Those that may share a watch."""
        self._watches: dict[str, _Watch] = {}
        """By prefix; that of `kind` is shared."""
        self._behind: set[str] = set()
        """Prefixes of the tables that are not fresh."""
        self._stale: set[str] = set()
        self._holding: set[str] = set()
        self._pulse = asyncio.Event()
        self._was_synced = False
        self._said_reason, self._said_at = "", time.monotonic()
        if mirror and mirror.seen_s is not None:
            self.stale_since = time.monotonic() - max(0.0, time.time() - mirror.seen_s)

    @property
    def tables(self) -> Sequence[Watched]:
        """All tables that are followed."""
        return [one.table for one in self._followed.values()]

    @property
    def watches(self) -> int:
        """How many watches there are."""
        return len(self._watches)

    @property
    def synced(self) -> bool:
        """Whether everything watched was read and the store answers."""
        return not self._behind

    def follow(self, table: Table[T], changed: Changed[T], when_known: Callable[[], None]) -> None:
        """Begins to watch what a table shows.

        Args:
            table: Is kept in step.
            changed: Called for every record that changes.
            when_known: Called once there is something to go by, before `changed`.
        """
        one = _Followed(table, changed, when_known)
        self._followed[table.prefix] = one
        if table.prefix.startswith(self._kind):
            self._of_kind[table.prefix] = one
        kept = self._mirror.take(table.prefix) if self._mirror else None
        if kept:
            changes = table.restore(kept.items, kept.revision)
            when_known()
            for id_, (before, after) in changes.items():
                changed(id_, before, after)
        self._weigh(table)
        self._begin(_Watch(table.prefix, {table.prefix: one}), START)
        self.arrange()

    def drop(self, prefix: str) -> None:
        """Stops watching a prefix."""
        if self._followed.pop(prefix, None):
            self._of_kind.pop(prefix, None)
            for of_state in (self._behind, self._stale, self._holding):
                of_state.discard(prefix)
            watch = self._watches.get(prefix) or self._watches[self._kind]
            del watch.followed[prefix]
            if not watch.followed:
                self._end(watch)
            self.arrange()
        if self._mirror:
            self._mirror.forget(prefix)

    def drop_others(self) -> None:
        """Forgets what the mirror has of prefixes that nobody follows any more."""
        for prefix in tuple(self._mirror.prefixes) if self._mirror else ():
            self.drop(prefix)

    def arrange(self) -> None:
        """Lets tables of one kind share a watch if there are many of them, and else not."""
        own, whole, shared = len(self._of_kind), self._whole(), self._watches.get(self._kind)
        wide = whole is not None and is_wide(own, whole, already=shared is not None)
        if wide and (shared is None or 4 * (own - len(shared.followed)) > own):
            # What was followed since a shared watch began has a watch of its own, until it is much.
            log.info("watches shared prefix=%s tables=%d of=%s", self._kind, own, whole)
            for prefix in [*self._of_kind, self._kind]:
                if watch := self._watches.get(prefix):
                    self._end(watch)
            self._begin(_Watch(self._kind, dict(self._of_kind)), START)
        elif shared and not wide:
            log.info("watches parted prefix=%s tables=%d of=%s", self._kind, own, whole)
            self._end(shared)
            for prefix, one in shared.followed.items():
                self._begin(_Watch(prefix, {prefix: one}), START)

    def check(self) -> None:
        """Lists everything anew, now."""
        for watch in tuple(self._watches.values()):
            self._begin(watch, CHECK)

    def believe(self, table: Table[Any], id_: str) -> None:
        """Lets go of a record that is held: its removal is known from elsewhere."""
        one = self._followed[table.prefix]
        changes = table.believe(id_)
        if not changes:
            return
        self._weigh(table)
        if not table.held:
            one.held_since = None
        for before, after in changes.values():
            one.changed(id_, before, after)
            self._news(before, after)
        if self._mirror:
            revision = None if table.held else table.revision
            self._mirror.change(table.prefix, f"{table.prefix}{id_}", None, revision)

    async def close(self) -> None:
        """Ends all watches."""
        watches = list(self._watches.values())
        for watch in watches:
            self._end(watch)
        self._followed.clear()
        tasks = [watch.task for watch in watches if watch.task]
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

    def _say_stale(self, level: int) -> None:
        """Says why the store does not answer."""
        self._said_reason, self._said_at = self.stale_reason, time.monotonic()
        log.log(level, "store stale cause=%s", self.stale_reason)

    def _begin(self, watch: _Watch, reason: str) -> None:
        """Begins a watch, in the place of the one that there was."""
        self._stop(watch)
        self._watches[watch.prefix] = watch
        watch.reason = reason
        watch.task = asyncio.create_task(self._run(watch), name=f"watch {watch.prefix}")

    def _end(self, watch: _Watch) -> None:
        self._stop(watch)
        del self._watches[watch.prefix]

    def _stop(self, watch: _Watch) -> None:
        if watch.task:
            watch.task.cancel()
        if watch.check:
            watch.check.cancel()
            watch.check = None

    async def _run(self, watch: _Watch) -> None:
        since = None if watch.reason == CHECK else watch.revision
        while True:
            try:
                async for event in self._store.watch(watch.prefix, since=since):
                    await self._take(watch, event)
                    if isinstance(event, Stale) and event.anew and not watch.empty:
                        # It is read when the next event is asked for. A list of nothing costs next
                        # to nothing, and no store can tell what followed a record if there is none.
                        await asyncio.sleep(self._turn_s(ANEW_S_PER_LIST))
                return
            except StoreError as error:
                await self._take(watch, Stale(str(error)))
                await asyncio.sleep(RETRY_S * self._rng.uniform(0.5, 1))
                since = watch.revision

    async def _take(self, watch: _Watch, event: Event) -> None:
        was_stale = watch.stale
        for number, (one, part) in enumerate(watch.parts(event)):
            if number and isinstance(event, Snapshot):
                await asyncio.sleep(0)  # It may be much, and others need the loop too.
            if watch.followed.get(one.table.prefix) is one:
                self._show(one, part)
        if isinstance(event, Snapshot):
            self.resyncs[watch.reason] += 1
            watch.reason = GAP
        elif isinstance(event, Live) and was_stale:
            self.resyncs[RESUME] += 1
            watch.reason = GAP
            self._check_in(watch, self._turn_s(CHECK_S_PER_LIST))
        self._guard(watch)
        self._tell(event)
        ended = self._watches.get(watch.prefix) is not watch
        if isinstance(event, Stale) and watch.reason == CHECK and not ended:
            # The list did not come. What is missed meanwhile is told better by going on.
            self._begin(watch, GAP)

    def _turn_s(self, s_per_list: float) -> float:
        """How long to wait if each watch of each host is to list something."""
        return self._rng.uniform(0, s_per_list * self._hosts() * len(self._watches))

    def _show(self, one: _Followed, event: Event) -> None:
        """Lets a table take in an event, and tells what it changed."""
        table, was_known = one.table, one.table.known
        changes = table.apply(event)
        self._weigh(table)
        if isinstance(event, Snapshot) or not table.held:
            one.held_since = None
        if table.known and not was_known:
            one.when_known()
        for id_, (before, after) in changes.items():
            one.changed(id_, before, after)
            if was_known:
                self._news(before, after)
        if self._mirror:
            self._note(table, event)

    def _weigh(self, table: Table[Any]) -> None:
        """Counts a table among those that are behind, stale, or hold something back."""
        for of_state, holds in (
            (self._behind, not table.fresh),
            (self._stale, table.stale),
            (self._holding, bool(table.held)),
        ):
            if holds:
                of_state.add(table.prefix)
            else:
                of_state.discard(table.prefix)

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
            case Removal(key) if key.removeprefix(table.prefix) not in table.held:
                self._mirror.change(table.prefix, key, None, revision)
            case _:  # A later start is to be told of what is held too.
                pass

    def _guard(self, watch: _Watch) -> None:
        """Sees to it that what is held is looked for again in time."""
        if not self._holding:
            return
        new = [o for o in watch.followed.values() if o.table.held and o.held_since is None]
        for one in new:
            one.held_since, one.alarmed = time.monotonic(), False
        if new:
            self._check_in(watch, min(map(self._hold_left_s, new)))

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

    def _check_in(self, watch: _Watch, delay_s: float) -> None:
        if watch.check:
            watch.check.cancel()
        if self._watches.get(watch.prefix) is not watch:
            return
        loop = asyncio.get_running_loop()
        watch.check = loop.call_later(delay_s, self._check_now, watch)

    def _check_now(self, watch: _Watch) -> None:
        watch.check = None
        if watch.stale:
            return
        left_s = {one: self._hold_left_s(one) for one in watch.followed.values() if one.table.held}
        if left_s and min(left_s.values()) > 0:
            self._check_in(watch, min(left_s.values()))
            return
        for table in [one.table for one, of_one_s in left_s.items() if of_one_s <= 0]:
            log.warning("removal believed prefix=%s records=%d", table.prefix, len(table.held))
            table.doubted = set(table.held)
        self._begin(watch, CHECK)

    def _tell(self, event: Event) -> None:
        """Notes whether the store answers, and wakes whoever waits."""
        stale = bool(self._stale)
        if isinstance(event, Stale):
            self.stale_reason = event.reason
            self.left_step_s = self.left_step_s or time.time()
        elif self.synced and not self._holding:
            self.left_step_s = None
        if stale and self.stale_since is None:
            self.stale_since = time.monotonic()
            # What a start lacks the daemon says itself.
            self._say_stale(logging.WARNING if self._was_synced else logging.DEBUG)
            self._events.note("store_lost", self.stale_reason)
        elif stale and time.monotonic() - self._said_at > SAY_AGAIN_S:
            if self.stale_reason != self._said_reason:
                self._say_stale(logging.WARNING)
        elif not stale and self.stale_since is not None:
            stale_s = time.monotonic() - self.stale_since
            log.info("store live stale_s=%.1f", stale_s)
            self._events.note("store_back", f"after {stale_s:.1f} s")
            self.stale_since, self.stale_reason = None, ""
            self._live()
        self._was_synced = self._was_synced or self.synced
        if self._mirror:
            self._mirror.mark(in_step=self.synced)
        self._pulse.set()
        self._pulse = asyncio.Event()
