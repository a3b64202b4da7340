"""Protocol `Store`: what every backend promises, and the values it speaks.

Promises that SQLite, etcd, Consul and ZooKeeper can all keep: a conditional transaction over
several keys; order per key; a watch that is state-based, may coalesce, delivers at least once and
converges; session-bound keys that live at least their TTL after the last keepalive. Not promised:
history, event counts, and revisions that stay distinct over a delete and a create of one key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from pyvxlan.daemon.kv.health import Health

Revision: TypeAlias = int
"""Opaque: compare for equality only, and only for one key."""


class Presence(Enum):
    """A condition on a key that does not name a revision."""

    ABSENT = "absent"
    PRESENT = "present"


ABSENT = Presence.ABSENT
PRESENT = Presence.PRESENT


@dataclass(frozen=True, slots=True)
class Item:
    """A key as it was read: slash-separated, without a leading slash."""

    key: str
    value: bytes
    revision: Revision


@dataclass(frozen=True, slots=True)
class Check:
    """A condition of a transaction: the key is absent, present, or still at a revision."""

    key: str
    expect: Presence | Revision


@dataclass(frozen=True, slots=True)
class Write:
    """Sets a key. A `bound` key lives and dies with the session passed to `txn`."""

    key: str
    value: bytes
    bound: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Removes a key; removing an absent key does nothing."""

    key: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything below the watched prefix: replaces whatever the watcher held before."""

    items: Mapping[str, Item]
    revision: Revision = 0
    """What `watch(since=...)` takes to go on from here; 0 where a store can't resume."""


@dataclass(frozen=True, slots=True)
class Put:
    """A key was created or changed."""

    item: Item


@dataclass(frozen=True, slots=True)
class Removal:
    """A key was deleted, at `revision` as `Snapshot` has it."""

    key: str
    revision: Revision = 0


@dataclass(frozen=True, slots=True)
class Stale:
    """The store can't be reached: what was delivered so far still holds, nothing newer is known."""

    reason: str
    anew: bool = False
    """Whether everything is read anew as soon as the watcher asks for the next event, since what
    was missed can't be told any more. That is so for every host at one moment."""


@dataclass(frozen=True, slots=True)
class Live:
    """The store answers again, and nothing was missed since the last event."""


Change: TypeAlias = Put | Removal
Event: TypeAlias = Snapshot | Put | Removal | Stale | Live


class Session(Protocol):
    """A lease: keys bound to it vanish when its owner stops keeping it alive.

    The store keeps it alive by itself until `close`.
    """

    @property
    def id(self) -> str:
        """The session's own id; never reused."""

    @property
    def valid_until(self) -> float:
        """Deadline on this process's monotonic clock up to which the session surely lives."""

    async def lost(self) -> None:
        """Returns when the session is known to have expired."""

    async def close(self) -> None:
        """Ends the session and deletes its keys. May be called twice."""


class Store(Protocol):
    """A key-value store.

    Keys are slash-separated paths without a leading slash, relative to the prefix of the store's
    URL; values are at most 64 KiB.
    """

    async def get(self, key: str) -> Item | None:
        """Reads one key, linearizably."""

    async def list(self, prefix: str) -> Mapping[str, Item]:
        """Reads every key that starts with `prefix`, by key. Not a snapshot on ZooKeeper."""

    async def txn(
        self,
        checks: Sequence[Check],
        ops: Sequence[Write | Delete],
        *,
        session: Session | None = None,
    ) -> None:
        """Applies all `ops` if all `checks` hold, else nothing; at most 32 of both together.

        Raises:
            StoreConflictError: A check failed; nothing was applied.
            StoreUnavailableError: Surely not applied.
            StoreUncertainError: Maybe applied; read before deciding.
            StoreError: Too many operations, a value over 64 KiB, or a bound key without session.
        """

    async def session(self, ttl_s: float) -> Session:
        """Opens a session that expires `ttl_s` seconds after its owner died (at least 10)."""

    def watch(self, prefix: str, *, since: Revision | None = None) -> AsyncIterator[Event]:
        """Yields a `Snapshot`, then changes in order; a new `Snapshot` after any gap.

        With `since`, the newest revision that the caller has seen, a store that still knows what
        came later begins with those changes and then says `Live`; any other begins with a
        `Snapshot` all the same.
        `Stale` is followed by whatever was missed and then by `Live`. Ends when the store closes.
        """

    async def health(self) -> Health:
        """Looks at the servers and their settings now. What is wrong is a finding, no error."""

    async def close(self) -> None:
        """Releases everything; ends watches. Sessions that are open are left to expire."""
