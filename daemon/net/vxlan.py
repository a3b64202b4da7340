"""The kernel's own vxlan device as an overlay's port: made, filled and read; see docs/datapath.md.

The device sends from the host's namespace and lives in the overlay's. It learns nothing: each MAC
is an entry of the device, which says where it is, and one of the bridge, which otherwise would have
to flood what it does not know, and is told not to. Entries are packed here and not by pyroute2,
which takes 0.1 ms for each; there may be 100,000.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE
from pyroute2.netlink.rtnl import (
    RTM_DELNEIGH,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
)
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from pyvxlan.daemon.errors import NetError
from pyvxlan.daemon.net import links, namespaces
from pyvxlan.daemon.net.netlink import Attributes, Netlink, attributes, number, text
from pyvxlan.daemon.net.values import Vxlan, VxlanState

NLM_F_APPEND = 0x800
NTF_SELF, NTF_MASTER = 0x02, 0x04
NUD_REACHABLE, NUD_NOARP, NUD_PERMANENT = 0x02, 0x40, 0x80
STATIC = NUD_NOARP | NUD_REACHABLE
SOURCE_PORTS = (49152, 65535)
"""RFC 7348, section 5, as the forwarder does it."""
BATCH = 128
"""Requests in flight: their acknowledgements must fit into the socket's buffer."""
ASTRAY = ""
"""Stands for the VTEP of an entry that is not whole, or leads elsewhere."""
EVERYONE = bytes(6)
"""The MAC under which a device keeps the VTEPs that get broadcast and multicast."""

# Attribute numbers of include/uapi/linux/if_link.h and neighbour.h.
_IFLA_LINKINFO, _IFLA_STATS64 = 18, 23
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_DATA = 1, 2, 5
_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PROXY = 1, 4, 7, 11
_VXLAN_PORT, _VXLAN_LOCAL6, _VXLAN_UDP_CSUM = 15, 17, 18
_VXLAN_UNSET = (2, 16, 3, 5, 6, 28, 29)
"""Remote of IPv4 and IPv6, link, TTL, TOS, inherited TTL, DF: zero, or not there."""
_BRPORT_LEARNING, _BRPORT_UNICAST_FLOOD = 8, 9
_NDA_DST, _NDA_LLADDR, _NDA_MASTER = 1, 2, 9
_NDA_ELSEWHERE = (6, 7, 8, 13)
"""Port, VNI, interface and next hop: none, where an entry takes those of the device."""
_LINK_BYTES = 16
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_COUNTERS = struct.Struct("=8Q")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_ANY = tuple(_NEIGHBOUR.pack(family, 0, 0, 0, 0) for family in (socket.AF_BRIDGE, *_FAMILIES))

_Request = tuple[bytes, int, int]


def ensure(home: int, netns: int, name: str, wanted: Vxlan) -> None:
    """Makes the device, up; one that is something else is replaced.

    Args:
        home: The namespace that the device sends from.
        netns: The overlay's namespace.
        name: Of the device.
        wanted: What it should be.

    Raises:
        NetError: The UDP port or the VNI is taken, or the kernel has no vxlan.
    """
    with namespaces.entered(netns) as netlink:
        found = links.find(netlink, name)
        if found is not None and not _is(_link(netlink, name), wanted):
            links.delete(netlink, found.index)
            found = None
    if found is None:
        with namespaces.entered(netns) as netlink:
            _delete_doubles(netlink, wanted)
        with namespaces.entered(home) as netlink:
            _create(netlink, netns, name, wanted)
    with namespaces.entered(netns) as netlink:
        found = links.find(netlink, name)
        if found is None:
            raise NetError(f"{name} vanished while it was made; it is made again in a moment")
        try:
            links.set_up(netlink, found.index)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            links.delete(netlink, found.index)
            raise NetError(
                f"UDP port {wanted.port} is taken: stop what listens there (ss -ulpn 'sport = "
                f":{wanted.port}'), or set --kernel-port to the same other port on all hosts"
            ) from error


