"""What the stores of one process share: how changes get from a store to its watchers.

A watcher that is slower than the changes gets the newest value of each key only, so that what
waits for it is bounded by the number of keys that it watches.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pyvxlan.daemon.errors import StoreError
from pyvxlan.daemon.kv.store import (
    Change,
    Check,
    Delete,
    Event,
    Live,
    Put,
    Removal,
    Revision,
    Session,
    Snapshot,
    Stale,
    Write,
)

VALUE_MAX_BYTES = 64 * 1024
TXN_MAX = 32
KEY_MAX_BYTES = 512
PREFIX_MAX_BYTES = 200
SESSION_TTL_MIN_S = 10.0

ANEW = "what was missed can't be told any more: everything is read anew"

_KEY = re.compile(r"[!-.0-~]+(/[!-.0-~]+)*")


@dataclass(frozen=True, slots=True)
class Missed:
    """What a watcher has missed: the changes up to `revision`, still in order."""

    changes: Sequence[Change]
    revision: Revision


Reader = Callable[[str, Revision | None], Awaitable[Snapshot | Missed]]
"""Reads what is below a prefix: all of it, or what came after a revision if that is known."""


@dataclass(eq=False, slots=True)
class _Watcher:
    prefix: str
    revision: Revision | None
    gap: bool = True
    waiting: OrderedDict[str, Change] = field(default_factory=OrderedDict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, change: Change) -> None:
        key, revision = _position(change)
        if not key.startswith(self.prefix):
            return
        if self.revision is None or self.gap or revision > self.revision:
            self.waiting[key] = change
            self.waiting.move_to_end(key)
            self.wake.set()

    def forget_until(self, revision: Revision) -> None:
        for key in [k for k, c in self.waiting.items() if _position(c)[1] <= revision]:
            del self.waiting[key]


class Watchers:
    """All watchers of one store instance.

    Args:
        warns: Whether watchers are told before all is read anew, and may wait for their turn.
    """

    def __init__(self, *, warns: bool = False) -> None:
        self._warns = warns
        self._watchers: set[_Watcher] = set()
        self._stale: str | None = None
        self._closed = False

    @property
    def stale(self) -> bool:
        """Whether the store is known not to answer."""
        return self._stale is not None

    def publish(self, changes: Iterable[Change]) -> None:
        """Hands changes on, in the order of their revisions."""
        for change in changes:
            for watcher in self._watchers:
                watcher.offer(change)

    def reset(self) -> None:
        """Makes every watcher read anew: changes were missed that nobody can tell any more."""
        for watcher in self._watchers:
            watcher.gap, watcher.revision = True, None
            watcher.waiting.clear()
            watcher.wake.set()

    def mark_stale(self, reason: str) -> bool:
        """Tells the watchers that the store does not answer; returns whether that is new."""
        if self._stale is not None:
            return False
        self._stale = reason
        self._wake()
        return True

    def mark_live(self) -> None:
        """Tells the watchers that the store answers again; what was missed must be published."""
        if self._stale is not None:
            self._stale = None
            self._wake()

    def close(self) -> None:
        """Ends every watch."""
        self._closed = True
        self._wake()

    async def watch(
        self, prefix: str, since: Revision | None, read: Reader
    ) -> AsyncGenerator[Event, None]:
        """Yields the events of one watch, as `Store.watch` promises them."""
        watcher = _Watcher(prefix, since)
        self._watchers.add(watcher)
        told_stale, owes_live = False, since is not None
        begun = told_anew = False
        try:
            while not self._closed:
                watcher.wake.clear()
                if self._stale is not None:
                    if told_stale:
                        await watcher.wake.wait()
                    else:
                        told_stale = owes_live = True
                        yield Stale(self._stale)
                elif watcher.gap and self._warns and begun and not told_anew:
                    told_anew = owes_live = True
                    yield Stale(ANEW, anew=True)
                elif watcher.gap:
                    events = await self._begin(watcher, read)
                    begun, told_anew = begun or not watcher.gap, False
                    for event in events:
                        yield event
                elif watcher.waiting:
                    change = watcher.waiting.popitem(last=False)[1]
                    watcher.revision = max(watcher.revision or 0, _position(change)[1])
                    yield change
                elif owes_live:
                    told_stale = owes_live = False
                    yield Live()
                else:
                    await watcher.wake.wait()
        finally:
            self._watchers.discard(watcher)

    async def _begin(self, watcher: _Watcher, read: Reader) -> Sequence[Event]:
        """Reads what a watcher starts from; nothing if the store failed or was replaced again."""
        watcher.gap = False
        try:
            start = await read(watcher.prefix, watcher.revision)
        except StoreError as error:
            watcher.gap = True
            self.mark_stale(str(error))
            return ()
        if watcher.gap:
            return ()
        watcher.revision = start.revision
        watcher.forget_until(start.revision)
        return (start,) if isinstance(start, Snapshot) else start.changes

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.wake.set()


def is_key(text: str) -> bool:
    """Tells whether every backend could hold a key of this form."""
    return (
        len(text) <= KEY_MAX_BYTES
        and _KEY.fullmatch(text) is not None
        and not {".", ".."} & set(text.split("/"))
    )


def check_key(key: str) -> None:
    """Refuses a key that not every backend could hold."""
    if not is_key(key):
        raise StoreError(
            f"key {key[:80]!r} is not usable: up to {KEY_MAX_BYTES} printable ASCII characters in "
            "parts separated by single slashes"
        )


def check_txn(
    checks: Sequence[Check], ops: Sequence[Write | Delete], session: Session | None
) -> None:
    """Refuses a transaction that breaks the limits of the Protocol.

    Raises:
        StoreError: It does; nothing was sent.
    """
    if len(checks) + len(ops) > TXN_MAX:
        raise StoreError(f"{len(checks) + len(ops)} checks and operations: at most {TXN_MAX}")
    for check in checks:
        check_key(check.key)
    for op in ops:
        check_key(op.key)
        if isinstance(op, Write) and len(op.value) > VALUE_MAX_BYTES:
            raise StoreError(
                f"value of {op.key} has {len(op.value)} bytes: at most {VALUE_MAX_BYTES}"
            )
        if isinstance(op, Write) and op.bound and session is None:
            raise StoreError(f"key {op.key} is bound to a session, but none was given")
    if len({op.key for op in ops}) < len(ops):
        raise StoreError("a transaction changes a key at most once")


def check_ttl(ttl_s: float) -> None:
    """Refuses a session that no backend could keep."""
    if ttl_s < SESSION_TTL_MIN_S:
        raise StoreError(f"session of {ttl_s:g} s: at least {SESSION_TTL_MIN_S:g} s")


def _position(change: Change) -> tuple[str, Revision]:
    match change:
        case Put(item):
            return item.key, item.revision
        case Removal(key, revision):
            return key, revision
