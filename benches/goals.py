"""What pyvxlan is to reach, by the names of the table's lines. Data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound of one line's median, or of its ratio to another line of the same group."""

    group: str
    name: str
    bound: float
    of: str = ""
    """The other line's name."""
    most: bool = False
    """The bound is the most that may be, not the least."""

    def met(self, reached: float) -> bool:
        """Whether `reached` is on the right side of the bound."""
        return reached <= self.bound if self.most else reached >= self.bound


ENCAP, DECAP = "encap, 64 frames of {} bytes", "decap, 64 payloads of {} bytes"

GOALS: Sequence[Goal] = (
    Goal("nic: TCP, 1 stream, Gbit/s", "pyvxlan", 1.0, "kernel"),
    Goal("nic: TCP, 4 streams, Gbit/s", "pyvxlan", 1.0, "kernel"),
    Goal("veth: TCP, 1 stream, Gbit/s", "pyvxlan", 0.8, "kernel"),
    Goal("veth: TCP, 4 streams, Gbit/s", "pyvxlan", 0.8, "kernel"),
    *(
        Goal(f"{picture}: {title}", "pyvxlan", bound, peer, most=most)
        for picture in ("nic", "veth")
        for title, bound, peer, most in (
            ("TCP, 1 stream, Gbit/s", 5, "ovs", False),
            ("TCP, 4 streams, Gbit/s", 5, "ovs", False),
            ("64-byte frames, thousand/s", 1.5, "kernel", False),
            ("64-byte frames, thousand/s", 3, "ovs", False),
            ("UDP of 1400 bytes, thousand/s", 1.2, "kernel", False),
            ("round trip p50, us", 1.5, "kernel", True),
            ("round trip p99, us", 2, "kernel", True),
            ("connections/s", 0.8, "kernel", False),
        )
    ),
    *(
        Goal(group.format(size), f"{ours}[{size}B]", 1 / 50, f"{ours}_scapy[{size}B]", most=True)
        for group, ours in ((ENCAP, "encap_batch"), (DECAP, "decap_batch"))
        for size in (114, 1464)
    ),
    Goal("memory of a forwarder, MB", "with a million table entries", 100, most=True),
    Goal("table entries moved a second, of a million", "pyvxlan", 1_000_000),
)
