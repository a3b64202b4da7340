"""The data plane in a process of its own: finds the forwarder or starts one, and keeps it running.

The daemon holds duplicates of every descriptor that the forwarder works with, and a copy of its
tables. So a forwarder that dies takes nothing with it: the next one gets the same sockets, ports
and tables, and only then begins, with what the kernel has queued meanwhile. One of another version
is replaced while both run.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from pyvxlan import __version__
from pyvxlan._dataplane import open_tap, open_underlay, receive_offload, tap_offloads
from pyvxlan.capture import DroppedFrame, capture_sockets
from pyvxlan.daemon.config import TAP_OFFLOADS, Settings
from pyvxlan.daemon.dataplane import process
from pyvxlan.daemon.dataplane.capture import Capture
from pyvxlan.daemon.dataplane.protocol import (
    FORWARDER,
    NetworkTables,
    PortConfig,
    TableUpdate,
)
from pyvxlan.daemon.dataplane.threads import read_workers
from pyvxlan.daemon.dataplane.tunnels import Tunnels
from pyvxlan.daemon.errors import DataplaneError
from pyvxlan.daemon.events import Events
from pyvxlan.daemon.model import Address
from pyvxlan.errors import ForwarderLostError, ForwarderRefusedError
from pyvxlan.forwarder import protocol as wire
from pyvxlan.forwarder.channel import close_descriptors
from pyvxlan.forwarder.client import ForwarderClient, PortDescriptors

log = logging.getLogger(__name__)

START_S = 15.0
"""How long a forwarder may take to answer for the first time."""
ANSWER_S = 5.0
WAIT_S = 3.0
"""How long a call waits for a forwarder that is being replaced."""
TUNNELS_S = 0.2
"""How long changes of the tunnels are collected before the forwarder is told."""
RETRY_S = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Pauses between attempts to start a forwarder; the last one repeats."""


@dataclass(slots=True)
class _Network:
    """What the forwarder was given for one VNI: all that its successor needs."""

    settings: wire.Attachment
    descriptors: PortDescriptors
    fdb: dict[bytes, str] = field(default_factory=dict)
    neighbours: Mapping[str, bytes] = field(default_factory=dict)
    flood: Sequence[str] = ()
    offloads: tuple[str, ...] = ()
    """Those that the kernel has granted its TAP."""

    def take(self, update: TableUpdate) -> None:
        """Notes an update that the forwarder has applied."""
        for mac in update.remove:
            self.fdb.pop(mac, None)
        self.fdb.update(update.add)
        if update.neighbours is not None:
            self.neighbours = dict(update.neighbours)
        if update.flood is not None:
            self.flood = tuple(update.flood)

    def tables(self) -> wire.TableUpdate:
        """Gives the update that fills empty tables."""
        return wire.TableUpdate(self.settings.vni, self.fdb, (), self.neighbours, self.flood)


