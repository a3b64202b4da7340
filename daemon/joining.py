"""How a sandbox joins a network on this host: interface names, the way out, the bridge's limit.

All of it follows from the local records, which are read and never changed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import ConflictError, ExhaustedError, InvalidError
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.model import Endpoint, LocalEndpoint, Network, Sandbox

BRIDGE_PORTS = 1023
"""Ports of one Linux bridge (net/bridge/br_private.h: BR_MAX_PORTS is 1024, port 0 is not used)."""
IFNAME_MAX = 15


def check_bridge(local: LocalRecords, network: Network) -> None:
    """Refuses one endpoint too many: `vxlan0` is a port of the bridge too."""
    ports = 1 + sum(e.network_id == network.id for e in local.endpoints.values())
    if ports >= BRIDGE_PORTS:
        raise ExhaustedError(
            f"network {network.name} has {ports - 1} endpoints on this host, and a Linux "
            f"bridge takes {BRIDGE_PORTS} ports with vxlan0: use another host or network"
        )


def check_twice(local: LocalRecords, network: Network, sandbox: Sandbox) -> None:
    """Refuses a sandbox that is in the network already, naming its endpoint."""
    for other in _in_sandbox(local, sandbox):
        if other.network_id == network.id:
            known = local.records.get(other.id)
            raise ConflictError(
                f"sandbox {sandbox.path} is in network {network.name} already, as endpoint "
                f"{(known.name if known else '') or other.id[:12]}: detach that one first"
            )


def check_ifname(
    local: LocalRecords, sandbox: Sandbox, ifname: str, links: Sequence[str]
) -> set[str]:
    """Refuses an interface name that can't be used; gives all that are in use.

    `links` are the interfaces that the sandbox has; an empty `ifname` is always fine.
    """
    ours = _in_sandbox(local, sandbox)
    used = {*links, *(e.ifname for e in ours), *(e.gateway_ifname for e in ours)}
    if ifname and (
        len(ifname) > IFNAME_MAX
        or not records.NAME.fullmatch(ifname)
        or ifname in {"lo", "all", "default"}
    ):
        raise InvalidError(
            f"interface name {ifname!r} is not usable: up to {IFNAME_MAX} of a-z A-Z 0-9 _ . -"
        )
    if ifname and ifname in used:
        raise ConflictError(
            f"interface {ifname} exists in sandbox {sandbox.path}: choose another --ifname"
        )
    return used


def plan_join(  # noqa: PLR0917 - what is joined, and where
    local: LocalRecords,
    network: Network,
    endpoint: Endpoint,
    sandbox: Sandbox,
    ifname: str,
    links: Sequence[str],
    gateway_subnet: IPv4Network,
) -> LocalEndpoint:
    """Chooses the interface, and a way out unless the network is internal or there is one.

    Raises:
        InvalidError: The interface's name is not usable.
        ConflictError: It is taken.
        ExhaustedError: The gateway subnet has no free address.
    """
    used = check_ifname(local, sandbox, ifname, links)
    joined = LocalEndpoint(endpoint.id, network.id, sandbox, ifname or _free_ifname(used))
    if network.internal or any(e.gateway_ifname for e in _in_sandbox(local, sandbox)):
        return joined
    return replace(
        joined,
        gateway_ifname=_free_ifname({*used, joined.ifname}),
        gateway_address=_free_gateway_address(local, gateway_subnet),
    )


def gateway_heir(local: LocalRecords, leaving: LocalEndpoint) -> LocalEndpoint | None:
    """Gives the endpoint that takes over a sandbox's way out, as it is afterwards, if any can."""
    if not leaving.gateway_ifname:
        return None
    for other in _in_sandbox(local, leaving.sandbox):
        network = local.networks.get(other.network_id)
        if other.id != leaving.id and network and not network.internal:
            return replace(
                other,
                gateway_ifname=leaving.gateway_ifname,
                gateway_address=leaving.gateway_address,
            )
    return None


def _in_sandbox(local: LocalRecords, sandbox: Sandbox) -> list[LocalEndpoint]:
    return [e for e in local.endpoints.values() if e.sandbox.inode == sandbox.inode]


def _free_gateway_address(local: LocalRecords, subnet: IPv4Network) -> IPv4Interface:
    taken = local.gateway_addresses
    for address in subnet.hosts():
        if address != subnet[1] and address not in taken:
            return IPv4Interface((address, subnet.prefixlen))
    raise ExhaustedError(
        f"gateway subnet {subnet} has no free address: detach endpoints, use an --internal "
        "network, or set a larger gateway_subnet"
    )


def _free_ifname(used: set[str]) -> str:
    return next(name for number in range(len(used) + 1) if (name := f"eth{number}") not in used)
