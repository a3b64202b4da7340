"""What this host should have, derived from what the store says and what is attached here. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from pyvxlan.daemon.dataplane import DATAPATHS, FORWARDER, KERNEL, PortConfig
from pyvxlan.daemon.ipam import link_local, mac_for, with_prefix
from pyvxlan.daemon.model import (
    Address,
    Cidr,
    Endpoint,
    Host,
    Interface,
    LocalEndpoint,
    Network,
    gateway_host_ifname,
    handover_ifname,
    host_ifname,
)
from pyvxlan.daemon.net import (
    BRIDGE,
    GATEWAY_BRIDGE,
    Attachment,
    Gateway,
    Link,
    Overlay,
    Route,
    Veth,
)

FLOOD_RATE_OPTION = "flood-rate"
DATAPATH_OPTION = "datapath"
_ANYWHERE = IPv4Network("0.0.0.0/0")
_FLOOD_RATE = PortConfig(vni=1, mtu_bytes=1450).flood_rate


@dataclass(frozen=True, slots=True)
class Site:
    """What is the same for all networks of this host."""

    host: Host
    alias: str
    """Marks links as this daemon's; an endpoint's id follows it."""
    gateway_mtu_bytes: int = 1500
    names_address: IPv4Address | None = None
    """Where Docker's containers ask for names; None if this host serves no Docker."""

    @property
    def names_link(self) -> Link | None:
        """The link that holds that address in the host's namespace."""
        if self.names_address is None:
            return None
        return Link(
            mac=mac_for(self.names_address),
            mtu_bytes=1500,
            addresses=frozenset({IPv4Interface((self.names_address, 32))}),
        )


@dataclass(frozen=True, slots=True)
class Tables:
    """What the data plane should hold for a network; addresses are text."""

    fdb: Mapping[bytes, str] = field(default_factory=dict)
    neighbours: Mapping[str, bytes] = field(default_factory=dict)
    flood: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WantedNetwork:
    """A network as this host should have it.

    `tables` is None while the store has not told the network's endpoints: what the data plane
    holds then stays as it is.
    """

    id: str
    overlay: Overlay
    port: PortConfig
    tables: Tables | None
    attachments: tuple[Attachment, ...]


@dataclass(frozen=True, slots=True)
class Desired:
    """All that this host should have; with `hold`, what is not listed is left alone."""

    networks: Mapping[str, WantedNetwork] = field(default_factory=dict)
    gateway: Gateway | None = None
    hold: bool = False
    names: Link | None = None


def wanted_network(
    site: Site,
    network: Network,
    *,
    netns: str,
    local: Sequence[tuple[LocalEndpoint, Endpoint]],
    endpoints: Mapping[str, Endpoint] | None,
    hosts: Mapping[str, Host],
) -> WantedNetwork:
    """Says what this host should have of a network.

    Args:
        site: This host.
        network: The network.
        netns: File name of its namespace here.
        local: This host's endpoints in it that have a living sandbox.
        endpoints: All endpoints in it, on all hosts, or None if the store has not told.
        hosts: All hosts, by id.
    """
    bridge, datapath = _bridge(site, network), datapath_of(network.options)
    # The kernel keeps IPv6 neighbours only for links that have IPv6.
    ipv6 = bridge.ipv6 and datapath == KERNEL
    return WantedNetwork(
        id=network.id,
        overlay=Overlay(netns, bridge, Link(b"", network.mtu_bytes, master=BRIDGE, ipv6=ipv6)),
        port=PortConfig(
            network.vni,
            network.mtu_bytes,
            network.multicast,
            _flood_rate(network.options),
            datapath,
        ),
        tables=None if endpoints is None else wanted_tables(site.host, endpoints, hosts),
        attachments=tuple(
            _attachment(site, network, netns, here, endpoint)
            for here, endpoint in sorted(local, key=lambda pair: pair[0].id)
        ),
    )


def datapath_of(options: Mapping[str, str]) -> str:
    """Says what carries a network's frames; one of `DATAPATHS`."""
    named = options.get(DATAPATH_OPTION, FORWARDER)
    return named if named in DATAPATHS else FORWARDER


