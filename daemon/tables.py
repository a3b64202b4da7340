"""What is known of the records below one watched prefix; pure.

A `Snapshot` is applied as a difference. What it lacks is not believed to be gone at once: rather
was the store lost, or put back from an old copy, than the overlay. Such records are held, and only
go when a later snapshot lacks them too. A removal that the watch itself tells is believed, unless
whoever removes such a record leaves a note of that and there is none; and so is one that a note
tells of.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from typing import Generic, TypeAlias, TypeVar

from pyvxlan.daemon.errors import InvalidError
from pyvxlan.daemon.kv import Event, Live, Put, Removal, Snapshot, Stale
from pyvxlan.daemon.kv.store import Revision
from pyvxlan.daemon.records import newer_version

log = logging.getLogger(__name__)

T = TypeVar("T")
Changes: TypeAlias = Mapping[str, tuple[T | None, T | None]]
"""What changed, as (before, after) by id."""
SMALL = 4
"""Up to so many records, losing most of them is an ordinary thing."""
REMEMBERED = 256
"""So many of the ids that went last are remembered."""


class Watched(ABC):
    """How far one watched prefix is known."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.invalid: dict[str, str] = {}
        """Keys of records that are not valid, with the reason."""
        self.held: set[str] = set()
        """Ids that the store lacks and that are kept all the same."""
        self.mass = False
        """Whether what is held is most of a table that is not small."""
        self.doubted: set[str] = set()
        """Ids that go if the next snapshot lacks them again."""
        self.known = False
        """Whether there is something to go by: it was read, now or by an earlier process."""
        self.stale = False
        """Whether the store may say something else by now."""
        self.revision: Revision | None = None
        """Where a watch can go on from."""

    @property
    def fresh(self) -> bool:
        """Whether this is what the store says now."""
        return self.known and not self.stale

    @abstractmethod
    def holds(self, id_: str) -> bool:
        """Whether the store has a valid record of this id, as far as is known."""


class Table(Watched, Generic[T]):
    """The records below one watched prefix, by what follows the prefix in their key.

    Args:
        prefix: Ends with a slash, or is a whole key.
        parse: Reads a record from its id and value, or raises `InvalidError`.
        guarded: Whether records that a snapshot lacks are held at first.
        removed: Ids of which it is noted that somebody removed the record: never held. None if no
            such notes are made.
    """

    def __init__(
        self,
        prefix: str,
        parse: Callable[[str, bytes], T],
        *,
        guarded: bool = True,
        removed: Container[str] | None = None,
    ) -> None:
        super().__init__(prefix)
        self.values: dict[str, T] = {}
        """By id, in the order in which they were first seen: what an old copy of the store brings
        back stands before what came after it."""
        self.version = 0
        """Changes with `values`."""
        self._parse = parse
        self._guarded = guarded
        self._removed = removed
        self._gone: dict[str, None] = {}

    def holds(self, id_: str) -> bool:
        """Whether the store has a valid record of this id, as far as is known."""
        return self.known and id_ in self.values and id_ not in self.held

    def restore(self, items: Mapping[str, bytes], revision: Revision | None) -> Changes[T]:
        """Takes what an earlier process knew, by key; stale until the store tells more."""
        self.known, self.stale, self.revision = True, True, revision
        return self._change({self._id(key): self._read(key, items[key]) for key in items})

    def apply(self, event: Event) -> Changes[T]:
        """Takes in an event; tells what changed."""
        match event:
            case Snapshot(items, revision):
                found = self._take_snapshot({key: item.value for key, item in items.items()})
                self.revision = revision or None
            case Put(item):
                found = {self._id(item.key): self._read(item.key, item.value)}
                self._advance(item.revision)
                self.held -= found.keys()
            case Removal(key, revision):
                self.invalid.pop(key, None)
                self._advance(revision)
                if self._lacks_note(self._id(key)):
                    self._hold(self.held | {self._id(key)})
                    return {}
                found = {self._id(key): None}
                self.held -= found.keys()
            case Stale():
                self.stale, self.doubted = True, set()
                return {}
            case Live():
                self.stale = False
                return {}
        return self._change(found)

    def believe(self, id_: str) -> Changes[T]:
        """Lets go of a record if it is held; tells what changed."""
        if id_ not in self.held:
            return {}
        self.held.remove(id_)
        return self._change({id_: None})

    def _take_snapshot(self, items: Mapping[str, bytes]) -> dict[str, T | None]:
        self.invalid = {key: why for key, why in self.invalid.items() if key in items}
        found = {self._id(key): self._read(key, value) for key, value in items.items()}
        gone = self.values.keys() - found.keys()
        doubtful = gone - self.doubted if self._guarded and self.known else set()
        self._hold({id_ for id_ in doubtful if id_ not in (self._removed or ())})
        self.doubted = set()
        self.known, self.stale = True, False
        return found | dict.fromkeys(gone - self.held)

    def _lacks_note(self, id_: str) -> bool:
        """Whether a record was deleted by hand, or the note of its removal is still on its way."""
        return self._removed is not None and id_ in self.values and id_ not in self._removed

    def _hold(self, ids: set[str]) -> None:
        self.held = ids
        self.mass = len(self.values) > SMALL and 2 * len(ids) > len(self.values)

    def _advance(self, revision: Revision) -> None:
        """Notes how far the watch has come, in a store that can go on from there."""
        if self.revision is not None:
            self.revision = revision

    def _change(self, found: Mapping[str, T | None]) -> Changes[T]:
        changes: dict[str, tuple[T | None, T | None]] = {}
        for id_, after in found.items():
            before = self.values.get(id_)
            if after == before:
                continue
            changes[id_] = (before, after)
            if after is None:
                del self.values[id_]
                self._note_gone(id_)
            elif id_ in self._gone:
                del self._gone[id_]
                later = self.values.copy()
                self.values.clear()
                self.values |= {id_: after} | later
            else:
                self.values[id_] = after
        self.version += bool(changes)
        return changes

    def _note_gone(self, id_: str) -> None:
        self._gone[id_] = None
        if len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]

    def _id(self, key: str) -> str:
        return key[len(self.prefix) :]

    def _read(self, key: str, value: bytes) -> T | None:
        try:
            parsed = self._parse(self._id(key), value)
        except InvalidError as error:
            if self.invalid.get(key) != str(error):
                remedy = (
                    "a newer pyvxlan has written it, upgrade this one"
                    if newer_version(value)
                    else "correct or remove it; if it is not pyvxlan's, give the store's URL a "
                    "prefix of its own"
                )
                log.warning("store record skipped key=%s cause=%s: %s", key, error, remedy)
            self.invalid[key] = str(error)
            return None
        self.invalid.pop(key, None)
        return parsed


class Dated(Table[T]):
    """A table that also knows at which revision each record is, as far as the watch has told."""

    def __init__(
        self,
        prefix: str,
        parse: Callable[[str, bytes], T],
        *,
        guarded: bool = True,
        removed: Container[str] | None = None,
    ) -> None:
        super().__init__(prefix, parse, guarded=guarded, removed=removed)
        self.revisions: dict[str, Revision] = {}

    def apply(self, event: Event) -> Changes[T]:
        """Takes in an event; tells what changed."""
        match event:
            case Snapshot(items):
                self.revisions = {self._id(key): item.revision for key, item in items.items()}
            case Put(item):
                self.revisions[self._id(item.key)] = item.revision
            case Removal(key):
                self.revisions.pop(self._id(key), None)
            case Stale() | Live():
                pass
        return super().apply(event)
