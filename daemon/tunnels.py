"""The tunnels to other hosts as probes find them, and how a reading of them is shown. Pure.

What the forwarder counts is in docs/tunnels.md. A tunnel that never was answered is no alarm: the
other end may be no pyvxlan, or an older one, and carries frames all the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, TypeAlias

from pyvxlan.daemon.findings import Finding
from pyvxlan.daemon.model import OVERHEAD_BYTES, Host

Document: TypeAlias = dict[str, Any]

UP, LOST, SILENT, OFF = "up", "lost", "silent", "off"
"""Answered lately; answered once but not now; never; not asked."""
LOOK_S = 5.0
"""Time between two looks for what has changed."""
TUNNELS_PER_S = 1000
"""The forwarder probes no more, and so some later if there are more."""
COUNTERS = ("sent", "answered", "lost", "reordered", "narrowed")


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The tunnel to one host. `host` is its name, or "" if the store knows no host of that VTEP.

    `counters` are by name of `COUNTERS`; `round_trips` pairs each bucket's upper bound in seconds
    with the number in that bucket alone; `loss` is a share of the last 64 probes. MTUs are of the
    underlay's packets; `path_mtu_bytes` is 0 until a long probe was answered.
    """

    host: str
    host_id: str
    vtep: str
    networks: tuple[str, ...]
    state: str
    counters: Mapping[str, int]
    loss: float
    round_trips: Sequence[tuple[float, int]]
    round_trip_sum_s: float
    path_mtu_bytes: int
    needed_mtu_bytes: int
    answer_age_s: float | None

    @property
    def narrow(self) -> bool:
        """Whether less gets through than the networks promise."""
        return 0 < self.path_mtu_bytes < self.needed_mtu_bytes

    def document(self) -> Document:
        """Gives its entry in the document of `GET /v1/peers`."""
        return {
            "host": self.host,
            "host_id": self.host_id,
            "vtep": self.vtep,
            "networks": list(self.networks),
            "state": self.state,
            "round_trip_s": {
                "p50": quantile(self.round_trips, 0.5),
                "p99": quantile(self.round_trips, 0.99),
            },
            "loss": round(self.loss, 4),
            "probes": dict(self.counters),
            "path_mtu_bytes": self.path_mtu_bytes or None,
            "needed_mtu_bytes": self.needed_mtu_bytes,
            "answer_age_s": None if self.answer_age_s is None else round(self.answer_age_s, 3),
        }


def read_tunnels(
    stats: Mapping[str, Mapping[str, Any]],
    hosts: Mapping[str, Host],
    networks: Mapping[int, str],
    interval_s: float,
    lost: Collection[str] = (),
) -> tuple[Tunnel, ...]:
    """Reads what the data plane says of its tunnels.

    Args:
        stats: Counters by VTEP, with `vnis`, the networks that are shared with it.
        hosts: Hosts by VTEP.
        networks: Names of networks by VNI.
        interval_s: Time between probes; 0 if there are none.
        lost: VTEPs that answered a forwarder before this one and were lost then.
    """
    patience_s = 3 * max(1.0, interval_s, len(stats) / TUNNELS_PER_S)
    found = []
    for vtep, tunnel in stats.items():
        age_ns = tunnel["answer_age_ns"]
        age_s = None if age_ns < 0 else age_ns / 1e9
        if interval_s == 0:
            state = OFF
        elif age_s is None:
            state = LOST if vtep in lost else SILENT
        else:
            state = UP if age_s <= patience_s else LOST
        host = hosts.get(vtep)
        found.append(
            Tunnel(
                host=host.name if host else "",
                host_id=host.id if host else "",
                vtep=vtep,
                networks=tuple(sorted(networks.get(vni, str(vni)) for vni in tunnel["vnis"])),
                state=state,
                counters={name: tunnel[name] for name in COUNTERS},
                loss=tunnel["recent_lost"] / max(1, tunnel["recent"]),
                round_trips=sorted(
                    (float(bound) / 1e6, count) for bound, count in tunnel["round_trips"].items()
                ),
                round_trip_sum_s=tunnel["round_trip_sum_ns"] / 1e9,
                path_mtu_bytes=tunnel["path_mtu_bytes"],
                needed_mtu_bytes=tunnel["needed_mtu_bytes"],
                answer_age_s=age_s,
            )
        )
    return tuple(sorted(found, key=lambda tunnel: (tunnel.host, tunnel.vtep)))


