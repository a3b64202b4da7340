"""`ConsulStore`: keys in Consul's key-value store, sessions in Consul's sessions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import NoReturn

from pyvxlan.daemon.errors import StoreConflictError, StoreDeniedError, StoreError
from pyvxlan.daemon.kv.consul.agents import ANSWER_S, Agents, Reply
from pyvxlan.daemon.kv.consul.feed import RETRY_S, Feed, Listing
from pyvxlan.daemon.kv.consul.health import look
from pyvxlan.daemon.kv.consul.verbs import (
    CHANGING,
    CLUSTER_KEY,
    HIDDEN,
    Verb,
    key_path,
    read_items,
    refusal,
    session_request,
    to_body,
    to_verbs,
)
from pyvxlan.daemon.kv.health import Health
from pyvxlan.daemon.kv.lease import Lease
from pyvxlan.daemon.kv.store import (
    ABSENT,
    Check,
    Delete,
    Event,
    Item,
    Revision,
    Session,
    Write,
)
from pyvxlan.daemon.kv.url import StoreUrl
from pyvxlan.daemon.kv.watching import check_key, check_ttl, check_txn

log = logging.getLogger(__name__)

WAIT_S = 60
"""How long a blocking query waits for a change; an answer without one is the whole prefix again.
An agent holds the connection of a query that was given up until that time is over, and allows 200
connections to a client (`http_max_conns_per_client`)."""
BEAT_S = 3.0
"""Between two looks whether the store answers, which a blocking query can't tell."""
LIST_S = 9.0
"""How long one agent may take for all that is below a prefix."""
FEEDS_MAX = 64
"""Prefixes that are followed one by one; further ones share wider queries."""
TTL_MAX_S = 86400.0
"""Of a session in Consul."""


