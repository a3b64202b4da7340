"""Links, addresses and routes of one network namespace: read in a few dumps, written one by one.

Every function takes the namespace's netlink socket. Names are resolved by the dump that the
caller holds, so that nothing is asked twice.
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE
from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWQDISC,
    RTM_NEWROUTE,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from pyvxlan.daemon.model import Address, Interface, format_mac
from pyvxlan.daemon.net.netlink import Attributes, Netlink, attributes, body, number, text
from pyvxlan.daemon.net.values import Carried, Link, Route

IFF_UP = 1
IFF_RUNNING = 1 << 6
IFF_NOARP = 1 << 7
IFF_MULTICAST = 1 << 12
IFA_F_NODAD = 0x02
NTF_MASTER = 0x04
NUD_NOARP = 0x40
"""Of a bridge's entry: it neither ages nor moves."""
RT_TABLE_MAIN = 254
RTM_F_CLONED = 0x200
"""Marks a cached exception, no route that anybody made."""
TC_H_ROOT = 0xFFFFFFFF
RTPROT_STATIC = 4
RTN_UNICAST = 1
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253

# Attribute numbers of include/uapi/linux/if_link.h, if_addr.h, neighbour.h and rtnetlink.h.
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_EXT_MASK = 18, 20, 26, 29
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_DATA = 1, 2, 5
_BRIDGE_OFF = {5: "stp_state", 1: "forward_delay", 23: "mcast_snooping"}
"""Settings that are zero on our bridges, by number (IFLA_BR_...), in the order in which the kernel
takes them: with STP on it refuses a delay of zero."""
_IFLA_INFO_SLAVE_KIND = 4
_IFLA_BRPORT_LEARNING, _IFLA_BRPORT_ISOLATED = 8, 33
_IFLA_BRPORT_STATE, _IFLA_BRPORT_UNICAST_FLOOD = 1, 9
_PORT = {
    _IFLA_BRPORT_STATE: ("state", 3),  # BR_STATE_FORWARDING
    4: ("mode", 0),  # hairpin
    _IFLA_BRPORT_UNICAST_FLOOD: ("unicast_flood", 1),
    10: ("proxyarp", 0),
    27: ("mcast_flood", 1),
    30: ("bcast_flood", 1),
    32: ("neigh_suppress", 0),
    39: ("locked", 0),
}
"""What ports of our bridges are set to, by number (IFLA_BRPORT_...): how Linux makes them."""
_IFLA_INET6_CONF, _DEVCONF_DISABLE_IPV6 = 2, 26
_IPV6_OFF = {3: "accept_ra", 5: "autoconf"}
"""Settings that are zero on our links with IPv6, by number (DEVCONF_... of linux/ipv6.h)."""
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NDA_LLADDR, _NDA_MASTER = 2, 9
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 1, 4, 5, 15
_IFLA_STATS64 = 23
_RTEXT_FILTER_SKIP_STATS = 1 << 3
_COUNTERS = struct.Struct("=4Q")
"""Of `struct rtnl_link_stats64`: packets received, sent; bytes received, sent."""
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_STATION = struct.Struct("=BxxxiHBB")
_ROUTE = struct.Struct("=BBBBBBBBI")

