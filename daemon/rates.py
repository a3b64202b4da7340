"""What has happened between two readings of a daemon (`GET /v1/status`), per second. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Document: TypeAlias = Mapping[str, Any]
TRAFFIC = ("sent_datagrams", "sent_bytes", "received_datagrams", "received_bytes")
SENT = ("sent_frames", "sent_bytes", "received_frames", "received_bytes")
FRAMES = ("egress_frames", "egress_bytes", "ingress_frames", "ingress_bytes")


def comparable(before: Document, after: Document) -> bool:
    """Whether two readings are of one daemon, in this order."""
    return bool(after["pid"] == before["pid"] and after["uptime_s"] > before["uptime_s"])


def rates(before: Document, after: Document) -> dict[str, Any]:
    """What has happened between two readings of one daemon, per second.

    A counter that is lower than before began anew: its forwarder was replaced. `endpoints` are
    those of `GET /v1/traffic`, if the readings have it as `traffic`.
    """
    elapsed_s = after["uptime_s"] - before["uptime_s"]

    def rate(now: float, then: float) -> float:
        return float((now - then if now >= then else now) / elapsed_s)

    def each(now: Mapping[str, float], then: Mapping[str, float], *names: str) -> dict[str, float]:
        return {name: rate(now[name], then.get(name, 0)) for name in names}

    networks = []
    earlier = {network["id"]: network["counters"] for network in before["networks"]}
    for network in after["networks"]:
        now, then = network["counters"], earlier.get(network["id"], {})
        frames = each(now, then, *FRAMES)
        reasons: dict[str, float] = {}
        for direction in ("egress_drops", "ingress_drops"):
            for reason, count in now[direction].items():
                lost = rate(count, then.get(direction, {}).get(reason, 0))
                reasons[reason] = reasons.get(reason, 0) + lost
        worst = {reason: lost for reason, lost in reasons.items() if lost}
        networks.append(
            {
                "id": network["id"],
                "name": network["name"],
                **frames,
                "drops": sum(worst.values()),
                "reasons": worst,
            }
        )
    known = {peer["host"]: peer for peer in before["peers"]}
    peers = [
        {"host": peer["host"], **each(peer, known.get(peer["host"], {}), *TRAFFIC)}
        for peer in after["peers"]
    ]
    carried = {endpoint["id"]: endpoint for endpoint in before.get("traffic", ())}
    endpoints = [
        {
            **{key: endpoint[key] for key in ("id", "name", "network")},
            **each(endpoint, carried.get(endpoint["id"], {}), *SENT),
        }
        for endpoint in after.get("traffic", ())
    ]
    idle_s = {worker["number"]: worker["idle_s"] for worker in before["workers"]}
    workers = [
        {
            "number": worker["number"],
            "busy": max(0.0, 1 - rate(worker["idle_s"], idle_s.get(worker["number"], 0.0))),
            "queue": worker["queue_bytes"] / worker["queue_limit_bytes"],
        }
        for worker in after["workers"]
    ]
    return {
        "host": after["host"]["name"],
        "uptime_s": after["uptime_s"],
        "store": after["store"]["state"],
        "forwarder": after["forwarder"]["up"],
        "workers": workers,
        "networks": sorted(networks, key=lambda one: -(one["egress_bytes"] + one["ingress_bytes"])),
        "endpoints": sorted(endpoints, key=_bytes),
        "peers": sorted(peers, key=_bytes),
    }


def _bytes(one: Document) -> float:
    """Sorts the busiest first."""
    return float(-(one["sent_bytes"] + one["received_bytes"]))
