"""Frames to test with, built by scapy, and hypothesis strategies for them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

SOURCE = "02:42:0a:00:00:02"
DESTINATION = "02:42:0a:00:00:03"

frames = st.binary(min_size=14, max_size=2000)
"""Inner frames of any kind."""
vnis = st.integers(0, 2**24 - 1)
macs = st.binary(min_size=6, max_size=6).map(lambda mac: bytes([mac[0] & 0xFE | 2]) + mac[1:])
"""Unicast, locally administered."""
ipv4 = st.integers(0xC6120000, 0xC613FFFF).map(IPv4Address)
"""Of 198.18.0.0/15."""
ipv6 = st.integers(1, 2**64 - 1).map(lambda low: IPv6Address((0xFD << 120) + low))


def ethernet() -> Packet:
    """The Ethernet header that all frames here have."""
    return Ether(src=SOURCE, dst=DESTINATION)


def frame(*layers: Packet) -> bytes:
    """The bytes of an Ethernet header and layers upon it."""
    packet = ethernet()
    for layer in layers:
        packet = packet / layer
    return bytes(packet)


UDP4 = frame(IP(src="10.0.0.2", dst="10.0.0.3"), UDP(sport=1000, dport=2000), Raw(b"hello"))
UDP6 = frame(IPv6(src="fd00::2", dst="fd00::3"), UDP(sport=1000, dport=2000), Raw(b"hello"))
TCP4 = frame(
    IP(src="10.0.0.2", dst="10.0.0.3"),
    TCP(sport=1000, dport=80, seq=7, ack=9, flags="PA", window=500),
    Raw(b"GET /"),
)
TAGGED = frame(Dot1Q(vlan=5), IP(src="10.0.0.2", dst="10.0.0.3"), UDP(sport=1, dport=2))
WHO_HAS = bytes(
    Ether(src=SOURCE, dst="ff:ff:ff:ff:ff:ff")
    / ARP(op=1, hwsrc=SOURCE, psrc="10.0.0.2", pdst="10.0.0.3")
)
