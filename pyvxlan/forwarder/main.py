"""The forwarder process: takes the listening socket, gives up every privilege, then serves.

Everything that it will ever open is opened here before `confine`: modules, the event loop with
its own descriptors, the log and, by the log's first line, the time zone. What comes later comes
through the socket.
"""

from __future__ import annotations

import argparse
import asyncio
import linecache  # noqa: F401  # tracebacks need it, and imports fail once confined
import logging
import os
import resource
import signal
import socket
import sys
import traceback  # noqa: F401
from collections.abc import Sequence
from concurrent.futures import thread  # noqa: F401  # asyncio imports it when it ends

from pyvxlan import __version__
from pyvxlan._dataplane import Engine, ForwardingTable, confine
from pyvxlan.forwarder.protocol import TableUpdate
from pyvxlan.forwarder.server import Server

log = logging.getLogger("pyvxlan.forwarder")

_DESCRIPTOR_LIMIT = 1 << 20
"""Wanted descriptors: three or more per network, kept here and duplicated for the engine."""


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the forwarder until SIGTERM or `shutdown`; gives the exit status.

    SIGINT and SIGHUP are ignored: whoever started the daemon in a terminal and leaves does not
    mean the forwarding.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=arguments.log_level,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        log.info("forwarder starts pid=%d version=%s", os.getpid(), __version__)
        listener = _listener(arguments.listen_fd)
        starter = os.getuid()
        _raise_descriptor_limit()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with asyncio.Runner() as runner:
            stop = asyncio.Event()
            runner.get_loop().add_signal_handler(signal.SIGTERM, stop.set)
            confine(arguments.uid, arguments.gid)
            log.info("confined pid=%d uid=%d", os.getpid(), arguments.uid)
            runner.run(_serve(listener, starter, stop))
    except OSError as error:
        log.error("forwarder not started error=%s", error)
        return 1
    log.info("forwarder ended pid=%d", os.getpid())
    return 0


async def _serve(listener: socket.socket, starter: int, stop: asyncio.Event) -> None:
    server = Server(
        _start_engine, _check, version=__version__, allowed_uids=frozenset({0, starter})
    )
    stopper = asyncio.create_task(stop.wait())
    stopper.add_done_callback(lambda _: server.stop())
    await server.serve(listener)
    stopper.cancel()


def _start_engine(underlay: Sequence[int], workers: int) -> Engine:
    """Starts an engine that waits for `resume`."""
    return Engine(underlay, workers, paused=True)


def _check(update: TableUpdate) -> None:
    """Raises ValueError for an invalid entry, by trying the update on empty tables."""
    table = ForwardingTable(update.vni)
    table.apply(list(update.add.items()), update.remove)
    table.set_neighbours(list((update.neighbours or {}).items()))
    table.set_flood(update.flood or ())


def _listener(descriptor: int) -> socket.socket:
    """Takes the inherited descriptor, which must be a listening Unix stream socket.

    Raises:
        OSError: It is not.
    """
    listener = socket.socket(fileno=descriptor)
    if (listener.family, listener.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not (
        listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        listener.close()
        raise OSError(f"descriptor {descriptor} is no listening Unix stream socket")
    listener.set_inheritable(False)
    return listener


def _raise_descriptor_limit() -> None:
    """Asks for many descriptors, and takes what the hard limit allows if not permitted."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, _DESCRIPTOR_LIMIT)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyvxlan.forwarder",
        description="Carries the frames of overlay networks. Started by pyvxlan-daemon.",
    )
    parser.add_argument(
        "--listen-fd", type=int, required=True, help="inherited descriptor of a listening socket"
    )
    parser.add_argument("--uid", type=int, required=True, help="user to become")
    parser.add_argument("--gid", type=int, required=True, help="group to become")
    parser.add_argument(
        "--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR")
    )
    return parser
