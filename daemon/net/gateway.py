"""The gateway bridge in the host's own namespace, with masquerading and forwarding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network

from pyvxlan.daemon.errors import ConflictError, NetError
from pyvxlan.daemon.net import links, namespaces, nftables, sysctl
from pyvxlan.daemon.net.links import KernelLink
from pyvxlan.daemon.net.netlink import Netlink
from pyvxlan.daemon.net.values import GATEWAY_BRIDGE, Gateway


def ensure(
    home: int, wanted: Gateway, alias: str, remember_sysctl: Callable[[str, str], None]
) -> None:
    """Makes bridge, rules and forwarding what they should be.

    Args:
        home: The host's namespace.
        wanted: The bridge; its first IPv4 address gives the subnet.
        alias: What marks the bridge as ours.
        remember_sysctl: Called with the value from before, before a setting is changed.

    Raises:
        ConflictError: There is a link of that name that is not ours.
        OSError: The kernel refused.
    """
    subnet = wanted.subnet
    if subnet is None:
        raise NetError(f"{GATEWAY_BRIDGE} has no IPv4 subnet: set gateway_subnet")
    with namespaces.entered(home) as netlink:
        bridge = links.find(netlink, GATEWAY_BRIDGE)
        if bridge is None:
            links.create_bridge(netlink, GATEWAY_BRIDGE, wanted.link)
            bridge = links.find(netlink, GATEWAY_BRIDGE)
        elif bridge.kind != "bridge" or bridge.alias not in ("", alias):
            raise ConflictError(
                f"{GATEWAY_BRIDGE} was not made by this daemon ({bridge.kind} {bridge.alias!r}): "
                "remove it, or attach with networks that are --internal"
            )
        if bridge is None:
            raise NetError(f"{GATEWAY_BRIDGE} vanished while it was made; it is made again")
        links.shape(netlink, bridge, wanted.link, alias=alias)
        sysctl.limit_ipv6(GATEWAY_BRIDGE, enabled=False)
        links.activate(netlink, bridge.index, wanted.link)
        links.add_missing_routes(netlink, bridge.index, wanted.link)
        with nftables.open_netfilter() as netfilter:
            if not nftables.matches(netfilter, GATEWAY_BRIDGE, subnet):
                _replace_rules(netfilter, subnet)
        if (old := sysctl.read(sysctl.FORWARDING)) == "0":
            remember_sysctl(sysctl.FORWARDING, old)
            sysctl.write(sysctl.FORWARDING, "1")


def read(netlink: Netlink, bridge: KernelLink) -> Gateway:
    """Adds to the bridge what holds in the calling thread's namespace."""
    link = replace(bridge.link, routes=links.read_routes(netlink, bridge.index))
    seen = Gateway(link, ruled=False, forwarding=sysctl.read(sysctl.FORWARDING) != "0")
    if seen.subnet is None:
        return seen
    with nftables.open_netfilter() as netfilter:
        ruled = nftables.matches(netfilter, GATEWAY_BRIDGE, seen.subnet)
    return Gateway(seen.link, ruled, seen.forwarding)


def _replace_rules(netfilter: Netlink, subnet: IPv4Network) -> None:
    try:
        nftables.replace(netfilter, GATEWAY_BRIDGE, subnet)
    except OSError as error:
        raise NetError(
            f"nftables refused the table {nftables.TABLE}: {error.strerror}; the kernel needs "
            "nf_tables with NAT (modprobe nft_masq)"
        ) from error
