"""A kernel that only remembers, and short ways to make networks, hosts and endpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_interface, ip_network

from pyvxlan.daemon.errors import NetError
from pyvxlan.daemon.ipam import mac_for
from pyvxlan.daemon.model import Address, Endpoint, Host, LocalEndpoint, Network, Sandbox, Subnet
from pyvxlan.daemon.net import Attachment, Gateway, Link, Observed, Veth, alias_of
from pyvxlan.daemon.operations import (
    Actual,
    EnsureBridge,
    EnsureGateway,
    EnsureNamesLink,
    EnsureNamespace,
    EnsurePort,
    EnsureVeth,
    Op,
    RemoveNamespace,
    RemoveVeth,
    applied,
)


def hex_id(number: int) -> str:
    """32 hex digits whose first 10 differ too."""
    return f"{number:010x}" + "0" * 22


def host(number: int = 1) -> Host:
    """Host 1 is this one."""
    vtep = ip_address(f"198.18.0.{number}")
    return Host(hex_id(0xB00 + number), f"host{number}", vtep, 4789, "0.1.0")


def network(number: int = 1, *, ipv6: bool = False, **fields: object) -> Network:
    """`ov_net<number>`, 10.0.<number>.0/24, VNI 4096 + number."""
    subnets = [(f"10.0.{number}.0/24", f"10.0.{number}.1")]
    if ipv6:
        subnets.append((f"fd00:{number}::/64", f"fd00:{number}::1"))
    made = Network(
        id=hex_id(number),
        name=f"ov_net{number}",
        vni=4096 + number,
        subnets=tuple(Subnet(ip_network(cidr), ip_address(gateway)) for cidr, gateway in subnets),
        mtu_bytes=1450,
    )
    return replace(made, **fields)


def endpoint(
    number: int, of: Network, on: Host, *, address: str = "", mac: bytes = b""
) -> Endpoint:
    """Endpoint with the address .<number>, on a host."""
    interface = ip_interface(f"{address or of.subnets[0].cidr.network_address + number}/24")
    addresses = [interface]
    for cidr in (subnet.cidr for subnet in of.subnets if subnet.cidr.version == 6):
        addresses.append(ip_interface((cidr.network_address + number, cidr.prefixlen)))
    eid = hex_id(number + int(of.id[:10], 16) * 0x1000)
    return Endpoint(eid, of.id, on.id, mac or mac_for(interface.ip), tuple(addresses))


def local(of: Endpoint, *, gateway: bool = True, pid: int | None = None) -> LocalEndpoint:
    """What this host knows of an endpoint: its sandbox is /run/netns/<id>."""
    sandbox = Sandbox(f"/run/netns/{of.id}", int(of.id[:10], 16), pid, pid and 1)
    if not gateway:
        return LocalEndpoint(of.id, of.network_id, sandbox)
    address = IPv4Interface(f"172.18.0.{2 + int(of.id[:10], 16) % 200}/16")
    return LocalEndpoint(of.id, of.network_id, sandbox, "eth0", "eth1", address)


class MemoryNet:
    """Plays `Net`: every call leaves behind what it should.

    `actual` may be changed at will, to play what people do. `refuse`, if set, is called before
    each change and may raise. `dead` holds the paths of sandboxes that are gone.
    """

    def __init__(self) -> None:
        self.actual = Actual()
        self.done: list[Op] = []
        self.refuse: Callable[[Op], None] = lambda _op: None
        self.dead: set[str] = set()
        self.alias = alias_of(host().id)

    async def observe(self, attachments: Iterable[Attachment]) -> Observed:
        known = {veth.outer_name for one in attachments for veth in one.veths}
        net = self.actual.net
        return replace(net, inner={name: net.inner[name] for name in net.inner if name in known})

    def sandbox_alive(self, sandbox: Sandbox) -> bool:
        return sandbox.path not in self.dead

    async def underlay_mtu(self, _address: Address) -> int:
        return 1500

    async def open_netns(self, netns: str) -> int:
        if netns not in self.actual.net.namespaces:
            raise NetError(f"namespace {netns} does not exist")
        return os.open("/dev/null", os.O_RDONLY)

    async def ensure_namespace(self, netns: str, adopt: int | None = None) -> None:
        self._do(EnsureNamespace(netns=netns, vni=0, adopt=adopt is not None))

    async def ensure_bridge(self, netns: str, wanted: Link) -> None:
        self._require(netns)
        self._do(EnsureBridge(netns=netns, link=wanted, faults=()))

    async def ensure_port(self, netns: str, wanted: Link) -> None:
        self._require(netns)
        self._do(EnsurePort(netns=netns, link=wanted, faults=()))

    async def ensure_veth(self, sandbox: Sandbox, wanted: Veth) -> None:
        if wanted.netns:
            self._require(wanted.netns)
        if sandbox.path in self.dead:
            raise NetError(f"{sandbox.path} is gone")
        self._do(EnsureVeth(sandbox=sandbox, veth=wanted, faults=()))

    async def ensure_names_link(self, wanted: Link) -> None:
        self._do(EnsureNamesLink(link=wanted, faults=()))

    async def ensure_gateway(self, wanted: Gateway) -> None:
        self._do(EnsureGateway(gateway=wanted))

    async def remove_veth(self, netns: str, outer_name: str) -> None:
        self._do(RemoveVeth(netns=netns, outer_name=outer_name))

    async def remove_namespace(self, netns: str) -> None:
        self._do(RemoveNamespace(netns=netns))

    def _require(self, netns: str) -> None:
        if netns not in self.actual.net.namespaces:
            raise NetError(f"namespace {netns} does not exist")

    def _do(self, op: Op) -> None:
        self.refuse(op)
        self.actual = applied(self.actual, op)
        self.done.append(op)
