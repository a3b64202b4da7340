"""Frames in words: what one is, and what became of it. For people, one line each. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from pyvxlan import (
    ArpPacket,
    CapturedFrame,
    Frame,
    MalformedError,
    TcpHeader,
    UdpHeader,
    format_mac,
    parse_frame,
)
from pyvxlan.daemon.reasons import in_words

_TCP_FLAGS = "FSRPAUEC"
_PROTOCOLS = {1: "ICMP", 2: "IGMP", 47: "GRE", 50: "ESP", 58: "ICMPv6", 132: "SCTP"}
_ICMP = {0: "echo reply", 3: "unreachable", 8: "echo request", 11: "time exceeded"}
_ICMPV6 = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
}
_MACS = 12
"""Bytes of both MACs, with which a frame begins."""


def summary(data: bytes, frame_bytes: int, *, macs: bool = False) -> str:
    """Says what a frame is, of which `data` are the first bytes; with `macs`, from and to which."""
    addressed = f"{macs_of(data)} " if macs else ""
    try:
        # What was not kept counts as zeros: headers say how much there must be.
        frame = parse_frame(data + bytes(max(0, frame_bytes - len(data))))
    except MalformedError:
        return f"{macs_of(data)} malformed, {frame_bytes} bytes"
    return f"{addressed}{_contents(frame, macs=macs)}, {frame_bytes} bytes"


def macs_of(data: bytes) -> str:
    """Gives source and destination MAC of a frame; nothing of what is too short."""
    if len(data) < _MACS:
        return "no Ethernet frame,"
    return f"{format_mac(data[6:12])} > {format_mac(data[:6])}"


def verdict(frame: CapturedFrame, hosts: Mapping[str, str]) -> str:
    """Says what became of a frame; `hosts` are names by VTEP."""
    peer = _peer(frame, hosts)
    match frame.verdict:
        case "forwarded":
            text = f"to {peer}"
        case "flooded":
            text = f"flooded to {frame.copies} host{'s' * (frame.copies != 1)}"
        case "delivered":
            text = f"delivered, from {peer}"
        case "answered":
            text = "answered on this host"
        case "answer":
            text = "answer made on this host"
        case "dropped":
            way = "to" if frame.direction == "egress" else "from"
            text = f"dropped: {in_words(frame.reason)}" + (f", {way} {peer}" if peer else "")
    return text + (f"; {frame.frames} frames on the wire" if frame.frames > 1 else "")


def _peer(frame: CapturedFrame, hosts: Mapping[str, str]) -> str:
    if frame.vtep is None:
        return ""
    vtep = str(frame.vtep)
    name = hosts.get(vtep)
    return f"{name} ({vtep})" if name else vtep


def _contents(frame: Frame, *, macs: bool) -> str:
    network, transport = frame.network, frame.transport
    if network is None:
        begins = "" if macs else f"{_ethernet(frame)} "
        return f"{begins}ethertype 0x{frame.ethernet.ethertype:04x}"
    if isinstance(network, ArpPacket):
        if network.operation == 1:
            return f"ARP who has {network.target_address}, asks {network.sender_address}"
        return f"ARP {network.sender_address} is at {format_mac(network.sender_mac)}"
    source, destination = str(network.source), str(network.destination)
    if isinstance(transport, UdpHeader | TcpHeader):
        kind = "UDP"
        if isinstance(transport, TcpHeader):
            flags = (flag for bit, flag in enumerate(_TCP_FLAGS) if transport.flags >> bit & 1)
            kind = f"TCP {''.join(flags)} seq {transport.sequence}"
        source, destination = (
            f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            for address, port in (
                (source, transport.source_port),
                (destination, transport.destination_port),
            )
        )
        return f"{source} > {destination} {kind}"
    name = _PROTOCOLS.get(network.protocol, f"protocol {network.protocol}")
    if network.fragment:
        name += " fragment"
    elif frame.payload:
        kinds = {1: _ICMP, 58: _ICMPV6}.get(network.protocol, {})
        name = f"{name} {kinds.get(frame.payload[0], '')}".rstrip()
    return f"{source} > {destination} {name}"


def _ethernet(frame: Frame) -> str:
    return f"{format_mac(frame.ethernet.source)} > {format_mac(frame.ethernet.destination)}"
