"""Time to encapsulate and decapsulate in Python, in microseconds per call, beside scapy and dpkt.

Input: a UDP frame of 114 bytes or 1464 bytes, VNI 42; batches are of 64 frames. Each benchmark
checks its own result against scapy's bytes. Run `pytest benches` and compare within a group:
absolute figures belong to the machine. One check is of a ratio: 50 times scapy's frames a second
in batches.

All do the same and no more: scapy is given only the headers that are wanted, since of a whole
payload it takes the frame inside apart as well, which is what `parse_frame` does. Of whole packets,
ours also verifies both checksums.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import inet_aton
from time import perf_counter_ns

import dpkt
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

import pyvxlan

VNI = 42
BATCH = 64
VTEPS = ("198.18.0.1", "198.18.0.2")
HEADER_BYTES, HEADERS_BYTES = 8, 36
"""Of VXLAN alone, and with IPv4 and UDP in front of it."""


def udp_frame(payload_bytes: int) -> bytes:
    ethernet = Ether(src="02:42:0a:00:00:02", dst="02:42:0a:00:00:03")
    ip = IP(src="10.0.0.2", dst="10.0.0.3")
    return bytes(ethernet / ip / UDP(sport=1000, dport=2000) / Raw(bytes(payload_bytes)))


@pytest.fixture(params=[72, 1422], ids=["114B", "1464B"])
def frame(request):
    return udp_frame(request.param)


@pytest.fixture
def benchmark(benchmark, frame):
    """Groups by the size of the frame, too: ratios are to the quickest of a group."""
    benchmark.group += f" of {len(frame)} bytes"
    return benchmark


@pytest.fixture
def payload(frame):
    return bytes(VXLAN(flags="Instance", vni=VNI) / Raw(frame))


@pytest.fixture
def packet(frame):
    return scapy_datagram(frame, pyvxlan.source_port(frame))


def scapy_encap(frame: bytes) -> bytes:
    return bytes(VXLAN(flags="Instance", vni=VNI)) + frame


def scapy_decap(payload: bytes) -> tuple[int, bytes]:
    return VXLAN(payload[:HEADER_BYTES]).vni, payload[HEADER_BYTES:]


class DpktVxlan(dpkt.Packet):
    """The VXLAN header as a user of dpkt, which has none, writes it (RFC 7348, section 5)."""

    __hdr__ = (("flags", "I", 0x08 << 24), ("vni_and_reserved", "I", 0))


def dpkt_encap(frame: bytes) -> bytes:
    return bytes(DpktVxlan(vni_and_reserved=VNI << 8, data=frame))


def dpkt_decap(payload: bytes) -> tuple[int, bytes]:
    read = DpktVxlan(payload)
    return read.vni_and_reserved >> 8, read.data


def scapy_datagram(frame: bytes, source_port: int) -> bytes:
    ip = IP(src=VTEPS[0], dst=VTEPS[1])
    udp = UDP(sport=source_port, dport=4789)
    return bytes(ip / udp / VXLAN(flags="Instance", vni=VNI) / Raw(frame))


def dpkt_datagram(frame: bytes, source_port: int) -> bytes:
    vxlan = DpktVxlan(vni_and_reserved=VNI << 8, data=frame)
    udp = dpkt.udp.UDP(sport=source_port, dport=4789, data=vxlan)
    udp.ulen = len(udp)
    source, destination = map(inet_aton, VTEPS)
    ip = dpkt.ip.IP(src=source, dst=destination, p=dpkt.ip.IP_PROTO_UDP, data=udp)
    ip.len = len(ip)
    return bytes(ip)  # which fills both checksums in


@pytest.mark.benchmark(group="encap, one frame")
def test_encap(benchmark, frame, payload):
    assert benchmark(pyvxlan.encap, frame, VNI) == payload


@pytest.mark.benchmark(group="encap, one frame")
def test_encap_by_header_and_scatter(benchmark, frame, payload):
    assert b"".join(benchmark(lambda: [pyvxlan.vxlan_header(VNI), frame])) == payload


@pytest.mark.benchmark(group="encap, one frame")
def test_encap_scapy(benchmark, frame, payload):
    assert benchmark(scapy_encap, frame) == payload


@pytest.mark.benchmark(group="encap, one frame")
def test_encap_dpkt(benchmark, frame, payload):
    assert benchmark(dpkt_encap, frame) == payload


@pytest.mark.benchmark(group="encap, 64 frames")
def test_encap_batch(benchmark, frame, payload):
    assert benchmark(pyvxlan.encap_batch, [frame] * BATCH, VNI) == [payload] * BATCH


@pytest.mark.benchmark(group="encap, 64 frames")
def test_encap_batch_scapy(benchmark, frame, payload):
    frames = [frame] * BATCH
    assert benchmark(lambda: [scapy_encap(each) for each in frames]) == [payload] * BATCH


@pytest.mark.benchmark(group="encap, 64 frames")
def test_encap_batch_dpkt(benchmark, frame, payload):
    frames = [frame] * BATCH
    assert benchmark(lambda: [dpkt_encap(each) for each in frames]) == [payload] * BATCH


@pytest.mark.benchmark(group="decap, one payload")
def test_decap(benchmark, frame, payload):
    assert benchmark(pyvxlan.decap, payload) == (VNI, frame)


@pytest.mark.benchmark(group="decap, one payload")
def test_decap_scapy(benchmark, frame, payload):
    assert benchmark(scapy_decap, payload) == (VNI, frame)


@pytest.mark.benchmark(group="decap, one payload")
def test_decap_dpkt(benchmark, frame, payload):
    assert benchmark(dpkt_decap, payload) == (VNI, frame)


@pytest.mark.benchmark(group="decap, 64 payloads")
def test_decap_batch(benchmark, frame, payload):
    assert benchmark(pyvxlan.decap_batch, [payload] * BATCH) == [(VNI, frame)] * BATCH


@pytest.mark.benchmark(group="decap, 64 payloads")
def test_decap_batch_scapy(benchmark, frame, payload):
    payloads = [payload] * BATCH
    assert benchmark(lambda: [scapy_decap(each) for each in payloads]) == [(VNI, frame)] * BATCH


@pytest.mark.benchmark(group="decap, 64 payloads")
def test_decap_batch_dpkt(benchmark, frame, payload):
    payloads = [payload] * BATCH
    assert benchmark(lambda: [dpkt_decap(each) for each in payloads]) == [(VNI, frame)] * BATCH


def test_batches_are_fifty_times_as_fast_as_scapys(frame, payload):
    frames, payloads = [frame] * BATCH, [payload] * BATCH
    pairs: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (lambda: pyvxlan.encap_batch(frames, VNI), lambda: [scapy_encap(f) for f in frames]),
        (lambda: pyvxlan.decap_batch(payloads), lambda: [scapy_decap(p) for p in payloads]),
    ]
    for ours, scapys in pairs:
        assert list(ours()) == scapys()
        # In turn, so that what else the machine does meets both; the least of each counts.
        times = [(spent_ns(ours), spent_ns(scapys)) for _ in range(20)]
        our_ns, scapys_ns = map(min, zip(*times, strict=True))
        assert scapys_ns / our_ns >= 50


def spent_ns(call: Callable[[], object]) -> int:
    begin = perf_counter_ns()
    call()
    return perf_counter_ns() - begin


@pytest.mark.benchmark(group="whole packet, built")
def test_encap_datagram(benchmark, frame):
    packet = benchmark(pyvxlan.encap_datagram, frame, VNI, *VTEPS)
    read = IP(packet)
    assert (read[VXLAN].vni, bytes(read[VXLAN].payload)) == (VNI, frame)


@pytest.mark.benchmark(group="whole packet, built")
def test_encap_datagram_scapy(benchmark, frame):
    packet = benchmark(scapy_datagram, frame, pyvxlan.source_port(frame))
    assert pyvxlan.decap_datagram(packet).frame == frame


@pytest.mark.benchmark(group="whole packet, built")
def test_encap_datagram_dpkt(benchmark, frame):
    packet = benchmark(dpkt_datagram, frame, pyvxlan.source_port(frame))
    assert pyvxlan.decap_datagram(packet).frame == frame


@pytest.mark.benchmark(group="whole packet, taken apart")
def test_decap_datagram(benchmark, packet, frame):
    assert benchmark(pyvxlan.decap_datagram, packet).frame == frame


@pytest.mark.benchmark(group="whole packet, taken apart")
def test_decap_datagram_scapy(benchmark, packet, frame):
    def take_apart() -> tuple[int, bytes]:
        return IP(packet[:HEADERS_BYTES])[VXLAN].vni, packet[HEADERS_BYTES:]

    assert benchmark(take_apart) == (VNI, frame)


@pytest.mark.benchmark(group="whole packet, taken apart")
def test_decap_datagram_dpkt(benchmark, packet, frame):
    def take_apart() -> tuple[int, bytes]:
        return dpkt_decap(bytes(dpkt.ip.IP(packet).data.data))

    assert benchmark(take_apart) == (VNI, frame)


@pytest.mark.benchmark(group="headers as values")
def test_parse_frame(benchmark, frame):
    assert benchmark(pyvxlan.parse_frame, frame).transport.destination_port == 2000


@pytest.mark.benchmark(group="headers as values")
def test_parse_frame_scapy(benchmark, frame):
    assert benchmark(Ether, frame)[UDP].dport == 2000


@pytest.mark.benchmark(group="headers as values")
def test_parse_frame_dpkt(benchmark, frame):
    assert benchmark(dpkt.ethernet.Ethernet, frame).data.data.dport == 2000


@pytest.mark.benchmark(group="source port")
def test_source_port(benchmark, frame):
    assert 49152 <= benchmark(pyvxlan.source_port, frame) <= 65535
