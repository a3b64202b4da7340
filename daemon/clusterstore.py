"""`ClusterStore`: the store as a daemon uses it: fenced by the record `meta`, and moved with it.

Each transaction also checks that `meta` is as it was when last read. Whoever restores or moves a
store writes `meta` first: from then on no daemon can change anything, whether it has heard of that
or not.

A daemon watches `meta` too. When its cluster is about to move, it tries the other store and says
what became of that; when it has moved, it goes there: watches go on with a `Snapshot` of the new
store, and sessions count as lost, so that the host registers again (docs/stores.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import NoReturn

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import (
    ConflictError,
    DaemonError,
    InvalidError,
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
)
from pyvxlan.daemon.kv import (
    ABSENT,
    PRESENT,
    Check,
    Delete,
    Event,
    Item,
    Put,
    Session,
    Snapshot,
    Store,
    Write,
)
from pyvxlan.daemon.kv.health import Health
from pyvxlan.daemon.kv.open import open_store
from pyvxlan.daemon.kv.store import Revision
from pyvxlan.daemon.kv.watching import SESSION_TTL_MIN_S
from pyvxlan.daemon.records import Phase, Transition

log = logging.getLogger(__name__)

Opener = Callable[[str], Awaitable[Store]]
"""Opens the store behind a URL."""
ATTEMPTS = 4
"""How often `meta` may change under one transaction."""
OPEN_S = 2.0
"""How long a start waits to hear that the cluster has moved."""
TRY_S = 10.0
RETRY_S = 1.0
LEAVE_S = 2.0
KEEPER_TTL_S = 15.0
"""Of the session of whoever moves the cluster."""
KEEPER_GONE_S = 2 * KEEPER_TTL_S + 10
"""By when every store has ended that session, once its owner was killed."""


class _Link:
    """One store, while it is the cluster's."""

    def __init__(self, store: Store, url: str) -> None:
        self.store = store
        self.url = url
        self.left = asyncio.Event()
        self.sessions: list[ClusterSession] = []


