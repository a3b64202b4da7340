"""The data plane by network: in the forwarder, or, with `datapath=kernel`, in a vxlan device.

The forwarder keeps every attachment and the descriptor of its namespace, whoever carries the
frames: so nothing is lost with the daemon, and there is one place to ask what is attached. What
only the kernel knows of its networks is read from their devices.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence

from pyvxlan.capture import DroppedFrame
from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.dataplane.capture import Capture
from pyvxlan.daemon.dataplane.protocol import (
    KERNEL,
    Dataplane,
    NetworkTables,
    PortConfig,
    TableUpdate,
)
from pyvxlan.daemon.errors import DataplaneError, InvalidError, NetError
from pyvxlan.daemon.model import Address
from pyvxlan.daemon.net import PORT, Net, Vxlan, VxlanState
from pyvxlan.forwarder.protocol import CaptureRequest


class KernelDataplane:
    """A `Dataplane` that gives networks on `datapath=kernel` a vxlan device.

    Args:
        forwarder: Carries all other networks, and keeps the attachments of all.
        net: The kernel.
        settings: For the UDP port and the outer checksum.
        vtep: Underlay address of this host.
    """

    def __init__(self, forwarder: Dataplane, net: Net, settings: Settings, vtep: Address) -> None:
        self._forwarder = forwarder
        self._net = net
        self._settings = settings
        self._vtep = vtep
        self._ports: dict[int, PortConfig] = {}
        self._flood: dict[int, tuple[str, ...]] = {}
        """What was asked for where multicast is off, and so is in no device."""

    async def start(self) -> None:
        """Starts the forwarder."""
        await self._forwarder.start()

    async def stop(self, *, kill: bool) -> None:
        """Lets go of the forwarder; devices stay as long as their namespaces."""
        await self._forwarder.stop(kill=kill)

    async def dump(self) -> Mapping[int, NetworkTables]:
        """Reads back all that is attached."""
        held = dict(await self._forwarder.dump())
        self._ports = {
            vni: tables.port for vni, tables in held.items() if tables.port.datapath == KERNEL
        }
        for vni, port in self._ports.items():
            held[vni] = self._tables(port, await self._read(port))
        return held

    async def adopt_netns(self, vni: int) -> int | None:
        """Gives a new descriptor of the namespace that was passed to `attach`."""
        return await self._forwarder.adopt_netns(vni)

    async def attach(self, netns_fd: int, name: str, port: PortConfig) -> None:
        """Makes the device or opens the TAP, and forwards for its VNI."""
        if port.datapath == KERNEL:
            await self._net.ensure_vxlan(netns_fd, name, self._device(port))
            self._ports[port.vni] = port
        await self._forwarder.attach(netns_fd, name, port)

    async def detach(self, vni: int) -> None:
        """Stops forwarding for a VNI and removes its port."""
        if vni in self._ports:
            async with self._namespace(vni) as netns:
                await self._net.remove_vxlan(netns, PORT)
        await self._forwarder.detach(vni)
        self._ports.pop(vni, None)
        self._flood.pop(vni, None)

    async def apply(self, update: TableUpdate) -> None:
        """Changes one network's tables; in a device one entry after the other."""
        port = self._ports.get(update.vni)
        if port is None:
            await self._forwarder.apply(update)
            return
        flood = update.flood
        if flood is not None and not port.multicast:
            self._flood[port.vni], flood = tuple(flood), ()
        async with self._namespace(port.vni) as netns:
            await self._net.change_vxlan(
                netns,
                PORT,
                add=update.add,
                remove=update.remove,
                neighbours=update.neighbours,
                flood=flood,
            )

    async def stats(self) -> Mapping[str, object]:
        """Counters, with those of the devices among the networks."""
        stats = dict(await self._forwarder.stats())
        networks = dict(stats["networks"])  # type: ignore[call-overload]
        for vni, port in tuple(self._ports.items()):
            with contextlib.suppress(NetError):  # it shows as a network that carries nothing
                if state := await self._read(port):
                    networks[vni] = _counters(state)
        return {**stats, "networks": networks}

    async def capture(self, request: CaptureRequest) -> Capture:
        """Begins a capture of a network that the forwarder carries."""
        if request.vni in self._ports:
            raise InvalidError(
                f"the network of vni {request.vni} is on datapath=kernel: its frames do not pass"
                f" the forwarder; use tcpdump -i {PORT} in its namespace (pyvxlan status)"
            )
        return await self._forwarder.capture(request)

    async def recent_drops(self) -> Sequence[DroppedFrame]:
        """What the forwarder has dropped; the kernel remembers no frames."""
        return await self._forwarder.recent_drops()

    async def lost(self) -> None:
        """Returns when a port died or the forwarder was replaced."""
        await self._forwarder.lost()

    def _device(self, port: PortConfig) -> Vxlan:
        settings = self._settings
        return Vxlan(
            port.vni, self._vtep, settings.kernel_port, port.mtu_bytes, settings.outer_checksum
        )

    def _tables(self, port: PortConfig, state: VxlanState | None) -> NetworkTables:
        if state is None:
            return NetworkTables(port, port_alive=False)
        flood = state.flood
        if not port.multicast:
            # What is there nevertheless is no list that anybody can want.
            flood = ("",) if flood else self._flood.get(port.vni, ())
        return NetworkTables(port, state.fdb, state.neighbours, flood)

    async def _read(self, port: PortConfig) -> VxlanState | None:
        async with self._namespace(port.vni) as netns:
            return await self._net.read_vxlan(netns, PORT, self._device(port))

    @contextlib.asynccontextmanager
    async def _namespace(self, vni: int) -> AsyncIterator[int]:
        netns = await self._forwarder.adopt_netns(vni)
        if netns is None:
            raise DataplaneError(f"vni {vni} is not attached")
        try:
            yield netns
        finally:
            os.close(netns)


def _counters(state: VxlanState) -> Mapping[str, object]:
    """Gives a device's counters under the forwarder's names; it knows no reasons for drops."""
    drops = {name: {KERNEL: state.counters[name]} for name in ("egress_drops", "ingress_drops")}
    return {**state.counters, **drops}
