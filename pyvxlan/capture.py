"""What an engine tells of single frames: those that it captures, and the last that it dropped.

ours, theirs = capture_sockets()
number = engine.begin_capture(42, theirs.detach(), snap_bytes=128)
for frame in parse_capture(ours.recv(MESSAGE_BYTES)).frames:
    print(frame.direction, frame.verdict, frame.vtep)
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from pyvxlan import _dataplane
from pyvxlan.addresses import Address, parse_address
from pyvxlan.errors import MalformedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

MESSAGE_BYTES: Final = 256 * 1024
"""Room for any message of a capture."""
QUEUE_BYTES: Final = 8 * 1024 * 1024
"""What waits for a reader at most, before records are lost; the kernel may allow less."""
_SO_SNDBUFFORCE = 32
"""asm-generic/socket.h: SO_SNDBUF beyond the limit, for who has CAP_NET_ADMIN."""

Direction: TypeAlias = Literal["egress", "ingress"]
Verdict: TypeAlias = Literal["forwarded", "flooded", "delivered", "answered", "answer", "dropped"]
"""Sent to the VTEP that the FDB names; to those of the flood list; given to the port; answered here
(an ARP request or neighbour solicitation); that answer, given to the port; dropped."""

DroppedFields: TypeAlias = tuple[int, int, str, str, int | None, str, int, bytes]
_CapturedFields: TypeAlias = tuple[int, str, str, str, int, str, int, int, bytes]


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """A frame, and what became of it.

    `time_ns` is Unix time in nanoseconds: when a worker got it. `reason` is "" unless it was
    dropped, `copies` how many were sent. `vtep` is where it went or came from, if that is one and
    known. A super-frame is one record and stands for so many `frames` on the wire. `data` holds the
    first of its `frame_bytes` bytes.
    """

    time_ns: int
    direction: Direction
    verdict: Verdict
    reason: str
    copies: int
    vtep: Address | None
    frames: int
    frame_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CaptureMessage:
    """What one worker has captured in one turn, and how many records it has lost until then."""

    worker: int
    lost: int
    frames: tuple[CapturedFrame, ...]


@dataclass(frozen=True, slots=True)
class DroppedFrame:
    """A frame that was dropped, or several in a row that were alike.

    `time_ns` is when the last was, `count` how many: from and to the same MACs, by the same VTEP,
    for the same reason. `vni` is None for what is no VXLAN. `headers` are those of the first: never
    its payload, empty if it was no Ethernet frame.
    """

    time_ns: int
    count: int
    direction: Direction
    reason: str
    vni: int | None
    vtep: Address | None
    frame_bytes: int
    headers: bytes


def capture_sockets() -> tuple[socket.socket, socket.socket]:
    """Makes the two ends of a capture: one to read from, one for `Engine.begin_capture`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, QUEUE_BYTES)
    except PermissionError:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
    return ours, theirs


def parse_capture(message: Buffer) -> CaptureMessage:
    """Reads one message of a capture.

    Raises:
        MalformedError: It is none.
    """
    try:
        worker, lost, records = _dataplane.parse_capture(message)
    except ValueError as error:
        raise MalformedError(f"capture: {error}") from None
    return CaptureMessage(worker, lost, tuple(map(_captured, records)))


def dropped_frame(fields: DroppedFields) -> DroppedFrame:
    """Makes the typed value of what the extension gives."""
    time_ns, count, direction, reason, vni, vtep, frame_bytes, headers = fields
    address = parse_address(vtep) if vtep else None
    way = cast("Direction", direction)
    return DroppedFrame(time_ns, count, way, reason, vni, address, frame_bytes, headers)


def _captured(fields: _CapturedFields) -> CapturedFrame:
    time_ns, direction, verdict, reason, copies, vtep, frames, frame_bytes, data = fields
    return CapturedFrame(
        time_ns,
        cast("Direction", direction),
        cast("Verdict", verdict),
        reason,
        copies,
        parse_address(vtep) if vtep else None,
        frames,
        frame_bytes,
        data,
    )
