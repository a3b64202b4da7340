"""A relay in front of a server, so that a client can be cut off while others go on."""

from __future__ import annotations

import asyncio
import contextlib


class Relay:
    """Carries TCP connections to a port of this machine; it is in the caller's event loop."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.mute = False
        """Loses what the server says."""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Takes connections, on the same port each time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Ends every connection and refuses new ones."""
        if self._server:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            onward_reader, onward = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(onward)
            await asyncio.gather(
                self._carry(reader, onward, back=False),
                self._carry(onward_reader, writer, back=True),
            )
            self._writers.discard(onward)
        finally:
            writer.close()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not (back and self.mute):
                    writer.write(data)
                    await writer.drain()
        writer.close()
