"""Headers as typed values, compared with scapy's reading of the same bytes."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

import pyvxlan
from pyvxlan import (
    ArpPacket,
    Ipv4Header,
    Ipv6Header,
    MalformedError,
    TcpHeader,
    UdpHeader,
    VxlanHeader,
)
from tests.unit.library.frames import (
    DESTINATION,
    SOURCE,
    TAGGED,
    TCP4,
    UDP4,
    UDP6,
    WHO_HAS,
    frame,
    ipv4,
    ipv6,
)

ports = st.integers(1, 65535).filter(lambda port: port not in {4789, 8472})


@given(
    ipv4,
    ipv4,
    ports,
    ports,
    st.integers(1, 255),
    st.integers(0, 255),
    st.integers(0, 65535),
    st.binary(max_size=50),
)
def test_udp_over_ipv4_is_read_as_scapy_reads_it(src, dst, sport, dport, ttl, tos, ident, data):
    bits = frame(
        IP(src=str(src), dst=str(dst), ttl=ttl, tos=tos, id=ident, flags="DF"),
        UDP(sport=sport, dport=dport),
        Raw(data),
    )
    read, theirs = pyvxlan.parse_frame(bits), Ether(bits)
    assert read.network == Ipv4Header(src, dst, 17, ttl, tos, ident, 0b010, 0, theirs[IP].len, 20)
    assert read.transport == UdpHeader(sport, dport, 8 + len(data), theirs[UDP].chksum)
    assert bytes(read.payload) == data


@given(ipv6, ipv6, ports, ports, st.integers(0, 255), st.integers(0, 2**20 - 1))
def test_tcp_over_ipv6_is_read_as_scapy_reads_it(src, dst, sport, dport, tc, flow):
    bits = frame(
        IPv6(src=str(src), dst=str(dst), hlim=3, tc=tc, fl=flow),
        TCP(sport=sport, dport=dport, seq=5, ack=6, flags="SEC", options=[("MSS", 1400)]),
        Raw(b"data"),
    )
    read, theirs = pyvxlan.parse_frame(bits), Ether(bits)
    assert read.network == Ipv6Header(src, dst, 6, 3, tc, flow, 28, 40, fragment=False)
    assert read.transport == TcpHeader(
        sport, dport, 5, 6, int(theirs[TCP].flags), theirs[TCP].window, theirs[TCP].chksum, 24
    )
    assert bytes(read.payload) == b"data"


def test_ethernet_and_its_text_are_right():
    read = pyvxlan.parse_frame(UDP4)
    assert read.ethernet.source == pyvxlan.parse_mac(SOURCE)
    assert read.ethernet.ethertype == 0x0800
    assert str(read.ethernet) == f"{SOURCE} > {DESTINATION} 0x0800"


def test_vlan_tags_are_looked_through():
    read = pyvxlan.parse_frame(TAGGED)
    assert read.ethernet.vlan_tags == (5,)
    assert isinstance(read.transport, UdpHeader)


def test_stacked_vlan_tags_come_outermost_first():
    read = pyvxlan.parse_frame(frame(Dot1AD(vlan=7), Dot1Q(vlan=9, prio=1), IP(), UDP()))
    assert read.ethernet.vlan_tags == (7, 9 | 1 << 13)
    assert str(read.ethernet).endswith("vlan 7 vlan 9 0x0800")


def test_arp_is_read():
    read = pyvxlan.parse_frame(WHO_HAS)
    assert read.network == ArpPacket(
        1, pyvxlan.parse_mac(SOURCE), ip_address("10.0.0.2"), bytes(6), ip_address("10.0.0.3")
    )


def test_extension_headers_are_skipped_to_the_upper_layer():
    read = pyvxlan.parse_frame(
        frame(IPv6(src="fd00::2", dst="fd00::3"), IPv6ExtHdrHopByHop(), UDP(sport=1, dport=2), b"x")
    )
    assert isinstance(read.network, Ipv6Header)
    assert (read.network.protocol, read.network.header_length) == (17, 48)
    assert bytes(read.payload) == b"x"


@pytest.mark.parametrize(
    "layers",
    [
        (IP(src="10.0.0.2", dst="10.0.0.3", frag=8, proto=17), Raw(b"later bytes")),
        (IP(src="10.0.0.2", dst="10.0.0.3", flags="MF"), UDP(sport=1, dport=2), Raw(b"bytes")),
        (IP(src="10.0.0.2", dst="10.0.0.3"), ICMP()),
        (
            IPv6(src="fd00::2", dst="fd00::3"),
            IPv6ExtHdrFragment(offset=8, nh=17),
            Raw(b"later bytes"),
        ),
        (Raw(b"\x88\xb5 anything"),),
    ],
    ids=["later fragment", "first fragment", "icmp", "later fragment of ipv6", "other ethertype"],
)
def test_what_has_no_known_transport_is_given_as_payload(layers):
    read = pyvxlan.parse_frame(frame(*layers))
    assert read.transport is None
    assert bytes(layers[-1])[-5:] in bytes(read.payload)


def test_padding_behind_a_short_packet_is_not_payload():
    read = pyvxlan.parse_frame(UDP4 + bytes(20))
    assert bytes(read.payload) == b"hello"


def test_the_payload_is_a_view():
    bits = bytearray(UDP4)
    read = pyvxlan.parse_frame(bits)
    bits[-1] = ord("!")
    assert bytes(read.payload) == b"hell!"


def test_parse_reads_a_udp_payload():
    read = pyvxlan.parse(pyvxlan.encap(TCP4, 42))
    assert read.vxlan == VxlanHeader(8, 42)
    assert read.vxlan.valid
    assert read.frame == pyvxlan.parse_frame(TCP4)


def test_parse_reads_a_payload_without_the_i_flag_and_says_so():
    assert not pyvxlan.parse(bytes(8) + UDP4).vxlan.valid


@pytest.mark.parametrize("ends", [("198.18.0.1", "198.18.0.2"), ("fd00::1", "fd00::2")])
def test_parse_datagram_reads_all_headers(ends):
    read = pyvxlan.parse_datagram(pyvxlan.encap_datagram(UDP6, 42, *ends))
    assert (str(read.ip.source), str(read.ip.destination)) == ends
    assert read.udp.destination_port == 4789
    assert read.udp.length == 16 + len(UDP6)
    assert (read.vxlan.vni, read.frame) == (42, pyvxlan.parse_frame(UDP6))


def test_a_datagram_that_is_a_fragment_or_no_udp_is_malformed():
    for packet in (IP(frag=3, proto=17) / Raw(bytes(60)), IP() / TCP(), IP() / ICMP()):
        with pytest.raises(MalformedError):
            pyvxlan.parse_datagram(bytes(packet))


@given(st.sampled_from([UDP4, UDP6, TCP4, WHO_HAS, TAGGED]), st.integers(0, 60))
def test_a_frame_that_is_cut_off_is_malformed_or_has_less(bits, length):
    try:
        read = pyvxlan.parse_frame(bits[:length])
    except MalformedError:
        return
    assert len(read.payload) <= len(bits)


@given(st.binary(max_size=100), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b""]))
def test_any_bytes_are_read_or_malformed(bits, ethertype):
    for parse in (pyvxlan.parse_frame, pyvxlan.parse, pyvxlan.parse_datagram):
        try:
            parse(bits[:12] + ethertype + bits[12:])
        except MalformedError:
            continue


def test_a_malformed_header_is_named():
    with pytest.raises(MalformedError, match=r"(?i)ip"):
        pyvxlan.parse_frame(UDP4[:14] + b"\x45\x00")
    with pytest.raises(MalformedError):
        pyvxlan.parse_datagram(b"")
    assert Ether(WHO_HAS)[ARP].op == 1
