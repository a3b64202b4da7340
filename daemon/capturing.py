"""`capture` and `drops`: what becomes of frames, here or, asked over peering, on another host.

A host that is asked knows its own network and its own forwarder; what a name stands for is found
out by the one that asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pyvxlan._dataplane import MAX_SNAP_BYTES
from pyvxlan.daemon.dataplane import KERNEL, CaptureRequest, Dataplane, DroppedFrame
from pyvxlan.daemon.desired import datapath_of
from pyvxlan.daemon.documents import Document
from pyvxlan.daemon.errors import (
    ConflictError,
    DaemonError,
    DataplaneError,
    InvalidError,
    NotFoundError,
)
from pyvxlan.daemon.model import Endpoint, Host, Network, format_mac
from pyvxlan.daemon.peering import Answer, Arguments, Peering
from pyvxlan.daemon.service import HostStatus

log = logging.getLogger(__name__)

SNAP_MIN_BYTES = 14
"""An Ethernet header."""


class Finder(Protocol):
    """What is asked of `Service`."""

    async def networks(self) -> list[Network]:
        """All networks."""

    async def find_network(self, ref: str) -> Network:
        """Finds a network."""

    async def find_endpoint(self, ref: str) -> Endpoint:
        """Finds an endpoint."""

    async def endpoints(self, network_ref: str | None = None) -> list[Endpoint]:
        """Endpoints of a network, on all hosts."""

    async def attached(self, network_ref: str | None = None) -> list[Endpoint]:
        """This host's endpoints in a network."""

    async def hosts(self) -> list[HostStatus]:
        """All hosts."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a capture is of: a network, or one endpoint of it; and the hosts that carry it."""

    network: Network
    endpoint: Endpoint | None
    hosts: Sequence[Host]


