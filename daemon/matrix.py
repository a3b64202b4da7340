"""The tunnels between all hosts: each knows its own, and is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from pyvxlan.daemon.errors import DaemonError
from pyvxlan.daemon.model import Host
from pyvxlan.daemon.peering import Answer, Arguments, Peering
from pyvxlan.daemon.service import HostStatus

Document: TypeAlias = dict[str, Any]

QUESTION = "tunnels"
AT_ONCE = 64
ANSWER_S = 5.0


class Matrix:
    """Asks every host for its tunnels, and answers what this one is asked.

    Args:
        hosts: Gives the hosts of the cluster, in the order in which they are shown.
        tunnels: Gives this host's own, as `GET /v1/peers` has them.
        peers: Asks the other hosts, and is told here what to answer them.
    """

    def __init__(
        self,
        hosts: Callable[[], Awaitable[list[HostStatus]]],
        tunnels: Callable[[], Awaitable[list[Document]]],
        peers: Peering,
    ) -> None:
        self._hosts = hosts
        self._tunnels = tunnels
        self._peers = peers
        peers.answer(QUESTION, self._answer)

    async def document(self) -> list[Document]:
        """Gives the document of `GET /v1/peers?host=all`; a host that gave no answer says why."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def ask(host: Host) -> Document:
            found: Document = {"host": host.name, "host_id": host.id, "error": "", "tunnels": []}
            try:
                async with slots:
                    found["tunnels"] = await self._peers.ask(
                        host.id, QUESTION, {}, timeout_s=ANSWER_S
                    )
            except DaemonError as error:
                found["error"] = str(error)
            return found

        return await asyncio.gather(*(ask(entry.host) for entry in await self._hosts()))

    async def _answer(self, _: Arguments) -> Answer:
        return await self._tunnels()
