"""A capture as the daemon holds it: the reading end of a socket that the workers send to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Self

from pyvxlan.capture import MESSAGE_BYTES, CaptureMessage, parse_capture


class Capture:
    """Runs until it is closed, and ends in the forwarder whatever becomes of this process.

    Iterating gives typed messages; `message` their bytes, for somebody else to read. Both end with
    `end`, and when the forwarder is gone.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Takes ownership of one end of `capture_sockets`."""
        sock.setblocking(False)  # noqa: FBT003 - has no other form
        self._socket = sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    async def __aiter__(self) -> AsyncIterator[CaptureMessage]:
        while message := await self.message():
            yield parse_capture(message)

    async def message(self) -> bytes:
        """Waits for what one worker has captured in one turn; b"" at the end."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, MESSAGE_BYTES)
        except ConnectionResetError:  # the forwarder went with unsent messages
            return b""

    def end(self) -> None:
        """Lets `message` come to the end: of what has been captured, nothing more is given."""
        with contextlib.suppress(OSError):  # ended already
            self._socket.shutdown(socket.SHUT_RDWR)
