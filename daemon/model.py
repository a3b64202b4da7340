"""The values that the daemon speaks of: networks, hosts, endpoints, sandboxes.

All are frozen. They are parsed once, at the edge, and trusted afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Literal, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Cidr: TypeAlias = IPv4Network | IPv6Network

VNI_MIN = 4096
"""Lowest VNI given out by itself; 1 to 4095 stay free for `--vni` and for other systems."""
VNI_MAX = 2**24 - 2
"""The one above is that of probes between hosts (docs/tunnels.md)."""
OVERHEAD_BYTES = {4: 50, 6: 70}
"""Outer IP + UDP + VXLAN + inner Ethernet, by IP version of the underlay (RFC 7348, section 5)."""
MTU_MIN_BYTES = 576
DEFAULT_UDP_PORT = 4789
KERNEL_UDP_PORT = 8472
"""The port that Linux gives its vxlan devices unless told otherwise."""
DOCKER_BRIDGE = "docker_gwbridge"
"""Docker's own bridge that leads containers of overlays out of their host."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a new network has to get along with on this host.

    `routes` are what the host routes, without default routes and without our own, each with the
    name of its link; `mtu_bytes` is that of the link that carries the underlay.
    """

    routes: Sequence[tuple[Cidr, str]]
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class Subnet:
    """One range of a network's addresses; everything else lies within `cidr`."""

    cidr: Cidr
    gateway: Address
    ip_range: Cidr | None = None
    aux: tuple[tuple[str, Address], ...] = ()
    """Addresses that are given to nobody, each with the name that the user gave it."""


@dataclass(frozen=True, slots=True)
class Network:
    """An overlay network. `id` is 32 random hex digits, never reused."""

    id: str
    name: str
    vni: int
    subnets: tuple[Subnet, ...]
    mtu_bytes: int
    internal: bool = False
    attachable: bool = False
    """Means nothing to the overlay; each host's Docker shows it alike."""
    multicast: bool = True
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    created_by: str = ""
    created: str = ""
    state: Literal["up", "down"] = "up"
    """`down` blocks new endpoints while the network is being removed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a host's daemon answers other hosts' questions, and how it proves to be that host."""

    port: int
    """TCP, on the host's underlay address."""
    certificate: bytes = field(repr=False)
    """X.509, DER."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host that runs a daemon; `vtep` is the underlay address that ends its tunnels."""

    id: str
    name: str
    vtep: Address
    port: int
    version: str
    peer: Peer | None = None
    """None if its daemon answers no questions."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One attachment of a sandbox to a network, written once; `mac` is six bytes."""

    id: str
    network_id: str
    host_id: str
    mac: bytes
    addresses: tuple[Interface, ...]
    """At most one per IP version, with the prefix length of its subnet."""
    name: str = ""
    aliases: tuple[str, ...] = ()
    hostname: str = ""
    container_id: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A container's network namespace, as this host finds it again.

    `path` is a namespace file (`/run/netns/x`, `/proc/<pid>/ns/net`); `inode` tells whether it is
    still the same namespace. With `pid`, the sandbox lives as long as that process, whose
    `start_ticks` (field 22 of /proc/<pid>/stat) guards against a reused pid.
    """

    path: str
    inode: int
    pid: int | None = None
    start_ticks: int | None = None


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """What only this host knows of its own endpoint; kept in the state directory."""

    id: str
    network_id: str
    sandbox: Sandbox
    ifname: str = "eth0"
    gateway_ifname: str = ""
    """Interface on the gateway bridge, `eth1`; empty if this endpoint has none."""
    gateway_address: IPv4Interface | None = None
    engine_id: str = ""
    """The id that Docker has for it, if Docker attaches it: `sandbox` then has no inode, since it
    need not exist yet, and `ifname` is empty until Docker has fetched the interface."""
    names_route: bool = False
    """Whether Docker's container reaches the name server through this one of its interfaces."""


def host_ifname(endpoint_id: str) -> str:
    """Names the bridge side of an endpoint's veth: at most 15 characters, unique per endpoint."""
    return f"v{endpoint_id[:10]}"


def gateway_host_ifname(endpoint_id: str) -> str:
    """Names the bridge side of an endpoint's veth on the gateway bridge."""
    return f"g{endpoint_id[:10]}"


def handover_ifname(endpoint_id: str) -> str:
    """Names the container side of a veth in the host's namespace, where Docker fetches it."""
    return f"d{endpoint_id[:10]}"


def format_mac(mac: bytes) -> str:
    """Gives six bytes as `02:42:0a:00:00:02`."""
    return mac.hex(":")
