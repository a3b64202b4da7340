"""The forwarder's connections: who may connect, and what happens to each client."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

from pyvxlan.forwarder.channel import Channel, close_descriptors
from pyvxlan.forwarder.methods import Engine, Methods
from pyvxlan.forwarder.protocol import Event, Message, ProtocolError, TableUpdate

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
"""The daemon needs one; two daemons overlap for a moment; the rest is for people who look."""
_PEER_CREDENTIALS = struct.Struct("3i")


class Server:
    """Serves any number of clients on one engine; see `Methods` for the arguments.

    Only peers whose uid is in `allowed_uids` are listened to.
    """

    def __init__(
        self,
        start_engine: Callable[[Sequence[int], int], Engine],
        check: Callable[[TableUpdate], None],
        *,
        version: str,
        allowed_uids: frozenset[int],
    ) -> None:
        self._methods = Methods(start_engine, check, self._notify, version=version)
        self._allowed_uids = allowed_uids
        self._connections: set[_Connection] = set()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Makes `serve` return soon."""
        self._stopping.set()

    async def serve(self, listener: socket.socket) -> None:
        """Accepts clients until `stop`, then closes all, the engine and its ports included."""
        listener.settimeout(0)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as clients:
                loop.add_reader(listener, self._accept, listener, clients)
                await self._stopping.wait()
                loop.remove_reader(listener)
                for connection in self._connections:
                    connection.channel.close()
        finally:
            listener.close()
            self._methods.close()

    async def serve_connection(self, sock: socket.socket) -> None:
        """Serves one client until it goes away or sends garbage. Raises nothing for either."""
        pid, uid, _ = _PEER_CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        )
        full = len(self._connections) >= MAX_CONNECTIONS
        if uid not in self._allowed_uids or full or self._stopping.is_set():
            log.warning("client refused pid=%d uid=%d clients=%d", pid, uid, len(self._connections))
            sock.close()
            return
        connection = _Connection(Channel(sock))
        self._connections.add(connection)
        log.info("client connected pid=%d uid=%d", pid, uid)
        events = asyncio.create_task(connection.send_events())
        try:
            await self._answer_requests(connection.channel)
        except (ProtocolError, OSError) as error:
            log.warning("client cut off pid=%d error=%s", pid, error)
        except Exception:  # a defect in serving one client must not end the forwarding
            log.exception("client cut off pid=%d", pid)
        finally:
            self._connections.discard(connection)
            connection.channel.close()
            events.cancel()
            await asyncio.gather(events, return_exceptions=True)
        log.info("client gone pid=%d", pid)

    def _accept(self, listener: socket.socket, clients: asyncio.TaskGroup) -> None:
        """Takes one client that waits. asyncio's `sock_accept` would lose it if cancelled."""
        try:
            sock, _ = listener.accept()
        except BlockingIOError:  # the client has gone again
            return
        except OSError:
            log.exception("client not accepted")
            self._pause(listener, clients)
        else:
            clients.create_task(self.serve_connection(sock))

    def _pause(self, listener: socket.socket, clients: asyncio.TaskGroup) -> None:
        """Accepts nobody for a second: out of descriptors, most likely, and it would fail again."""
        loop = asyncio.get_running_loop()

        def resume() -> None:
            if not self._stopping.is_set():
                loop.add_reader(listener, self._accept, listener, clients)

        loop.remove_reader(listener)
        loop.call_later(1, resume)

    async def _answer_requests(self, channel: Channel) -> None:
        while (request := await channel.receive()) is not None:
            answer = self._methods.answer(request)
            try:
                await channel.send(answer)
            finally:
                close_descriptors(answer.descriptors)
            if self._methods.ended:
                self.stop()
                return
            await asyncio.sleep(0)  # lets others run, however fast this client sends

    def _notify(self, event: Event) -> None:
        for connection in self._connections:
            connection.notify(event)


class _Connection:
    """One client: its channel, and the events that it has not been sent yet.

    Events are kept once each: they say "compare anew", so a slow client loses nothing by that,
    and no more can wait than there are VNIs and workers.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._pending: dict[Event, None] = {}
        self._wake = asyncio.Event()

    def notify(self, event: Event) -> None:
        """Sends an event soon."""
        self._pending[event] = None
        self._wake.set()

    async def send_events(self) -> None:
        """Sends events until cancelled or the connection breaks."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            pending, self._pending = self._pending, {}
            for event in pending:
                await self.channel.send(Message(0, "event", event.to_wire()))
