"""Encapsulation and decapsulation: properties, RFC 7348's letter, and scapy's opinion."""

from __future__ import annotations

import doctest
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

import pyvxlan
from pyvxlan import MalformedError, addresses, codec, headers, table
from tests.unit.library.frames import TCP4, UDP4, UDP6, frame, frames, ipv4, ipv6, vnis


@given(frames, vnis)
def test_decap_gives_back_what_encap_took(inner, vni):
    got_vni, got = pyvxlan.decap(pyvxlan.encap(inner, vni))
    assert (got_vni, bytes(got)) == (vni, inner)


@given(frames, vnis)
def test_encap_is_the_header_of_rfc_7348_and_the_frame(inner, vni):
    header = bytes([8, 0, 0, 0, *vni.to_bytes(3, "big"), 0])
    assert pyvxlan.encap(inner, vni) == header + inner
    assert pyvxlan.vxlan_header(vni) == header


@given(frames, vnis)
def test_encap_is_what_scapy_makes(inner, vni):
    assert pyvxlan.encap(inner, vni) == bytes(VXLAN(flags="Instance", vni=vni) / Raw(inner))


@given(st.lists(frames, max_size=8), vnis)
def test_a_batch_is_the_same_as_each_alone(inners, vni):
    payloads = pyvxlan.encap_batch(inners, vni)
    assert payloads == [pyvxlan.encap(inner, vni) for inner in inners]
    assert pyvxlan.decap_batch(payloads) == [pyvxlan.decap(payload) for payload in payloads]


@given(frames, vnis, st.binary(min_size=5, max_size=5))
def test_reserved_bits_and_other_flags_are_ignored_on_receipt(inner, vni, noise):
    payload = bytearray(pyvxlan.encap(inner, vni))
    payload[0] = noise[0] | 0x08
    payload[1:4] = noise[1:4]
    payload[7] = noise[4]
    got_vni, got = pyvxlan.decap(payload)
    assert (got_vni, bytes(got)) == (vni, inner)


@given(frames, vnis, st.integers(0, 255))
def test_a_payload_without_the_i_flag_is_malformed(inner, vni, flags):
    payload = bytes([flags & ~0x08]) + pyvxlan.encap(inner, vni)[1:]
    with pytest.raises(MalformedError):
        pyvxlan.decap(payload)


@given(st.binary(max_size=64))
def test_decap_gives_a_frame_or_is_malformed_whatever_comes(payload):
    try:
        vni, inner = pyvxlan.decap(payload)
    except MalformedError:
        assert len(payload) < 22 or not payload[0] & 8
    else:
        assert vni == int.from_bytes(payload[4:7], "big")
        assert bytes(inner) == payload[8:]


def test_decap_copies_nothing():
    payload = bytearray(pyvxlan.encap(UDP4, 1))
    _, inner = pyvxlan.decap(payload)
    payload[8] ^= 0xFF
    assert inner[0] == UDP4[0] ^ 0xFF
    assert inner.obj is payload or inner.obj.obj is payload


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(kind):
    payload = pyvxlan.encap(kind(UDP4), 7)
    assert pyvxlan.decap(kind(payload)) == (7, UDP4)
    assert pyvxlan.source_port(kind(UDP4)) == pyvxlan.source_port(UDP4)
    assert pyvxlan.encap(memoryview(bytes(3) + UDP4)[3:], 7) == payload


@pytest.mark.parametrize("vni", ["7", 7.0, None])
def test_a_vni_that_is_no_integer_is_a_type_error(vni):
    with pytest.raises(TypeError):
        pyvxlan.encap(UDP4, vni)


def test_text_is_no_buffer():
    with pytest.raises((TypeError, BufferError)):
        pyvxlan.encap("frame", 7)  # type: ignore[arg-type]


@pytest.mark.parametrize("vni", [-1, 2**24, 2**40])
def test_a_vni_out_of_range_is_named_with_the_remedy(vni):
    for call in (
        lambda: pyvxlan.encap(UDP4, vni),
        lambda: pyvxlan.encap_batch([UDP4], vni),
        lambda: pyvxlan.vxlan_header(vni),
        lambda: pyvxlan.encap_datagram(UDP4, vni, "198.18.0.1", "198.18.0.2"),
        lambda: pyvxlan.ForwardingTable(vni),
    ):
        with pytest.raises(ValueError, match=rf"VNI {vni} is not in 0-16777215"):
            call()


def test_a_frame_shorter_than_ethernet_is_malformed():
    with pytest.raises(MalformedError):
        pyvxlan.encap(UDP4[:13], 7)


def test_what_is_no_buffer_is_a_type_error_in_a_batch_as_alone():
    for call in (pyvxlan.encap, lambda one, vni: pyvxlan.encap_batch([UDP4, one], vni)):
        with pytest.raises(TypeError, match="bytes-like"):
            call(None, 7)
    with pytest.raises(TypeError, match=r"index 1: .*bytes-like"):
        pyvxlan.decap_batch([pyvxlan.encap(UDP4, 7), 5])


def test_the_bad_one_of_a_batch_is_named_by_its_index():
    with pytest.raises(MalformedError, match="2"):
        pyvxlan.encap_batch([UDP4, UDP4, b"short"], 7)
    with pytest.raises(MalformedError, match="1"):
        pyvxlan.decap_batch([pyvxlan.encap(UDP4, 7), b"short"])


@given(frames)
def test_the_source_port_is_within_the_range_that_rfc_7348_recommends(inner):
    assert 49152 <= pyvxlan.source_port(inner) <= 65535


