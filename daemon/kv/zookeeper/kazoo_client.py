"""kazoo's classes, bent to what a `Link` needs of them. kazoo's thread calls most of this."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kazoo.client import KazooClient
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.connection import ConnectionHandler
from kazoo.protocol.serialization import Close, Transaction
from kazoo.protocol.states import Callback
from kazoo.retry import KazooRetry

from pyvxlan.daemon.kv.url import Member, member_name
from pyvxlan.daemon.kv.zookeeper.access import Access, Reply, cause
from pyvxlan.daemon.kv.zookeeper.transaction import Operation

CONNECT_S = 2.0
"""How long one member may take to accept a connection, and to answer the first request."""

# kazoo warns at each attempt to connect, and its debug messages show passwords.
_log = logging.getLogger(__name__)
_log.setLevel(logging.ERROR)


class Replies:
    """The replies to some requests, in order; filled by kazoo's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.values: list[Reply] = [None] * count
        self.complete = asyncio.Event()
        self._loop = loop
        self._missing = set(range(count))
        self._lock = threading.Lock()

    def fill(self, index: int, value: Reply) -> None:
        """Takes a reply; kazoo gives some errors twice, and in the thread that posts."""
        with self._lock:
            if index not in self._missing:
                return
            self._missing.remove(index)
            self.values[index] = value
            complete = not self._missing
        if complete:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(self.complete.set)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where kazoo puts one reply; what it needs of its own `AsyncResult`."""

    replies: Replies
    index: int

    def set(self, value: Reply = None) -> None:
        """Takes what was answered."""
        self.replies.fill(self.index, value)

    def set_exception(self, error: Exception) -> None:
        """Takes the error that was answered, or why there is no answer."""
        self.replies.fill(self.index, error)


class End(Close):  # type: ignore[misc]
    """The request that ends a session; unlike kazoo's it tells when it was answered."""

    def __bool__(self) -> bool:
        return True

    @staticmethod
    def deserialize(_reply: bytes, _offset: int) -> bool:
        """Gives what stands in a `Slot` then."""
        return True


class Multi(Transaction):  # type: ignore[misc]
    """A transaction that is sent on the connection on which it was issued, or as an empty one.

    `epoch` tells, in any thread, how often the connection was lost.
    """

    def __new__(cls, operations: Sequence[Operation], epoch: Callable[[], int]) -> Multi:
        """Makes kazoo's part of it, a named tuple."""
        del epoch
        multi: Multi = super().__new__(cls, operations)
        return multi

    def __init__(self, _operations: Sequence[Operation], epoch: Callable[[], int]) -> None:
        self.sent = False
        """Whether the operations went out, wholly or in part."""
        self._epoch = epoch
        self._issued = epoch()
        self._lock = threading.Lock()
        self._given_up = False

    def serialize(self) -> bytearray:
        """Gives the bytes to send; called by kazoo's thread when it sends them."""
        with self._lock:
            self.sent = not self._given_up and self._epoch() == self._issued
        emitted: bytearray = Transaction(self.operations if self.sent else ()).serialize()
        return emitted

    def give_up(self) -> bool:
        """Makes sure that it is not sent from now on; tells whether it was."""
        with self._lock:
            self._given_up = True
            return self.sent


class Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """kazoo's threads, with our own way to connect."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__()
        self._tls = tls
        self._socket: socket.socket | None = None
        self._hung_up = False

    def create_connection(
        self, address: tuple[str, int], hostname: str, timeout: float, **_: object
    ) -> socket.socket:
        """Connects to one server, within `CONNECT_S`."""
        made = socket.create_connection(address, min(timeout, CONNECT_S))
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                made = self._tls.wrap_socket(made, server_hostname=hostname)
            self._socket = made
            if self._hung_up:
                raise ConnectionAbortedError("the link is closed")
        except BaseException:
            made.close()
            raise
        return made

    def hang_up(self) -> None:
        """Cuts the connection without a word to the server, and makes no other."""
        self._hung_up = True
        if self._socket:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def dispatch_callback(self, callback: Callback) -> None:
        """Calls a watcher at once: ours only wake the event loop."""
        callback.func(*callback.args)


class Connection(ConnectionHandler):  # type: ignore[misc]
    """kazoo's connection loop, which tells what it learned and why it failed."""

    def _expand_client_hosts(self) -> list[tuple[str, str, int]]:
        found: list[tuple[str, str, int]] = super()._expand_client_hosts()
        for member in self.client.hosts:
            if member[0] not in {host for host, _, _ in found}:
                self.client.failed(member, "its name is not known")
        return found

    def _invoke(self, timeout: float, request: object, xid: int | None = None) -> Reply:
        """Asks for a session or for trust; a server that is stuck is not waited for any longer."""
        return super()._invoke(min(timeout, CONNECT_S), request, xid)

    def _connect(self, host: str, hostip: str, port: int) -> tuple[float, float]:
        try:
            read_timeout_ms, write_timeout_ms = super()._connect(host, hostip, port)
        except Exception as error:
            self.client.failed((host, port), cause(error, self.client.access))
            raise
        self.client.granted_s = read_timeout_ms * 3 / 2 / 1000
        return read_timeout_ms, write_timeout_ms


class Client(KazooClient):  # type: ignore[misc]
    """kazoo's client, with `Connection`.

    `failed` is called in kazoo's thread with a member that can't be used, and why.
    """

    def __init__(
        self,
        access: Access,
        session_s: float,
        handler: Handler,
        failed: Callable[[Member, str], None],
    ) -> None:
        retry = KazooRetry(max_tries=-1, delay=0.1, max_delay=0.5)
        super().__init__(
            hosts=",".join(map(member_name, access.members)),
            timeout=session_s,
            handler=handler,
            auth_data=[("digest", f"{access.user}:{access.password}")] if access.user else None,
            connection_retry=retry,
            command_retry=retry,
            logger=_log,
        )
        self.failed = failed
        self.access = access
        self.granted_s = 0.0
        self._connection = Connection(self, self._conn_retry.copy(), logger=_log)

    def post(self, request: object, slot: Slot) -> None:
        """Sends a request; its reply is put into `slot`."""
        self._call(request, slot)
