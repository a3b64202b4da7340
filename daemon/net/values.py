"""What this host shall have and what it has, in the same words: links, veth pairs, the gateway.

`faults` compares the two. Nothing here touches the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network

from pyvxlan.daemon.model import Address, Cidr, Interface, Sandbox

BRIDGE = "br0"
"""Bridge in every overlay namespace."""
PORT = "vxlan0"
"""The TAP by which an overlay namespace reaches the forwarder; enslaved to `BRIDGE`."""
GATEWAY_BRIDGE = "pyvxlan_gw"
"""Bridge in the host's namespace that gives containers their way out."""
NAMES_LINK = "pyvxlan_dns"
"""Link in the host's namespace that holds the address of the name server."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route through one link; without `gateway`, its destination is on the link."""

    destination: Cidr
    gateway: Address | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A link as it should be, or as the kernel has it.

    An empty `mac` of a wanted link stands for any. Addresses, routes and stations beyond the
    wanted ones belong to somebody else and are left alone. `stations` are the MACs that its bridge
    knows behind a port that learns none; a port that learns has none here. `default_routes` lists
    the IP versions for which the link's namespace has a default route, whoever made it. `odd` names
    settings that are the same on all our links and not so on this one; a wanted link has none.
    """

    mac: bytes
    mtu_bytes: int
    up: bool = True
    master: str = ""
    isolated: bool = False
    stations: frozenset[bytes] = frozenset()
    ipv6: bool = False
    addresses: frozenset[Interface] = frozenset()
    routes: frozenset[Route] = frozenset()
    default_routes: frozenset[int] = frozenset()
    odd: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A vxlan device of the kernel as it should be; `checksum` is of the outer UDP over IPv4."""

    vni: int
    local: Address
    port: int
    mtu_bytes: int
    checksum: bool = True


@dataclass(frozen=True, slots=True)
class VxlanState:
    """What a vxlan device holds: MACs and flood list by VTEP, neighbours, and its counters.

    `fdb` has the MACs that the device or the bridge knows. The VTEP is empty unless both do, the
    entry takes the device's port and VNI, and the bridge's port is set as it should be: so whatever
    is amiss shows as an entry that is not as wanted.
    """

    fdb: Mapping[bytes, str]
    neighbours: Mapping[str, bytes]
    flood: tuple[str, ...]
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Overlay:
    """A network's namespace on this host: its file name, and the two links always in it."""

    netns: str
    bridge: Link
    port: Link


@dataclass(frozen=True, slots=True)
class Veth:
    """A pair: `outer` hangs on a bridge of ours, `inner` is in a sandbox.

    `netns` is the file name of the outer end's overlay namespace, empty for the daemon's own.
    `alias` is written on the outer end and marks it as ours.
    """

    netns: str
    outer_name: str
    outer: Link
    inner_name: str
    inner: Link
    alias: str = ""
    handover: str = ""
    """Name of the inner end in the host's namespace, from where Docker fetches it. From then on it
    is Docker's: only if the pair is gone it is made anew, in the sandbox if that is there."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One local endpoint: its pair to the overlay, and the one to the gateway bridge, if any."""

    endpoint_id: str
    sandbox: Sandbox
    overlay: Veth
    uplink: Veth | None = None

    @property
    def veths(self) -> tuple[Veth, ...]:
        """All pairs, the overlay's first."""
        return (self.overlay, self.uplink) if self.uplink else (self.overlay,)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The gateway bridge with its masquerading; `ruled` and `forwarding` say whether it works."""

    link: Link
    ruled: bool = True
    """The nftables table is exactly what it has to be for the link's subnet."""
    forwarding: bool = True
    """The host forwards IPv4."""

    @property
    def subnet(self) -> IPv4Network | None:
        """The range that containers get their addresses on the bridge from."""
        for address in self.link.addresses:
            if isinstance(address, IPv4Interface):
                return address.network
        return None


@dataclass(frozen=True, slots=True)
class Observed:
    """One reading of the kernel.

    `namespaces` holds all overlay namespaces that live, by file name, with their links by name.
    `names` is the host's link of the name server, if it is ours. `inner` holds the sandbox's end of
    each veth pair that is whole, by the name of its outer end. `uplinks` holds our
    ports of the gateway bridge, by name.
    """

    namespaces: Mapping[str, Mapping[str, Link]] = field(default_factory=dict)
    names: Link | None = None
    gateway: Gateway | None = None
    uplinks: Mapping[str, Link] = field(default_factory=dict)
    inner: Mapping[str, Link] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Carried:
    """What an endpoint has sent and received since its veth pair was made, local traffic too."""

    sent_frames: int
    sent_bytes: int
    received_frames: int
    received_bytes: int


OUTER_NAME = re.compile(r"v[0-9a-f]{10}")
"""Names of our veth ends in an overlay namespace; a name of any other form is not ours."""


def alias_of(host_id: str) -> str:
    """What marks links of this host's daemon; on a veth, the endpoint's id follows it."""
    return f"pyvxlan {host_id}"


def faults(wanted: Link, found: Link | None) -> tuple[str, ...]:
    """Names what is wrong with a link; empty if nothing is."""
    if found is None:
        return ("missing",)
    wrong = [
        name
        for name, differs in (
            ("mac", bool(wanted.mac) and wanted.mac != found.mac),
            ("mtu", wanted.mtu_bytes != found.mtu_bytes),
            ("down", wanted.up and not found.up),
            ("master", wanted.master != found.master),
            ("isolation", wanted.isolated != found.isolated),
            ("stations", not wanted.stations <= found.stations),
            ("ipv6", wanted.ipv6 != found.ipv6),
            ("address", not wanted.addresses <= found.addresses),
            ("route", not all(_routed(route, found) for route in wanted.routes)),
        )
        if differs
    ]
    return (*wrong, *sorted(found.odd))


def _routed(route: Route, found: Link) -> bool:
    if route in found.routes:
        return True
    return route.destination.prefixlen == 0 and route.destination.version in found.default_routes
