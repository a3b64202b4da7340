"""`pyvxlan peers`: the tunnels to other hosts, or between all, from `GET /v1/peers`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import click

from pyvxlan.daemon.cli_format import as_json, duration, table
from pyvxlan.daemon.cli_options import client_of, examples, format_option

Document: TypeAlias = Mapping[str, Any]


@click.command(
    epilog=examples("""
pyvxlan peers
pyvxlan peers --all
pyvxlan peers --format json | jq '.[] | select(.loss > 0.01)'
""")
)
@click.option("--all", "everyone", is_flag=True, help="Ask every host: a line each, a column each.")
@format_option("table", "json")
@click.pass_context
def peers(ctx: click.Context, /, *, everyone: bool, kind: str) -> None:
    """Show the tunnels to other hosts: round trip, loss, order, path MTU.

    Measured inside VXLAN, on the way of the traffic. `silent` are hosts that never answered a
    probe; loss is that of the last 64 probes. Probed are hosts that share a network with this one
    that is not on datapath=kernel.

    With --all, a cell is what the line's host finds of the column's: the median round trip, and
    loss or a narrow path if there is one; `-` where none is probed, `?` unanswered.
    """
    found = client_of(ctx).get("peers", host="all" if everyone else "")
    if everyone:
        for one in found:
            if one["error"]:
                click.echo(f"pyvxlan: without {one['host']}: {one['error']}", err=True)
    show = matrix if everyone else text
    click.echo(as_json(found) if kind == "json" else show(found))


def text(tunnels: Iterable[Document]) -> str:
    """The table for people."""
    return table(
        ("HOST", "VTEP", "STATE", "P50", "P99", "LOSS", "REORDERED", "PATH MTU", "ANSWERED",
         "NETWORKS"),
        (
            (
                one["host"] or "(unknown)",
                one["vtep"],
                one["state"],
                seconds(one["round_trip_s"]["p50"]),
                seconds(one["round_trip_s"]["p99"]),
                f"{one['loss']:.1%}" if one["probes"]["answered"] else "",
                str(one["probes"]["reordered"]),
                _path_mtu(one),
                _age(one["answer_age_s"]),
                ", ".join(one["networks"]),
            )
            for one in tunnels
        ),
    )  # fmt: skip


def matrix(hosts: Sequence[Document]) -> str:
    """What each host (a line) finds of each (a column), for people."""
    columns = [one["host_id"] for one in hosts]

    def line(one: Document) -> list[str]:
        found = {tunnel["host_id"]: _brief(tunnel) for tunnel in one["tunnels"]}
        unknown = "?" if one["error"] else "-"
        return [one["host"], *(found.get(to, unknown) for to in columns)]

    return table(("FROM \\ TO", *(one["host"] for one in hosts)), map(line, hosts))


def _brief(tunnel: Document) -> str:
    if tunnel["state"] != "up":
        return str(tunnel["state"])
    words = [seconds(tunnel["round_trip_s"]["p50"])]
    if tunnel["loss"]:
        words.append(f"loss {tunnel['loss']:.1%}")
    if _narrow(tunnel):
        words.append(f"mtu {tunnel['path_mtu_bytes']}")
    return ", ".join(words)


def seconds(value: float | None) -> str:
    """Shows a short time in a unit that suits it."""
    if value is None:
        return ""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if value < 999.5 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"


def _path_mtu(one: Document) -> str:
    path = one["path_mtu_bytes"]
    if path is None:
        return ""
    return f"{path} of {one['needed_mtu_bytes']}" if _narrow(one) else str(path)


def _narrow(one: Document) -> bool:
    path = one["path_mtu_bytes"]
    return path is not None and path < one["needed_mtu_bytes"]


def _age(age_s: float | None) -> str:
    if age_s is None:
        return "never"
    return "now" if age_s < 2 else f"{duration(age_s)} ago"
