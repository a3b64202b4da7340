"""Protocol `Dataplane`: what the reconciler asks of whatever carries the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from pyvxlan.capture import DroppedFrame
from pyvxlan.daemon.dataplane.capture import Capture
from pyvxlan.forwarder.protocol import CaptureRequest

FORWARDER: Final = "forwarder"
KERNEL: Final = "kernel"
DATAPATHS = (FORWARDER, KERNEL)
"""What may carry a network's frames; the first unless the network says otherwise."""


@dataclass(frozen=True, slots=True)
class PortConfig:
    """How a network's port is attached; a change of any field needs a new attachment."""

    vni: int
    mtu_bytes: int
    multicast: bool = True
    flood_rate: int = 10_000
    """Broadcast and multicast frames a second that containers of this host may send."""
    datapath: str = FORWARDER
    """One of `DATAPATHS`."""


@dataclass(frozen=True, slots=True)
class NetworkTables:
    """What the data plane holds for one VNI, read back from it.

    `fdb` maps a remote overlay MAC (six bytes) to its VTEP; `neighbours` an overlay address to a
    MAC; `flood` lists the VTEPs that get broadcast and multicast. Addresses are text as
    `ipaddress` prints it. `port_alive` is False once the TAP behind the port, or the kernel's
    device, was deleted.
    """

    port: PortConfig
    fdb: Mapping[bytes, str] = field(default_factory=dict)
    neighbours: Mapping[str, bytes] = field(default_factory=dict)
    flood: tuple[str, ...] = ()
    port_alive: bool = True


@dataclass(frozen=True, slots=True)
class TableUpdate:
    """A change to one network's tables; `flood` and `neighbours`, if given, replace the old."""

    vni: int
    add: Mapping[bytes, str] = field(default_factory=dict)
    remove: Sequence[bytes] = ()
    neighbours: Mapping[str, bytes] | None = None
    flood: Sequence[str] | None = None


class Dataplane(Protocol):
    """Carries frames between ports and VTEPs. Every call can be repeated safely."""

    async def start(self) -> None:
        """Finds a running forwarder or starts one. Keeps it running until `stop`."""

    async def stop(self, *, kill: bool) -> None:
        """Lets go of the forwarder; with `kill`, ends it and with it all forwarding."""

    async def dump(self) -> Mapping[int, NetworkTables]:
        """Reads back, by VNI, everything that is attached."""

    async def adopt_netns(self, vni: int) -> int | None:
        """Gives a new descriptor of the namespace that was passed to `attach`, if it holds one.

        The caller closes it. This is how a daemon in a new mount namespace finds the overlay
        namespaces of the one before it.
        """

    async def attach(self, netns_fd: int, name: str, port: PortConfig) -> None:
        """Creates the port `name` in a namespace, or opens it anew, and forwards for its VNI.

        An attachment of that VNI that exists is replaced; its tables stay.
        """

    async def detach(self, vni: int) -> None:
        """Stops forwarding for a VNI and removes its port."""

    async def apply(self, update: TableUpdate) -> None:
        """Changes one network's tables, all or nothing."""

    async def stats(self) -> Mapping[str, object]:
        """Counters, as the forwarder gives them (docs/dataplane.md), and `threads` of `Worker`."""

    async def capture(self, request: CaptureRequest) -> Capture:
        """Begins to tell what becomes of a network's frames; the caller closes it.

        Raises:
            InvalidError: Something else than the forwarder carries them.
        """

    async def recent_drops(self) -> Sequence[DroppedFrame]:
        """Gives the last frames that were dropped, of each reason some, the oldest first."""

    async def lost(self) -> None:
        """Returns when a port died or the forwarder was replaced: state must be compared anew."""
