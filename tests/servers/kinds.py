"""Every kind of store server that is tested against: makes one, and tells its URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.servers.consul import ConsulServer
from tests.servers.process import Server

SERVERS: Mapping[str, Callable[[Path, str], tuple[Server, int]]] = {
    "consul": lambda directory, address: _with_port(ConsulServer(directory, address=address)),
}
"""By kind: makes a server in a directory, to listen on an address, and tells its port."""


def make_server(kind: str, directory: Path, address: str = "127.0.0.1") -> tuple[Server, str]:
    """Gives a server that is not started, and the URL of a store on it."""
    server, port = SERVERS[kind](directory, address)
    return server, f"{kind}://{address}:{port}"


def _with_port(server: ConsulServer) -> tuple[Server, int]:
    return server, server.port
