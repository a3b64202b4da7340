"""`Link`: one session with ZooKeeper, for asyncio, on kazoo's threads.

kazoo queues what is written while the connection is down and sends it when it is up again, long
after its caller was told of an error. A `Link` refuses instead: a write belongs to the connection
on which it was issued, and is emptied if it would be sent on another or after its caller gave up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kazoo.exceptions import (
    AuthFailedError,
    ConnectionLoss,
    KazooException,
    OperationTimeoutError,
    RequestTimeoutError,
    RolledBackError,
    RuntimeInconsistency,
    SessionClosedRequireSaslError,
    SessionExpiredError,
    SessionMovedError,
    ThrottledOpError,
)
from kazoo.protocol.serialization import Transaction
from kazoo.protocol.states import KazooState, KeeperState

from pyvxlan.daemon.errors import StoreError, StoreUnavailableError, StoreUncertainError
from pyvxlan.daemon.kv.url import Member, member_name
from pyvxlan.daemon.kv.zookeeper.access import Access, Reply
from pyvxlan.daemon.kv.zookeeper.kazoo_client import Client, End, Handler, Multi, Replies, Slot
from pyvxlan.daemon.kv.zookeeper.transaction import Operation

ANSWER_S = 5.0
"""How long a request may take."""
REVIVE_S = 1.0
"""Before kazoo is started again after it gave up."""
MULTI_MAX_BYTES = 1_000_000
"""ZooKeeper closes the connection at 0xfffff bytes (`jute.maxbuffer`)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a transaction was not applied."""

    error: KazooException
    path: str
    """Of the node whose operation failed."""


class SessionLostError(Exception):
    """The session has expired: nothing was applied, and nothing more will be."""


class Link:
    """One session with ZooKeeper. All methods are the event loop's, unless they say otherwise.

    Args:
        access: How to reach the servers.
        session_s: Time to live of the session.
        changed: Called in the event loop when the connection came or went.
        lasting: Whether a session that was lost is followed by another.
    """

    def __init__(
        self,
        access: Access,
        session_s: float,
        changed: Callable[[], None],
        *,
        lasting: bool = True,
    ) -> None:
        self.access = access
        self.epoch = 0
        """Counts the losses of the connection: what was watched or issued before one is gone."""
        self.lost = False
        """Whether a session was lost."""
        self.errors: dict[str, str] = {}
        """Why the members could not be used at the last attempt, by name."""
        self._news = asyncio.Event()
        self._changed = changed
        self._lasting = lasting
        self._loop = asyncio.get_running_loop()
        self._session_s = session_s
        self._make()
        self._reviver: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether requests are taken."""
        return bool(self._kazoo.connected) and not (self.lost and not self._lasting)

    @property
    def session_id(self) -> int:
        """ZooKeeper's own id of the session; 0 without one."""
        identity = self._kazoo.client_id
        return int(identity[0]) if identity and identity[0] else 0

    @property
    def granted_s(self) -> float:
        """The time to live that the server granted; known with the first answer."""
        return self._kazoo.granted_s

    @property
    def reason(self) -> str:
        """Why there is no connection."""
        causes = "; ".join(f"{name}: {why}" for name, why in self.errors.items())
        return f"ZooKeeper at {self.access} can't be reached: {causes or 'connecting'}"

    def start(self) -> None:
        """Begins to connect, and goes on until `end` or `abandon`."""
        self._kazoo.start_async()

    async def settled(self, within_s: float) -> bool:
        """Waits until it is connected or every member was tried; tells whether it is connected."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.connected and len(self.errors) < len(self.access.members):
                    self._news.clear()
                    await self._news.wait()
        return self.connected

    async def ask(self, *requests: object) -> list[Reply]:
        """Sends requests that change nothing, in order; gives the reply or error of each.

        Raises:
            StoreUnavailableError: They were not all answered.
            SessionLostError: The session is lost, and this link does not begin another.
        """
        replies = Replies(self._loop, len(requests))
        self._require()
        for index, request in enumerate(requests):
            self._kazoo.post(request, Slot(replies, index))
        try:
            async with asyncio.timeout(ANSWER_S):
                await replies.complete.wait()
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"ZooKeeper at {self.access} did not answer within {ANSWER_S:g} s"
            ) from error
        for reply in replies.values:
            if isinstance(reply, Exception):
                self._refuse_broken(reply)
        return replies.values

    async def commit(self, operations: Sequence[Operation]) -> Failure | None:
        """Applies all operations or none; gives what kept ZooKeeper from it, or None.

        Raises:
            StoreUnavailableError: Surely not applied.
            StoreUncertainError: Maybe applied.
            SessionLostError: The session is lost; not applied.
        """
        replies = Replies(self._loop, 1)
        multi = Multi(operations, lambda: self.epoch)
        self._require()  # after the multi knows its connection: this is what it must be sent on
        size = len(Transaction.serialize(multi))
        if size > MULTI_MAX_BYTES:
            raise StoreError(
                f"a transaction of {size} bytes: ZooKeeper takes {MULTI_MAX_BYTES} at most"
            )
        self._kazoo.post(multi, Slot(replies, 0))
        try:
            async with asyncio.timeout(ANSWER_S):
                await replies.complete.wait()
        except BaseException as error:
            sent = multi.give_up()
            if not isinstance(error, TimeoutError):
                raise
            kind = StoreUncertainError if sent else StoreUnavailableError
            raise kind(
                f"ZooKeeper at {self.access} did not answer a transaction within {ANSWER_S:g} s"
            ) from error
        reply = replies.values[0]
        if not multi.sent:
            self._require()
            raise StoreUnavailableError(self.reason)
        if isinstance(
            reply, AuthFailedError | ConnectionLoss | OperationTimeoutError | RequestTimeoutError
        ):
            raise StoreUncertainError(
                f"the connection to ZooKeeper at {self.access} broke during a transaction"
            )
        if isinstance(reply, KazooException):
            self._refuse_broken(reply)
            return Failure(reply, "a transaction")
        if isinstance(reply, Exception):
            raise StoreUncertainError(f"ZooKeeper's reply can't be read: {reply}") from reply
        for operation, result in zip(operations, reply, strict=True):
            if isinstance(result, KazooException) and not isinstance(
                result, RolledBackError | RuntimeInconsistency
            ):
                return Failure(result, operation.path)
        return None

    async def end(self) -> None:
        """Ends the session and its bound nodes, and closes.

        Raises:
            StoreUnavailableError: The server could not be told; the session expires by itself.
        """
        try:
            if not self.lost:
                self._require()
                replies = Replies(self._loop, 1)
                self._kazoo.post(End(), Slot(replies, 0))
                async with asyncio.timeout(ANSWER_S):
                    await replies.complete.wait()
                if isinstance(replies.values[0], ConnectionLoss):
                    raise StoreUnavailableError(self.reason)
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"ZooKeeper at {self.access} did not end a session within {ANSWER_S:g} s"
            ) from error
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """Closes; the session is left to expire. May be called twice."""
        self._closed = True
        if self._reviver:
            self._reviver.cancel()
            await asyncio.gather(self._reviver, return_exceptions=True)
        self._handler.hang_up()
        await asyncio.to_thread(self._stop)

    def _require(self) -> None:
        if self.lost and not self._lasting:
            raise SessionLostError
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        if not self._kazoo.connected:
            raise StoreUnavailableError(self.reason)

    def _refuse_broken(self, error: Exception) -> None:
        """Raises for an error that says nothing of the request but of the link; nothing applied."""
        if isinstance(error, SessionExpiredError) and not self._lasting:
            raise SessionLostError from error
        if isinstance(error, SessionClosedRequireSaslError):
            raise StoreUnavailableError(
                f"ZooKeeper at {self.access} wants clients to log in, in a way that it was not "
                "offered: name a user with ?user= and &password-file="
            ) from error
        if isinstance(
            error,
            AuthFailedError
            | ConnectionLoss
            | OperationTimeoutError
            | RequestTimeoutError
            | SessionExpiredError
            | SessionMovedError
            | ThrottledOpError,
        ):
            raise StoreUnavailableError(
                f"ZooKeeper at {self.access} did not answer: {type(error).__name__}"
            ) from error
        if not isinstance(error, KazooException):
            raise StoreUnavailableError(f"ZooKeeper's reply can't be read: {error}") from error

    def _note(self, state: str) -> None:
        """Notes a change of the connection; in kazoo's thread, before anything else is sent."""
        if state == KazooState.CONNECTED:
            self.errors = {}
        else:
            self.epoch += 1
            # A server that was wiped or restored would refuse a client that has seen more than it
            # knows, for ever. What was seen is read again anyway, after a sync.
            self._kazoo.last_zxid = 0
        if state == KazooState.LOST:
            self.lost = True
        self._post(self._tell)

    def failed(self, member: Member, cause: str) -> None:
        """Notes why a member can't be used; in kazoo's thread."""
        self.errors = {**self.errors, member_name(member): cause}
        self._post(self._news.set)

    def _post(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed under a store left open
            self._loop.call_soon_threadsafe(callback)

    def _tell(self) -> None:
        self._news.set()
        gave_up = self._kazoo.client_state in {KeeperState.AUTH_FAILED, KeeperState.CLOSED}
        if gave_up and self._lasting and not self._closed and not self._reviver:
            self._reviver = asyncio.create_task(self._revive(), name="zookeeper link")
        self._changed()

    async def _revive(self) -> None:
        """Begins anew with another client of kazoo's, since a stopped one keeps requests."""
        await asyncio.sleep(REVIVE_S)
        await asyncio.to_thread(self._stop)
        self._reviver = None
        self._make()
        self.start()

    def _make(self) -> None:
        self._handler = Handler(self.access.tls)
        self._kazoo = Client(self.access, self._session_s, self._handler, self.failed)
        self._kazoo.add_listener(self._note)

    def _stop(self) -> None:
        self._kazoo.stop()
        self._kazoo.close()
