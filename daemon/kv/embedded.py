"""`EmbeddedStore`: a SQLite file that all daemons of one machine may share.

One thread per store does all the access to the file, so the event loop never waits for a disk.
Another process learns of a change by a doorbell, a file that is touched after each commit and
watched by inotify; a slow check finds what a lost ring would hide, and that the file is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from asyncinotify import Inotify, Mask

from pyvxlan.daemon.errors import (
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv.database import Database, Now, Transaction, boot_now
from pyvxlan.daemon.kv.health import Health, MemberHealth
from pyvxlan.daemon.kv.lease import Lease
from pyvxlan.daemon.kv.store import (
    Check,
    Delete,
    Event,
    Item,
    Revision,
    Session,
    Snapshot,
    Write,
)
from pyvxlan.daemon.kv.watching import Missed, Watchers, check_key, check_ttl, check_txn

log = logging.getLogger(__name__)

T = TypeVar("T")
TICK_S = 1.5
"""Between two slow checks: of what a lost ring would hide, of sessions, and of the file itself."""
GAP_S = 0.01
"""Between two rings of the doorbell that are heeded: what comes faster is read together."""
RETRY_S = 0.3
"""Between two checks while the file can't be used."""
LOG_LIMIT = 10_000


@dataclass(eq=False, slots=True)
class _Waiting:
    """A transaction on its way to the file."""

    transaction: Transaction
    given_up: bool = False
    """Whether nobody waits for it any more, so that it is left out if it is not too late."""
    done: bool = False
    error: Exception | None = None
    """Why it was not applied, or maybe not."""


