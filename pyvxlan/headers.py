"""Headers as typed values: `parse` for UDP payloads, `parse_datagram` for packets, `parse_frame`.

For looking at traffic, not for forwarding it: `decap` is the fast way to a frame. Nothing is
compared or verified beyond what is needed to find the next header; checksums are as received.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from pyvxlan import _dataplane
from pyvxlan.addresses import Address, format_mac, parse_address
from pyvxlan.errors import MalformedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IPV6: Final = 0x86DD
PROTOCOL_TCP: Final = 6
PROTOCOL_UDP: Final = 17

_MORE_FRAGMENTS = 0b001


@dataclass(frozen=True, slots=True)
class EthernetHeader:
    """IEEE 802.3. MACs are six bytes; `vlan_tags` are TCIs, outermost first.

    `ethertype` is that of the payload, behind all tags; below 1536 it is a length (802.3 LLC).
    """

    destination: bytes
    source: bytes
    ethertype: int
    vlan_tags: tuple[int, ...] = ()

    def __str__(self) -> str:
        tags = "".join(f" vlan {tci & 0xFFF}" for tci in self.vlan_tags)
        source, destination = format_mac(self.source), format_mac(self.destination)
        return f"{source} > {destination}{tags} 0x{self.ethertype:04x}"


@dataclass(frozen=True, slots=True)
class ArpPacket:
    """ARP for IPv4 over Ethernet (RFC 826). Operation 1 asks, 2 answers."""

    operation: int
    sender_mac: bytes
    sender_address: Address
    target_mac: bytes
    target_address: Address


@dataclass(frozen=True, slots=True)
class Ipv4Header:
    """RFC 791. Lengths and the fragment offset are in bytes; `flags` are 3 bits: 0, DF, MF."""

    source: Address
    destination: Address
    protocol: int
    ttl: int
    tos: int
    identification: int
    flags: int
    fragment_offset: int
    total_length: int
    header_length: int

    @property
    def fragment(self) -> bool:
        """Whether this is a part of a packet only."""
        return bool(self.flags & _MORE_FRAGMENTS or self.fragment_offset)


@dataclass(frozen=True, slots=True)
class Ipv6Header:
    """RFC 8200, with its extension headers: `protocol` is the upper layer's.

    `payload_length` is in bytes as sent; `header_length` is where the upper layer begins.
    `fragment` is whether this is a part of a packet only.
    """

    source: Address
    destination: Address
    protocol: int
    hop_limit: int
    traffic_class: int
    flow_label: int
    payload_length: int
    header_length: int
    fragment: bool


@dataclass(frozen=True, slots=True)
class UdpHeader:
    """RFC 768. `length` in bytes with the header's eight."""

    source_port: int
    destination_port: int
    length: int
    checksum: int


@dataclass(frozen=True, slots=True)
class TcpHeader:
    """RFC 9293. `flags` from bit 0: FIN, SYN, RST, PSH, ACK, URG, ECE, CWR."""

    source_port: int
    destination_port: int
    sequence: int
    acknowledgement: int
    flags: int
    window: int
    checksum: int
    header_length: int


@dataclass(frozen=True, slots=True)
class VxlanHeader:
    """RFC 7348, section 5: the flags byte as received, and the VNI."""

    flags: int
    vni: int

    @property
    def valid(self) -> bool:
        """Whether the I flag is set; if not, a receiver drops the datagram."""
        return bool(self.flags & 0x08)


NetworkHeader: TypeAlias = Ipv4Header | Ipv6Header | ArpPacket
TransportHeader: TypeAlias = UdpHeader | TcpHeader


@dataclass(frozen=True, slots=True)
class Frame:
    """An Ethernet frame taken apart as far as its protocols are known here.

    `network` is None for other ethertypes, `transport` for other protocols and for fragments.
    `payload` is a view of what follows the last header that was read.
    """

    ethernet: EthernetHeader
    network: NetworkHeader | None
    transport: TransportHeader | None
    payload: memoryview


@dataclass(frozen=True, slots=True)
class VxlanPayload:
    """What a UDP datagram of VXLAN carries."""

    vxlan: VxlanHeader
    frame: Frame


@dataclass(frozen=True, slots=True)
class VxlanDatagram:
    """A VXLAN packet of the underlay with all its headers."""

    ip: Ipv4Header | Ipv6Header
    udp: UdpHeader
    vxlan: VxlanHeader
    frame: Frame


