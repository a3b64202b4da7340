"""`Tree`: what one watch sees, kept current by ZooKeeper's one-shot watches.

A watch is set with the same read that gives what it watches, so nothing is missed between the two:
on each directory for what comes and goes, on each value for what it becomes. A watch that fired
only says where to read again; what changed in the meantime is in that reading, so changes coalesce.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from kazoo.exceptions import NoNodeError
from kazoo.protocol.serialization import Exists, GetChildren, GetData, Sync
from kazoo.protocol.states import EventType, WatchedEvent

from pyvxlan.daemon.kv.store import Change, Item, Put, Removal
from pyvxlan.daemon.kv.zookeeper.access import readable
from pyvxlan.daemon.kv.zookeeper.layout import VALUE, Layout, directory_of, joined, parted
from pyvxlan.daemon.kv.zookeeper.link import Link

T = TypeVar("T")
READS_MAX = 500
"""How many reads are sent at once; a transaction waits for no more than these."""


class Tree:
    """Everything below a prefix, as it was read last.

    Args:
        link: Where to read.
        prefix: Taken literally: `net` has `net`, `net/a` and `network`.
        wake: Set when there is something new to read, if the tree is watched.
    """

    def __init__(
        self, link: Link, layout: Layout, prefix: str, *, wake: asyncio.Event | None = None
    ) -> None:
        self.items: dict[str, Item] = {}
        self.epoch = link.epoch
        """Of the link when it was read: the watches are gone with the connection."""
        self._link = link
        self._layout = layout
        self._prefix = prefix
        self._base = directory_of(prefix)
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._directories: dict[str, set[str]] = {}
        """The names of what each directory holds, of what is below the prefix."""
        self._dirty_directories: set[str] = {self._base}
        self._dirty_keys: set[str] = set()

    async def read(self) -> None:
        """Reads everything, as it is at all servers by now.

        Raises:
            StoreUnavailableError: It can't be read; the tree is of no use.
        """
        await self._link.ask(Sync(self._layout.root))
        await self.advance()

    async def advance(self) -> Sequence[Change]:
        """Reads what the watches told of; gives what changed by it: additions, then removals."""
        changes: dict[str, Change] = {}
        while self._dirty_directories or self._dirty_keys:
            directories, self._dirty_directories = self._dirty_directories, set()
            keys, self._dirty_keys = self._dirty_keys, set()
            keys |= await self._read_directories(sorted(directories), changes)
            await self._read_values(sorted(keys), changes)
        puts = [change for change in changes.values() if isinstance(change, Put)]
        removals = [change for change in changes.values() if isinstance(change, Removal)]
        return [*sorted(puts, key=lambda put: put.item.revision), *removals]

    async def _read_directories(
        self, directories: Sequence[str], changes: dict[str, Change]
    ) -> set[str]:
        """Reads what directories hold; gives the keys that are new."""
        new_keys: set[str] = set()
        for part in _parts(directories):
            replies = await self._link.ask(
                *(
                    GetChildren(self._layout.directory(name), self._watcher(self._directory, name))
                    for name in part
                )
            )
            for name, reply in zip(part, replies, strict=True):
                if isinstance(reply, NoNodeError):
                    self._forget_directory(name, changes)
                    if name == self._base:
                        await self._await_base()
                    continue
                children = set(readable(reply, self._link.access, self._layout.directory(name)))
                before = self._directories.get(name, set())
                self._directories[name] = children
                for child in before - children:
                    is_value, leaf = parted(child)
                    if is_value:
                        self._forget(joined(name, leaf), changes)
                for child in children - before:
                    is_value, leaf = parted(child)
                    key = joined(name, leaf)
                    if is_value and key.startswith(self._prefix):
                        new_keys.add(key)
                    elif not is_value and _may_hold(key, self._prefix):
                        self._dirty_directories.add(key)
        return new_keys

    async def _read_values(self, keys: Sequence[str], changes: dict[str, Change]) -> None:
        for part in _parts(keys):
            replies = await self._link.ask(
                *(GetData(self._layout.value(key), self._watcher(self._key, key)) for key in part)
            )
            for key, reply in zip(part, replies, strict=True):
                if isinstance(reply, NoNodeError):
                    self._forget(key, changes)
                    continue
                value, stat = readable(reply, self._link.access, self._layout.value(key))
                item = Item(key, value or b"", stat.mzxid)
                if self.items.get(key) != item:
                    self.items[key] = item
                    changes[key] = Put(item)

    async def _await_base(self) -> None:
        """Watches for the directory of the prefix, which is not there; looks again if it is."""
        path = self._layout.directory(self._base)
        watcher = self._watcher(self._directory, self._base)
        if watcher is None:
            return
        (reply,) = await self._link.ask(Exists(path, watcher))
        if readable(reply, self._link.access, path):
            self._dirty_directories.add(self._base)

    def _forget_directory(self, name: str, changes: dict[str, Change]) -> None:
        for child in self._directories.pop(name, ()):
            is_value, leaf = parted(child)
            if is_value:
                self._forget(joined(name, leaf), changes)

    def _forget(self, key: str, changes: dict[str, Change]) -> None:
        directory, _, leaf = key.rpartition("/")
        self._directories.get(directory, set()).discard(VALUE + leaf)  # new if it comes back
        if self.items.pop(key, None):
            changes[key] = Removal(key)

    def _watcher(
        self, note: Callable[[str], None], name: str
    ) -> Callable[[WatchedEvent], None] | None:
        """What kazoo calls in its thread when a watch fires; None if the tree is not watched."""
        if self._wake is None:
            return None
        return partial(self._fired, note, name)

    def _fired(self, note: Callable[[str], None], name: str, event: WatchedEvent) -> None:
        if event.type == EventType.NONE:
            return  # the connection is gone, and the tree with it
        try:
            self._loop.call_soon_threadsafe(note, name)
        except RuntimeError:  # the loop was closed under a store left open
            return

    def _directory(self, name: str) -> None:
        self._dirty_directories.add(name)
        self._rouse()

    def _key(self, key: str) -> None:
        self._dirty_keys.add(key)
        self._rouse()

    def _rouse(self) -> None:
        if self._wake:
            self._wake.set()


def _may_hold(directory: str, prefix: str) -> bool:
    """Whether keys that start with `prefix` can lie in a directory or below it."""
    return f"{directory}/".startswith(prefix)


def _parts(names: Sequence[str]) -> Iterable[Sequence[str]]:
    for start in range(0, len(names), READS_MAX):
        yield names[start : start + READS_MAX]