_LINKS = body(ifinfmsg(), attrs=[("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)])
_LINKS_WITH_COUNTERS = body(ifinfmsg())
_ADDRESSES = body(ifaddrmsg())
_STATIONS = body(ndmsg(), family=socket.AF_BRIDGE)
_ROUTES = (body(rtmsg(), family=socket.AF_INET), body(rtmsg(), family=socket.AF_INET6))


@dataclass(frozen=True, slots=True)
class KernelLink:
    """A link with what only the kernel's numbering tells.

    `peer` is the index of a veth's other end, in that one's namespace; 0 for other kinds.
    `learning` is whether it is a bridge port that learns MACs.
    """

    index: int
    kind: str
    peer: int
    alias: str
    link: Link
    learning: bool = False


def read_links(
    netlink: Netlink, *, routes: bool = False, stations: bool = False
) -> dict[str, KernelLink]:
    """Reads all links of the namespace by name, with addresses; routes and stations if wanted."""
    raw = [_read_link(bytes(answer)) for answer in netlink.dump(_LINKS, RTM_GETLINK)]
    names = {index: name for index, name, _, _ in raw}
    addresses = _read_addresses(netlink)
    by_link: Mapping[int, frozenset[Route]] = {}
    defaults: frozenset[int] = frozenset()
    if routes:
        by_link, defaults = _read_routes(netlink)
    behind = _read_stations(netlink) if stations else {}
    return {
        name: replace(
            found,
            link=replace(
                found.link,
                master=names.get(master, ""),
                stations=frozenset() if found.learning else frozenset(behind.get(index, ())),
                addresses=frozenset(addresses.get(index, ())),
                routes=by_link.get(index, frozenset()),
                default_routes=defaults,
            ),
        )
        for index, name, master, found in raw
    }


def read_ports(netlink: Netlink) -> dict[str, Carried]:
    """Reads what has gone through the links of the namespace, as seen from their other ends."""
    found = {}
    for answer in netlink.dump(_LINKS_WITH_COUNTERS, RTM_GETLINK):
        fields = attributes(answer, _LINK.size)
        received, sent, received_bytes, sent_bytes = _COUNTERS.unpack_from(fields[_IFLA_STATS64])
        found[text(fields[_IFLA_IFNAME])] = Carried(received, received_bytes, sent, sent_bytes)
    return found


def read_routes(netlink: Netlink, index: int) -> frozenset[Route]:
    """Reads the routes through one link; costs little however many the namespace has."""
    return _read_routes(netlink, _routes_through(index))[0].get(index, frozenset())


def find(netlink: Netlink, name: str) -> KernelLink | None:
    """Reads one link, without master, addresses and routes; None if there is none of that name."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)]
    try:
        return _read_link(bytes(netlink.ask(message, RTM_GETLINK)))[3]
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def create_bridge(netlink: Netlink, name: str, link: Link) -> None:
    """Makes a bridge, still down; `shape` does the rest.

    Its MTU too: only one that was changed is kept when ports come and go.
    """
    kind = {"attrs": [("IFLA_INFO_KIND", "bridge")]}
    _create(netlink, name, [("IFLA_ADDRESS", format_mac(link.mac)), ("IFLA_LINKINFO", kind)])


def create_veth(
    netlink: Netlink, outer: tuple[str, Link], inner: tuple[str, Link], inner_netns: int
) -> None:
    """Makes a pair of named ends, both down; the inner one is made right in its namespace.

    Raises:
        OSError: EEXIST if either name is taken.
    """
    peer = [
        ("IFLA_IFNAME", inner[0]),
        ("IFLA_ADDRESS", format_mac(inner[1].mac)),
        ("IFLA_MTU", inner[1].mtu_bytes),
        ("IFLA_NET_NS_FD", inner_netns),
    ]
    _create(
        netlink,
        outer[0],
        [
            ("IFLA_MTU", outer[1].mtu_bytes),
            (
                "IFLA_LINKINFO",
                {
                    "attrs": [
                        ("IFLA_INFO_KIND", "veth"),
                        ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", {"attrs": peer})]}),
                    ]
                },
            ),
        ],
    )


def delete(netlink: Netlink, index: int) -> None:
    """Removes a link; with one end of a veth pair the other goes too."""
    message = ifinfmsg()
    message["index"] = index
    netlink.run(message, RTM_DELLINK)


def shape(
    netlink: Netlink, found: KernelLink, link: Link, *, master: int = 0, alias: str = ""
) -> None:
    """Gives a link its MAC, MTU and master, and the port its stations; what is right stays.

    A bridge has no STP, no forward delay and no multicast snooping, and its ports are set as Linux
    makes them.

    Raises:
        OSError: EXFULL if the master has all the ports that a bridge can have.
    """
    fields: list[tuple[str, object]] = [("IFLA_MTU", link.mtu_bytes)]
    if link.mac:
        fields.append(("IFLA_ADDRESS", format_mac(link.mac)))
    if alias:
        fields.append(("IFLA_IFALIAS", alias))
    index = found.index
    _set(netlink, index, fields)
    if found.kind == "bridge":
        for name in _BRIDGE_OFF.values():
            _set_bridge(netlink, index, [(f"IFLA_BR_{name.upper()}", 0)])
    if master:
        _set(netlink, index, [("IFLA_MASTER", master)])
        port: list[tuple[str, object]] = [("IFLA_BRPORT_ISOLATED", int(link.isolated))]
        port += [
            (f"IFLA_BRPORT_{name.upper()}", right)
            for name, right in _PORT.values()
            if f"port_{name}" in found.link.odd
        ]
        if link.stations:
            # Whoever learns believes every sender, also one that takes another's MAC.
            port += [("IFLA_BRPORT_LEARNING", 0), ("IFLA_BRPORT_FLUSH", None)]
        set_port(netlink, index, port)
        for mac in sorted(link.stations):
            _add_station(netlink, index, mac)


def activate(netlink: Netlink, index: int, link: Link) -> None:
    """Sets a link up, with ARP and multicast, and gives it its addresses."""
    if link.up:
        set_up(netlink, index, IFF_MULTICAST, IFF_MULTICAST | IFF_NOARP)
    for address in sorted(link.addresses, key=str):
        _add_address(netlink, index, address)


def add_route(netlink: Netlink, index: int, route: Route) -> None:
    """Adds a route through a link to the main table.

    Raises:
        OSError: EEXIST if there is a route to that destination already, whoever made it.
    """
    message = rtmsg()
    message["family"] = socket.AF_INET if route.destination.version == 4 else socket.AF_INET6
    message["dst_len"] = route.destination.prefixlen
    message["table"] = RT_TABLE_MAIN
    message["proto"] = RTPROT_STATIC
    message["type"] = RTN_UNICAST
    message["scope"] = RT_SCOPE_UNIVERSE if route.gateway else RT_SCOPE_LINK
    fields: list[tuple[str, object]] = [("RTA_OIF", index)]
    if route.destination.prefixlen:
        fields.append(("RTA_DST", str(route.destination.network_address)))
    if route.gateway:
        fields.append(("RTA_GATEWAY", str(route.gateway)))
    message["attrs"] = fields
    netlink.run(message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL)


def add_missing_routes(netlink: Netlink, index: int, link: Link) -> None:
    """Adds the routes that a link has lost."""
    for route in link.routes - read_routes(netlink, index):
        add_route(netlink, index, route)


def set_up(netlink: Netlink, index: int, flags: int = 0, change: int = 0) -> None:
    """Sets a link up; of its other flags, those in `change` become what they are in `flags`."""
    message = ifinfmsg()
    message["index"] = index
    message["flags"] = IFF_UP | flags
    message["change"] = IFF_UP | change
    netlink.run(message, RTM_NEWLINK)


def queue_nothing(netlink: Netlink, index: int) -> None:
    """Takes a link's queueing discipline away (`noqueue`): frames go straight to its driver.

    A TAP has room for 256 queues, and set up without one it gets a discipline for each: 25 MB at
    4096 frames (`pfifo_fast`), although its own queues are what holds frames back.
    """
    message = tcmsg()
    message["index"] = index
    message["parent"] = TC_H_ROOT
    message["attrs"] = [("TCA_KIND", "noqueue")]
    netlink.run(message, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE)


def set_port(netlink: Netlink, index: int, fields: list[tuple[str, object]]) -> None:
    """Changes the settings of a bridge's port, by their names in IFLA_BRPORT_*."""
    info = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": fields})]
    _set(netlink, index, [("IFLA_LINKINFO", {"attrs": info})])


def _create(netlink: Netlink, name: str, fields: Iterable[tuple[str, object]]) -> None:
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name), *fields]
    netlink.run(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)


def _set(netlink: Netlink, index: int, fields: list[tuple[str, object]]) -> None:
    message = ifinfmsg()
    message["index"] = index
    message["attrs"] = fields
    # NEWLINK without CREATE changes a link, and unlike SETLINK takes bridge port settings too.
    netlink.run(message, RTM_NEWLINK)


def _set_bridge(netlink: Netlink, index: int, fields: list[tuple[str, object]]) -> None:
    info = [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": fields})]
    _set(netlink, index, [("IFLA_LINKINFO", {"attrs": info})])


def _add_station(netlink: Netlink, index: int, mac: bytes) -> None:
    message = ndmsg()
    message["family"] = socket.AF_BRIDGE
    message["ifindex"] = index
    message["state"] = NUD_NOARP
    message["flags"] = NTF_MASTER
    message["attrs"] = [("NDA_LLADDR", format_mac(mac))]
    netlink.run(message, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)


def _add_address(netlink: Netlink, index: int, address: Interface) -> None:
    message = ifaddrmsg()
    message["index"] = index
    message["prefixlen"] = address.network.prefixlen
    fields = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
    if isinstance(address, IPv4Interface):
        message["family"] = socket.AF_INET
        if address.network.prefixlen < 31:
            fields.append(("IFA_BROADCAST", str(address.network.broadcast_address)))
    else:
        # The control plane gives every address once; detection would delay its use by a second.
        message["family"] = socket.AF_INET6
        message["flags"] = IFA_F_NODAD
    message["attrs"] = fields
    netlink.run(message, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)


# What the kernel shows of an object is mostly the same bytes as three seconds ago: the readers of
# links, addresses and routes remember, which halves the time that the reading of a sandbox takes.


@functools.lru_cache(maxsize=4096)
def _read_link(answer: bytes) -> tuple[int, str, int, KernelLink]:
    """Index, name, index of the master, and the link without what other dumps tell."""
    _, _, index, flags, _ = _LINK.unpack_from(answer)
    found = attributes(memoryview(answer), _LINK.size)
    info = attributes(found[_IFLA_LINKINFO]) if _IFLA_LINKINFO in found else {}
    kind = text(info[_IFLA_INFO_KIND]) if _IFLA_INFO_KIND in info else ""
    port = attributes(info[_IFLA_INFO_SLAVE_DATA]) if _IFLA_INFO_SLAVE_DATA in info else {}
    ipv6 = _ipv6_settings(found)
    has_ipv6 = ipv6.get(_DEVCONF_DISABLE_IPV6) == 0
    odd = {name for number, name in _IPV6_OFF.items() if has_ipv6 and ipv6.get(number)}
    if kind == "bridge" and _IFLA_INFO_DATA in info:
        settings = attributes(info[_IFLA_INFO_DATA])
        odd |= {
            name for key, name in _BRIDGE_OFF.items() if key in settings and number(settings[key])
        }
    if _IFLA_INFO_SLAVE_KIND in info and text(info[_IFLA_INFO_SLAVE_KIND]) == "bridge":
        odd |= _odd_port(kind, flags, port)
    if flags & IFF_NOARP:
        odd.add("noarp")
    if not flags & IFF_MULTICAST:
        odd.add("nomulticast")
    link = Link(
        mac=bytes(found.get(_IFLA_ADDRESS, b"")),
        mtu_bytes=number(found[_IFLA_MTU]),
        up=bool(flags & IFF_UP),
        isolated=_IFLA_BRPORT_ISOLATED in port and bool(number(port[_IFLA_BRPORT_ISOLATED])),
        ipv6=has_ipv6,
        odd=frozenset(odd),
    )
    return (
        index,
        text(found[_IFLA_IFNAME]),
        number(found[_IFLA_MASTER]) if _IFLA_MASTER in found else 0,
        KernelLink(
            index=index,
            kind=kind,
            peer=number(found[_IFLA_LINK]) if kind == "veth" and _IFLA_LINK in found else 0,
            alias=text(found[_IFLA_IFALIAS]) if _IFLA_IFALIAS in found else "",
            link=link,
            learning=_IFLA_BRPORT_LEARNING in port and bool(number(port[_IFLA_BRPORT_LEARNING])),
        ),
    )


def _odd_port(kind: str, flags: int, port: Attributes) -> set[str]:
    """Names what a bridge's port is not set to as Linux makes it."""
    left = set()
    if not flags & IFF_RUNNING:
        left.add(_IFLA_BRPORT_STATE)  # the bridge has disabled it, and enables it again by itself
    if kind == "vxlan":
        left.add(_IFLA_BRPORT_UNICAST_FLOOD)  # `vxlan` sees to it
    return {
        f"port_{name}"
        for key, (name, right) in _PORT.items()
        if key not in left and key in port and number(port[key]) != right
    }


def _ipv6_settings(found: Attributes) -> dict[int, int]:
    """A link's IPv6 settings by number; none if it has none."""
    families = attributes(found[_IFLA_AF_SPEC]) if _IFLA_AF_SPEC in found else {}
    if socket.AF_INET6 not in families:
        return {}
    settings = attributes(families[socket.AF_INET6]).get(_IFLA_INET6_CONF, memoryview(b""))
    return dict(enumerate(settings[: len(settings) // 4 * 4].cast("i")))


def _read_addresses(netlink: Netlink) -> dict[int, list[Interface]]:
    """Addresses by link index."""
    found: dict[int, list[Interface]] = defaultdict(list)
    for answer in netlink.dump(_ADDRESSES, RTM_GETADDR):
        if read := _read_address(bytes(answer)):
            found[read[0]].append(read[1])
    return found


@functools.lru_cache(maxsize=4096)
def _read_address(answer: bytes) -> tuple[int, Interface] | None:
    family, prefix_length, _, _, index = _ADDRESS.unpack_from(answer)
    fields = attributes(memoryview(answer), _ADDRESS.size)
    raw = fields.get(_IFA_LOCAL, fields.get(_IFA_ADDRESS))
    if raw is None or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return index, ipaddress.ip_interface((bytes(raw), prefix_length))


def _read_stations(netlink: Netlink) -> dict[int, list[bytes]]:
    """MACs that bridges were told to know, by the index of the port behind which they are."""
    found: dict[int, list[bytes]] = defaultdict(list)
    for answer in netlink.dump(_STATIONS, RTM_GETNEIGH):
        _, index, state, _, _ = _STATION.unpack_from(answer)
        fields = attributes(answer, _STATION.size)
        if state & NUD_NOARP and _NDA_MASTER in fields and _NDA_LLADDR in fields:
            found[index].append(bytes(fields[_NDA_LLADDR]))
    return found


@functools.lru_cache(maxsize=64)
def _routes_through(index: int) -> tuple[bytes, ...]:
    return tuple(
        body(rtmsg(), family=family, attrs=[("RTA_OIF", index)])
        for family in (socket.AF_INET, socket.AF_INET6)
    )


def _read_routes(
    netlink: Netlink, requests: Iterable[bytes] = _ROUTES
) -> tuple[dict[int, frozenset[Route]], frozenset[int]]:
    """Routes by link index, and the IP versions that have a default route."""
    found: dict[int, set[Route]] = defaultdict(set)
    defaults = set()
    for answer in [one for request in requests for one in netlink.dump(request, RTM_GETROUTE)]:
        read = _read_route(bytes(answer))
        if read is None:
            continue
        index, route = read
        found[index].add(route)
        if route.destination.prefixlen == 0:
            defaults.add(route.destination.version)
    return {index: frozenset(routes) for index, routes in found.items()}, frozenset(defaults)


@functools.lru_cache(maxsize=4096)
def _read_route(answer: bytes) -> tuple[int, Route] | None:
    """Index of the link, and the route; None if it is not one of the main table."""
    family, length, _, _, table, _, _, kind, flags = _ROUTE.unpack_from(answer)
    fields = attributes(memoryview(answer), _ROUTE.size)
    if _RTA_TABLE in fields:
        table = number(fields[_RTA_TABLE])
    if flags & RTM_F_CLONED or table != RT_TABLE_MAIN or kind != RTN_UNICAST:
        return None
    width = 4 if family == socket.AF_INET else 16
    destination = bytes(fields[_RTA_DST]) if _RTA_DST in fields else bytes(width)
    gateway: Address | None = None
    if _RTA_GATEWAY in fields:
        gateway = ipaddress.ip_address(bytes(fields[_RTA_GATEWAY]))
    index = number(fields[_RTA_OIF]) if _RTA_OIF in fields else 0
    return index, Route(ipaddress.ip_network((destination, length)), gateway)
