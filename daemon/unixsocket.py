"""HTTP on a unix socket: how the daemon's doors are opened."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from pyvxlan.daemon.errors import ConfigError

SHUTDOWN_S = 5.0
LATE_S = 0.05
"""How long, after the socket has gone, those are let in who connected just before."""


@contextlib.asynccontextmanager
async def serving(app: web.Application, path: Path) -> AsyncIterator[None]:
    """Serves on a unix socket while inside.

    The socket replaces whatever is at `path`, which its caller has made sure belongs to nobody
    alive, in one step: clients never find it missing or open to others.

    Raises:
        ConfigError: The socket can't be made.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        beside.unlink(missing_ok=True)
        sock.bind(str(beside))
        beside.rename(path)
    except OSError as error:
        sock.close()
        raise ConfigError(f"socket {path} can't be made: {error}") from error
    finally:
        os.umask(before)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    await web.SockSite(runner, sock, backlog=128).start()
    try:
        yield
    finally:
        _remove(path)
        try:
            await asyncio.sleep(LATE_S)
        finally:
            await runner.cleanup()


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
