"""A `Dataplane` that only remembers: for tests, and to show what the Protocol means."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pyvxlan.capture import DroppedFrame, capture_sockets
from pyvxlan.daemon.dataplane.capture import Capture
from pyvxlan.daemon.dataplane.protocol import NetworkTables, PortConfig, TableUpdate
from pyvxlan.daemon.errors import DataplaneError
from pyvxlan.forwarder.protocol import CaptureRequest


class MemoryDataplane:
    """Keeps tables in a dict and forwards nothing.

    `tables` may be changed at will, to play what the world does. `refuse`, if set, is called with
    the name and the VNI of each change, and may raise.
    """

    def __init__(self) -> None:
        self.tables: dict[int, NetworkTables] = {}
        self.calls: list[tuple[str, int]] = []
        self.refuse: Callable[[str, int], None] = lambda _call, _vni: None
        self.running = False
        self.captures: list[tuple[CaptureRequest, socket.socket]] = []
        """What was asked for, and where a test may put its messages."""
        self.drops: list[DroppedFrame] = []
        self._netns: dict[int, int] = {}
        self._lost = asyncio.Event()

    async def start(self) -> None:
        """Begins; what was attached before still is."""
        self.running = True

    async def stop(self, *, kill: bool) -> None:
        """Ends; with `kill`, forgets everything."""
        self.running = False
        if kill:
            for vni in tuple(self.tables):
                self._forget(vni)

    async def dump(self) -> Mapping[int, NetworkTables]:
        """Gives what is attached."""
        return dict(self.tables)

    async def adopt_netns(self, vni: int) -> int | None:
        """Gives a new descriptor of what was passed to `attach`."""
        held = self._netns.get(vni)
        return None if held is None else os.dup(held)

    async def attach(self, netns_fd: int, name: str, port: PortConfig) -> None:
        """Attaches, or changes an attachment."""
        self._note("attach", port.vni)
        if not name:
            raise DataplaneError("a port needs a name")
        if (held := self._netns.pop(port.vni, None)) is not None:
            os.close(held)
        self._netns[port.vni] = os.dup(netns_fd)
        tables = self.tables.get(port.vni, NetworkTables(port))
        self.tables[port.vni] = replace(tables, port=port, port_alive=True)

    async def detach(self, vni: int) -> None:
        """Forgets a network."""
        self._note("detach", vni)
        self._forget(vni)

    async def apply(self, update: TableUpdate) -> None:
        """Changes a network's tables.

        Raises:
            DataplaneError: The network is not attached.
        """
        self._note("apply", update.vni)
        tables = self.tables.get(update.vni)
        if tables is None:
            raise DataplaneError(f"vni {update.vni} is not attached")
        fdb = {mac: vtep for mac, vtep in tables.fdb.items() if mac not in update.remove}
        self.tables[update.vni] = replace(
            tables,
            fdb={**fdb, **update.add},
            neighbours=tables.neighbours if update.neighbours is None else update.neighbours,
            flood=tables.flood if update.flood is None else tuple(update.flood),
        )

    async def stats(self) -> Mapping[str, object]:
        """Nothing was forwarded."""
        return {"networks": {vni: {} for vni in self.tables}}

    async def capture(self, request: CaptureRequest) -> Capture:
        """Begins a capture of what a test says."""
        self.refuse("capture", request.vni)
        ours, theirs = capture_sockets()
        self.captures.append((request, theirs))
        return Capture(ours)

    async def recent_drops(self) -> Sequence[DroppedFrame]:
        """Gives what a test says."""
        return self.drops

    async def lost(self) -> None:
        """Returns after `lose`."""
        await self._lost.wait()
        self._lost.clear()

    def lose(self) -> None:
        """Plays a forwarder that was replaced and has lost everything."""
        for vni in tuple(self.tables):
            self._forget(vni)
        self._lost.set()

    def _note(self, call: str, vni: int) -> None:
        self.refuse(call, vni)
        self.calls.append((call, vni))

    def _forget(self, vni: int) -> None:
        self.tables.pop(vni, None)
        if (held := self._netns.pop(vni, None)) is not None:
            os.close(held)