class UserspaceDataplane:
    """A `Dataplane` in the forwarder process.

    Args:
        settings: For the run directory, port, workers, checksum, offloads and the forwarder's user.
        vtep: Underlay address of this host.
        events: Where it is noted that the forwarder was replaced.
    """

    def __init__(self, settings: Settings, vtep: Address, events: Events | None = None) -> None:
        self.restarts = 0
        """How often the forwarder was replaced since `start`."""
        self._settings = settings
        self._without = tuple(name for name in settings.no_offload if name in TAP_OFFLOADS)
        self._vtep = str(vtep)
        self._events = events or Events()
        self._files = process.ForwarderFiles(settings.run_dir)
        self._client: ForwarderClient | None = None
        self._hello: wire.Hello | None = None
        self._underlay: tuple[int, ...] = ()
        self._networks: dict[int, _Network] = {}
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._tunnels = Tunnels()
        self._tunnels_changed = asyncio.Event()

    async def start(self) -> None:
        """Finds the forwarder of a daemon before this one, or starts one; keeps it running.

        Raises:
            DataplaneError: Its UDP port is taken, or it can't be started.
        """
        with _explained():
            await self._ensure_client()
        self._tasks.append(asyncio.create_task(self._keep()))
        self._tasks.append(asyncio.create_task(self._keep_tunnels()))

    async def stop(self, *, kill: bool) -> None:
        """Lets go of the forwarder; with `kill`, ends it."""
        self._ready.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._client is not None:
            await self._client.close()
            self._client = None
        self._release()
        if kill:
            for files in (self._files.successor, self._files):
                await process.end(files)

    async def dump(self) -> Mapping[int, NetworkTables]:
        """Reads back all that is attached."""
        async with self._connected() as client:
            return {vni: _tables(state) for vni, state in (await client.dump()).items()}

    async def adopt_netns(self, vni: int) -> int | None:
        """Gives a new descriptor of the namespace that a port was attached with."""
        held = self._networks.get(vni)
        return os.dup(held.descriptors.netns) if held else None

    async def attach(self, netns_fd: int, name: str, port: PortConfig) -> None:
        """Opens the TAP of that name, creating it if need be, and forwards for its VNI.

        If the frames go by another way, only the namespace is kept.
        """
        async with self._connected() as client:
            queues: Sequence[int] = ()
            offloads: Sequence[str] = ()
            if port.datapath == FORWARDER:
                queues, offloads = await asyncio.to_thread(self._open_port, netns_fd, name, port)
            descriptors = PortDescriptors(tuple(queues), os.dup(netns_fd))
            settings = wire.Attachment(**asdict(port))
            try:
                await client.attach(settings, descriptors.queues, descriptors.netns)
            except BaseException:
                descriptors.close()
                raise
            held = self._networks.get(port.vni)
            if held is None:
                held = self._networks[port.vni] = _Network(settings, descriptors)
            else:
                held.descriptors.close()
                held.settings, held.descriptors = settings, descriptors
            held.offloads = tuple(offloads)
            self._note_tunnels(port.vni)

    async def detach(self, vni: int) -> None:
        """Stops forwarding for a VNI; its TAP goes with the last descriptor."""
        async with self._connected() as client:
            await client.detach(vni)
            self._forget(vni)

    async def apply(self, update: TableUpdate) -> None:
        """Changes one network's tables, all or nothing."""
        async with self._connected() as client:
            await client.update([_wire_update(update)])
            if held := self._networks.get(update.vni):
                held.take(update)
                self._note_tunnels(update.vni)

    async def stats(self) -> Mapping[str, object]:
        """Counters of workers, underlay and networks, and which forwarder they are of."""
        async with self._connected() as client:
            counters = await client.stats()
            hello = self._hello
            pid = hello.pid if hello else 0
            return {
                "workers": counters.workers,
                "threads": read_workers(
                    pid,
                    self._underlay[: counters.workers],
                    counters.idle_s,
                    counters.segmentation,
                ),
                "offloads": {
                    vni: held.offloads
                    for vni, held in self._networks.items()
                    if not held.settings.only_kept
                },
                "underlay": counters.underlay,
                "networks": counters.networks,
                "vteps": counters.vteps,
                "tunnels": {
                    vtep: {**tunnel, "vnis": self._tunnels.networks(vtep)}
                    for vtep, tunnel in counters.tunnels.items()
                },
                "restarts": self.restarts,
                "pid": pid,
                "since": hello.since if hello else 0.0,
            }

    async def capture(self, request: wire.CaptureRequest) -> Capture:
        """Begins a capture; it ends with the forwarder that it was begun in."""
        ours, theirs = capture_sockets()
        try:
            with theirs:
                async with self._connected() as client:
                    await client.capture(request, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        return Capture(ours)

    async def recent_drops(self) -> Sequence[DroppedFrame]:
        """Gives the last frames that were dropped."""
        async with self._connected() as client:
            return await client.recent_drops()

    async def lost(self) -> None:
        """Returns when a port died or the forwarder was replaced."""
        await self._lost.wait()
        self._lost.clear()

    # The forwarder comes and goes

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[ForwarderClient]:
        """Gives the connection; waits a moment if the forwarder is just being replaced."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self._ready.wait()
        except TimeoutError:
            raise DataplaneError(
                f"the forwarder does not run; see {self._files.log}, it is started again"
            ) from None
        assert self._client is not None
        with _explained():
            yield self._client

    async def _keep(self) -> None:
        """Replaces a forwarder that is gone, as often as it takes."""
        while True:
            assert self._client is not None
            events = asyncio.create_task(self._follow(self._client))
            try:
                await self._client.wait_lost()
            finally:
                events.cancel()
            self._ready.clear()
            log.warning(
                "forwarder lost, started again pid=%d", self._hello.pid if self._hello else 0
            )
            await self._replace()
            self.restarts += 1
            self._events.note("forwarder_replaced", f"pid {self._hello.pid if self._hello else 0}")
            self._lost.set()

    async def _replace(self) -> None:
        attempt = 0
        while True:
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1
            try:
                with _explained():
                    await self._ensure_client()
            except DataplaneError as error:
                log.error("forwarder not started attempt=%d cause=%s", attempt, error)
            else:
                return

    async def _keep_tunnels(self) -> None:
        """Tells the forwarder which tunnels to probe, whenever others are, or it is another."""
        interval_ms = round(self._settings.probe_interval_s * 1000)
        while True:
            await self._tunnels_changed.wait()
            await asyncio.sleep(TUNNELS_S)
            self._tunnels_changed.clear()
            try:
                async with self._connected() as client:
                    await client.probe(interval_ms, self._tunnels.wanted())
            except DataplaneError as error:
                log.warning("tunnels not told, told again cause=%s", error)
                self._tunnels_changed.set()

    def _note_tunnels(self, vni: int) -> None:
        held = self._networks.get(vni)
        vteps = held.flood if held and not held.settings.only_kept else ()
        if self._tunnels.set(vni, held.settings.mtu_bytes if held else 0, vteps):
            self._tunnels_changed.set()

    async def _follow(self, client: ForwarderClient) -> None:
        """Tells of ports that died."""
        with contextlib.suppress(ForwarderLostError):
            while True:
                event = await client.next_event()
                log.info("forwarder event kind=%s subject=%s", event.kind, event.subject)
                self._lost.set()

    async def _ensure_client(self) -> None:
        """Connects to a forwarder that is as the settings say, whatever that takes."""
        if self._client is not None:
            await self._client.close()
            self._client = None
        found = await self._find()
        if found is None:
            client, hello = await self._spawn()
        else:
            client, hello = found
            if self._fits(hello):
                await self._restrict(client)
            else:
                client, hello = await self._succeed(client, hello)
        self._client, self._hello = client, hello
        self._ready.set()
        self._tunnels_changed.set()
        log.info("forwarder connected pid=%d version=%s", hello.pid, hello.version)

    async def _find(self) -> tuple[ForwarderClient, wire.Hello] | None:
        """Connects to the forwarder that runs, and takes duplicates of what it holds.

        One that does not answer, or speaks another protocol, is ended.
        """
        try:
            client = await ForwarderClient.connect(self._files.socket, timeout_s=ANSWER_S)
            try:
                hello = await client.hello()
                if hello.protocol != wire.PROTOCOL_VERSION:
                    raise wire.ProtocolError(
                        f"protocol {hello.protocol} of the forwarder is not ours"
                    )
                await self._take_over(client)
            except BaseException:
                await client.close()
                raise
        except (ForwarderLostError, ForwarderRefusedError, wire.ProtocolError) as error:
            log.info("no forwarder found cause=%s", error)
            await process.end(self._files)
            return None
        return client, hello

    async def _take_over(self, client: ForwarderClient) -> None:
        handover = await client.handover()
        self._release()
        self._underlay = handover.underlay
        for vni, descriptors in handover.ports.items():
            state = handover.networks[vni]
            self._networks[vni] = _Network(
                state.port, descriptors, dict(state.fdb), state.neighbours, state.flood
            )
            self._note_tunnels(vni)

    async def _restrict(self, client: ForwarderClient) -> None:
        """Lets ports and sockets use what the settings leave them, and no more.

        The daemon before this one may have had other settings; what flows meanwhile goes on.
        """
        off = self._settings.no_offload
        await client.switch_segmentation(on="segment" not in off)
        for sock in self._underlay[: self._settings.workers]:
            receive_offload(sock, on="gro" not in off)
        for held in self._networks.values():
            # A port that was deleted is opened anew by the next comparison.
            with contextlib.suppress(OSError):
                for queue in held.descriptors.queues[:1]:
                    held.offloads = tuple(tap_offloads(queue, without=self._without))

    def _fits(self, hello: wire.Hello) -> bool:
        return hello.version == __version__ and self._has_our_underlay(hello)

    def _has_our_underlay(self, hello: wire.Hello) -> bool:
        return (hello.address, hello.port, hello.workers) == (
            self._vtep,
            self._settings.port,
            self._settings.workers,
        )

    async def _succeed(
        self, old: ForwarderClient, hello: wire.Hello
    ) -> tuple[ForwarderClient, wire.Hello]:
        """Replaces a forwarder that does not fit; with the same underlay, while both run."""
        log.info("forwarder replaced pid=%d version=%s", hello.pid, hello.version)
        try:
            if not self._has_our_underlay(hello):
                # Only its end frees the port.
                await process.end(self._files)
                close_descriptors(self._underlay)
                self._underlay = ()
            successor = await self._spawn()
            if old.connected:
                await old.shutdown()
        finally:
            await old.close()
        return successor

    async def _spawn(self) -> tuple[ForwarderClient, wire.Hello]:
        """Starts a forwarder, gives it all descriptors and tables that are held, lets it begin."""
        if not self._underlay:
            self._underlay = tuple(await asyncio.to_thread(self._open_underlay))
        settings, files = self._settings, self._files.successor
        await process.end(files)
        await asyncio.to_thread(process.spawn, files, settings.forwarder_user, settings.log_level)
        client = await ForwarderClient.connect(files.socket, timeout_s=START_S)
        try:
            await client.configure(self._underlay, settings.workers, self._vtep, settings.port)
            for held in self._networks.values():
                await client.attach(held.settings, held.descriptors.queues, held.descriptors.netns)
                if not held.settings.only_kept:
                    await client.update([held.tables()])
            await self._restrict(client)
            await client.resume()
            hello = await client.hello()
            process.promote(self._files)
        except BaseException as error:
            await client.close()
            await process.end(files)
            if isinstance(error, ForwarderLostError):
                raise DataplaneError(
                    f"the forwarder ended right after its start; see {self._files.log}"
                ) from error
            raise
        return client, hello

    def _open_port(self, netns_fd: int, name: str, port: PortConfig) -> tuple[list[int], list[str]]:
        """Opens a TAP; gives its queues and the offloads that it was granted."""
        queues = open_tap(
            netns_fd, name, self._settings.workers, port.mtu_bytes, without=self._without
        )
        try:
            return queues, tap_offloads(queues[0], without=self._without)
        except OSError:
            close_descriptors(queues)
            raise

    def _open_underlay(self) -> list[int]:
        settings = self._settings
        try:
            return open_underlay(
                self._vtep, settings.port, settings.workers, checksum=settings.outer_checksum
            )
        except OSError as error:
            where = f"UDP port {settings.port} of {self._vtep}"
            if error.errno == errno.EADDRINUSE:
                raise DataplaneError(
                    f"{where} is taken: stop what listens there (ss -ulpn 'sport = "
                    f":{settings.port}'), or set --port to the same other port on all hosts"
                ) from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise DataplaneError(
                    f"{self._vtep} is no address of this host: set --advertise to one that is"
                ) from error
            raise DataplaneError(f"{where} can't be opened: {error.strerror or error}") from error

    def _forget(self, vni: int) -> None:
        if held := self._networks.pop(vni, None):
            held.descriptors.close()
        self._note_tunnels(vni)

    def _release(self) -> None:
        """Closes all duplicates."""
        close_descriptors(self._underlay)
        self._underlay = ()
        for vni in tuple(self._networks):
            self._forget(vni)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns the forwarder's and the kernel's refusals into DataplaneError."""
    try:
        yield
    except (ForwarderLostError, ForwarderRefusedError, wire.ProtocolError) as error:
        raise DataplaneError(f"forwarder: {error}") from error
    except (OSError, ValueError) as error:
        raise DataplaneError(f"the port can't be opened: {error}") from error


def _tables(state: wire.NetworkState) -> NetworkTables:
    return NetworkTables(
        port=PortConfig(**asdict(state.port)),
        fdb=state.fdb,
        neighbours=state.neighbours,
        flood=tuple(state.flood),
        port_alive=state.port_alive,
    )


def _wire_update(update: TableUpdate) -> wire.TableUpdate:
    return wire.TableUpdate(update.vni, update.add, update.remove, update.neighbours, update.flood)
