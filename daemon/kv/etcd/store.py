"""`EtcdStore`: keys and transactions; the rest is made of its parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence

from pyvxlan.daemon.errors import StoreConflictError
from pyvxlan.daemon.kv.etcd import messages as pb
from pyvxlan.daemon.kv.etcd.answers import CompactedError
from pyvxlan.daemon.kv.etcd.channel import EtcdChannel
from pyvxlan.daemon.kv.etcd.health import examine
from pyvxlan.daemon.kv.etcd.keys import Keys
from pyvxlan.daemon.kv.etcd.sessions import Sessions
from pyvxlan.daemon.kv.etcd.watch import WatchStream
from pyvxlan.daemon.kv.health import Health
from pyvxlan.daemon.kv.lease import Lease
from pyvxlan.daemon.kv.store import (
    ABSENT,
    PRESENT,
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

PAGE = 5000
"""How many records are read in one piece."""
LIST_S, LIST_ATTEMPT_S = 9.0, 5.0
LISTS_AT_ONCE = 4
"""So that a host that reads everything anew leaves etcd time for others."""


class EtcdStore:
    """A `Store` in etcd; make one with `open`."""

    def __init__(self, channel: EtcdChannel) -> None:
        self._channel = channel
        self._keys = Keys(channel.url.prefix)
        self._sessions = Sessions(channel, self._keys)
        self._watches = WatchStream(channel, self._keys, self._read_all)
        self._listing = asyncio.Semaphore(LISTS_AT_ONCE)
        channel.replaced = self._replaced

    @classmethod
    async def open(cls, url: StoreUrl) -> EtcdStore:
        """Prepares the connection; no server need answer yet.

        Raises:
            ConfigError: A file that the URL names can't be used.
        """
        return cls(EtcdChannel(url))

    async def get(self, key: str) -> Item | None:
        """Reads one key, linearizably."""
        check_key(key)
        answer = await self._range(pb.RangeRequest(key=self._keys.key(key)))
        return self._keys.item(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Mapping[str, Item]:
        """Reads every key that starts with `prefix`, by key; a snapshot."""
        items, _ = await self._read_all(prefix)
        return items

    async def txn(
        self,
        checks: Sequence[Check],
        ops: Sequence[Write | Delete],
        *,
        session: Session | None = None,
    ) -> None:
        """Applies all `ops` if all `checks` hold, else nothing; on most members' disks then."""
        check_txn(checks, ops, session)
        lease_id = int(session.id, 16) if session else 0
        compare = [self._compare(check) for check in checks]
        if session:
            compare.append(_present(self._keys.session(session.id)))
        success = [self._op(op, lease_id) for op in ops]
        if not success:
            # Without an operation etcd would answer from what one member knows.
            key = self._keys.key("")
            success.append(pb.RequestOp(request_range=pb.RangeRequest(key=key, count_only=True)))
        request = pb.TxnRequest(compare=compare, success=success)
        answer = await self._channel.call(pb.TXN, request, repeatable=not ops)
        if not answer.succeeded:
            keys = ", ".join(check.key for check in checks)
            owner = f", or session {session.id} has expired" if session else ""
            raise StoreConflictError(f"not as expected: {keys}{owner}")

    async def session(self, ttl_s: float) -> Lease:
        """Opens a session; it is renewed until it or the store is closed."""
        check_ttl(ttl_s)
        return await self._sessions.open(ttl_s)

    def watch(self, prefix: str, *, since: Revision | None = None) -> AsyncIterator[Event]:
        """Yields a `Snapshot`, then changes in order; a new `Snapshot` after any gap."""
        return self._watches.watch(prefix, since)

    async def health(self) -> Health:
        """Looks at every member."""
        return await examine(self._channel, self._keys)

    async def close(self) -> None:
        """Ends watches. Sessions that are open are left to expire."""
        await self._sessions.close()
        await self._watches.close()
        await self._channel.close()

    async def _range(self, request: pb.Message) -> pb.Message:
        if not request.range_end:
            return await self._channel.call(pb.RANGE, request, repeatable=True)
        return await self._channel.call(
            pb.RANGE, request, repeatable=True, within_s=LIST_S, attempt_s=LIST_ATTEMPT_S
        )

    async def _read_all(self, prefix: str) -> tuple[Mapping[str, Item], Revision]:
        """Reads a prefix at one revision: a large one as sixteen ranges, since pages are slow.

        etcd counts the rest of the range for every page, so that pages take quadratic time.
        """
        async with self._listing:
            while True:
                try:
                    return await self._read_once(prefix)
                except CompactedError:
                    log.info("list begins anew prefix=%s cause=compacted meanwhile", prefix)

    async def _read_once(self, prefix: str) -> tuple[Mapping[str, Item], Revision]:
        start, end = self._keys.below(prefix)
        first = await self._range(pb.RangeRequest(key=start, range_end=end, limit=PAGE))
        revision = first.header.revision
        answers = [first]
        if first.more:
            requests = [
                pb.RangeRequest(key=start, range_end=end, revision=revision)
                for start, end in self._keys.parts(prefix)
            ]
            answers = await asyncio.gather(*map(self._range, requests))
        items = (self._keys.item(record) for answer in answers for record in answer.kvs)
        return {item.key: item for item in items}, revision

    def _compare(self, check: Check) -> pb.Message:
        key = self._keys.key(check.key)
        if check.expect is PRESENT:
            return _present(key)
        if check.expect is ABSENT:
            return pb.Compare(
                result=pb.COMPARE_EQUAL, target=pb.COMPARE_VERSION, key=key, version=0
            )
        return pb.Compare(
            result=pb.COMPARE_EQUAL, target=pb.COMPARE_MOD, key=key, mod_revision=check.expect
        )

    def _op(self, op: Write | Delete, lease_id: int) -> pb.Message:
        key = self._keys.key(op.key)
        if isinstance(op, Delete):
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
        lease = lease_id if op.bound else 0
        return pb.RequestOp(request_put=pb.PutRequest(key=key, value=op.value, lease=lease))

    def _replaced(self, reason: str) -> None:
        log.warning("store replaced url=%s cause=%s", self._channel.url, reason)
        self._sessions.lose()
        self._watches.read_anew()


def _present(key: bytes) -> pb.Message:
    return pb.Compare(result=pb.COMPARE_GREATER, target=pb.COMPARE_VERSION, key=key, version=0)