@given(frames)
def test_the_source_port_of_a_flow_is_always_the_same(inner):
    assert pyvxlan.source_port(inner) == pyvxlan.source_port(bytearray(inner))
    assert pyvxlan.flow_hash(inner) == pyvxlan.flow_hash(bytearray(inner))


def test_frames_of_one_flow_share_a_source_port_whatever_they_carry():
    def segment(payload: bytes) -> bytes:
        return frame(
            IP(src="10.0.0.2", dst="10.0.0.3", id=len(payload)), UDP(sport=1, dport=2), payload
        )

    assert len({pyvxlan.source_port(segment(bytes(n))) for n in range(20)}) == 1


def test_many_flows_spread_over_many_source_ports():
    ports = {
        pyvxlan.source_port(frame(IP(src="10.0.0.2", dst="10.0.0.3"), UDP(sport=n, dport=2)))
        for n in range(1, 501)
    }
    assert len(ports) > 450


def test_fragments_of_one_packet_share_a_source_port():
    first = frame(IP(src="10.0.0.2", dst="10.0.0.3", flags="MF", proto=17), bytes(range(64)))
    later = frame(IP(src="10.0.0.2", dst="10.0.0.3", frag=8, proto=17), bytes(range(64, 128)))
    assert pyvxlan.source_port(first) == pyvxlan.source_port(later)


@given(frames, vnis, ipv4, ipv4, st.booleans())
def test_a_datagram_over_ipv4_is_what_scapy_reads(inner, vni, source, destination, checksum):
    packet = pyvxlan.encap_datagram(inner, vni, source, destination, checksum=checksum)
    read = IP(packet)
    assert (read.src, read.dst) == (str(source), str(destination))
    assert (read[UDP].sport, read[UDP].dport) == (pyvxlan.source_port(inner), 4789)
    assert read[VXLAN].vni == vni
    assert bytes(read[VXLAN].payload) == inner
    assert not read.flags.MF
    given_sums = (read.chksum, read[UDP].chksum)
    del read.chksum, read[UDP].chksum
    # As bytes: what scapy takes for padding of the inner frame, it leaves out of the sum.
    read[UDP].remove_payload()
    rebuilt = IP(bytes(read / Raw(packet[28:])))
    assert given_sums == (rebuilt.chksum, rebuilt[UDP].chksum if checksum else 0)


@given(frames, vnis, ipv6, ipv6)
def test_a_datagram_over_ipv6_is_what_scapy_reads(inner, vni, source, destination):
    packet = pyvxlan.encap_datagram(inner, vni, source, destination)
    read = IPv6(packet)
    assert (ip_address(read.src), ip_address(read.dst)) == (source, destination)
    assert (read[VXLAN].vni, bytes(read[VXLAN].payload)) == (vni, inner)
    checksum = read[UDP].chksum
    del read[UDP].chksum
    # As bytes: what scapy takes for padding of the inner frame, it leaves out of the sum.
    read[UDP].remove_payload()
    rebuilt = IPv6(bytes(read / Raw(packet[48:])))
    assert checksum == rebuilt[UDP].chksum


@given(frames, vnis, ipv4, ipv4)
def test_a_datagram_that_scapy_builds_is_read(inner, vni, source, destination):
    packet = bytes(
        IP(src=str(source), dst=str(destination))
        / UDP(sport=50000, dport=4789)
        / VXLAN(flags="Instance", vni=vni)
        / Raw(inner)
    )
    got = pyvxlan.decap_datagram(packet)
    assert (got.source, got.destination, got.vni, bytes(got.frame)) == (
        source,
        destination,
        vni,
        inner,
    )
    assert (got.source_port, got.destination_port) == (50000, 4789)


@given(
    frames,
    vnis,
    st.tuples(ipv4, ipv4) | st.tuples(ipv6, ipv6),
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.booleans(),
)
def test_decap_datagram_gives_back_what_encap_datagram_took(
    inner, vni, ends, sport, dport, checksum
):
    packet = pyvxlan.encap_datagram(
        inner, vni, *ends, source_port=sport, destination_port=dport, checksum=checksum
    )
    got = pyvxlan.decap_datagram(packet)
    assert (got.source, got.destination, got.source_port, got.destination_port) == (
        *ends,
        sport,
        dport,
    )
    assert (got.vni, bytes(got.frame)) == (vni, inner)


@given(st.integers(20, 200), st.integers(0, 7))
def test_a_datagram_with_a_flipped_bit_behind_the_ip_header_is_malformed(place, bit):
    packet = bytearray(pyvxlan.encap_datagram(TCP4 + bytes(200), 7, "198.18.0.1", "198.18.0.2"))
    packet[place] ^= 1 << bit
    with pytest.raises(MalformedError):
        pyvxlan.decap_datagram(packet)


@given(st.binary(max_size=120))
def test_decap_datagram_reads_or_refuses_whatever_comes(packet):
    with pytest.raises(MalformedError):
        pyvxlan.decap_datagram(packet)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"source": "198.18.0.x"}, "198.18.0.x"),
        ({"destination": "fd00::1"}, "fd00::1"),
        ({"destination_port": 0}, "0"),
        ({"source_port": 65536}, "65536"),
    ],
)
def test_a_bad_value_of_a_datagram_is_named(changes, named):
    values = {"source": "198.18.0.1", "destination": "198.18.0.2"} | changes
    with pytest.raises((ValueError, OverflowError), match=named):
        pyvxlan.encap_datagram(UDP6, 7, **values)


def test_a_frame_too_large_for_ip_is_refused():
    with pytest.raises(ValueError, match="65535"):
        pyvxlan.encap_datagram(bytes(65500), 7, "198.18.0.1", "198.18.0.2")


@pytest.mark.parametrize("module", [addresses, codec, headers, table])
def test_the_examples_in_the_docstrings_work(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
