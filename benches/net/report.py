"""What is measured on the whole path, and how a sample is read. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Sample: TypeAlias = Mapping[str, Any]
"""One run of the load generator: peer, picture, measurement, and what it printed."""

LOSS = 0.005
"""Share of datagrams that a rate may lose and still count."""
SMALL_BYTES, LARGE_BYTES = 22, 1400
"""UDP payloads: the smaller one makes an Ethernet frame of 64 bytes."""


def measurements(seconds: float) -> dict[str, tuple[object, ...]]:
    """Arguments of the load generator by the measurement's name, each about `seconds` long."""
    return {
        "tcp1": ("tcp", 1, seconds),
        "tcp4": ("tcp", 4, seconds),
        "udp64": ("udp", SMALL_BYTES, seconds * 0.4, LOSS),
        "udp1400": ("udp", LARGE_BYTES, seconds * 0.4, LOSS),
        "trip": ("trip", seconds),
        "connect": ("connect", seconds),
    }


@dataclass(frozen=True, slots=True)
class Figure:
    """What one measurement's sample tells: a rate or a time, and what that cost."""

    measurement: str
    title: str
    read: Callable[[Sample], float]
    cpu_s: Callable[[Sample], float] | None = None
    """Seconds of all processors, for as much as `cpu_for` says."""
    cpu_for: str = ""


def _gbit_per_s(sample: Sample) -> float:
    rate: float = sample["bytes_per_s"] * 8e-9
    return rate


def _cpu_s_per(unit: str, scale: float) -> Callable[[Sample], float]:
    return lambda sample: sample["cpu_s"] / sample[unit] * scale


GB = _cpu_s_per("bytes", 1e9), "GB"
MILLION = _cpu_s_per("frames", 1e6), "million"
THOUSAND = _cpu_s_per("connections", 1e3), "thousand"

FIGURES: Sequence[Figure] = (
    Figure("tcp1", "TCP, 1 stream, Gbit/s", _gbit_per_s, *GB),
    Figure("tcp4", "TCP, 4 streams, Gbit/s", _gbit_per_s, *GB),
    Figure("udp64", "64-byte frames, thousand/s", lambda s: s["frames_per_s"] / 1e3, *MILLION),
    Figure("udp64", "64-byte frames flat out, thousand/s", lambda s: s["flat_out"] / 1e3),
    Figure("udp1400", "UDP of 1400 bytes, thousand/s", lambda s: s["frames_per_s"] / 1e3, *MILLION),
    Figure("udp1400", "UDP of 1400 bytes flat out, thousand/s", lambda s: s["flat_out"] / 1e3),
    Figure("trip", "round trip p50, us", lambda s: s["p50_us"]),
    Figure("trip", "round trip p99, us", lambda s: s["p99_us"]),
    Figure("connect", "connections/s", lambda s: s["connections_per_s"], *THOUSAND),
)