def parse(payload: Buffer) -> VxlanPayload:
    """Reads a UDP payload: VXLAN header, Ethernet, and what is in it.

    A header without the I flag is read all the same; see `VxlanHeader.valid`.

    Raises:
        MalformedError: A header is cut off or contradicts itself.

    >>> from pyvxlan.codec import encap
    >>> parsed = parse(encap(bytes.fromhex("02420a000003 02420a000002 88b5"), 42))
    >>> parsed.vxlan
    VxlanHeader(flags=8, vni=42)
    >>> str(parsed.frame.ethernet)
    '02:42:0a:00:00:02 > 02:42:0a:00:00:03 0x88b5'
    """
    view = memoryview(payload).cast("B")
    try:
        return VxlanPayload(*_vxlan(view))
    except ValueError as error:
        raise MalformedError(str(error)) from None


def parse_datagram(packet: Buffer) -> VxlanDatagram:
    """Reads a packet of the underlay, beginning with its IPv4 or IPv6 header.

    Ports are not compared with anything, checksums not verified; `decap_datagram` does that.

    Raises:
        MalformedError: It is no UDP in IP, a fragment, or a header is cut off or contradicts
            itself.
    """
    view = memoryview(packet).cast("B")
    try:
        ip, protocol = _ip(view)
        if protocol != PROTOCOL_UDP:
            raise MalformedError("the packet is a fragment or not UDP")
        segment = view[ip.header_length :]
        udp = UdpHeader(*_dataplane.parse_udp(segment))
        return VxlanDatagram(ip, udp, *_vxlan(segment[8:]))
    except ValueError as error:
        raise MalformedError(str(error)) from None


def parse_frame(frame: Buffer) -> Frame:
    """Reads an Ethernet frame: VLAN tags, then ARP, or IPv4 or IPv6, then UDP or TCP.

    Raises:
        MalformedError: A header is cut off or contradicts itself.
    """
    view = memoryview(frame).cast("B")
    try:
        return _frame(view)
    except ValueError as error:
        raise MalformedError(str(error)) from None


def _vxlan(view: memoryview) -> tuple[VxlanHeader, Frame]:
    header = VxlanHeader(*_dataplane.parse_vxlan(view))
    return header, _frame(view[_dataplane.HEADER_LEN :])


def _frame(view: memoryview) -> Frame:
    destination, source, tags, ethertype, offset = _dataplane.parse_ethernet(view)
    ethernet = EthernetHeader(destination, source, ethertype, tuple(tags))
    payload = view[offset:]
    if ethertype == ETHERTYPE_ARP:
        return Frame(ethernet, _arp(payload), None, payload[28:])
    if ethertype not in {ETHERTYPE_IPV4, ETHERTYPE_IPV6}:
        return Frame(ethernet, None, None, payload)
    ip, protocol = _ip(payload)
    # Ethernet pads short frames: the IP header knows where the packet ends.
    end = ip.total_length if isinstance(ip, Ipv4Header) else 40 + ip.payload_length
    segment = payload[ip.header_length : end]
    if protocol == PROTOCOL_UDP:
        return Frame(ethernet, ip, UdpHeader(*_dataplane.parse_udp(segment)), segment[8:])
    if protocol == PROTOCOL_TCP:
        tcp = TcpHeader(*_dataplane.parse_tcp(segment))
        return Frame(ethernet, ip, tcp, segment[tcp.header_length :])
    return Frame(ethernet, ip, None, segment)


def _arp(payload: memoryview) -> ArpPacket:
    operation, sender_mac, sender, target_mac, target = _dataplane.parse_arp(payload)
    return ArpPacket(
        operation, sender_mac, parse_address(sender), target_mac, parse_address(target)
    )


def _ip(packet: memoryview) -> tuple[Ipv4Header | Ipv6Header, int | None]:
    """Reads an IP header; gives the protocol whose header follows, None in a fragment."""
    if not packet:
        raise MalformedError("no bytes where an IP header should be")
    if packet[0] >> 4 == 6:
        source, destination, *numbers, fragment = _dataplane.parse_ipv6(packet)
        protocol, hop_limit, traffic_class, flow_label, length, offset = numbers
        v6 = Ipv6Header(
            parse_address(source),
            parse_address(destination),
            protocol,
            hop_limit,
            traffic_class,
            flow_label,
            length,
            offset,
            fragment,
        )
        return v6, None if v6.fragment else v6.protocol
    source, destination, *rest4 = _dataplane.parse_ipv4(packet)
    v4 = Ipv4Header(parse_address(source), parse_address(destination), *rest4)
    return v4, None if v4.fragment else v4.protocol