class Capturing:
    """Answers the API, and the daemons of other hosts.

    Args:
        finder: Knows what names stand for.
        dataplane: Carries this host's frames.
        peers: Asks the other hosts, and is told here what to answer them.
        host: This host.
    """

    def __init__(self, finder: Finder, dataplane: Dataplane, peers: Peering, host: Host) -> None:
        self._finder = finder
        self._dataplane = dataplane
        self._peers = peers
        self._host = host
        self._running: set[asyncio.Event] = set()
        peers.answer_stream("capture", self._capture)
        peers.answer("drops", self._drops)

    async def subject(self, target: str) -> Subject:
        """Finds what a name or id stands for.

        Raises:
            NotFoundError: It is neither a network nor an endpoint.
            ConflictError: It is both.
        """
        network = endpoint = None
        with contextlib.suppress(NotFoundError):
            network = await self._finder.find_network(target)
        with contextlib.suppress(NotFoundError):
            endpoint = await self._finder.find_endpoint(target)
        if network and endpoint:
            raise ConflictError(
                f"{target} is a network and an endpoint: give the id of one (network ls, endpoint "
                "ls), or NAME.NETWORK for an endpoint"
            )
        if endpoint:
            network = await self._finder.find_network(endpoint.network_id)
        if network is None:
            raise NotFoundError(
                f"{target} is no network and no endpoint: see pyvxlan network ls and endpoint ls"
            )
        carrying = {one.host_id for one in await self._finder.endpoints(network.id)}
        hosts = [one.host for one in await self._finder.hosts() if one.host.id in carrying]
        return Subject(network, endpoint, hosts)

    async def host(self, ref: str) -> Host:
        """Finds a host by name or id; this one if `ref` is empty."""
        if not ref:
            return self._host
        for status in await self._finder.hosts():
            if ref in {status.host.name, status.host.id}:
                return status.host
        raise NotFoundError(f"{ref} is no host: see pyvxlan node ls")

    @contextlib.asynccontextmanager
    async def stream(
        self, subject: Subject, host: Host, *, snap_bytes: int, drops_only: bool
    ) -> AsyncIterator[tuple[AsyncIterator[Answer], asyncio.Event]]:
        """Captures on a host while inside; setting the event lets what is given come to its end.

        First comes a document about the host, then messages for `parse_capture`.

        Raises:
            PeerError: The host can't be asked.
        """
        arguments = {
            "network": subject.network.id,
            "mac": format_mac(subject.endpoint.mac) if subject.endpoint else "",
            "snap_bytes": snap_bytes,
            "drops_only": drops_only,
        }
        stop = asyncio.Event()
        self._running.add(stop)
        try:
            async with self._peers.stream(host.id, "capture", arguments, stop) as answers:
                yield answers, stop
        finally:
            self._running.discard(stop)

    async def drops(self, host: Host, network_ref: str = "") -> list[Document]:
        """Gives a host's last dropped frames, the oldest first, as the API shows them.

        Raises:
            InvalidError: The network's frames do not pass the forwarder, which remembers them.
        """
        network = await self._finder.find_network(network_ref) if network_ref else None
        if network and datapath_of(network.options) == KERNEL:
            raise InvalidError(
                f"network {network.name} is on datapath=kernel: the kernel counts what it drops "
                f"(pyvxlan status), and remembers none of it"
            )
        found: list[Document] = await self._peers.ask(host.id, "drops", {})
        return [drop for drop in found if network is None or drop["vni"] == network.vni]

    def end_all(self) -> None:
        """Lets every capture come to its end."""
        for stop in self._running:
            stop.set()

    # What any host is asked, this one too

    async def _capture(
        self, arguments: Arguments, stop: asyncio.Event
    ) -> AsyncGenerator[Answer, None]:
        network_id, request = await self._request(arguments)
        network = await self._finder.find_network(network_id)
        if not await self._finder.attached(network_id):
            raise NotFoundError(
                f"network {network.name} has no endpoint on {self._host.name}, which carries none "
                "of its frames: name another host with --host"
            )
        with await self._dataplane.capture(CaptureRequest(network.vni, *request)) as capture:
            log.info("capture begun network=%s vni=%d", network.name, network.vni)
            yield await self._about()
            stopping = asyncio.create_task(stop.wait())
            stopping.add_done_callback(lambda _: capture.end())
            try:
                while message := await capture.message():
                    yield message
            finally:
                stopping.cancel()
        if not stop.is_set():
            raise DataplaneError("the forwarder was replaced, and the capture has ended with it")

    async def _drops(self, _: Arguments) -> Answer:
        names = await self._host_names()
        networks = {network.vni: network.name for network in await self._finder.networks()}
        drops = await self._dataplane.recent_drops()
        return [_drop_document(drop, networks, names) for drop in drops]

    async def _request(self, arguments: Arguments) -> tuple[str, tuple[bytes | None, int, bool]]:
        match arguments:
            case {
                "network": str(network_id),
                "mac": str(mac),
                "snap_bytes": int(snap_bytes),
                "drops_only": bool(drops_only),
            } if SNAP_MIN_BYTES <= snap_bytes <= MAX_SNAP_BYTES:
                with contextlib.suppress(ValueError):
                    address = bytes.fromhex(mac.replace(":", ""))
                    if len(address) in {0, 6}:
                        return network_id, (address or None, snap_bytes, drops_only)
        raise InvalidError(
            f"a capture needs network, mac, drops_only, and snap_bytes of {SNAP_MIN_BYTES} to "
            f"{MAX_SNAP_BYTES}"
        )

    async def _about(self) -> Document:
        return {
            "host": self._host.name,
            "vtep": str(self._host.vtep),
            "hosts": await self._host_names(),
            "time_ns": time.time_ns(),
        }

    async def _host_names(self) -> dict[str, str]:
        """The names of hosts by VTEP; none while the store was never reached."""
        with contextlib.suppress(DaemonError):
            return {str(one.host.vtep): one.host.name for one in await self._finder.hosts()}
        return {}


def _drop_document(
    drop: DroppedFrame, networks: Mapping[int, str], names: Mapping[str, str]
) -> Document:
    vtep = "" if drop.vtep is None else str(drop.vtep)
    document: dict[str, Any] = {
        "time": drop.time_ns / 1e9,
        "count": drop.count,
        "direction": drop.direction,
        "reason": drop.reason,
        "network": "" if drop.vni is None else networks.get(drop.vni, ""),
        "vni": drop.vni,
        "vtep": vtep,
        "host": names.get(vtep, ""),
        "frame_bytes": drop.frame_bytes,
        "headers": drop.headers.hex(),
    }
    return document