def read(netns: int, name: str, wanted: Vxlan) -> VxlanState | None:
    """Reads what the device holds; None if there is none, or one that is not as wanted."""
    with namespaces.entered(netns) as netlink:
        link = _link(netlink, name)
        found = links.find(netlink, name)
        if found is None or not _is(link, wanted):
            return None
        own, bridged, flood = _read_fdb(netlink, found.index)
        whole = _port_is_quiet(link)
        return VxlanState(
            fdb={
                mac: own.get(mac, ASTRAY) if whole and mac in bridged else ASTRAY
                for mac in own.keys() | bridged
            },
            neighbours=dict(_read_neighbours(netlink, found.index)),
            flood=tuple(sorted(flood)),
            counters=_read_counters(link),
        )


def change(
    netns: int,
    name: str,
    *,
    add: Mapping[bytes, str],
    remove: Iterable[bytes],
    neighbours: Mapping[str, bytes] | None,
    flood: Iterable[str] | None,
) -> None:
    """Changes what the device and its bridge know; `neighbours` and `flood` replace, if given.

    What is removed need not be there.
    """
    with namespaces.entered(netns) as netlink:
        found = links.find(netlink, name)
        if found is None:
            raise NetError(f"{name} is missing in the overlay namespace; it is made again")
        index = found.index
        if not _port_is_quiet(_link(netlink, name)):
            settings = [("IFLA_BRPORT_LEARNING", 0), ("IFLA_BRPORT_UNICAST_FLOOD", 0)]
            links.set_port(netlink, index, [*settings, ("IFLA_BRPORT_FLUSH", None)])
        _send(netlink, _removed(index, remove), absent=True)
        _send(netlink, _added(index, add))
        if neighbours is not None:
            there = dict(_read_neighbours(netlink, index))
            gone = [address for address in there if address not in neighbours]
            _send(netlink, (_neighbour(index, address) for address in gone), absent=True)
            _send(
                netlink,
                (
                    _neighbour(index, address, mac)
                    for address, mac in neighbours.items()
                    if there.get(address) != mac
                ),
            )
        if flood is not None:
            listed, wanted = set(_read_fdb(netlink, index)[2]), set(flood)
            if ASTRAY in listed:
                _send(netlink, [_unflooded(index)], absent=True)
                listed = set()
            gone = sorted(listed - wanted)
            _send(netlink, (_flooded(index, vtep, RTM_DELNEIGH, 0) for vtep in gone), absent=True)
            flags = NLM_F_CREATE | NLM_F_APPEND
            new = sorted(wanted - listed)
            _send(netlink, (_flooded(index, vtep, RTM_NEWNEIGH, flags) for vtep in new))


def remove(netns: int, name: str) -> None:
    """Removes the device; one that is not there is no error."""
    with namespaces.entered(netns) as netlink:
        found = links.find(netlink, name)
        if found is not None and found.kind == "vxlan":
            links.delete(netlink, found.index)


def _delete_doubles(netlink: Netlink, wanted: Vxlan) -> None:
    """Deletes a device that has the VNI under another name: there can be no second one."""
    for name, found in links.read_links(netlink).items():
        if found.kind != "vxlan":
            continue
        data = _info(_link(netlink, name), _INFO_DATA)
        if (number(data[_VXLAN_ID]), _udp_port(data)) == (wanted.vni, wanted.port):
            links.delete(netlink, found.index)


