"""Reads all of one endpoint's way to its bridge at once: what `pyvxlan why` compares."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyroute2.netlink.rtnl import RTM_GETNEIGH, RTM_GETROUTE
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from pyvxlan.daemon.model import Address
from pyvxlan.daemon.net import links, namespaces, veth
from pyvxlan.daemon.net.links import KernelLink
from pyvxlan.daemon.net.netlink import Netlink, attributes, body, number
from pyvxlan.daemon.net.values import Link

NUD_INCOMPLETE, NUD_FAILED = 0x01, 0x20
_NDA_DST, _NDA_LLADDR, _RTA_OIF = 1, 2, 4
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ROUTE_BYTES = 12
_NEIGHBOURS = {
    version: body(ndmsg(), family=family)
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6))
}


@dataclass(frozen=True, slots=True)
class Inside:
    """What a sandbox has for one address: its own end, the way there, and the neighbour entry."""

    name: str
    """Of its end of the pair; empty if it has none."""
    link: Link | None
    way: str
    """The link by which the kernel would send; empty if it has no route."""
    neighbour: bytes | None
    """The MAC that the kernel has for the address; empty if it asked in vain; None if it did not
    ask."""


@dataclass(frozen=True, slots=True)
class Survey:
    """One reading of an endpoint's way; `links` are None without the overlay's namespace."""

    links: Mapping[str, Link] | None
    inside: Inside | None = field(default=None)
    """None if the sandbox can't be opened."""


def read_overlay(netns: int, outer_name: str) -> tuple[Mapping[str, Link], KernelLink | None]:
    """Reads an overlay namespace's links, and one of them as the kernel numbers it."""
    with namespaces.entered(netns) as netlink:
        found = links.read_links(netlink, routes=True, stations=True)
    return {name: entry.link for name, entry in found.items()}, found.get(outer_name)


def read_inside(sandbox: int, outer: KernelLink | None, toward: Address) -> Inside:
    """Reads a sandbox's end of the pair whose other end is `outer`."""
    with namespaces.entered(sandbox) as netlink:
        found = links.read_links(netlink, routes=True)
        name = next((name for name, link in found.items() if veth.is_pair(outer, link)), "")
        names = {entry.index: name for name, entry in found.items()}
        entry = found.get(name)
        return Inside(
            name,
            entry.link if entry else None,
            names.get(_route(netlink, toward), ""),
            _neighbour(netlink, entry.index, toward) if entry else None,
        )


def _route(netlink: Netlink, toward: Address) -> int:
    """Index of the link by which the kernel would send to an address; 0 if there is no way."""
    message = rtmsg()
    message["family"] = socket.AF_INET if toward.version == 4 else socket.AF_INET6
    message["dst_len"] = toward.max_prefixlen
    message["attrs"] = [("RTA_DST", str(toward))]
    with contextlib.suppress(OSError):  # ENETUNREACH and its like: no way there.
        found = attributes(netlink.ask(message, RTM_GETROUTE), _ROUTE_BYTES)
        return number(found[_RTA_OIF]) if _RTA_OIF in found else 0
    return 0


def _neighbour(netlink: Netlink, index: int, address: Address) -> bytes | None:
    for answer in netlink.dump(_NEIGHBOURS[address.version], RTM_GETNEIGH):
        _, at, state, _, _ = _NEIGHBOUR.unpack_from(answer)
        fields = attributes(answer, _NEIGHBOUR.size)
        if at != index or _NDA_DST not in fields:
            continue
        if ipaddress.ip_address(bytes(fields[_NDA_DST])) != address:
            continue
        if state & (NUD_INCOMPLETE | NUD_FAILED):
            return b""
        return bytes(fields[_NDA_LLADDR]) if _NDA_LLADDR in fields else None
    return None
