"""Names for Docker's containers, which ask at one address that every overlay's bridge has.

Docker's own name server answers what its Engine knows, and asks the one that daemon.json names for
the rest, from within the container. That one is here: in each overlay namespace, where the asker's
address says who it is, and in the host's, for containers on no overlay, whose queries are only
passed on.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv4Address, ip_address
from types import MappingProxyType
from typing import TypeAlias

from pyvxlan.daemon.dns import NameServer, NameServers
from pyvxlan.daemon.errors import DaemonError
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.model import LocalEndpoint

log = logging.getLogger(__name__)

OpenSockets: TypeAlias = Callable[
    [str, IPv4Address], Awaitable[tuple[socket.socket, socket.socket]]
]
HOST = ""


class DockerNames:
    """The servers of one host: one in its own namespace, one in each overlay that Docker uses.

    Args:
        servers: Makes them.
        local: Which endpoints are here.
        open_sockets: Opens the UDP and the listening TCP socket in a namespace.
        address: Where they listen.
        links: What containers alone call others, by their endpoints' ids in Docker: Docker's own
            name server finds only its own host's under these aliases, and passes the others on.
    """

    def __init__(
        self,
        servers: NameServers,
        local: LocalRecords,
        open_sockets: OpenSockets,
        address: IPv4Address,
        links: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ) -> None:
        self._links = links
        self._factory = servers
        self._local = local
        self._open_sockets = open_sockets
        self._address = address
        self._servers: dict[str, NameServer] = {}
        self._failures: dict[str, str] = {}

    @property
    def serving(self) -> int:
        """Number of sandboxes that are served, by whichever runtime they were made."""
        netns_names = self._local.netns_names
        served = {
            here.sandbox.path
            for here in self._local.endpoints.values()
            if here.engine_id and netns_names.get(here.network_id) in self._servers
        }
        return self._factory.serving + len(served)

    @property
    def outcomes(self) -> Mapping[str, int]:
        """What became of queries, of those too."""
        return self._factory.outcomes

    async def sync(self) -> None:
        """Opens and closes servers; one that can't be opened is tried again at the next call."""
        wanted = {HOST: ""}
        for here in self._local.endpoints.values():
            netns = self._local.netns_names.get(here.network_id)
            if here.engine_id and netns:
                wanted[netns] = here.network_id
        for netns in self._servers.keys() - wanted.keys():
            await self._servers.pop(netns).close()
        for netns in wanted.keys() - self._servers.keys():
            await self._open(netns, wanted[netns])

    async def close(self) -> None:
        """Closes all servers."""
        while self._servers:
            _, server = self._servers.popitem()
            await server.close()

    async def _open(self, netns: str, network_id: str) -> None:
        server = self._factory.server(
            lambda asker: self.networks_of(network_id, asker),
            lambda asker: self.links_of(network_id, asker),
        )
        try:
            udp, tcp = await self._open_sockets(netns, self._address)
            await server.start(udp, tcp)
        except (DaemonError, OSError) as error:
            if self._failures.get(netns) != str(error):
                log.warning("names not served namespace=%s cause=%s", netns or "host", error)
            self._failures[netns] = str(error)
            return
        self._failures.pop(netns, None)
        self._servers[netns] = server

    def networks_of(self, network_id: str, asker: str) -> Sequence[str]:
        """Gives the networks of the container that asks from an address of an overlay."""
        if not network_id:
            return ()
        here = self._of_asker(network_id, asker)
        return tuple(local.network_id for local in here) or (network_id,)

    def links_of(self, network_id: str, asker: str) -> Mapping[str, str]:
        """Gives the names that the container that asks has aliases of its own for, by alias."""
        found: dict[str, str] = {}
        for local in self._of_asker(network_id, asker) if network_id and self._links else ():
            found |= self._links.get(local.engine_id, {})
        return found

    def _of_asker(self, network_id: str, asker: str) -> Sequence[LocalEndpoint]:
        """All endpoints of the container that has an address on a network."""
        address = ip_address(asker)
        endpoints = self._local.records
        for local in self._local.endpoints.values():
            held = endpoints.get(local.id)
            if (
                local.engine_id
                and local.network_id == network_id
                and held
                and any(one.ip == address for one in held.addresses)
            ):
                path = local.sandbox.path
                return tuple(
                    other for other in self._local.endpoints.values() if other.sandbox.path == path
                )
        return ()