class ConsulStore:
    """A `Store` in Consul; make one with `open`.

    Args:
        url: The store's URL.

    Raises:
        ConfigError: The token or a certificate can't be used.
    """

    def __init__(self, url: StoreUrl) -> None:
        self._url = url
        self._root = f"{url.prefix}/"
        self._agents = Agents(url, self._interrupt)
        self._feeds: dict[str, Feed] = {}
        self._leases: dict[Lease, asyncio.Task[None]] = {}
        self._cluster = ""
        self._index = 0
        """The highest one seen: of the newest change to any key of Consul's."""
        self._era = 0
        """Counts the stores that took each other's place."""
        self._verifying: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[NoReturn] | None = None
        self._stale = False
        self._closed = False

    @classmethod
    async def open(cls, url: StoreUrl) -> ConsulStore:
        """Makes a store; no agent need answer for that.

        Raises:
            ConfigError: The token or a certificate can't be used.
        """
        return cls(url)

    async def get(self, key: str) -> Item | None:
        """Reads one key, from a leader that was confirmed by most servers."""
        check_key(key)
        reply = await self._read(key, "consistent")
        return read_items(reply.body, self._root).get(key) if reply.status == 200 else None

    async def list(self, prefix: str) -> Mapping[str, Item]:
        """Reads every key that starts with `prefix`, by key; a snapshot."""
        return (await self._list(prefix, 0)).items

    async def txn(
        self,
        checks: Sequence[Check],
        ops: Sequence[Write | Delete],
        *,
        session: Session | None = None,
    ) -> None:
        """Applies all `ops` if all `checks` hold, else nothing."""
        check_txn(checks, ops, session)
        await self._txn(to_verbs(self._root, checks, ops, session.id if session else None))

    async def session(self, ttl_s: float) -> Lease:
        """Opens a session; it is renewed until it or the store is closed."""
        check_ttl(ttl_s)
        if ttl_s > TTL_MAX_S:
            raise StoreError(f"session of {ttl_s:g} s: at most {TTL_MAX_S:g} s in Consul")
        asked_at = time.monotonic()
        reply = await self._agents.ask("PUT", "/v1/session/create", session_request(ttl_s))
        try:
            session_id = str(json.loads(reply.body)["ID"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"answer is none of Consul's: {reply.body[:80]!r}") from error
        lease = Lease(ttl_s, self._end, session_id=session_id)
        lease.renewed(asked_at, asked_at)
        self._leases[lease] = asyncio.create_task(self._keep(lease), name=f"session {session_id}")
        self._start()
        return lease

    async def watch(
        self, prefix: str, *, since: Revision | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yields a `Snapshot`, then changes in order; a new `Snapshot` after any gap.

        Consul keeps no history, so `since` makes no difference.
        """
        if self._closed:
            return
        feed = self._feed(prefix)
        self._start()
        try:
            async with contextlib.aclosing(feed.watch(prefix)) as events:
                async for event in events:
                    yield event
        finally:
            if feed.idle and self._feeds.get(feed.prefix) is feed:
                del self._feeds[feed.prefix]
                await feed.close()

    async def health(self) -> Health:
        """Looks at every agent, the leader, the servers and what the token may do."""
        return await look(self._agents, self._url)

    async def close(self) -> None:
        """Ends watches and connections. Sessions that are open are left to expire."""
        if self._closed:
            return
        self._closed = True
        for feed in list(self._feeds.values()):
            await feed.close()
        tasks = [*self._leases.values(), self._beating, self._verifying]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._agents.close()

    async def _list(self, prefix: str, index: int) -> Listing:
        query, timeout_s = "recurse&consistent", LIST_S
        if index:
            query += f"&index={index}&wait={WAIT_S}s"
            timeout_s += WAIT_S * 17 / 16  # the server adds up to a sixteenth
        reply = await self._read(prefix, query, timeout_s)
        items = read_items(reply.body, self._root) if reply.status == 200 else {}
        return Listing(items, reply.index, len(reply.body))

    async def _read(self, key: str, query: str, timeout_s: float = ANSWER_S) -> Reply:
        """Reads below `/v1/kv`: 200, or 404 if there is nothing."""
        path = key_path(self._root, key, query)
        reply = await self._agents.ask("GET", path, timeout_s=timeout_s)
        if reply.filtered:
            # What the token may not see looks as if it had been deleted.
            raise StoreDeniedError(self._agents.denied)
        if not reply.index:
            raise StoreError(f"store {self._url}: what answers there is not Consul")
        return reply

    async def _txn(self, verbs: Sequence[Verb]) -> None:
        changes = any(verb["Verb"] in CHANGING for verb in verbs)
        path = "/v1/txn" if changes else "/v1/txn?consistent"
        reply = await self._agents.ask("PUT", path, to_body(verbs), once=changes)
        if reply.status == 409:
            raise refusal(reply.body, verbs, self._root, self._agents.denied)
        if reply.status == 404:
            raise StoreError(f"store {self._url}: what answers there is not Consul")

    def _feed(self, prefix: str) -> Feed:
        if prefix not in self._feeds and len(self._feeds) >= FEEDS_MAX:
            part, slash, _ = prefix.partition("/")
            prefix = part + slash
        if prefix not in self._feeds:
            self._feeds[prefix] = Feed(prefix, self._list, self._verify, self._restored)
        return self._feeds[prefix]

    def _start(self) -> None:
        if self._beating is None:
            self._beating = asyncio.create_task(self._beat(), name=f"store {self._url}")

    async def _beat(self) -> NoReturn:
        """Finds out when nothing answers any more, and when another store or leader does."""
        leader = b""
        while True:
            await asyncio.sleep(BEAT_S)
            if not self._feeds:
                continue
            try:
                await self._verify()
                former, leader = leader, (await self._agents.ask("GET", "/v1/status/leader")).body
            except StoreError:
                self._interrupt()
            else:
                if former not in {b"", leader}:
                    # What was passed on to the former one, which may be frozen, gets no answer.
                    self._interrupt()

    async def _verify(self) -> None:
        """Makes sure that the store answers, and notes when it is not the one that was known.

        Raises:
            StoreError: It does not answer.
        """
        if self._verifying is None or self._verifying.done():
            self._verifying = asyncio.create_task(self._identify(), name="consul verify")
            self._verifying.add_done_callback(_retrieved)
        await asyncio.shield(self._verifying)

    async def _identify(self) -> None:
        era, known = self._era, max(self._index, *(feed.index for feed in self._feeds.values()), 0)
        try:
            cluster = await self._cluster_id()
            # Nothing is there, so the index is that of the newest change to any key of Consul's.
            reply = await self._read(HIDDEN + "none", "recurse&consistent")
        except StoreError as error:
            if not self._stale:
                self._stale = True
                log.debug("store stale url=%s cause=%s", self._url, error)
            raise
        if self._stale:
            self._stale = False
            log.debug("store live url=%s", self._url)
        if era == self._era and self._cluster not in {"", cluster}:
            self._begin_anew("it was emptied, or is another one")
        elif era == self._era and reply.index < known:
            self._restored()
        self._cluster, self._index = cluster, reply.index

    async def _cluster_id(self) -> str:
        """Reads the id that the prefix was given at its first use; gives it one."""
        while True:
            reply = await self._read(CLUSTER_KEY, "raw&consistent")
            if reply.status == 200:
                return reply.body.decode(errors="replace")
            check, op = (
                Check(CLUSTER_KEY, ABSENT),
                Write(CLUSTER_KEY, secrets.token_hex(16).encode()),
            )
            with contextlib.suppress(StoreConflictError):
                await self._txn(to_verbs(self._root, [check], [op], None))

    def _restored(self) -> None:
        self._begin_anew("it went back to an older state")

    def _begin_anew(self, cause: str) -> None:
        log.warning("store replaced url=%s cause=%s", self._url, cause)
        self._index = 0
        self._era += 1
        for lease, task in self._leases.items():
            lease.mark_lost()
            task.cancel()
        self._leases.clear()
        for feed in self._feeds.values():
            feed.begin_anew()

    def _interrupt(self) -> None:
        for feed in self._feeds.values():
            feed.interrupt()

    async def _keep(self, lease: Lease) -> None:
        """Renews a session until it is lost."""
        while True:
            await asyncio.sleep(RETRY_S)
            now = time.monotonic()
            if not lease.due(now):
                continue
            path = f"/v1/session/renew/{lease.id}"
            try:
                reply = await self._agents.ask("PUT", path)
            except StoreError as error:
                log.debug("session not renewed id=%s cause=%s", lease.id, error)
                continue
            if reply.status == 404:
                del self._leases[lease]
                lease.mark_lost()
                return
            lease.renewed(now, now)

    async def _end(self, lease: Lease) -> None:
        task = self._leases.pop(lease, None)
        if task is not None:
            task.cancel()
        await self._agents.ask("PUT", f"/v1/session/destroy/{lease.id}")


def _retrieved(task: asyncio.Task[None]) -> None:
    """Marks an error as seen also when everybody who waited for it was cancelled."""
    if not task.cancelled():
        task.exception()