def _create(netlink: Netlink, netns: int, name: str, wanted: Vxlan) -> None:
    local = "IFLA_VXLAN_LOCAL" if wanted.local.version == 4 else "IFLA_VXLAN_LOCAL6"
    low, high = SOURCE_PORTS
    data = [
        ("IFLA_VXLAN_ID", wanted.vni),
        (local, str(wanted.local)),
        ("IFLA_VXLAN_PORT", wanted.port),
        ("IFLA_VXLAN_PORT_RANGE", {"low": low, "high": high}),
        ("IFLA_VXLAN_LEARNING", 0),
        # Answers ARP and neighbour solicitations from the neighbour table, and sends none of them.
        ("IFLA_VXLAN_PROXY", 1),
        ("IFLA_VXLAN_UDP_CSUM", int(wanted.checksum)),
    ]
    message = ifinfmsg()
    message["attrs"] = [
        ("IFLA_IFNAME", name),
        ("IFLA_MTU", wanted.mtu_bytes),
        ("IFLA_NET_NS_FD", netns),
        (
            "IFLA_LINKINFO",
            {"attrs": [("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", {"attrs": data})]},
        ),
    ]
    try:
        netlink.run(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise NetError(
                "this kernel has no vxlan devices (modprobe vxlan): load the module, or make the "
                "network without datapath=kernel"
            ) from error
        if error.errno == errno.EEXIST:
            raise NetError(
                f"VNI {wanted.vni} on UDP port {wanted.port} belongs to another vxlan device of "
                "this host: remove that one (ip -d link show type vxlan, here and in each network "
                "namespace), or choose another --vni"
            ) from error
        raise


def _link(netlink: Netlink, name: str) -> Attributes:
    """Attributes of a link; empty if there is none of that name."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name)]
    try:
        return attributes(netlink.ask(message, RTM_GETLINK), _LINK_BYTES)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return {}
        raise


def _info(link: Attributes, part: int) -> Attributes:
    info = attributes(link[_IFLA_LINKINFO]) if _IFLA_LINKINFO in link else {}
    return attributes(info[part]) if part in info else {}


def _is(link: Attributes, wanted: Vxlan) -> bool:
    info = attributes(link[_IFLA_LINKINFO]) if _IFLA_LINKINFO in link else {}
    if _INFO_KIND not in info or text(info[_INFO_KIND]) != "vxlan":
        return False
    data = _info(link, _INFO_DATA)
    local = data.get(_VXLAN_LOCAL if wanted.local.version == 4 else _VXLAN_LOCAL6)
    return (
        number(data[_VXLAN_ID]) == wanted.vni
        and _udp_port(data) == wanted.port
        and local is not None
        and bytes(local) == wanted.local.packed
        and not number(data[_VXLAN_LEARNING])
        and bool(number(data[_VXLAN_PROXY]))
        and bool(number(data[_VXLAN_UDP_CSUM])) == wanted.checksum
        and not any(any(data.get(setting, b"")) for setting in _VXLAN_UNSET)
    )


def _udp_port(data: Attributes) -> int:
    return int.from_bytes(data[_VXLAN_PORT], "big")


def _port_is_quiet(link: Attributes) -> bool:
    """Whether the bridge neither learns from the device nor floods unicast to it."""
    port = _info(link, _INFO_SLAVE_DATA)
    return not any(
        number(port[setting]) if setting in port else True
        for setting in (_BRPORT_LEARNING, _BRPORT_UNICAST_FLOOD)
    )


def _read_counters(link: Attributes) -> dict[str, int]:
    """Counts frames from containers as egress, as the forwarder does."""
    values = _COUNTERS.unpack_from(link[_IFLA_STATS64])
    received, sent, received_bytes, sent_bytes = values[:4]
    received_errors, sent_errors, received_drops, sent_drops = values[4:]
    return {
        "egress_frames": sent,
        "egress_bytes": sent_bytes,
        "ingress_frames": received,
        "ingress_bytes": received_bytes,
        "egress_drops": sent_errors + sent_drops,
        "ingress_drops": received_errors + received_drops,
    }


def _read_fdb(netlink: Netlink, index: int) -> tuple[dict[bytes, str], set[bytes], list[str]]:
    """MACs by VTEP that the device knows, MACs that its bridge knows there, and the flood list.

    What does not go to a VTEP's port and the network's VNI is `ASTRAY`, as is a MAC with several.
    """
    own: dict[bytes, str] = {}
    bridged: set[bytes] = set()
    flood: list[str] = []
    for answer in netlink.dump(_ANY[0], RTM_GETNEIGH):
        _, at, state, _, _ = _NEIGHBOUR.unpack_from(answer)
        if at != index:
            continue
        fields = attributes(answer, _NEIGHBOUR.size)
        mac = bytes(fields.get(_NDA_LLADDR, b""))
        if _NDA_DST in fields or any(elsewhere in fields for elsewhere in _NDA_ELSEWHERE):
            vtep = _vtep(fields)
            if mac == EVERYONE:
                flood.append(vtep)
            else:
                own[mac] = ASTRAY if mac in own else vtep
        elif _NDA_MASTER in fields and state & NUD_NOARP:
            bridged.add(mac)
    return own, bridged, flood


def _vtep(fields: Attributes) -> str:
    if _NDA_DST not in fields or any(elsewhere in fields for elsewhere in _NDA_ELSEWHERE):
        return ASTRAY
    return str(ipaddress.ip_address(bytes(fields[_NDA_DST])))


def _read_neighbours(netlink: Netlink, index: int) -> Iterator[tuple[str, bytes]]:
    for request in _ANY[1:]:
        for answer in netlink.dump(request, RTM_GETNEIGH):
            _, at, state, _, _ = _NEIGHBOUR.unpack_from(answer)
            if at == index and state & NUD_PERMANENT:
                fields = attributes(answer, _NEIGHBOUR.size)
                address = str(ipaddress.ip_address(bytes(fields[_NDA_DST])))
                yield address, bytes(fields[_NDA_LLADDR])


def _added(index: int, add: Mapping[bytes, str]) -> Iterator[_Request]:
    flags = NLM_F_CREATE | NLM_F_REPLACE
    for mac, vtep in add.items():
        where = (_NDA_DST, ip_address(vtep).packed)
        yield _entry(index, STATIC, NTF_SELF, (_NDA_LLADDR, mac), where), RTM_NEWNEIGH, flags
        yield _entry(index, STATIC, NTF_MASTER, (_NDA_LLADDR, mac)), RTM_NEWNEIGH, flags


def _removed(index: int, macs: Iterable[bytes]) -> Iterator[_Request]:
    for mac in macs:
        for side in (NTF_SELF, NTF_MASTER):
            yield _entry(index, STATIC, side, (_NDA_LLADDR, mac)), RTM_DELNEIGH, 0


def _flooded(index: int, vtep: str, kind: int, flags: int) -> _Request:
    where = (_NDA_DST, ip_address(vtep).packed)
    return _entry(index, NUD_PERMANENT, NTF_SELF, (_NDA_LLADDR, EVERYONE), where), kind, flags


def _unflooded(index: int) -> _Request:
    """Takes the whole flood list away."""
    entry = _entry(index, NUD_PERMANENT, NTF_SELF, (_NDA_LLADDR, EVERYONE))
    return entry, RTM_DELNEIGH, 0


def _neighbour(index: int, address: str, mac: bytes | None = None) -> _Request:
    """Tells a neighbour's MAC, or takes a neighbour away if there is none."""
    parsed = ip_address(address)
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    fields = [(_NDA_DST, parsed.packed)]
    if mac is None:
        return _entry(index, NUD_PERMANENT, 0, *fields, family=family), RTM_DELNEIGH, 0
    fields.append((_NDA_LLADDR, mac))
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return _entry(index, NUD_PERMANENT, 0, *fields, family=family), RTM_NEWNEIGH, flags


def _entry(
    index: int, state: int, flags: int, *fields: tuple[int, bytes], family: int = socket.AF_BRIDGE
) -> bytes:
    """Packs a `struct ndmsg` and its attributes."""
    data = _NEIGHBOUR.pack(family, index, state, flags, 0)
    for kind, value in fields:
        data += _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)
    return data


def _send(netlink: Netlink, requests: Iterable[_Request], *, absent: bool = False) -> None:
    """Carries out all requests; with `absent`, what is not there may be missing."""
    pending = [(message, kind, flags | NLM_F_ACK) for message, kind, flags in requests]
    for start in range(0, len(pending), BATCH):
        try:
            netlink.batch(pending[start : start + BATCH])
        except OSError as error:
            if not absent or error.errno != errno.ENOENT:
                raise