def wanted_tables(
    this: Host, endpoints: Mapping[str, Endpoint], hosts: Mapping[str, Host]
) -> Tables:
    """Derives a network's tables from its endpoints; of several claims the newest counts.

    The order of `endpoints` is the order in which they were seen. An endpoint whose host is not
    known, or has an underlay address of the other IP version, can't be reached and is left out.
    """
    owners: dict[bytes, str] = {}
    neighbours: dict[Address, tuple[str, bytes]] = {}
    for endpoint in endpoints.values():
        owners.pop(endpoint.mac, None)
        owners[endpoint.mac] = endpoint.host_id
        for address in endpoint.addresses:
            neighbours[address.ip] = (endpoint.host_id, endpoint.mac)
    vteps = {
        host_id: str(hosts[host_id].vtep)
        for host_id in {endpoint.host_id for endpoint in endpoints.values()}
        if host_id != this.id
        and host_id in hosts
        and hosts[host_id].vtep.version == this.vtep.version
    }
    return Tables(
        fdb={mac: vteps[host_id] for mac, host_id in owners.items() if host_id in vteps},
        neighbours={
            str(address): mac for address, (host_id, mac) in neighbours.items() if host_id in vteps
        },
        flood=tuple(sorted(set(vteps.values()))),
    )


def wanted_gateway(site: Site, networks: Iterable[WantedNetwork]) -> Gateway | None:
    """Says what the gateway bridge should be; None if no endpoint needs one."""
    uplinks = (
        attachment.uplink
        for network in networks
        for attachment in network.attachments
        if attachment.uplink
    )
    uplink = next(uplinks, None)
    if uplink is None:
        return None
    (address,) = uplink.inner.addresses
    gateway = _gateway_of(address.network)
    addresses = frozenset({with_prefix(gateway, address.network)})
    return Gateway(
        Link(
            mac=mac_for(gateway),
            mtu_bytes=site.gateway_mtu_bytes,
            addresses=addresses,
            routes=_on_link(addresses),
        )
    )


def _bridge(site: Site, network: Network) -> Link:
    gateways = [subnet.gateway for subnet in network.subnets]
    mac = mac_for(min(gateways, key=lambda address: address.version))
    addresses = _with_link_local(
        mac, (with_prefix(subnet.gateway, subnet.cidr) for subnet in network.subnets)
    )
    if site.names_link:
        addresses |= site.names_link.addresses
    return Link(
        mac=mac,
        mtu_bytes=network.mtu_bytes,
        ipv6=any(gateway.version == 6 for gateway in gateways),
        addresses=addresses,
        routes=_on_link(addresses),
    )


def _attachment(
    site: Site, network: Network, netns: str, here: LocalEndpoint, endpoint: Endpoint
) -> Attachment:
    alias = f"{site.alias} {here.id}"
    addresses = _with_link_local(endpoint.mac, endpoint.addresses)
    versions = {address.version for address in endpoint.addresses}
    overlay = Veth(
        netns=netns,
        outer_name=host_ifname(here.id),
        outer=Link(b"", network.mtu_bytes, master=BRIDGE, stations=frozenset({endpoint.mac})),
        inner_name=here.ifname,
        inner=Link(
            mac=endpoint.mac,
            mtu_bytes=network.mtu_bytes,
            ipv6=6 in versions,
            addresses=addresses,
            routes=_on_link(addresses)
            | {Route(subnet.cidr) for subnet in network.subnets if subnet.cidr.version in versions},
        ),
        alias=alias,
        handover=handover_ifname(here.id) if here.engine_id else "",
    )
    return Attachment(here.id, here.sandbox, overlay, _uplink(site, here, alias))


def _uplink(site: Site, here: LocalEndpoint, alias: str) -> Veth | None:
    address = here.gateway_address
    if address is None or not here.gateway_ifname:
        return None
    mac = mac_for(address.ip)
    return Veth(
        netns="",
        outer_name=gateway_host_ifname(here.id),
        outer=Link(
            b"",
            site.gateway_mtu_bytes,
            master=GATEWAY_BRIDGE,
            isolated=True,
            stations=frozenset({mac}),
        ),
        inner_name=here.gateway_ifname,
        inner=Link(
            mac=mac,
            mtu_bytes=site.gateway_mtu_bytes,
            addresses=frozenset({address}),
            routes=_on_link({address}) | {Route(_ANYWHERE, _gateway_of(address.network))},
        ),
        alias=alias,
    )


def _with_link_local(mac: bytes, addresses: Iterable[Interface]) -> frozenset[Interface]:
    """Adds what the kernel gives a link that has IPv6, so that it is missed if it is taken away."""
    held = frozenset(addresses)
    return held | {link_local(mac)} if any(one.version == 6 for one in held) else held


def _on_link(addresses: Iterable[Interface]) -> frozenset[Route]:
    """The routes that the kernel makes of a link's addresses."""
    return frozenset(
        Route(one.network) for one in addresses if one.network.prefixlen < one.max_prefixlen
    )


def _gateway_of(subnet: Cidr) -> Address:
    return subnet[1]


def _flood_rate(options: Mapping[str, str]) -> int:
    text = options.get(FLOOD_RATE_OPTION, "")
    return int(text) if text.isascii() and text.isdigit() and int(text) else _FLOOD_RATE
