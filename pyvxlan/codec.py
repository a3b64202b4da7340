"""VXLAN on bytes: frames into datagrams and back (RFC 7348, section 5).

A frame is an Ethernet frame of the overlay without preamble and FCS. A payload is what a UDP
socket on port 4789 sends and receives: the VXLAN header, then the frame. A packet is the whole
thing as it is on the underlay: IPv4 or IPv6, UDP, payload. Every buffer may be `bytes`,
`bytearray` or a C-contiguous `memoryview`.

>>> frame = bytes.fromhex("02420a000003 02420a000002 88b5") + b"hello"
>>> payload = encap(frame, 42)
>>> payload[:8].hex()
'0800000000002a00'
>>> vni, inner = decap(payload)
>>> vni, bytes(inner) == frame
(42, True)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Final

from pyvxlan import _dataplane
from pyvxlan._dataplane import DEFAULT_PORT
from pyvxlan.addresses import VNI_MAX, Address, AddressLike, address_text, parse_address
from pyvxlan.errors import MalformedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

ETHERNET_BYTES: Final = 14
"""The shortest frame: an Ethernet header."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """A VXLAN packet taken apart by `decap_datagram`; `frame` is a view of it."""

    source: Address
    destination: Address
    source_port: int
    destination_port: int
    vni: int
    frame: memoryview


def vxlan_header(vni: int) -> bytes:
    """Gives the eight bytes in front of a frame: flags 0x08, 24 bits zero, VNI, 8 bits zero.

    For `sock.sendmsg([vxlan_header(vni), frame])`, which copies no frame in this process.

    Raises:
        ValueError: `vni` does not fit in 24 bits.
    """
    return _dataplane.vxlan_header(vni)


def encap(frame: Buffer, vni: int) -> bytes:
    """Puts the VXLAN header in front of a frame: the payload for UDP. One copy.

    Args:
        frame: At least the 14 bytes of an Ethernet header; whatever follows is not looked at.
        vni: 0 to 16777215.

    Raises:
        MalformedError: The frame is shorter than an Ethernet header.
        ValueError: `vni` does not fit in 24 bits.
    """
    try:
        return _dataplane.encap(frame, vni)
    except ValueError as error:
        raise _frame_error(error, vni) from None


def encap_batch(frames: Sequence[Buffer], vni: int) -> list[bytes]:
    """Does `encap` for each frame, in order; all or nothing.

    Raises:
        MalformedError: A frame is too short; the message gives its index.
        ValueError: `vni` does not fit in 24 bits.
    """
    try:
        return _dataplane.encap_batch(frames, vni)
    except ValueError as error:
        raise _frame_error(error, vni) from None


def decap(payload: Buffer) -> tuple[int, memoryview]:
    """Takes a UDP payload apart. Copies nothing.

    Only the I flag is looked at; all other flags and the reserved bits are ignored, as RFC 7348,
    section 5 demands.

    Returns:
        The VNI, and the frame as a view that keeps `payload` alive.

    Raises:
        MalformedError: The I flag is not set, or there is no whole Ethernet header.
    """
    try:
        return _dataplane.decap(payload)
    except ValueError as error:
        raise MalformedError(str(error)) from None


def decap_batch(payloads: Sequence[Buffer]) -> list[tuple[int, memoryview]]:
    """Does `decap` for each payload, in order; all or nothing.

    Raises:
        MalformedError: A payload is no VXLAN; the message gives its index.
    """
    try:
        return _dataplane.decap_batch(payloads)
    except ValueError as error:
        raise MalformedError(str(error)) from None


def encap_datagram(
    frame: Buffer,
    vni: int,
    source: AddressLike,
    destination: AddressLike,
    *,
    source_port: int | None = None,
    destination_port: int = DEFAULT_PORT,
    checksum: bool = True,
) -> bytes:
    """Gives the whole packet: outer IP, UDP, VXLAN, frame.

    Args:
        frame: At least 14 bytes.
        vni: 0 to 16777215.
        source: The own VTEP.
        destination: The other VTEP; of the same IP version.
        source_port: 1 to 65535; None takes it from the frame's flow, in 49152 to 65535
            (RFC 7348, section 5).
        destination_port: 1 to 65535.
        checksum: Whether to fill in the UDP checksum, or send zero, which RFC 7348 prefers over
            IPv4 and RFC 6935 allows for tunnels over IPv6.

    Raises:
        MalformedError: The frame is shorter than an Ethernet header.
        ValueError: A value is out of range, or the packet would exceed 65535 bytes.
    """
    ends = address_text(source), address_text(destination)
    try:
        return _dataplane.encap_datagram(
            frame, vni, *ends, sport=source_port, dport=destination_port, checksum=checksum
        )
    except ValueError as error:
        if memoryview(frame).nbytes < ETHERNET_BYTES:
            raise MalformedError(str(error)) from None
        raise


def decap_datagram(packet: Buffer) -> Datagram:
    """Takes a whole outer packet apart and checks it, checksums included. Copies no frame.

    A UDP checksum of zero is accepted, also over IPv6 (RFC 7348, section 5; RFC 6935). The
    destination port is not compared with anything.

    Raises:
        MalformedError: It is no whole UDP packet, a fragment, its checksum is wrong, or the
            payload is not VXLAN.
    """
    try:
        source, destination, sport, dport, vni, frame = _dataplane.decap_datagram(packet)
    except ValueError as error:
        raise MalformedError(str(error)) from None
    return Datagram(parse_address(source), parse_address(destination), sport, dport, vni, frame)


def flow_hash(frame: Buffer) -> int:
    """Gives 32 bits that all frames of one inner flow share.

    From addresses, protocol and ports of TCP, UDP and the like; from addresses alone for
    fragments; from MACs and ethertype for anything else. VLAN tags are looked through. Any bytes
    will do.
    """
    return _dataplane.flow_hash(frame)


def source_port(frame: Buffer) -> int:
    """Gives the outer UDP source port for a frame: its flow's hash, within 49152 to 65535.

    So that routers and receivers spread flows and never split one (RFC 7348, section 5).
    """
    return _dataplane.source_port(frame)


def _frame_error(error: ValueError, vni: int) -> ValueError:
    """Tells a malformed frame, which may have come from anywhere, from a bad VNI."""
    return MalformedError(str(error)) if 0 <= index(vni) <= VNI_MAX else error