class EmbeddedStore:
    """A `Store` in a SQLite file; make one with `open`.

    Args:
        path: The file; it and its directory are created.
        now: Tells the time by which sessions expire.
        tick_s: Seconds between two slow checks.
        log_limit: About how many changes are kept for watches that resume.
    """

    def __init__(
        self,
        path: Path,
        *,
        now: Callable[[], Now] = boot_now,
        tick_s: float = TICK_S,
        log_limit: int = LOG_LIMIT,
    ) -> None:
        self._database = Database(path, now=now, log_limit=log_limit)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._now = now
        self._tick_s = tick_s
        self._watchers = Watchers()
        self._leases: set[Lease] = set()
        self._waiting: deque[_Waiting] = deque()
        self._file_id = ""
        self._revision: Revision = 0
        self._rung = asyncio.Event()
        self._inotify = Inotify()
        self._watched: dict[Path, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._next_sweep_s = 0.0
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        now: Callable[[], Now] = boot_now,
        tick_s: float = TICK_S,
        log_limit: int = LOG_LIMIT,
    ) -> EmbeddedStore:
        """Opens the file or makes it.

        Raises:
            StoreError: It can't be used; the message names the path and the remedy.
        """
        store = cls(path, now=now, tick_s=tick_s, log_limit=log_limit)
        try:
            await store._poll()
        except BaseException:
            await store.close()
            raise
        store._tasks = [
            asyncio.create_task(store._pump(), name=f"store {path}"),
            asyncio.create_task(store._listen(), name=f"doorbell of {path}"),
        ]
        return store

    async def get(self, key: str) -> Item | None:
        """Reads one key, as of the newest commit."""
        check_key(key)
        return await self._call(lambda: self._database.get(key))

    async def list(self, prefix: str) -> Mapping[str, Item]:
        """Reads every key that starts with `prefix`, by key; a snapshot."""
        return await self._call(lambda: self._database.list(prefix))

    async def txn(
        self,
        checks: Sequence[Check],
        ops: Sequence[Write | Delete],
        *,
        session: Session | None = None,
    ) -> None:
        """Applies all `ops` if all `checks` hold, else nothing; on disk when it returns."""
        check_txn(checks, ops, session)
        one = _Waiting(Transaction(checks, ops, session.id if session else None))
        self._waiting.append(one)
        try:
            await self._call(lambda: self._commit(one))
        finally:
            one.given_up = True
        if one.transaction.failed:
            raise StoreConflictError(one.transaction.failed)
        self._rung.set()

    async def session(self, ttl_s: float) -> Lease:
        """Opens a session; it is renewed until it or the store is closed."""
        check_ttl(ttl_s)
        lease = Lease(ttl_s, self._end)
        asked_at = time.monotonic()
        now = await self._call(lambda: self._database.open_session(lease.id, ttl_s))
        lease.renewed(now, asked_at)
        self._leases.add(lease)
        return lease

    def watch(self, prefix: str, *, since: Revision | None = None) -> AsyncIterator[Event]:
        """Yields a `Snapshot`, then changes in order; a new `Snapshot` after any gap."""
        return self._watchers.watch(prefix, since, self._read)

    async def health(self) -> Health:
        """Tells whether the file can be read and written, and how fast a write is."""
        path = str(self._database.path)
        asked_at = time.monotonic()
        try:
            await self._call(self._database.probe)
        except StoreError as error:
            return Health("sqlite", (MemberHealth(path, str(error)),))
        latency_s = time.monotonic() - asked_at
        return Health("sqlite", (MemberHealth(path, "", sqlite3.sqlite_version, latency_s),))

    async def close(self) -> None:
        """Ends watches and closes the file. Sessions that are open are left to expire."""
        if self._closed:
            return
        self._closed = True
        self._watchers.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._inotify.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown(wait=False)

    async def _call(self, action: Callable[[], T]) -> T:
        if self._closed:
            raise StoreUnavailableError(f"store {self._database.path} is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, action)
        except (StoreUnavailableError, StoreUncertainError) as error:
            if self._watchers.mark_stale(str(error)) and self._tasks:
                log.debug("store stale path=%s cause=%s", self._database.path, error)
            self._rung.set()
            raise

    def _commit(self, one: _Waiting) -> None:
        """Applies a transaction and all that wait by now, unless an earlier call of this did.

        Many at once then cost one commit and one write to the disk. Runs in the store's thread.
        """
        if not one.done:
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            together = [other for other in waiting if not other.given_up]
            error: Exception | None = None
            try:
                self._database.apply([other.transaction for other in together])
            except Exception as failure:  # noqa: BLE001 - each of them raises it
                error = failure
            for other in together:
                other.done, other.error = True, error
        if one.error:
            raise one.error

    async def _read(self, prefix: str, since: Revision | None) -> Snapshot | Missed:
        return await self._call(lambda: self._database.read(prefix, since))

    async def _end(self, lease: Lease) -> None:
        self._leases.discard(lease)
        await self._call(lambda: self._database.end_session(lease.id))
        self._rung.set()

    async def _pump(self) -> None:
        """Polls the file when the bell rings, and slowly without."""
        while not self._closed:
            if self._watchers.stale:
                await asyncio.sleep(RETRY_S)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._tick_s):
                        await self._rung.wait()
            self._rung.clear()
            with contextlib.suppress(StoreUnavailableError, StoreUncertainError):
                await self._poll()

    async def _poll(self) -> None:
        """Keeps sessions alive and hands on what changed; ends an outage."""
        if self._watchers.stale:
            await self._call(self._database.probe)
        await self._renew()
        file_id, found = await self._call(
            lambda: self._database.poll(self._file_id, self._revision)
        )
        if file_id != self._file_id and self._file_id:
            log.warning("store replaced path=%s", self._database.path)
            for lease in self._leases:
                lease.mark_lost()
            self._leases.clear()
        self._file_id, self._revision = file_id, found.revision
        if isinstance(found, Missed):
            self._watchers.publish(found.changes)
        else:
            self._watchers.reset()
        if self._watchers.stale:
            log.debug("store live path=%s", self._database.path)
            self._watchers.mark_live()
        self._arm()

    async def _renew(self) -> None:
        asked_at, now = time.monotonic(), self._now().boottime_s
        due = {lease.id: lease for lease in self._leases if lease.due(now)}
        if not due:
            if asked_at >= self._next_sweep_s:
                await self._call(self._database.sweep)
                self._next_sweep_s = asked_at + self._tick_s
            return
        lost = await self._call(lambda: self._database.renew_sessions(list(due)))
        for lease_id, lease in due.items():
            if lease_id in lost:
                self._leases.discard(lease)
                lease.mark_lost()
            else:
                lease.renewed(now, asked_at)

    def _arm(self) -> None:
        """Watches the bell, and the file for its end; again if one of them was replaced."""
        masks = {
            self._database.bell: Mask.ATTRIB | Mask.MODIFY | Mask.DELETE_SELF | Mask.MOVE_SELF,
            self._database.path: Mask.ATTRIB | Mask.DELETE_SELF | Mask.MOVE_SELF,
        }
        for path, mask in masks.items():
            try:
                inode = path.stat().st_ino
                if self._watched.get(path) != inode:
                    self._inotify.add_watch(path, mask)
                    self._watched[path] = inode
            except OSError as error:
                if self._watched.pop(path, None) is not None:
                    log.warning("doorbell not watched path=%s cause=%s", path, error)

    async def _listen(self) -> None:
        while not self._closed:
            await self._inotify.get()
            self._rung.set()
            await asyncio.sleep(GAP_S)
