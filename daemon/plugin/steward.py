"""Keeps the local Docker in step with the cluster: networks one way and the other, names one way.

A comparison runs when Docker tells of a network, when the cluster's networks change, and now and
then; it needs no memory of what happened before. What Docker forgot, or what happened while this
daemon or Docker was down, is found the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping, MutableMapping, Sequence
from typing import NoReturn

from pyvxlan.daemon.errors import (
    ConflictError,
    DaemonError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
    NotSettledError,
)
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.handover import Handover
from pyvxlan.daemon.model import Network
from pyvxlan.daemon.plugin.codec import NetworkDeletion
from pyvxlan.daemon.plugin.comparison import Copy, Pair, Part, Publish, Remove, Step, compare
from pyvxlan.daemon.plugin.engine import Engine, EngineEvent, EngineNetwork
from pyvxlan.daemon.plugin.ipam import IpamDriver
from pyvxlan.daemon.plugin.naming import Naming, longer_than, still
from pyvxlan.daemon.plugin.network import NetworkDriver
from pyvxlan.daemon.plugin.pairing import Pairing
from pyvxlan.daemon.requests import Mtu, NetworkSpec
from pyvxlan.daemon.service import Groundwork
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)

INTERVAL_S = 30.0
RETRY_S = 1.0
LOOK_S = 0.001
"""Between the first looks whether Docker shows a network that it is making; later ones are a tenth
of the time apart that it has taken so far. It shows it some 10 ms before it tells of it, since it
calls iptables first."""
AFTER_S = 0.2
"""How long a comparison waits for what needs none: new networks."""
SHOWN_S = 5.0
"""How long the store may take to show this host what it has just written."""
ORPHAN_S = 60.0
"""How long Docker may take from a subnet to its network, and from an address to its endpoint."""
LOST_S = 2.0
"""How long a network may lack in Docker's list until it is lost. One that Docker is removing is no
more in the list when the plug-in is told."""
WARN_AGAIN_S = 300.0


class Steward:
    """The comparisons of one host; `run` until cancelled.

    Args:
        engine: The local Docker.
        pairing: Which of its networks is which of the cluster's.
        handover: The verbs, for endpoints; its service has those for networks.
        state: What the cluster has.
        missed: Networks that Docker deleted before there was anybody to do it.
        events: Where it is noted that a network or a name was refused that Docker has already.
        links: Where it is noted what containers alone call others, by their endpoints' ids.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        pairing: Pairing,
        handover: Handover,
        state: State,
        missed: Iterable[NetworkDeletion] = (),
        events: Events | None = None,
        links: MutableMapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.drivers: tuple[NetworkDriver, IpamDriver]
        """The plug-in's two halves; set before `run`."""
        self._engine = engine
        self._pairing = pairing
        self._events = events or Events()
        self._naming = Naming(
            engine, pairing, handover, self._events, {} if links is None else links
        )
        self._handover = handover
        self._state = state
        self._missed = missed
        self._wake = asyncio.Event()
        self._warned: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._swept = False
        self._looked_s = float("-inf")
        """When a comparison looked at the endpoints, too."""
        self._expected: set[str] = set()
        """Networks, by Docker's id, that it is making; nobody else publishes them meanwhile."""
        self._publishing: dict[str, str] = {}
        """Names, by Docker's id, of networks that the cluster is being told of."""
        self._missing_s: dict[str, float] = {}
        """Since when paired networks lack in Docker's list."""

    def poke(self) -> None:
        """Asks for a comparison now."""
        self._wake.set()

    def _poke_later(self) -> None:
        """Asks for a comparison when what was begun without one is done."""
        asyncio.get_running_loop().call_later(AFTER_S, self.poke)

    def expect(self, engine_id: str, mtu: Mtu) -> None:
        """Tells the cluster of a network as soon as Docker, which is making it, shows its name."""
        self._spawn(self._expect(engine_id, mtu))

    async def run(self) -> NoReturn:
        """Compares until cancelled."""
        try:
            async with asyncio.TaskGroup() as helpers:
                helpers.create_task(self._listen(), name="docker events")
                helpers.create_task(self._follow_networks(), name="docker networks")
                await self._keep_comparing()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._pairing.flush()
            await self._engine.close()

    async def _keep_comparing(self) -> NoReturn:
        for deletion in self._missed:
            await self.drivers[0].delete_network(deletion)
        while True:
            self._wake.clear()
            pause_s = INTERVAL_S
            try:
                await self.compare()
            except DaemonError as error:
                self._warn("compare", "networks not compared with Docker's cause=%s", error)
                pause_s = RETRY_S if self._engine.reachable else INTERVAL_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def compare(self) -> None:
        """One comparison of the networks, and of the endpoints if there is a reason to.

        Raises:
            DaemonError: Docker or the store does not answer.
        """
        await self._handover.settle()
        shown = await self._engine.networks()
        if not self._state.synced:
            return
        for network_id in self._pairing.doomed:
            await self.drivers[0].remove_doomed(network_id)
        doomed, gone = self._pairing.doomed, self.drivers[0].gone
        gone.intersection_update(self._state.networks)
        networks = {
            id_: one for id_, one in self._state.networks.items() if id_ not in doomed | gone
        }
        self._pairing.forget_hidden(self._pairing.hidden - networks.keys())
        pairs = self._pairing.pairs
        steps = compare(
            networks, shown, pairs, hidden=self._pairing.hidden, leaving=self._leaving(shown)
        )
        failed = False
        deleted = self.drivers[0].deleted
        deleted.intersection_update({entry.id for entry in shown} | self._publishing.keys())
        publishing = self._expected | self._publishing.keys()
        # The names of networks that are being removed are free when that is done.
        taken = {one.name for one in self._state.networks.values() if one.id in doomed}
        for step in steps:
            if isinstance(step, Pair | Publish | Remove) and step.engine_id in deleted | publishing:
                continue
            if isinstance(step, Publish) and step.shown.name in taken:
                continue
            try:
                await self._take(step)
            except DaemonError as error:
                self._warn(str(step), "not done in Docker cause=%s", error)
                # Docker refuses a removal only while it is busy with the network.
                failed = failed or error.retry or isinstance(step, Remove)
        self._pairing.flush()
        await self._sweep(shown)
        if time.monotonic() - self._looked_s >= INTERVAL_S:
            await self._drop_unknown(shown)
        if late := self._naming.nameless():
            self._spawn(self._naming.describe_all(late))
        self._spawn(self._naming.describe_untold())
        if failed:
            asyncio.get_running_loop().call_later(RETRY_S, self.poke)

    async def _drop_unknown(self, shown: Sequence[EngineNetwork]) -> None:
        """Removes endpoints that Docker has forgotten; asks it for each network that has some."""
        self._looked_s = time.monotonic()
        try:
            for entry in shown:
                await self.drivers[0].drop_unknown(entry.id)
        except DaemonError:
            self._looked_s = float("-inf")
            raise

    def _leaving(self, shown: Sequence[EngineNetwork]) -> set[str]:
        """Paired networks that Docker has stopped listing a moment ago; looks again after it."""
        missing = self._pairing.pairs.keys() - {entry.id for entry in shown}
        self._missing_s = still(self._missing_s, missing)
        leaving = missing - longer_than(LOST_S, self._missing_s)
        copying = self.drivers[1].copying
        leaving |= {id_ for id_ in missing if self._pairing.pairs[id_].id in copying}
        if leaving:
            asyncio.get_running_loop().call_later(LOST_S, self.poke)
        return leaving

    # Steps

    async def _take(self, step: Step) -> None:
        match step:
            case Pair(engine_id=engine_id, network=network):
                self._pairing.join(engine_id, network)
            case Part(engine_id=engine_id):
                # Docker's disk was lost, or nobody was there to be told. It is not a removal.
                self._pairing.lose(engine_id)
                log.warning("network lost by Docker, shown again docker=%s", engine_id[:12])
            case Remove(shown=shown, why=why):
                log.info("network taken out of Docker name=%s why=%s", shown.name, why)
                await self._remove(shown)
            case Publish(shown=shown):
                await self._publish(shown)
            case Copy(network=network):
                await self._copy(network)

    async def _copy(self, network: Network) -> None:
        here = self._pairing.engine_id(network.id) or network.name in self._publishing.values()
        copying = self.drivers[1].copying
        if here or network.id in copying or self._creating(network.name):
            return
        copying[network.id] = network
        try:
            engine_id = await self._engine.create(network)
        finally:
            copying.pop(network.id, None)
        log.info("network shown in Docker network=%s docker=%s", network.id, engine_id[:12])

    async def _remove(self, shown: EngineNetwork) -> None:
        removing = self.drivers[0].removing
        removing.add(shown.id)
        try:
            await self._engine.remove(shown.id)
            self._pairing.part(shown.id)
        finally:
            removing.discard(shown.id)
        self.poke()

    async def _expect(self, engine_id: str, mtu: Mtu) -> None:
        """Gives up after a while: Docker's event comes then."""
        self._expected.add(engine_id)
        try:
            # The store answers before Docker shows the network.
            groundwork, shown = await asyncio.gather(
                self._handover.service.groundwork(mtu), self._made(engine_id)
            )
            if shown and not any(n.name == shown.name for n in self._state.networks.values()):
                await self._publish(shown, groundwork)
        except DaemonError as error:
            log.debug("not published at once docker=%s cause=%s", engine_id[:12], error)
        finally:
            self._expected.discard(engine_id)
        if engine_id in self._pairing.pairs:
            self._poke_later()
        else:
            self.poke()

    async def _made(self, engine_id: str) -> EngineNetwork | None:
        """A network that Docker is making, as soon as it shows it; None if it doesn't in time."""
        began = time.monotonic()
        while (took_s := time.monotonic() - began) < RETRY_S:
            if engine_id in self.drivers[0].deleted:
                break
            with contextlib.suppress(NotFoundError):
                return await self._engine.network(engine_id)
            await asyncio.sleep(max(LOOK_S, took_s / 10))
        return None

    async def _publish(self, shown: EngineNetwork, groundwork: Groundwork | None = None) -> None:
        if shown.id in self._publishing or shown.id in self._pairing.pairs:
            return
        self._publishing[shown.id] = shown.name
        try:
            await self._tell(shown, groundwork)
        finally:
            del self._publishing[shown.id]

    async def _tell(self, shown: EngineNetwork, groundwork: Groundwork | None) -> None:
        spec = NetworkSpec(
            shown.name,
            subnets=tuple(map(str, sorted(shown.subnets, key=lambda c: (c.version, str(c))))),
            gateways=shown.gateways,
            ip_ranges=shown.ip_ranges,
            aux_addresses=shown.aux_addresses,
            ipv6=shown.ipv6,
            internal=shown.internal,
            attachable=shown.attachable,
            options=shown.options,
            labels=shown.labels,
        )
        service = self._handover.service
        try:
            network = await service.create_network(spec, held=shown.subnets, groundwork=groundwork)
        except (ConflictError, InvalidError, ExhaustedError) as error:
            log.error("network refused and taken out of Docker name=%s cause=%s", shown.name, error)
            self._events.note("network_refused", f"{shown.name} of this host's Docker: {error}")
            await self._remove(shown)
            await self._release(shown)
            return
        self._pairing.join(shown.id, network)
        for cidr in shown.subnets:
            self.drivers[1].pending.pop(cidr, None)
        if shown.id in self.drivers[0].deleted:
            await self.drivers[0].delete_network(NetworkDeletion(shown.id))
            return
        # The next comparison must not take it for one that was removed.
        await self._state.wait_for(lambda: network.id in self._state.networks, timeout_s=SHOWN_S)

    async def _release(self, shown: EngineNetwork) -> None:
        for cidr in shown.subnets:
            self.drivers[1].pending.pop(cidr, None)
            await self._handover.service.reservations.release_subnet(cidr)

    async def _sweep(self, shown: list[EngineNetwork]) -> None:
        """Gives back what was reserved for something that never came."""
        reservations = self._handover.service.reservations
        pending = self.drivers[1].pending
        now_s = time.monotonic()
        for pool in list(pending.values()):
            here = any(pool.cidr in entry.subnets for entry in shown)
            if not here and now_s - pool.since_s > ORPHAN_S:
                await self.drivers[1].drop(pool.cidr)
        # Docker forgets an IPv4 address if there is no IPv6 address to go with it.
        await reservations.release_stale(ORPHAN_S)
        if not self._swept:
            await reservations.sweep()
            kept = {cidr for entry in shown for cidr in entry.subnets} | pending.keys()
            for cidr in await reservations.subnets() - kept:
                await reservations.release_subnet(cidr)
            self._swept = True

    def _creating(self, name: str) -> bool:
        """Whether Docker is just making a network, perhaps of this name: look again after it."""
        busy = any(
            pool.copy_of is None and time.monotonic() - pool.since_s < RETRY_S
            for pool in self.drivers[1].pending.values()
        )
        if busy:
            log.debug("copy waits for a network that Docker is making name=%s", name)
            asyncio.get_running_loop().call_later(0.05, self.poke)
        return busy

    # Docker's events

    async def _listen(self) -> NoReturn:
        while True:
            try:
                async for event in self._engine.events():
                    if event is None:
                        self._reached()
                    else:
                        self._heard(event)
                log.warning("docker lost")
            except DaemonError as error:
                log.debug("docker not reached cause=%s", error)
            await asyncio.sleep(RETRY_S)

    def _reached(self) -> None:
        log.info("docker reached")
        self._looked_s = float("-inf")
        self.poke()
        self._spawn(self._naming.describe_all(self._handover.endpoints))

    def _heard(self, event: EngineEvent) -> None:
        known = self._pairing.pairs.keys() | self._publishing.keys()
        if event.kind == "network" and event.action == "create" and event.id in known:
            self._poke_later()
        elif event.kind == "network" and event.action in {"create", "destroy", "remove", "prune"}:
            self.poke()
        elif event.kind == "network" and event.action == "connect":
            if event.attributes.get("type") == self._engine.driver:
                self._spawn(self._naming.describe(event.attributes.get("container", "")))
        elif event.kind == "container" and event.action == "rename":
            self._spawn(self._naming.describe(event.id))

    async def _follow_networks(self) -> NoReturn:
        seen, known = -1, None

        def changed() -> bool:
            return self._state.networks_version != seen

        while True:
            with contextlib.suppress(NotSettledError):
                await self._state.wait_for(changed, timeout_s=INTERVAL_S)
                seen = self._state.networks_version
                found = set(self._state.networks)
                if known is not None and known < found and self._engine.reachable:
                    self._copy_at_once(found - known)
                    # Docker, asked for its list meanwhile, would make the copies more slowly.
                    self._poke_later()
                else:
                    self.poke()
                known = found

    def _copy_at_once(self, network_ids: Iterable[str]) -> None:
        """Begins to copy new networks before Docker's list is there; a comparison does the rest."""
        kept_back = self._pairing.hidden | self._pairing.doomed | self.drivers[0].gone
        for network_id in network_ids:
            network = self._state.networks[network_id]
            if network.state == "up" and network_id not in kept_back:
                self._spawn(self._try_copy(network))

    async def _try_copy(self, network: Network) -> None:
        try:
            await self._copy(network)
        except DaemonError as error:
            log.debug("not copied at once network=%s cause=%s", network.id, error)
            self.poke()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _warn(self, key: str, text: str, error: DaemonError) -> None:
        now_s = time.monotonic()
        if now_s - self._warned.get(key, -WARN_AGAIN_S) >= WARN_AGAIN_S:
            log.warning(text, error)
            self._warned[key] = now_s
