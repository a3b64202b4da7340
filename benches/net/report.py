"""What is measured, and the table that becomes of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
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
    """One line of the table, read from the samples of one measurement."""

    measurement: str
    title: str
    read: Callable[[Sample], float]
    digits: int = 0


FIGURES: Sequence[Figure] = (
    Figure("tcp1", "TCP, 1 stream, Gbit/s", lambda s: s["bytes_per_s"] * 8e-9, 2),
    Figure("tcp1", "- CPU s per GB", lambda s: s["cpu_s"] / s["bytes"] * 1e9, 2),
    Figure("tcp4", "TCP, 4 streams, Gbit/s", lambda s: s["bytes_per_s"] * 8e-9, 2),
    Figure("tcp4", "- CPU s per GB", lambda s: s["cpu_s"] / s["bytes"] * 1e9, 2),
    Figure("udp64", "64-byte frames, thousand/s", lambda s: s["frames_per_s"] / 1e3),
    Figure("udp64", "- CPU s per million", lambda s: s["cpu_s"] / s["frames"] * 1e6, 2),
    Figure("udp64", "- flat out, thousand/s", lambda s: s["flat_out"] / 1e3),
    Figure("udp1400", "UDP of 1400 bytes, thousand/s", lambda s: s["frames_per_s"] / 1e3),
    Figure("udp1400", "- CPU s per million", lambda s: s["cpu_s"] / s["frames"] * 1e6, 2),
    Figure("udp1400", "- flat out, thousand/s", lambda s: s["flat_out"] / 1e3),
    Figure("trip", "round trip p50, us", lambda s: s["p50_us"], 1),
    Figure("trip", "round trip p99, us", lambda s: s["p99_us"], 1),
    Figure("connect", "connections/s", lambda s: s["connections_per_s"]),
    Figure("connect", "- CPU s per thousand", lambda s: s["cpu_s"] / s["connections"] * 1e3, 3),
)


def table(samples: Sequence[Sample], against: str) -> str:
    """Medians per picture and peer, with the ratio to the peer `against` and the spread."""
    blocks = []
    for picture in _in_order(samples, "picture"):
        here = [sample for sample in samples if sample["picture"] == picture]
        peers = _in_order(here, "peer")
        rows = [["", *peers]]
        for figure in FIGURES:
            values = {peer: _values(here, peer, figure) for peer in peers}
            if any(values.values()):
                base = values.get(against, [])
                rows.append(
                    [figure.title, *(_cell(values[peer], base, figure.digits) for peer in peers)]
                )
        blocks.append(f"{picture}:\n{_aligned(rows)}")
    return (
        "\n\n".join(blocks)
        + f"\n\nmedian, ratio to {against}, lowest-highest of the rounds; "
        + f"UDP at a loss of at most {LOSS:.1%}"
    )


def _in_order(samples: Sequence[Sample], key: str) -> list[str]:
    return list(dict.fromkeys(sample[key] for sample in samples))


def _values(samples: Sequence[Sample], peer: str, figure: Figure) -> list[float]:
    return [
        figure.read(sample)
        for sample in samples
        if (sample["peer"], sample["measurement"]) == (peer, figure.measurement)
    ]


def _cell(values: Sequence[float], base: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    ratio = f" x{median(values) / median(base):.2f}" if base and median(base) else ""
    spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{median(values):.{digits}f}{ratio}{spread}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
