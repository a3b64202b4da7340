"""`pyvxlan top`: rates per network, endpoint, host and thread, from two readings of the daemon."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import click

from pyvxlan.daemon.apiclient import ApiClient, UnreachableError
from pyvxlan.daemon.cli_format import duration, short, table
from pyvxlan.daemon.cli_options import client_of, examples, format_option
from pyvxlan.daemon.rates import Document, comparable, rates

ENDPOINTS = 20
"""So many are shown to people; a host may have thousands."""
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
    """Show what flows now: rates per network, endpoint, host and thread.

    Until Ctrl-C. The busiest come first; 20 endpoints at most. With --format json, an object a
    line, and all endpoints.
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
    before = _reading(client)
    while True:
        time.sleep(interval_s)
        try:
            after = _reading(client)
        except UnreachableError as error:
            click.echo(f"pyvxlan: {error}", err=True)
            continue
        if comparable(before, after):
            yield rates(before, after)
        before = after


def _reading(client: ApiClient) -> Document:
    return {**client.get("status"), "traffic": client.get("traffic")}


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
            ("ENDPOINT", "NETWORK", "SENT/S", "SENT BIT/S", "RECEIVED/S", "RECEIVED BIT/S"),
            (
                (
                    one["name"] or short(one["id"]),
                    one["network"],
                    count(one["sent_frames"]),
                    count(8 * one["sent_bytes"]),
                    count(one["received_frames"]),
                    count(8 * one["received_bytes"]),
                )
                for one in found["endpoints"][:ENDPOINTS]
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
