"""The names of containers, which Docker tells after their start: learnt, and published.

Docker's event says that a container joined a network; a container whose event was missed is asked
for a while later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, MutableMapping, Sequence, Set

from pyvxlan.daemon.errors import ConflictError, DaemonError, NotFoundError
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.handover import Handover
from pyvxlan.daemon.model import LocalEndpoint
from pyvxlan.daemon.plugin.engine import Engine, EngineContainer
from pyvxlan.daemon.plugin.network import usable_name
from pyvxlan.daemon.plugin.pairing import Pairing
from pyvxlan.daemon.requests import ALIASES_MAX

log = logging.getLogger(__name__)

NAMELESS_S = 5.0
"""How long a container's start may take from its endpoint to the event that tells its name."""


class Naming:
    """What this host's endpoints are called.

    Args:
        engine: The local Docker.
        pairing: Which of its networks is which of the cluster's.
        handover: Has the endpoints, and publishes what they are called.
        events: Where it is noted that another container has a name.
        links: Where it is noted what containers alone call others, by their endpoints' ids.
    """

    def __init__(
        self,
        engine: Engine,
        pairing: Pairing,
        handover: Handover,
        events: Events,
        links: MutableMapping[str, Mapping[str, str]],
    ) -> None:
        self._links = links
        self._engine = engine
        self._pairing = pairing
        self._handover = handover
        self._events = events
        self._untold: dict[str, Set[str]] = {}
        """Containers whose names are not all published yet, and why."""
        self._one_by_one = asyncio.Lock()
        """What was learnt first is published first."""
        self._nameless_s: dict[str, float] = {}
        """Since when endpoints have no container that is known."""

    def nameless(self) -> list[LocalEndpoint]:
        """Endpoints whose container should be known by now: Docker's word of it was missed."""
        here = {
            local.id: local
            for local in self._handover.endpoints
            if (endpoint := self._handover.endpoint(local)) and not endpoint.container_id
        }
        self._nameless_s = still(self._nameless_s, here)
        return [here[id_] for id_ in longer_than(NAMELESS_S, self._nameless_s)]

    async def describe_all(self, endpoints: Sequence[LocalEndpoint]) -> None:
        """Learns the names of the containers that have these endpoints."""
        wanted = {here.engine_id for here in endpoints}
        networks = {here.network_id for here in endpoints}
        for engine_id, network in list(self._pairing.pairs.items()):
            if network.id not in networks:
                continue
            with contextlib.suppress(DaemonError):
                shown = (await self._engine.network(engine_id)).endpoints.values()
                found = {one.container_id for one in shown if one.id in wanted} - {""}
                for container_id in found:
                    await self.describe(container_id)

    async def describe_untold(self) -> None:
        """Tries again what could not be published: the store was away, or a name was taken."""
        for container_id in list(self._untold):
            await self.describe(container_id)

    async def describe(self, container_id: str) -> None:
        """Publishes a container's names on each of our networks that it is on."""
        async with self._one_by_one:
            await self._describe(container_id)

    async def _describe(self, container_id: str) -> None:
        why: list[str] = []
        try:
            container = await self._engine.container(container_id)
        except NotFoundError:
            self._untold.pop(container_id, None)
            return
        except DaemonError as error:
            log.info("names not learnt container=%s cause=%s", container_id[:12], error)
            self._untold.setdefault(container_id, frozenset())
            return
        here = {local.engine_id: local for local in self._handover.endpoints}
        for gone in self._links.keys() - here.keys():
            del self._links[gone]
        for engine_id, aliases in container.aliases.items():
            if local := here.get(engine_id):
                self._links[engine_id] = container.links.get(engine_id, {})
                why += await self._publish_names(local, container, aliases)
        if not why:
            self._untold.pop(container_id, None)
            return
        for text in set(why) - self._untold.get(container_id, frozenset()):
            log.warning("names not published container=%s cause=%s", container_id[:12], text)
        self._untold[container_id] = frozenset(why)

    async def _publish_names(
        self, local: LocalEndpoint, container: EngineContainer, aliases: Sequence[str]
    ) -> list[str]:
        """Publishes what a container is called on one network; gives why not all of it."""
        known = {container.name, container.id[:12]}
        usable = [alias for alias in aliases if usable_name(alias) and alias not in known]
        await self._handover.note_ifname(local)
        why: list[str] = []
        for name in dict.fromkeys((usable_name(container.name), "")):
            try:
                await self._handover.describe(
                    local,
                    name=name,
                    aliases=usable[:ALIASES_MAX],
                    hostname=usable_name(container.hostname),
                    container_id=container.id,
                )
            except ConflictError as error:
                # Docker has given it the name all the same: it has its old one no more.
                why.append(str(error))
                if str(error) not in self._untold.get(container.id, ()):
                    self._events.note("name_refused", f"container {container.id[:12]}: {error}")
                continue
            except DaemonError as error:
                why.append(str(error))
            break
        return why


def still(since_s: Mapping[str, float], found: Iterable[str]) -> dict[str, float]:
    """Since when what is found now is so: what was found before keeps its time."""
    now_s = time.monotonic()
    return {id_: since_s.get(id_, now_s) for id_ in found}


def longer_than(limit_s: float, since_s: Mapping[str, float]) -> set[str]:
    """What has been so for longer than `limit_s`."""
    now_s = time.monotonic()
    return {id_ for id_, at_s in since_s.items() if now_s - at_s >= limit_s}
