"""`pyvxlan top`: rates per network, host and thread, from two readings of `GET /v1/status`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import click

from pyvxlan.daemon.apiclient import ApiClient, UnreachableError
from pyvxlan.daemon.cli_format import duration, table
from pyvxlan.daemon.cli_options import client_of, examples, format_option

Document: TypeAlias = Mapping[str, Any]
HOME = "\033[H\033[J"
"""Begins a terminal's page anew."""


@click.command(
    epilog=examples("""
pyvxlan top
pyvxlan top --interval 0.5 --count 10
pyvxlan top --format json --count 1 | jq '.networks[] | select(.drops > 0)'
""")
)
@click.option("--interval", "interval_s", type=click.FloatRange(0.2, 60), default=2.0,
              show_default=True, metavar="SECONDS", help="Time between two readings.")  # fmt: skip
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N pages.")
@format_option("text", "json")
@click.pass_context
def top(ctx: click.Context, /, interval_s: float, count: int | None, kind: str) -> None:
    """Show what flows now: rates per network, host and thread.

    Until Ctrl-C. The busiest come first. With --format json, an object a line.
    """
    page = HOME if kind == "text" and sys.stdout.isatty() else ""
    for number, found in enumerate(_pages(client_of(ctx), interval_s), 1):
        if kind == "json":
            click.echo(json.dumps(found, ensure_ascii=False))
        else:
            click.echo(page + text(found) + ("" if page else "\n"))
        if number == count:
            break


def _pages(client: ApiClient, interval_s: float) -> Iterator[Document]:
    """Gives rates, one interval after the other; waits for a daemon that is being restarted."""
    before = client.get("status")
    while True:
        time.sleep(interval_s)
        try:
            after = client.get("status")
        except UnreachableError as error:
            click.echo(f"pyvxlan: {error}", err=True)
            continue
        if after["pid"] == before["pid"] and after["uptime_s"] > before["uptime_s"]:
            yield rates(before, after)
        before = after


def rates(before: Document, after: Document) -> dict[str, Any]:
    """What has happened between two readings of one daemon, per second.

    A counter that is lower than before began anew: its forwarder was replaced.
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
        frames = each(now, then, "egress_frames", "egress_bytes", "ingress_frames", "ingress_bytes")
        reasons: dict[str, float] = {}
        for direction in ("egress_drops", "ingress_drops"):
            for reason, count in now[direction].items():
                lost = rate(count, then.get(direction, {}).get(reason, 0))
                reasons[reason] = reasons.get(reason, 0) + lost
        worst = {reason: lost for reason, lost in reasons.items() if lost}
        networks.append(
            {"name": network["name"], **frames, "drops": sum(worst.values()), "reasons": worst}
        )
    known = {peer["host"]: peer for peer in before["peers"]}
    traffic = ("sent_datagrams", "sent_bytes", "received_datagrams", "received_bytes")
    peers = [
        {"host": peer["host"], **each(peer, known.get(peer["host"], {}), *traffic)}
        for peer in after["peers"]
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
        "peers": sorted(peers, key=lambda one: -(one["sent_bytes"] + one["received_bytes"])),
    }


def text(found: Document) -> str:
    """The page for people."""
    forwarder = "up" if found["forwarder"] else "down"
    lines = [
        f"{found['host']}, up {duration(found['uptime_s'])}, store {found['store']}, "
        f"forwarder {forwarder}",
        *(
            f"thread {worker['number']}: busy {worker['busy']:.0%}, queue {worker['queue']:.0%}"
            for worker in found["workers"]
        ),
        "",
        table(
            ("NETWORK", "OUT FRAMES/S", "OUT BIT/S", "IN FRAMES/S", "IN BIT/S", "DROPS/S", "WHY"),
            (
                (
                    one["name"],
                    count(one["egress_frames"]),
                    count(8 * one["egress_bytes"]),
                    count(one["ingress_frames"]),
                    count(8 * one["ingress_bytes"]),
                    count(one["drops"]),
                    ", ".join(sorted(one["reasons"], key=one["reasons"].__getitem__, reverse=True)),
                )
                for one in found["networks"]
            ),
        ),
        "",
        table(
            ("HOST", "TO IT/S", "TO IT BIT/S", "FROM IT/S", "FROM IT BIT/S"),
            (
                (
                    one["host"] or "(unknown)",
                    count(one["sent_datagrams"]),
                    count(8 * one["sent_bytes"]),
                    count(one["received_datagrams"]),
                    count(8 * one["received_bytes"]),
                )
                for one in found["peers"]
            ),
        ),
    ]
    return "\n".join(lines)


def count(value: float) -> str:
    """Shows a rate in at most five characters and a prefix."""
    for unit in ("", " k", " M", " G"):
        if value < 999.5:
            return f"{value:.0f}{unit}" if not unit or value >= 99.95 else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f} T"
