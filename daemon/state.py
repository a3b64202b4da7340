"""What the store says, as typed values; tells which networks became dirty.

A watch is the only way in. A `Snapshot` is applied as a difference, so that a resync is the same
code as a start. While the store is stale, everything stays as it was; a resync that would remove
more than half of something is held back for a minute (fail-static). Records that are not valid
are left out, listed in `State.invalid`, and warned of once per value.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from types import MappingProxyType
from typing import Generic, TypeVar

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import InvalidError, NotSettledError, StoreError
from pyvxlan.daemon.kv import Event, Item, Live, Put, Removal, Snapshot, Stale, Store
from pyvxlan.daemon.model import Endpoint, Host, Network

log = logging.getLogger(__name__)

T = TypeVar("T")
EVERYTHING = "*"
"""In the set of dirty networks: compare all of them."""
RETRY_S = 1.0
HOLD_S = 60.0
"""How long a mass removal that a resync brings is held back: time for every host to publish its
own records again, if the store was lost."""


class _Watched(ABC):
    """How far one watched prefix is known."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.invalid: dict[str, str] = {}
        self.held: set[str] = set()
        """Ids that a snapshot lacks, and that are kept for `HOLD_S` all the same."""
        self.synced = False
        self.stale = False

    @abstractmethod
    def holds(self, id_: str) -> bool:
        """Whether the store has a valid record of this id."""


class _Table(_Watched, Generic[T]):
    """The records below one watched prefix, by what follows the prefix in their key.

    A `guarded` table does not believe a snapshot at once that takes away most of what it has:
    rather was the store lost than the overlay.
    """

    def __init__(
        self, prefix: str, parse: Callable[[str, bytes], T], *, guarded: bool = True
    ) -> None:
        super().__init__(prefix)
        self.values: dict[str, T] = {}
        self.version = 0
        self._parse = parse
        self._guarded = guarded

    def holds(self, id_: str) -> bool:
        """Whether the store has a valid record of this id."""
        return self.synced and id_ in self.values and id_ not in self.held

    def apply(self, event: Event) -> dict[str, tuple[T | None, T | None]]:
        """Takes in an event; returns what changed as (before, after) by id."""
        match event:
            case Snapshot(items):
                found = self._take_snapshot(items)
            case Put(item):
                found = {self._id(item.key): self._read(item)}
                self.held -= found.keys()
            case Removal(key):
                self.invalid.pop(key, None)
                found = {self._id(key): None}
                self.held -= found.keys()
            case Stale() | Live():
                self.stale = isinstance(event, Stale)
                return {}
        return self._change(found)

    def sweep(self) -> dict[str, tuple[T | None, T | None]]:
        """Removes what was held back and did not return; returns it as `apply` does."""
        gone, self.held = self.held, set()
        return self._change(dict.fromkeys(gone))

    def _take_snapshot(self, items: Mapping[str, Item]) -> dict[str, T | None]:
        guarded = self._guarded and self.synced
        self.synced, self.stale = True, False
        self.invalid = {key: why for key, why in self.invalid.items() if key in items}
        found = {self._id(key): self._read(item) for key, item in items.items()}
        gone = self.values.keys() - found.keys()
        if guarded and 2 * len(gone) > len(self.values):
            self.held = set(gone)
        else:
            self.held = set()
            found |= dict.fromkeys(gone)
        return found

    def _change(self, found: Mapping[str, T | None]) -> dict[str, tuple[T | None, T | None]]:
        changes: dict[str, tuple[T | None, T | None]] = {}
        for id_, after in found.items():
            before = self.values.get(id_)
            if after == before:
                continue
            changes[id_] = (before, after)
            if after is None:
                del self.values[id_]
            else:
                self.values[id_] = after
        self.version += bool(changes)
        return changes

    def _id(self, key: str) -> str:
        return key[len(self.prefix) :]

    def _read(self, item: Item) -> T | None:
        try:
            value = self._parse(self._id(item.key), item.value)
        except InvalidError as error:
            if self.invalid.get(item.key) != str(error):
                log.warning("store record skipped key=%s cause=%s", item.key, error)
            self.invalid[item.key] = str(error)
            return None
        self.invalid.pop(item.key, None)
        return value


