"""What the store says, as typed values; tells which networks became dirty.

A watch is the only way in, and a start, a change and a resync are one piece of code (`following`).
What is known is mirrored to this host's disk: a start without the store goes on from there. While
the store is stale, everything stays as it was. Records that are not valid are left out, listed in
`State.invalid`, and warned of once per value.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import (
    InvalidError,
    NotSettledError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.following import HOLD_S, SETTLE_S, Follower
from pyvxlan.daemon.kv import Store
from pyvxlan.daemon.kv.mirror import Mirror
from pyvxlan.daemon.kv.store import Revision
from pyvxlan.daemon.model import Address, Endpoint, Host, Network
from pyvxlan.daemon.tables import Dated, Table, Watched

log = logging.getLogger(__name__)

T = TypeVar("T")
EVERYTHING = "*"
"""In the set of dirty networks: compare all of them."""
START_S = 3.0
"""How long a start waits for the store before it goes on from the mirror."""
ANSWER_S = 0.25
"""How long a reader waits before it looks whether the store answers at all, and for that answer."""
SILENT_S = 1.5
"""For how long, from its question on, a silent store is not asked by other readers."""


class State:
    """The overlay as this host sees it: all networks and hosts, endpoints of joined networks.

    Args:
        store: Where the truth is; stays the caller's to close.
        host: This host; a change to its own record marks every network dirty.
        mirror: What an earlier process knew, and where to note what is known; the caller's too.
        events: Where changes are noted for people.
        hold_s: Seconds for which a removal is held back if the store looks lost.
        settle_s: The same if it does not.
        wide: Tells whether one watch of all endpoints costs the store no more than many of some.
    """

    def __init__(
        self,
        store: Store,
        host: Host,
        mirror: Mirror | None = None,
        *,
        events: Events | None = None,
        hold_s: float = HOLD_S,
        settle_s: float = SETTLE_S,
        wide: Callable[[], bool] = lambda: False,
    ) -> None:
        self.host = host
        self._store = store
        self._silent_since = float("-inf")
        """When a reader last asked in vain, on the monotonic clock."""
        self.dirty = asyncio.Event()
        """Set while `take_dirty` has something to give."""
        self.dirty_since = float("-inf")
        """When the oldest of it became dirty, on the monotonic clock."""
        self._mirror = mirror
        self._cluster = mirror.cluster if mirror else ""
        self._dirty: set[str] = set()
        self._removed = Table(records.GONE, records.parse_gone)
        self._networks = Dated(
            records.NETWORKS, records.parse_network, removed=self._removed.values
        )
        self._hosts = Table(records.HOSTS, records.parse_host)
        self._alive = Table(records.ALIVE, _parse_alive, guarded=False)
        self._config = Table(records.CFG, lambda _, value: (records.parse_config(value), value))
        self._base: Mapping[str, Watched] = {
            "net": self._networks,
            "host": self._hosts,
            "alive": self._alive,
            "cfg": self._config,
            "gone": self._removed,
        }
        self._endpoints: dict[str, Table[Endpoint]] = {}
        self._taken: dict[str, Counter[Address]] = {}
        """By network, of those that somebody asked for: few hosts make endpoints everywhere."""
        self._unnamed: set[str] = set()
        """Hosts that are up, and whose records another watch is about to show."""
        self._returned: tuple[int, int, Set[str]] = (0, 0, frozenset())
        self._departed: set[str] = set()
        """Networks to leave as soon as the store answers."""
        self._hold_s = hold_s
        self._events = events or Events()
        self._lost_at = float("-inf")
        """When this host's own record was last missing, on the monotonic clock."""
        self._follower = Follower(
            store,
            mirror,
            lost=self._looks_lost,
            hosts=lambda: len(self._hosts.values),
            kind=records.ENDPOINTS,
            whole=lambda: len(self._networks.values) if wide() else None,
            live=self._leave_departed,
            events=self._events,
            news=self._tell,
            hold_s=hold_s,
            settle_s=settle_s,
        )

    async def start(self, networks: Iterable[str] = (), *, timeout_s: float = START_S) -> bool:
        """Begins to watch and joins `networks`; tells whether all of it was read in time.

        What an earlier process knew is there at once.
        """
        follow = self._follower.follow
        follow(self._networks, self._network_changed, self._networks_known)
        follow(self._hosts, self._host_changed, self.mark)
        follow(self._alive, _ignore, self.mark)
        follow(self._config, _ignore, self.mark)
        follow(self._removed, self._removal_noted, self.mark)
        for network_id in networks:
            self.join(network_id)
        self._follower.drop_others()
        try:
            await self.wait_for(lambda: self.synced, timeout_s=timeout_s)
        except NotSettledError:
            return False
        return True

    async def close(self) -> None:
        """Ends all watches; what was read stays readable."""
        await self._follower.close()

    @property
    def networks(self) -> Mapping[str, Network]:
        """All networks of the cluster, by id."""
        return MappingProxyType(self._networks.values)

    def network_at(self, network_id: str) -> tuple[Network, Revision] | None:
        """A network and its revision as the watch told them last; None while it is not in step."""
        network = self._networks.values.get(network_id)
        revision = self._networks.revisions.get(network_id)
        if network is None or revision is None or not self._networks.fresh:
            return None
        return network, revision

    @property
    def networks_version(self) -> int:
        """A number that changes with the networks, and when the store is read or lost."""
        return 2 * self._networks.version + self.synced

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
        found = self._config.values.get("")
        return found[0] if found else records.ClusterConfig()

    @property
    def lost_config(self) -> bytes | None:
        """The `cfg` record, as it was written, if the store lacks it of late."""
        return self._config.values[""][1] if self._config.held else None

    @property
    def removed(self) -> Mapping[str, records.Gone]:
        """Networks that were removed within the last day or so, by id."""
        return MappingProxyType(self._removed.values)

    @property
    def returned(self) -> Set[str]:
        """Ids of networks that are known to be removed, and that an old store has brought back."""
        networks, removed, found = self._returned
        if (networks, removed) != (self._networks.version, self._removed.version):
            found = self._networks.values.keys() & self._removed.values.keys()
            self._returned = (self._networks.version, self._removed.version, found)
        return {id_ for id_ in found if self._networks.holds(id_)}

    @property
    def endpoints(self) -> Mapping[str, Mapping[str, Endpoint]]:
        """Endpoints of joined networks, on all hosts: by network id, then by endpoint id."""
        return {
            network_id: MappingProxyType(table.values)
            for network_id, table in self._endpoints.items()
        }

    def endpoint(self, network_id: str, endpoint_id: str) -> Endpoint | None:
        """One endpoint of a joined network, or None if there is none."""
        table = self._endpoints.get(network_id)
        return table.values.get(endpoint_id) if table else None

    def doubled(self, network_id: str) -> Set[str]:
        """Ids of endpoints of a joined network whose name, address or MAC another has too."""
        table = self._endpoints.get(network_id)
        owners: dict[str, str] = {}
        found: set[str] = set()
        for endpoint in table.values.values() if table else ():
            for claim in records.endpoint_claims(endpoint):
                if (owner := owners.setdefault(claim, endpoint.id)) != endpoint.id:
                    found |= {owner, endpoint.id}
        return found

    def taken(self, network_id: str) -> Set[Address]:
        """Addresses that endpoints of a network hold, as far as is known: a live view.

        Of a network that is not joined, none is known.
        """
        table = self._endpoints.get(network_id)
        if table is None:
            return frozenset()
        if network_id not in self._taken:
            of_all = (one.addresses for one in table.values.values())
            self._taken[network_id] = Counter(one.ip for of_one in of_all for one in of_one)
        return self._taken[network_id].keys()

    def version(self, network_id: str) -> int:
        """A number that changes with the endpoints of a joined network; 0 if it is not joined."""
        table = self._endpoints.get(network_id)
        return table.version if table else 0

    @property
    def invalid(self) -> Mapping[str, str]:
        """Keys whose records were left out, with the reason."""
        return {key: why for table in self._tables for key, why in table.invalid.items()}

    @property
    def held(self) -> int:
        """How many records the store lacks that are kept until that is sure."""
        return sum(len(table.held) for table in self._tables)

    @property
    def known(self) -> bool:
        """Whether the cluster's networks and hosts were read, by this process or one before."""
        return all(table.known for table in self._base.values())

    @property
    def synced(self) -> bool:
        """Whether everything watched was read and the store answers."""
        return self._follower.synced

    @property
    def stale_since(self) -> float | None:
        """Since when this may be out of date, on the monotonic clock; None while it is not."""
        return self._follower.stale_since

    @property
    def silent_since(self) -> float | None:
        """Since when readers get what is remembered; may be before `stale_since` is told."""
        silent = time.monotonic() - self._silent_since < SILENT_S
        return self._silent_since if silent and self.stale_since is None else self.stale_since

    @property
    def left_step_s(self) -> float | None:
        """When this was last in step, by the wall clock; None while it is, or if it never was."""
        return self._follower.left_step_s

    @property
    def stale_reason(self) -> str:
        """Why the store does not answer, as far as is known."""
        return self._follower.stale_reason

    @property
    def resyncs(self) -> Mapping[str, int]:
        """How often a prefix was taken up again, by reason (`following.REASONS`)."""
        return self._follower.resyncs

    def recorded(self, key: str) -> bool:
        """Whether the store has a valid record under a watched key, as far as is known.

        False for one that `networks`, `hosts` or `endpoints` still show because its removal is
        held back.
        """
        kind, _, id_ = key.partition("/")
        table: Watched | None = self._base.get(kind)
        if kind == "ep":
            network_id, _, id_ = id_.partition("/")
            table = self._endpoints.get(network_id)
        return table is not None and table.holds(id_)

    def joined(self, network_id: str) -> bool:
        """Whether the endpoints of a network are watched and known."""
        table = self._endpoints.get(network_id)
        return table is not None and table.known

    def join(self, network_id: str) -> None:
        """Begins to watch a network's endpoints; does nothing if it does already.

        The network becomes dirty when they were read; `joined` tells.
        """
        self._departed.discard(network_id)
        if network_id in self._endpoints:
            return
        table = Table(
            records.endpoints_prefix(network_id), partial(records.parse_endpoint, network_id)
        )
        self._endpoints[network_id] = table

        def changed(_id: str, before: Endpoint | None, after: Endpoint | None) -> None:
            if (taken := self._taken.get(network_id)) is not None:
                for address in before.addresses if before else ():
                    taken[address.ip] -= 1
                    if not taken[address.ip]:
                        del taken[address.ip]
                taken.update(address.ip for address in (after.addresses if after else ()))
            self.mark(network_id)

        self._follower.follow(table, changed, partial(self.mark, network_id))

    def leave(self, network_id: str) -> None:
        """Stops watching a network's endpoints and forgets them.

        While the store is away they are kept, since they could not be read again.
        """
        if self.stale_since is not None:
            self._departed.add(network_id)
        elif table := self._endpoints.pop(network_id, None):
            self._taken.pop(network_id, None)
            self._follower.drop(table.prefix)
            self.mark(network_id)

    def mark(self, network_id: str = EVERYTHING) -> None:
        """Marks a network dirty, or all of them."""
        if not self._dirty:
            self.dirty_since = time.monotonic()
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
        await self._follower.wait_for(predicate, timeout_s=timeout_s, what=what)

    async def recall(self, fresh: Callable[[], Awaitable[T]], remembered: Callable[[], T]) -> T:
        """Gives what the store says now, or what is remembered if it does not answer.

        A watch takes some seconds to tell that a store is silent; no reader waits for that.

        Raises:
            StoreError: It does not answer, and there is nothing to remember.
        """
        if not self.known:
            return await fresh()
        if self.silent_since is None:
            with contextlib.suppress(StoreUnavailableError, StoreUncertainError):
                return await self._answer(fresh)
        return remembered()

    async def _answer(self, fresh: Callable[[], Awaitable[T]]) -> T:
        """Waits for the store's answer for as long as it answers anything.

        Raises:
            StoreUnavailableError: It does not.
        """
        asked_at = time.monotonic()
        asked = asyncio.ensure_future(fresh())
        try:
            while not (await asyncio.wait({asked}, timeout=ANSWER_S))[0]:
                # It may be a long list. One key is told at once by all that are there.
                async with asyncio.timeout(ANSWER_S):
                    await self._store.get(records.META)
        except (StoreError, TimeoutError) as error:
            self._silent_since = asked_at
            raise StoreUnavailableError("the store does not answer") from error
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        return asked.result()

    def arrange_watches(self) -> None:
        """Looks again how endpoints are best watched: the store is another one."""
        self._follower.arrange()

    def note_cluster(self, cluster: str) -> None:
        """Takes note of the cluster that the store belongs to; another one is listed anew."""
        if self._cluster and self._cluster != cluster:
            self._follower.check()
        self._cluster = cluster
        if self._mirror:
            self._mirror.remember_cluster(cluster)

    @property
    def _tables(self) -> Sequence[Watched]:
        return self._follower.tables

    def _looks_lost(self) -> bool:
        """Whether the store lacked of late what it can't: own records, notes of removals."""
        if (
            self.host.id in self._hosts.held
            or self._removed.held
            or any(
                table.values[id_].host_id == self.host.id
                for table in self._endpoints.values()
                for id_ in table.held
            )
        ):
            self._lost_at = time.monotonic()
        return time.monotonic() - self._lost_at < self._hold_s

    def _leave_departed(self) -> None:
        departed, self._departed = self._departed, set()
        for network_id in departed:
            self.leave(network_id)

    def _tell(self, before: object, after: object) -> None:
        """Notes what came and what went; this host's endpoints tell of themselves (`local`)."""
        match before, after:
            case (Endpoint(host_id=self.host.id), None) | (None, Endpoint(host_id=self.host.id)):
                return
            case None, Network(name=name):
                self._events.note("network_added", name)
            case Network(name=name), None:
                self._events.note("network_removed", name)
            case None, Endpoint() as endpoint:
                self._events.note("endpoint_added", self._described(endpoint))
            case Endpoint() as endpoint, None:
                self._events.note("endpoint_removed", self._described(endpoint))
            case None, str(host_id) if host_id not in self._hosts.values:
                self._unnamed.add(host_id)
            case None, str(host_id):
                self._events.note("host_up", self._host_name(host_id))
            case None, Host(id=host_id, name=name) if host_id in self._unnamed:
                self._unnamed.remove(host_id)
                self._events.note("host_up", name)
            case str(host_id), None:
                self._unnamed.discard(host_id)
                self._events.note("host_down", self._host_name(host_id))
            case Host(name=name), None:
                self._events.note("host_removed", name)

    def _described(self, endpoint: Endpoint) -> str:
        network = self._networks.values.get(endpoint.network_id)
        return (
            f"{endpoint.name or endpoint.id[:12]} on "
            f"{network.name if network else endpoint.network_id[:12]}, "
            f"host {self._host_name(endpoint.host_id)}"
        )

    def _host_name(self, host_id: str) -> str:
        host = self.host if host_id == self.host.id else self._hosts.values.get(host_id)
        return host.name if host else host_id[:12]

    def _networks_known(self) -> None:
        self.mark()
        self._follower.arrange()

    def _network_changed(self, id_: str, _before: Network | None, _after: Network | None) -> None:
        self.mark(id_)

    def _removal_noted(self, id_: str, _before: object, after: records.Gone | None) -> None:
        if after is not None:
            self._follower.believe(self._networks, id_)

    def _host_changed(self, id_: str, before: Host | None, after: Host | None) -> None:
        if id_ == self.host.id:
            if before == self.host != after:
                self._lost_at = time.monotonic()
            self.mark()
        if (before and before.vtep) == (after and after.vtep):
            return
        if after and after.vtep.version != self.host.vtep.version:
            log.warning(
                "vteps of two IP versions host=%s vtep=%s own=%s: no tunnel joins them; start the "
                "daemons with --advertise and addresses of one IP version",
                after.name,
                after.vtep,
                self.host.vtep,
            )
        if EVERYTHING in self._dirty:
            return
        for network_id, table in self._endpoints.items():
            if any(endpoint.host_id == id_ for endpoint in table.values.values()):
                self.mark(network_id)


def _ignore(_id: str, _before: object, _after: object) -> None:
    """Takes note of a change that nothing follows from."""


def _parse_alive(host_id: str, _value: bytes) -> str:
    if not records.ID.fullmatch(host_id):
        raise InvalidError(f"id is {host_id!r}")
    return host_id