class ClusterSession:
    """A session with the cluster's store; lost when it expires or the cluster moves."""

    def __init__(self, inner: Session, link: _Link) -> None:
        self.inner = inner
        self.link = link

    @property
    def id(self) -> str:
        """The session's own id; never reused."""
        return self.inner.id

    @property
    def valid_until(self) -> float:
        """Deadline on the monotonic clock up to which the session surely lives."""
        now = time.monotonic()
        return (
            min(now, self.inner.valid_until)
            if self.link.left.is_set()
            else (self.inner.valid_until)
        )

    async def lost(self) -> None:
        """Returns when the session is known to have expired, or the cluster has moved."""
        waits = [
            asyncio.ensure_future(self.inner.lost()),
            asyncio.ensure_future(self.link.left.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def close(self) -> None:
        """Ends the session and deletes its keys. May be called twice."""
        if self in self.link.sessions:
            self.link.sessions.remove(self)
        if not self.link.left.is_set():
            await self.inner.close()


class ClusterStore:
    """A `Store` that refuses changes while its store is being restored or moved.

    It follows a move only if made with `open`.

    Args:
        store: The store itself; `close` closes it.
        url: Its URL.
        host_id: Who says so if it can use another store.
        opener: Opens that.
    """

    def __init__(
        self, store: Store, url: str = "", *, host_id: str = "", opener: Opener = open_store
    ) -> None:
        self.on_moved: Callable[[str], None] = lambda _url: None
        """Called with the URL of the store that the cluster has moved to."""
        self._link = _Link(store, url)
        self._host_id = host_id
        self._opener = opener
        self._meta: Item | None = None
        self._problem = ""
        self._frozen: tuple[str, float] | None = None
        """The freeze that stands, by the id of its move, and when it was met on the monotonic
        clock."""
        self._tasks: list[asyncio.Task[None]] = []
        self._trial: asyncio.Task[NoReturn] | None = None
        self._tried: Transition | None = None
        self._closing: set[asyncio.Task[None]] = set()
        """Stores that are being closed."""
        self._closed = False

    @classmethod
    async def open(cls, url: str, *, host_id: str, opener: Opener = open_store) -> ClusterStore:
        """Opens a store, or the one that its cluster has moved to, and goes with the cluster.

        Raises:
            ConfigError: The URL is not usable, or the client's library is not installed.
            InvalidError: It answers, and its record `meta` can't be used.
            StoreError: The store can't be used.
        """
        self = cls(await opener(url), url, host_id=host_id, opener=opener)
        link, meta = self._link, None
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(OPEN_S):
                meta = await link.store.get(records.META)
        if meta:
            try:
                moved = records.parse_meta(meta.value).transition
            except InvalidError as error:
                await self.close()
                raise InvalidError(f"store record {records.META}: {error}") from error
            if moved and moved.phase is Phase.MOVED:
                with contextlib.suppress(DaemonError, TimeoutError):
                    async with asyncio.timeout(OPEN_S):
                        await self._enter(link, meta, moved)
        self._tasks.append(asyncio.create_task(self._follow(), name="cluster's store"))
        return self

    @property
    def url(self) -> str:
        """URL of the store that is used now."""
        return self._link.url

    @property
    def problem(self) -> str:
        """Why this host can't go where its cluster went; empty if it can."""
        return self._problem

    async def get(self, key: str) -> Item | None:
        """Reads one key, linearizably."""
        return await self._link.store.get(key)

    async def list(self, prefix: str) -> Mapping[str, Item]:
        """Reads every key that starts with `prefix`, by key."""
        return await self._link.store.list(prefix)

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
        link = self._link
        if any(op.key == records.META for op in ops):
            await link.store.txn(checks, ops, session=_inner(session, link))
            return
        for attempt in range(1, ATTEMPTS + 1):
            fence = await self._fence(link)
            try:
                await link.store.txn([fence, *checks], ops, session=_inner(session, link))
            except StoreConflictError:
                meta = await link.store.get(records.META)
                self._know(link, meta)
                unchanged = fence.expect == (meta.revision if meta else ABSENT)
                if unchanged or attempt == ATTEMPTS:
                    raise
            else:
                return

    async def session(self, ttl_s: float) -> ClusterSession:
        """Opens a session that expires `ttl_s` seconds after its owner died."""
        link = self._link
        session = ClusterSession(await link.store.session(ttl_s), link)
        link.sessions.append(session)
        return session

    async def watch(self, prefix: str, *, since: Revision | None = None) -> AsyncIterator[Event]:
        """Yields a `Snapshot`, then changes in order; a new `Snapshot` after any gap."""
        link = self._link
        while not self._closed:
            async for event in link.store.watch(prefix, since=since):
                yield event
            if link is self._link:
                return
            link, since = self._link, None

    async def health(self) -> Health:
        """Looks at the servers and their settings now."""
        return await self._link.store.health()

    async def close(self) -> None:
        """Releases everything; ends watches."""
        self._closed = True
        for task in (*self._tasks, self._trial):
            if task:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._link.store.close()

    def _know(self, link: _Link, meta: Item | None) -> None:
        if link is self._link:
            self._meta = meta

    async def _fence(self, link: _Link) -> Check:
        """Gives the check that each change carries.

        Raises:
            StoreUnavailableError: Nobody may change anything at the moment.
        """
        meta = self._meta or await link.store.get(records.META)
        self._know(link, meta)
        if meta is None:
            return Check(records.META, ABSENT)
        transition = _transition(meta)
        if transition and transition.phase in {Phase.FILLING, Phase.FROZEN, Phase.MOVED}:
            self._know(link, None)
            meta = await self._lifted(link, meta, transition)
            self._know(link, meta)
        return Check(records.META, meta.revision)

    async def _lifted(self, link: _Link, meta: Item, transition: Transition) -> Item:
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
                f"the cluster has moved to store {transition.to}"
                + (f", which this host can't use: {self._problem}" if self._problem else "")
            )
        if self._frozen is None or self._frozen[0] != transition.id:
            self._frozen = (transition.id, time.monotonic())
        value = records.with_transition(meta.value, None)
        try:
            await link.store.txn(
                [Check(records.META, meta.revision), Check(records.MOVE_KEEPER, ABSENT)],
                [Write(records.META, value)],
            )
        except StoreConflictError as error:
            raise StoreUnavailableError(
                "nothing can be changed while pyvxlan store migrate moves the cluster to "
                f"{transition.to}, {time.monotonic() - self._frozen[1]:.0f} s so far: try again "
                f"shortly. If that was killed, its session ends within {KEEPER_GONE_S:g} s, and "
                f"pyvxlan store migrate --abort {link.url} {transition.to} ends it now"
            ) from error
        log.warning("freeze lifted, its keeper is gone to=%s", transition.to)
        lifted = await link.store.get(records.META)
        if lifted is None or lifted.value != value:
            raise StoreUnavailableError("the store is being moved: try again shortly")
        return lifted

    async def _follow(self) -> None:
        """Watches `meta`, in each store that the cluster moves to."""
        while not self._closed:
            link = self._link
            try:
                async for event in link.store.watch(records.META):
                    if isinstance(event, Snapshot):
                        await self._heed(link, event.items.get(records.META))
                    elif isinstance(event, Put) and event.item.key == records.META:
                        await self._heed(link, event.item)
            except StoreError as error:
                log.debug("meta not watched cause=%s", error)
            if link is self._link:
                await asyncio.sleep(RETRY_S)

    async def _heed(self, link: _Link, meta: Item | None) -> None:
        self._know(link, meta)
        try:
            transition = _transition(meta) if meta else None
        except StoreUnavailableError as error:
            log.error("store record not valid cause=%s", error)
            return
        trying = transition if transition and transition.phase is Phase.MOVING else None
        if trying != self._tried:
            if self._trial:
                self._trial.cancel()
            self._tried = trying
            self._trial = None
            if trying and meta:
                trial = self._try_out(link, meta, trying)
                self._trial = asyncio.create_task(trial, name="trial of the next store")
        if meta and transition and transition.phase is Phase.MOVED:
            await self._go(link, meta, transition)

    async def _try_out(self, link: _Link, meta: Item, transition: Transition) -> NoReturn:
        """Says in the old store whether this host can use the new one; tries until it can."""
        problem: str | None = None
        said: tuple[str, str | None] | None = None
        while True:
            if problem != "":
                problem = await self._trouble(meta, transition)
            session = link.sessions[-1] if link.sessions else None
            if session and said != (session.id, problem):
                report = {"id": transition.id, "error": problem}
                write = Write(records.ready_key(self._host_id), records.emit(report), bound=True)
                with contextlib.suppress(StoreError):
                    await self.txn([], [write], session=session)
                    said = (session.id, problem)
                    log.info("next store tried to=%s problem=%s", transition.to, problem or "none")
            await asyncio.sleep(RETRY_S)

    async def _trouble(self, meta: Item, transition: Transition) -> str:
        """Tries another store; returns what is wrong with it for this host."""
        try:
            async with asyncio.timeout(TRY_S):
                store = await self._opener(transition.to)
                try:
                    await _recognised(store, meta, transition)
                    await probe(store)
                finally:
                    await self._to_the_end(store.close())
        except TimeoutError:
            return f"no answer within {TRY_S:g} s"
        except DaemonError as error:
            return str(error)
        return ""

    async def _go(self, link: _Link, meta: Item, moved: Transition) -> None:
        """Goes where the cluster went; tries until that is done or is no longer so."""
        while self._link is link:
            try:
                async with asyncio.timeout(TRY_S):
                    await self._enter(link, meta, moved)
                return
            except (DaemonError, TimeoutError) as error:
                problem = str(error) or f"no answer within {TRY_S:g} s"
                if problem != self._problem:
                    self._problem = problem
                    log.error("host can't go with its cluster to=%s cause=%s", moved.to, problem)
            await asyncio.sleep(RETRY_S)
            with contextlib.suppress(StoreError):
                now = await link.store.get(records.META)
                if now is None or _moved(now) != moved:
                    return

    async def _enter(self, link: _Link, meta: Item, moved: Transition) -> None:
        """Opens the store that the cluster has moved to and uses it from now on."""
        store = await self._opener(moved.to)
        try:
            found = await _opened_up(store, meta, moved)
        except BaseException:
            await self._to_the_end(store.close())
            raise
        log.info("store left from=%s to=%s", link.url, moved.to)
        self._link = _Link(store, moved.to)
        self._meta, self._problem = found, ""
        self.on_moved(moved.to)
        await self._to_the_end(_leave(link))

    async def _to_the_end(self, work: Coroutine[None, None, None]) -> None:
        """Does what must not be half done, also if the caller is cancelled meanwhile."""
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        await asyncio.shield(task)


async def probe(store: Store) -> None:
    """Opens a session, writes a key that is bound to it, and deletes that.

    Raises:
        StoreError: It can't be done; the message says what.
    """
    key = f"check/{secrets.token_hex(8)}"
    doing = "open a session"
    try:
        session = await store.session(SESSION_TTL_MIN_S)
        try:
            doing = "write"
            write = Write(key, b'"check"', bound=True)
            await store.txn([Check(key, ABSENT)], [write], session=session)
            doing = "delete"
            await store.txn([Check(key, PRESENT)], [Delete(key)])
        finally:
            await session.close()
    except StoreError as error:
        raise StoreUnavailableError(f"can't {doing}: {error}") from error


async def _leave(link: _Link) -> None:
    """Ends the sessions with a store, so that the others see who has gone, and closes it."""
    sessions = [session.inner for session in link.sessions]
    link.left.set()
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(LEAVE_S):
            for session in sessions:
                await session.close()
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(LEAVE_S):
            await link.store.close()


async def _recognised(store: Store, meta: Item, transition: Transition) -> Item:
    """Gives the new store's `meta` if it is of this cluster and of this move.

    Raises:
        ConflictError: It is not.
    """
    found = await store.get(records.META)
    if found is None:
        raise ConflictError(
            f"store {transition.to} is empty, seen from this host: it must be one and the same "
            "from all hosts"
        )
    there, here = _meta(found), _meta(meta)
    if there.cluster != here.cluster:
        raise ConflictError(f"store {transition.to} is of another cluster, {there.cluster}")
    filling = there.transition and there.transition.phase is Phase.FILLING
    if filling and there.transition and there.transition.id != transition.id:
        raise ConflictError(f"store {transition.to} is being filled with something else")
    return found


async def _opened_up(store: Store, meta: Item, moved: Transition) -> Item:
    """Ends the filling of the new store, which the move was the end of; gives its `meta`."""
    found = await _recognised(store, meta, moved)
    value = records.with_transition(found.value, None)
    if value != found.value and _filling(found):
        with contextlib.suppress(StoreConflictError):
            await store.txn([Check(records.META, found.revision)], [Write(records.META, value)])
        found = await _recognised(store, meta, moved)
    return found


def _inner(session: Session | None, link: _Link) -> Session | None:
    """Gives the store's own session.

    Raises:
        StoreConflictError: It was with a store that the cluster has left.
    """
    if not isinstance(session, ClusterSession):
        return session
    if session.link is not link:
        raise StoreConflictError(f"session {session.id} has ended: the cluster has moved")
    return session.inner


def _filling(meta: Item) -> bool:
    transition = _transition(meta)
    return transition is not None and transition.phase is Phase.FILLING


def _moved(meta: Item) -> Transition | None:
    transition = _transition(meta)
    return transition if transition and transition.phase is Phase.MOVED else None


def _transition(meta: Item) -> Transition | None:
    return _meta(meta).transition


def _meta(item: Item) -> records.Meta:
    try:
        return records.parse_meta(item.value)
    except InvalidError as error:
        raise StoreUnavailableError(f"store record {records.META}: {error}") from error
