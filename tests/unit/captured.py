"""Messages of a capture as a worker makes them (rust/dataplane/src/capture.rs)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from pyvxlan import DROP_REASONS

VERDICTS = ("forwarded", "flooded", "delivered", "answered", "answer", "dropped")


def record(
    data: bytes,
    verdict: str = "forwarded",
    *,
    time_ns: int = 1_764_000_000_123_456_789,
    vtep: str = "",
    reason: str = "",
    copies: int = 0,
    frames: int = 1,
    frame_bytes: int = 0,
    ingress: bool = False,
) -> bytes:
    """One record; it holds all of the frame unless `frame_bytes` says that there was more."""
    argument = DROP_REASONS.index(reason) if reason else copies
    return (
        struct.pack(
            ">QIIHHBBBx16s",
            time_ns,
            frame_bytes or len(data),
            len(data),
            frames,
            argument,
            ingress,
            VERDICTS.index(verdict),
            4 if vtep else 0,
            IPv4Address(vtep).packed if vtep else b"",
        )
        + data
    )


def message(*records: bytes, worker: int = 0, lost: int = 0) -> bytes:
    """A message of these records."""
    return struct.pack(">QHH", lost, worker, len(records)) + b"".join(records)