class Changes:
    """What has become of tunnels, told once; it outlives the forwarder that found it."""

    def __init__(self) -> None:
        self.lost: set[str] = set()
        """VTEPs of tunnels that were lost and are not back."""
        self._narrow: set[str] = set()

    def tell(self, now: Iterable[Tunnel]) -> list[tuple[str, str]]:
        """Tells what is new in a reading: kinds of events, and texts."""
        found = []
        for tunnel in now:
            vtep, name = tunnel.vtep, _place(tunnel.host, tunnel.vtep)
            path, needed = tunnel.path_mtu_bytes, tunnel.needed_mtu_bytes
            if tunnel.state == LOST and vtep not in self.lost:
                self.lost.add(vtep)
                found.append(("tunnel_lost", f"to {name}"))
            elif tunnel.state == UP and vtep in self.lost:
                self.lost.remove(vtep)
                found.append(("tunnel_back", f"to {name}"))
            if tunnel.narrow and vtep not in self._narrow:
                self._narrow.add(vtep)
                text = f"packets of {path} bytes get through, of {needed} do not"
                found.append(("tunnel_narrow", f"to {name}: {text}"))
            elif path >= needed and vtep in self._narrow:
                self._narrow.remove(vtep)
                found.append(("tunnel_wide", f"to {name}: packets of {needed} bytes"))
        return found


def judge(tunnels: Iterable[Document]) -> Finding | None:
    """Says what is wrong with the tunnels of `GET /v1/peers`; None if there are none to judge."""
    probed = [tunnel for tunnel in tunnels if tunnel["state"] != OFF]
    lost = [_name(tunnel) for tunnel in probed if tunnel["state"] == LOST]
    narrow = [
        tunnel
        for tunnel in probed
        if tunnel["state"] == UP and (tunnel["path_mtu_bytes"] or inf) < tunnel["needed_mtu_bytes"]
    ]
    silent = [_name(tunnel) for tunnel in probed if tunnel["state"] == SILENT]
    if lost:
        return Finding(
            "error",
            "tunnels",
            f"no answer any more from {', '.join(lost)}: see whether it runs, the underlay, and its"
            " firewalls (pyvxlan peers)",
        )
    if narrow:
        worst = min(narrow, key=lambda tunnel: tunnel["path_mtu_bytes"])
        path, needed = worst["path_mtu_bytes"], worst["needed_mtu_bytes"]
        overhead = OVERHEAD_BYTES[6 if ":" in worst["vtep"] else 4]
        return Finding(
            "warning",
            "tunnels",
            f"only packets of {path} bytes get to {_name(worst)}, the networks need {needed}: widen"
            f" the underlay's path, or create networks with --mtu {path - overhead}",
        )
    if not probed:
        return None
    answering = len(probed) - len(silent)
    never = f"; never answered: {', '.join(silent)}" if silent else ""
    return Finding("ok", "tunnels", f"{answering} of {len(probed)} hosts answer{never}")


def _name(tunnel: Document) -> str:
    return _place(tunnel["host"], tunnel["vtep"])


def _place(host: str, vtep: str) -> str:
    return f"{host} ({vtep})" if host else vtep


def quantile(buckets: Sequence[tuple[float, int]], share: float) -> float | None:
    """Estimates a quantile as Prometheus does: evenly spread within a bucket. None if all are 0."""
    total = sum(count for _, count in buckets)
    if total == 0:
        return None
    wanted, below = share * total, 0
    lows = itertools.chain((0.0,), (bound for bound, _ in buckets))
    for low, (high, count) in zip(lows, buckets, strict=False):
        if below + count >= wanted and count:
            if high == inf:
                return low
            return low + (high - low) * (wanted - below) / count
        below += count
    return buckets[-1][0]
