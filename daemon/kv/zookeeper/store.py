"""`ZookeeperStore`: a `Store` on ZooKeeper, through kazoo.

One link reads, writes and watches; each session has a link of its own, since ZooKeeper binds nodes
to the session that made them. `layout` says where keys lie, `transaction` what becomes of a
transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kazoo.exceptions import (
    BadVersionError,
    KazooException,
    NodeExistsError,
    NoNodeError,
)
from kazoo.protocol.serialization import Create, Exists, GetData, Sync
from kazoo.protocol.serialization import Delete as DeleteNode
from kazoo.protocol.states import ZnodeStat
from kazoo.security import OPEN_ACL_UNSAFE, make_digest_acl

from pyvxlan.daemon.errors import (
    ConfigError,
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
)
from pyvxlan.daemon.kv.health import Health
from pyvxlan.daemon.kv.lease import RENEWALS, Lease
from pyvxlan.daemon.kv.store import (
    ABSENT,
    Check,
    Delete,
    Event,
    Item,
    Live,
    Revision,
    Session,
    Snapshot,
    Stale,
    Write,
)
from pyvxlan.daemon.kv.tls import client_context
from pyvxlan.daemon.kv.url import StoreUrl, read_secret
from pyvxlan.daemon.kv.watching import ANEW, check_key, check_ttl, check_txn
from pyvxlan.daemon.kv.zookeeper.access import Access, readable, refused
from pyvxlan.daemon.kv.zookeeper.health import look
from pyvxlan.daemon.kv.zookeeper.layout import Layout, directory_of
from pyvxlan.daemon.kv.zookeeper.link import Link, SessionLostError
from pyvxlan.daemon.kv.zookeeper.transaction import PERSISTENT, Writer, nodes_to_read, plan
from pyvxlan.daemon.kv.zookeeper.tree import Tree

LINK_S = 6.0
"""Time to live of the session that reads and watches; silence is noticed after two thirds of it."""
OPEN_S = 2.0
"""How long `open` waits for a server; the store is usable without."""
SESSION_S = 5.0
"""How long a session may take to begin."""
MARGIN_S = 2.0
"""How much longer a session lives than promised: a server that fails may take the keepalives of its
last tick with it."""
USUAL_S = 15.0
"""The time to live that hosts give their sessions if nobody says otherwise."""
RETRY_S = 1.0
"""Before a watch tries again what was refused though the connection stands."""
ATTEMPTS = 16
"""How often a transaction is planned anew because others changed its keys; each was not applied."""


@dataclass(eq=False, slots=True)
class _Held:
    """A session of this store: its lease, its link, and what keeps it alive."""

    lease: Lease
    link: Link
    keeper: asyncio.Task[None]


class ZookeeperStore:
    """A `Store` on ZooKeeper; make one with `open`."""

    def __init__(self, access: Access, layout: Layout) -> None:
        self._access = access
        self._layout = layout
        self._link = Link(access, LINK_S, self._wake)
        self._held: dict[str, _Held] = {}
        self._wakes: set[asyncio.Event] = set()
        self._chores: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def open(cls, url: StoreUrl) -> ZookeeperStore:
        """Begins to connect; waits a moment for that, but needs no server to answer.

        Raises:
            ConfigError: The URL or a file that it names is not usable.
        """
        if url.prefix.split("/")[0] == "zookeeper":
            raise ConfigError(
                f"store {url}: prefix {url.prefix} begins with zookeeper, which ZooKeeper keeps "
                "for itself: choose another"
            )
        password = read_secret(url.password_file, "password") if url.password_file else None
        if url.user and ":" in url.user:
            raise ConfigError(f"store {url}: user {url.user} must not have a colon in it")
        acl = OPEN_ACL_UNSAFE
        if url.user:
            acl = [make_digest_acl(url.user, password, all=True)]
        access = Access(
            url.members,
            client_context(url),
            url.user,
            password,
            tuple(acl),
            certificate=url.cert is not None,
        )
        store = cls(access, Layout(f"/{url.prefix}"))
        store._link.start()
        await store._link.settled(OPEN_S)
        return store

    async def get(self, key: str) -> Item | None:
        """Reads one key, after a sync with the leader."""
        check_key(key)
        path = self._layout.value(key)
        _, reply = await self._link.ask(Sync(self._layout.root), GetData(path, None))
        if isinstance(reply, NoNodeError):
            return None
        value, stat = readable(reply, self._access, path)
        return Item(key, value or b"", stat.mzxid)

    async def list(self, prefix: str) -> Mapping[str, Item]:
        """Reads every key that starts with `prefix`, by key; no snapshot."""
        tree = Tree(self._link, self._layout, prefix)
        await tree.read()
        return dict(sorted(tree.items.items()))

    async def txn(
        self,
        checks: Sequence[Check],
        ops: Sequence[Write | Delete],
        *,
        session: Session | None = None,
    ) -> None:
        """Applies all `ops` if all `checks` hold, else nothing."""
        check_txn(checks, ops, session)
        link = self._link
        if session:
            held = self._held.get(session.id)
            if held is None and not self._closed:
                raise StoreConflictError(f"session {session.id} has expired")
            link = held.link if held else link
        try:
            await self._commit(link, checks, ops)
        except SessionLostError as error:
            raise StoreConflictError(
                f"session {session.id if session else ''} has expired"
            ) from error
        emptied = {op.key for op in ops if isinstance(op, Delete)}
        emptied |= {check.key for check in checks if check.expect is ABSENT}
        self._do(self._tidy({directory_of(key) for key in emptied}))

    async def session(self, ttl_s: float) -> Lease:
        """Opens a session; it is renewed until it or the store is closed."""
        check_ttl(ttl_s)
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        wake = asyncio.Event()
        wanted_s = ttl_s + MARGIN_S
        link = Link(self._access, wanted_s, wake.set, lasting=False)
        asked_at = time.monotonic()
        link.start()
        try:
            if not await link.settled(SESSION_S):
                raise StoreUnavailableError(link.reason)
            await link.ask(Exists(self._layout.root, None))
            if link.granted_s != wanted_s:
                raise StoreError(
                    f"session of {ttl_s:g} s: ZooKeeper at {self._access} grants "
                    f"{link.granted_s:g} s instead of the {wanted_s:g} s that this needs: set "
                    "minSessionTimeout and maxSessionTimeout of its zoo.cfg around them"
                )
        except SessionLostError as error:
            await link.abandon()
            raise StoreUnavailableError(link.reason) from error
        except BaseException:
            await link.abandon()
            raise
        lease = Lease(ttl_s, self._end)
        lease.renewed(asked_at, asked_at)
        keeper = asyncio.create_task(self._keep(lease, link, wake), name=f"session {lease.id}")
        self._held[lease.id] = _Held(lease, link, keeper)
        return lease

    async def watch(self, prefix: str, *, since: Revision | None = None) -> AsyncIterator[Event]:
        """Yields a `Snapshot`, then changes in order; a new `Snapshot` after any gap.

        `since` changes nothing: ZooKeeper keeps no history.
        """
        del since
        wake = asyncio.Event()
        self._wakes.add(wake)
        tree: Tree | None = None
        begun = told_stale = told_anew = False
        try:
            while not self._closed:
                wake.clear()
                try:
                    if tree is not None and tree.epoch == self._link.epoch:
                        changes = await tree.advance()
                    elif begun and self._link.connected and not told_anew:
                        told_stale = told_anew = True
                        yield Stale(ANEW, anew=True)
                        continue
                    else:
                        tree = Tree(self._link, self._layout, prefix, wake=wake)
                        await tree.read()
                        begun, told_anew = True, False
                        yield Snapshot(dict(tree.items))
                        if told_stale:
                            told_stale = False
                            yield Live()
                        continue
                except StoreUnavailableError as error:
                    tree = None
                    if (told_anew or not told_stale) and not self._closed:
                        told_stale, told_anew = True, False
                        yield Stale(str(error))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(RETRY_S):
                            await wake.wait()
                    continue
                for change in changes:
                    yield change
                if not changes:
                    await wake.wait()
        finally:
            self._wakes.discard(wake)

    async def health(self) -> Health:
        """Looks at every server, and tries what the store has to do there."""
        return await look(self._link, self._layout, USUAL_S + MARGIN_S)

    async def close(self) -> None:
        """Ends watches and connections. Sessions that are open are left to expire."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        tasks = [*self._chores, *(held.keeper for held in self._held.values())]
        for task in tasks:
            task.cancel()
        links = [self._link, *(held.link for held in self._held.values())]
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(link.abandon() for link in links))

    async def _commit(
        self, link: Link, checks: Sequence[Check], ops: Sequence[Write | Delete]
    ) -> None:
        paths = sorted(nodes_to_read(self._layout, checks, ops))
        for _ in range(ATTEMPTS):
            writer = Writer(self._layout, self._access.acl, link.session_id)
            operations = plan(checks, ops, await self._stats(link, paths), writer)
            failure = await link.commit(operations)
            if failure is None:
                return
            if isinstance(failure.error, NoNodeError):
                for name in {directory_of(entry.key) for entry in (*checks, *ops)}:
                    await self._ensure(link, self._layout.directory(name))
            elif not isinstance(failure.error, BadVersionError | NodeExistsError):
                raise refused(failure.error, self._access, failure.path)
        raise StoreUnavailableError(
            f"a transaction on {', '.join(sorted({op.key for op in ops}))} was not applied: others "
            f"changed these keys during each of {ATTEMPTS} attempts; try again"
        )

    async def _stats(self, link: Link, paths: Sequence[str]) -> Mapping[str, ZnodeStat | None]:
        """Reads the state of nodes, after a sync with the leader."""
        _, *replies = await link.ask(
            Sync(self._layout.root), *(Exists(path, None) for path in paths)
        )
        return {
            path: readable(reply, self._access, path)
            for path, reply in zip(paths, replies, strict=True)
        }

    async def _ensure(self, link: Link, path: str) -> None:
        """Makes a directory, and those above it, unless it is there.

        One that is there is not made once more: a user who may not make nodes beside it would be
        refused, instead of being told that it exists.
        """
        (stat,) = await link.ask(Exists(path, None))
        if readable(stat, self._access, path):
            return
        create = Create(path, b"", self._access.acl, PERSISTENT)
        failure = await link.commit([create])
        if failure and isinstance(failure.error, NoNodeError):
            await self._ensure(link, path.rpartition("/")[0])
            failure = await link.commit([create])
        if failure and not isinstance(failure.error, NodeExistsError):
            raise refused(failure.error, self._access, path)

    async def _tidy(self, directories: Iterable[str]) -> None:
        """Removes directories that are empty; top directories stay, they count creations."""
        for name in directories:
            empty = name
            while "/" in empty and await self._remove_if_empty(self._layout.directory(empty)):
                empty = directory_of(empty)

    async def _remove_if_empty(self, path: str) -> bool:
        try:
            (stat,) = await self._link.ask(Exists(path, None))
            if isinstance(stat, KazooException) or stat is None or stat.numChildren:
                return False
            return await self._link.commit([DeleteNode(path, -1)]) is None
        except StoreError:
            return False  # an empty directory does no harm

    def _do(self, chore: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _keep(self, lease: Lease, link: Link, wake: asyncio.Event) -> None:
        """Keeps a session alive, and its `valid_until` true, until it is lost."""
        while not link.lost:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(lease.ttl_s / RENEWALS):
                    await wake.wait()
            wake.clear()
            asked_at = time.monotonic()
            with contextlib.suppress(StoreUnavailableError, SessionLostError):
                await link.ask(Exists(self._layout.root, None))
                lease.renewed(asked_at, asked_at)
        self._held.pop(lease.id, None)
        lease.mark_lost()
        await link.abandon()

    async def _end(self, lease: Lease) -> None:
        held = self._held.pop(lease.id, None)
        if held:
            held.keeper.cancel()
            await asyncio.gather(held.keeper, return_exceptions=True)
            await held.link.end()

    def _wake(self) -> None:
        for wake in self._wakes:
            wake.set()
