"""Messages over a connected Unix socket, with their descriptors, for asyncio.

asyncio's streams cannot pass descriptors, so this waits for the socket itself and uses
`recvmsg` and `sendmsg`. Reading happens only inside `receive`: a peer that is not being listened
to is slowed down by its full socket, and nothing queues up here.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable

from pyvxlan.forwarder.protocol import MAX_DESCRIPTORS, Decoder, Message, ProtocolError, emit

_CHUNK_BYTES = 256 * 1024


def close_descriptors(descriptors: Iterable[int]) -> None:
    """Closes each descriptor."""
    for descriptor in descriptors:
        os.close(descriptor)


class Channel:
    """One connection. Takes ownership of the socket; one task receives, any number sends."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self._socket = sock
        self._decoder = Decoder()
        self._sending = asyncio.Lock()
        self._waiting: set[asyncio.Event] = set()
        self._closed = False

    async def receive(self) -> Message | None:
        """Waits for the next message; the caller owns its descriptors.

        Returns:
            The message, or None after the peer or `close` has ended the connection.

        Raises:
            ProtocolError: The peer sent garbage. Close the channel.
            OSError: The connection broke.
        """
        while (message := self._decoder.next_message()) is None:
            if self._closed:
                return None
            try:
                data, descriptors, flags, _ = socket.recv_fds(
                    self._socket, _CHUNK_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_reader, loop.remove_reader)
                continue
            self._decoder.feed(data, descriptors)
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError("descriptors were lost: too many sent, or too many open here")
            if not data:
                return None
        return message

    async def send(self, message: Message) -> None:
        """Sends a message whole; its descriptors stay open and the caller's.

        If cancelled in the middle, the connection is closed, since its rest would be garbage.

        Raises:
            ValueError: The message is too large; nothing was sent.
            OSError: The connection broke, or is closed.
        """
        data = memoryview(emit(message))
        async with self._sending:
            descriptors = message.descriptors
            try:
                while data:
                    if self._closed:
                        raise BrokenPipeError("the connection is closed")
                    try:
                        sent = socket.send_fds(
                            self._socket, [data], descriptors, socket.MSG_NOSIGNAL
                        )
                    except BlockingIOError:
                        loop = asyncio.get_running_loop()
                        await self._ready(loop.add_writer, loop.remove_writer)
                        continue
                    data = data[sent:]
                    descriptors = ()
            except asyncio.CancelledError:
                self.close()
                raise

    def close(self) -> None:
        """Ends the connection and closes what was received and not taken. May be repeated."""
        if self._closed:
            return
        self._closed = True
        for ready in self._waiting:
            ready.set()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()
        close_descriptors(self._decoder.discard())

    async def _ready(
        self,
        watch: Callable[[socket.socket, Callable[[], None]], None],
        unwatch: Callable[[socket.socket], bool],
    ) -> None:
        """Returns when the socket is ready, or the channel closed."""
        ready = asyncio.Event()
        watch(self._socket, ready.set)
        self._waiting.add(ready)
        try:
            await ready.wait()
        finally:
            self._waiting.discard(ready)
            if not self._closed:
                unwatch(self._socket)
