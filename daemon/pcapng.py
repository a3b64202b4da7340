"""pcapng files, as Wireshark reads them: blocks as bytes. Pure.

Sections 3 and 4 of draft-ietf-opsawg-pcapng. All is little-endian; times are nanoseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

_SECTION = 0x0A0D0D0A
_BYTE_ORDER = 0x1A2B3C4D
_INTERFACE, _STATISTICS, _PACKET = 1, 5, 6
_ETHERNET = 1
"""LINKTYPE_ETHERNET."""
_COMMENT = 1
_OPTION = struct.Struct("<HH")
_BLOCK = struct.Struct("<II")
_TRAILER = struct.Struct("<I")
_PACKET_HEAD = struct.Struct("<IIIII")
_FLAGS = struct.Struct("<HHI")
_INBOUND, _OUTBOUND = 1, 2
OPTION_BYTES: Final = 0xFFFF
"""What an option holds at most."""


def section(application: str, comment: str) -> bytes:
    """Gives the block that begins a file."""
    body = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
    return _block(_SECTION, body + _options({4: application, _COMMENT: comment}))


def interface(name: str, description: str, snap_bytes: int) -> bytes:
    """Gives the block of an interface: the first one is number 0."""
    body = struct.pack("<HHI", _ETHERNET, 0, snap_bytes)
    # if_tsresol: ten to the minus ninth.
    return _block(_INTERFACE, body + _options({2: name, 3: description, 9: b"\x09"}))


def packet(
    number: int, time_ns: int, data: bytes, frame_bytes: int, *, inbound: bool, comment: str
) -> bytes:
    """Gives the block of a frame that interface `number` saw, of which `data` are the first bytes.

    `inbound` is whether it goes to a container; a comment may have several lines.
    """
    text = comment.encode()[:OPTION_BYTES]
    body = b"".join(
        (
            _PACKET_HEAD.pack(number, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), frame_bytes),
            _padded(data),
            _OPTION.pack(_COMMENT, len(text)),
            _padded(text),
            _FLAGS.pack(2, 4, _INBOUND if inbound else _OUTBOUND),
            bytes(4),
        )
    )
    return _block(_PACKET, body)


def statistics(number: int, time_ns: int, *, received: int, lost: int) -> bytes:
    """Gives the block that tells how many frames interface `number` saw, and how many it lost."""
    body = struct.pack("<III", number, time_ns >> 32, time_ns & 0xFFFFFFFF)
    counts = {4: struct.pack("<Q", received), 5: struct.pack("<Q", lost)}
    return _block(_STATISTICS, body + _options(counts))


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return _BLOCK.pack(kind, length) + body + _TRAILER.pack(length)


def _options(options: Mapping[int, str | bytes]) -> bytes:
    """Gives options and their end; those that are empty are left out."""
    parts = []
    for code, value in options.items():
        content = (value if isinstance(value, bytes) else value.encode())[:OPTION_BYTES]
        if content:
            parts.append(_OPTION.pack(code, len(content)) + _padded(content))
    return b"".join((*parts, bytes(4)))


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)