class State:
    """The overlay as this host sees it: all networks and hosts, endpoints of joined networks.

    Args:
        store: Where the truth is; stays the caller's to close.
        host: This host; a change to its own record marks every network dirty.
        hold_s: Seconds for which a mass removal is held back.
    """

    def __init__(self, store: Store, host: Host, *, hold_s: float = HOLD_S) -> None:
        self._hold_s = hold_s
        self.host = host
        self.dirty = asyncio.Event()
        """Set while `take_dirty` has something to give."""
        self._store = store
        self._dirty: set[str] = set()
        self._pulse = asyncio.Event()
        self._networks = _Table(records.NETWORKS, records.parse_network)
        self._hosts = _Table(records.HOSTS, records.parse_host)
        self._alive = _Table(records.ALIVE, _parse_alive, guarded=False)
        self._config = _Table(
            records.CFG, lambda _, value: records.parse_config(value), guarded=False
        )
        self._endpoints: dict[str, _Table[Endpoint]] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._stale_since: float | None = None

    async def start(self, networks: Iterable[str] = (), *, timeout_s: float = 15) -> None:
        """Begins to watch and joins `networks`; returns when all of it was read once.

        Raises:
            NotSettledError: The store did not answer in time.
        """
        self._watch(self._networks, self._network_changed)
        self._watch(self._hosts, self._host_changed)
        self._watch(self._alive, lambda _id, _before, _after: None)
        self._watch(self._config, lambda _id, _before, _after: None)
        for network_id in networks:
            self.join(network_id)
        await self.wait_for(lambda: self.synced, timeout_s=timeout_s, what="the store was read")

    async def close(self) -> None:
        """Ends all watches; what was read stays readable."""
        tasks = list(self._watches.values())
        self._watches.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def networks(self) -> Mapping[str, Network]:
        """All networks of the cluster, by id."""
        return MappingProxyType(self._networks.values)

    @property
    def hosts(self) -> Mapping[str, Host]:
        """All hosts that ever registered and were not collected, by id."""
        return MappingProxyType(self._hosts.values)

    @property
    def alive(self) -> Set[str]:
        """Ids of the hosts whose daemon holds a session now; says nothing of the data plane."""
        return self._alive.values.keys()

    @property
    def config(self) -> records.ClusterConfig:
        """The `cfg` record, or what holds without one."""
        return self._config.values.get("") or records.ClusterConfig()

    @property
    def endpoints(self) -> Mapping[str, Mapping[str, Endpoint]]:
        """Endpoints of joined networks, on all hosts: by network id, then by endpoint id."""
        return {
            network_id: MappingProxyType(table.values)
            for network_id, table in self._endpoints.items()
        }

    def version(self, network_id: str) -> int:
        """A number that changes with the endpoints of a joined network; 0 if it is not joined."""
        table = self._endpoints.get(network_id)
        return table.version if table else 0

    @property
    def invalid(self) -> Mapping[str, str]:
        """Keys whose records were left out, with the reason."""
        return {key: why for table in self._tables() for key, why in table.invalid.items()}

    @property
    def synced(self) -> bool:
        """Whether everything watched was read and the store answers."""
        return all(table.synced and not table.stale for table in self._tables())

    @property
    def stale_since(self) -> float | None:
        """When the store stopped answering, on the monotonic clock; None while it answers."""
        return self._stale_since

    def recorded(self, key: str) -> bool:
        """Whether the store has a valid record under a watched key, as far as is known.

        False for one that `networks`, `hosts` or `endpoints` still show because its removal is
        held back.
        """
        return any(
            table.holds(key.removeprefix(table.prefix))
            for table in self._tables()
            if key.startswith(table.prefix)
        )

    def joined(self, network_id: str) -> bool:
        """Whether the endpoints of a network are watched and were read."""
        table = self._endpoints.get(network_id)
        return table is not None and table.synced

    def join(self, network_id: str) -> None:
        """Begins to watch a network's endpoints; does nothing if it does already.

        The network becomes dirty when they were read; `joined` tells.
        """
        if network_id in self._endpoints:
            return
        table = _Table(
            records.endpoints_prefix(network_id), partial(records.parse_endpoint, network_id)
        )
        self._endpoints[network_id] = table
        self._watch(table, lambda _id, _before, _after: self.mark(network_id), first=network_id)

    def leave(self, network_id: str) -> None:
        """Stops watching a network's endpoints and forgets them."""
        table = self._endpoints.pop(network_id, None)
        if table and (task := self._watches.pop(table.prefix, None)):
            task.cancel()
            self.mark(network_id)

    def mark(self, network_id: str = EVERYTHING) -> None:
        """Marks a network dirty, or all of them."""
        self._dirty.add(network_id)
        self.dirty.set()

    def take_dirty(self) -> set[str]:
        """Gives the networks that changed since the last call; `"*"` stands for all."""
        taken, self._dirty = self._dirty, set()
        self.dirty.clear()
        return taken

    async def wait_for(
        self,
        predicate: Callable[[], bool],
        *,
        timeout_s: float | None = 10,
        what: str = "the store shows the change",
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

    def _tables(self) -> list[_Watched]:
        base = (self._networks, self._hosts, self._alive, self._config)
        return [*base, *self._endpoints.values()]

    def _watch(
        self,
        table: _Table[T],
        changed: Callable[[str, T | None, T | None], None],
        *,
        first: str = EVERYTHING,
    ) -> None:
        self._watches[table.prefix] = asyncio.create_task(
            self._follow(table, changed, first), name=f"watch {table.prefix}"
        )

    async def _follow(
        self,
        table: _Table[T],
        changed: Callable[[str, T | None, T | None], None],
        first: str,
    ) -> None:
        while True:
            sweep: asyncio.TimerHandle | None = None
            try:
                async for event in self._store.watch(table.prefix):
                    was_synced = table.synced
                    for id_, (before, after) in table.apply(event).items():
                        changed(id_, before, after)
                    if table.synced and not was_synced:
                        self.mark(first)
                    if not table.held:
                        _cancel(sweep)
                    elif (
                        sweep is None
                        or sweep.cancelled()
                        or sweep.when() <= asyncio.get_running_loop().time()
                    ):
                        sweep = self._hold(table, changed)
                    self._note(event)
                return
            except StoreError as error:
                table.stale = True
                self._note(Stale(str(error)))
                await asyncio.sleep(RETRY_S)
            finally:
                _cancel(sweep)

    def _hold(
        self, table: _Table[T], changed: Callable[[str, T | None, T | None], None]
    ) -> asyncio.TimerHandle:
        log.error(
            "mass removal held back prefix=%s records=%d hold_s=%g",
            table.prefix,
            len(table.held),
            self._hold_s,
        )

        def sweep() -> None:
            for id_, (before, after) in table.sweep().items():
                changed(id_, before, after)
            self._note(Live())

        return asyncio.get_running_loop().call_later(self._hold_s, sweep)

    def _note(self, event: Event) -> None:
        stale = any(table.stale for table in self._tables())
        if stale and self._stale_since is None:
            self._stale_since = time.monotonic()
            reason = event.reason if isinstance(event, Stale) else ""
            log.warning("store stale cause=%s", reason)
        elif not stale and self._stale_since is not None:
            log.info("store live stale_s=%.1f", time.monotonic() - self._stale_since)
            self._stale_since = None
        self._pulse.set()
        self._pulse = asyncio.Event()

    def _network_changed(self, id_: str, _before: Network | None, _after: Network | None) -> None:
        self.mark(id_)

    def _host_changed(self, id_: str, _before: Host | None, _after: Host | None) -> None:
        if id_ == self.host.id:
            self.mark()
        for network_id, table in self._endpoints.items():
            if any(endpoint.host_id == id_ for endpoint in table.values.values()):
                self.mark(network_id)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer:
        timer.cancel()


def _parse_alive(host_id: str, _value: bytes) -> str:
    if not records.ID.fullmatch(host_id):
        raise InvalidError(f"id is {host_id!r}")
    return host_id
