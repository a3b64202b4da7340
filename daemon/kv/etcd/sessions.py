"""Sessions on etcd: each is a lease, and a key that lives with it, which transactions check.

etcd refuses to bind a key to a lease that is gone, but a transaction that binds nothing would not
notice; therefore the key.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time

from grpc import aio

from pyvxlan.daemon.errors import StoreConflictError, StoreError, StoreUnavailableError
from pyvxlan.daemon.kv.etcd import messages as pb
from pyvxlan.daemon.kv.etcd.channel import EtcdChannel, Stream
from pyvxlan.daemon.kv.etcd.keys import Keys
from pyvxlan.daemon.kv.lease import Lease

log = logging.getLogger(__name__)

TICK_S = 0.5
"""Between two looks at what is due."""
QUIET_S = 4.0
"""After that long it asks anyhow: etcd cuts a connection that pings every 3 s and says nothing."""
ROUND_S = 2.0
"""After that long without an answer another member is asked."""


class Sessions:
    """The sessions of one store, renewed over one stream."""

    def __init__(self, channel: EtcdChannel, keys: Keys) -> None:
        self._channel = channel
        self._keys = keys
        self._leases: dict[int, Lease] = {}
        self._stream: tuple[str, Stream] | None = None
        self._asked_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def open(self, ttl_s: float) -> Lease:
        """Opens a session; it is renewed until it or the store is closed."""
        lease_id = secrets.randbelow(2**63 - 1) + 1
        lease = Lease(ttl_s, self._end, session_id=f"{lease_id:016x}")
        asked_at = time.monotonic()
        try:
            await self._channel.call(
                pb.LEASE_GRANT,
                pb.LeaseGrantRequest(TTL=math.ceil(ttl_s), ID=lease_id),
                repeatable=True,
            )
        except StoreError as error:
            # The answer to the first try was lost, and the second finds the lease there.
            if "lease already exists" not in str(error):
                raise
        put = pb.PutRequest(key=self._keys.session(lease.id), lease=lease_id)
        await self._channel.call(
            pb.TXN, pb.TxnRequest(success=[pb.RequestOp(request_put=put)]), repeatable=True
        )
        lease.renewed(asked_at, asked_at)
        self._leases[lease_id] = lease
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"sessions {self._channel.url}")
        return lease

    def lose(self) -> None:
        """Counts every session as lost: the store is another one."""
        for lease in self._leases.values():
            lease.mark_lost()
        self._leases.clear()

    async def close(self) -> None:
        """Stops the renewal: sessions that are open are left to expire."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _end(self, lease: Lease) -> None:
        lease_id = int(lease.id, 16)
        self._leases.pop(lease_id, None)
        try:
            await self._channel.call(
                pb.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease_id), repeatable=True
            )
        except StoreConflictError:
            log.debug("session ended already id=%s", lease.id)

    async def _run(self) -> None:
        while True:
            now = time.monotonic()
            quiet = now >= self._asked_at + QUIET_S
            due = [lease_id for lease_id, lease in self._leases.items() if quiet or lease.due(now)]
            if due:
                try:
                    async with asyncio.timeout(ROUND_S):
                        await self._renew(due)
                except (
                    TimeoutError,
                    StoreError,
                    aio.AioRpcError,
                    asyncio.InvalidStateError,
                ) as error:
                    self._give_up(error)
            await asyncio.sleep(TICK_S)

    async def _renew(self, due: list[int]) -> None:
        """Renews over the stream, which stays open for the next time."""
        if self._stream is None:
            self._stream = await self._channel.stream(pb.LEASE_KEEP_ALIVE)
        _, call = self._stream
        self._asked_at = asked_at = time.monotonic()
        for lease_id in due:
            await call.write(pb.LeaseKeepAliveRequest(ID=lease_id))
        for _ in due:
            answer: pb.Message = await call.read()
            if answer is aio.EOF:
                raise StoreUnavailableError("the stream of sessions ended")
            lease = self._leases.get(answer.ID)
            if lease is None:
                continue
            if answer.TTL > 0:
                lease.renewed(asked_at, asked_at)
            else:
                del self._leases[answer.ID]
                lease.mark_lost()
                log.warning("session lost id=%s", lease.id)

    def _give_up(self, error: Exception) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        member, call = stream
        call.cancel()
        if isinstance(error, aio.AioRpcError):
            error = self._channel.failure(error, member)
        else:
            self._channel.avoid(member)
        cause = f"no answer within {ROUND_S:g} s" if isinstance(error, TimeoutError) else error
        log.info("sessions not renewed member=%s cause=%s", member, cause)
