"""How the command line shows what the API gives: tables for people, JSON and ids for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Document: TypeAlias = Mapping[str, Any]

SHORT_ID_DIGITS = 12
COLUMN_GAP = "   "


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lays out rows below headers, columns as wide as they need to be."""
    lines = [list(headers), *([cell or "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        COLUMN_GAP.join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def as_json(document: object) -> str:
    """Prints a document as JSON that people can read too."""
    return json.dumps(document, indent=4, ensure_ascii=False)


def short(identifier: str, *, whole: bool = False) -> str:
    """Gives the first 12 digits of an id, or all."""
    return identifier if whole else identifier[:SHORT_ID_DIGITS]


def network_table(networks: Iterable[Document], *, whole: bool) -> str:
    """The table of `pyvxlan network ls`."""
    return table(
        ("NETWORK ID", "NAME", "DRIVER", "SCOPE"),
        ((short(n["id"], whole=whole), n["name"], n["driver"], n["scope"]) for n in networks),
    )


def endpoint_table(endpoints: Iterable[Document], *, whole: bool) -> str:
    """The table of `pyvxlan endpoint ls`."""
    return table(
        ("ENDPOINT ID", "NAME", "NETWORK", "ADDRESSES", "MAC", "HOST"),
        (
            (
                short(e["id"], whole=whole),
                e["name"],
                e["network"] or short(e["network_id"]),
                ", ".join(e["addresses"]),
                e["mac"],
                e["host"] or short(e["host_id"]),
            )
            for e in endpoints
        ),
    )


def host_table(hosts: Iterable[Document], *, whole: bool) -> str:
    """The table of `pyvxlan node ls`; this host has a star."""
    return table(
        ("NODE ID", "NAME", "VTEP", "STATUS", "VERSION"),
        (
            (
                short(h["id"], whole=whole) + (" *" if h["self"] else ""),
                h["name"],
                f"[{h['vtep']}]:{h['port']}" if ":" in h["vtep"] else f"{h['vtep']}:{h['port']}",
                "up" if h["alive"] else "down",
                h["version"],
            )
            for h in hosts
        ),
    )


def status_text(status: Document) -> str:
    """The text of `pyvxlan status`: this host, its parts, and its networks."""
    host, store, forwarder = status["host"], status["store"], status["forwarder"]
    reconcile, names = status["reconcile"], status["names"]
    address = f"[{host['vtep']}]" if ":" in host["vtep"] else host["vtep"]
    facts = [
        ("daemon", f"{status['version']}, pid {status['pid']}, up {duration(status['uptime_s'])}"),
        ("host", f"{host['name']} ({short(host['id'])}), VTEP {address}:{host['port']}"),
        ("store", f"{store['url']}, {_store_state(store)}"),
        ("forwarder", _forwarder_state(forwarder)),
        ("offloads", _offloads(status)),
        ("endpoints", f"{status['endpoints']} on this host, names for {names['sandboxes']}"),
        ("repairs", str(reconcile["repairs"])),
        ("metrics", status["metrics_url"] or "off"),
        ("web page", status["web_url"] or "off"),
    ]
    if store["held"]:
        facts.append(("held back", f"{store['held']} records that the store lacks"))
    if store["problem"]:
        facts.append(("problem", f"not registered: {store['problem']}"))
    if store["move_problem"]:
        facts.append(("problem", f"the cluster has moved, not this host: {store['move_problem']}"))
    if store["url"] != store["configured"]:
        facts.append(("problem", f"the cluster has left {store['configured']}: change the setting"))
    facts += [("problem", text) for text in reconcile["problems"]]
    facts += [("invalid record", f"{key}: {why}") for key, why in store["invalid"].items()]
    width = max(len(name) for name, _ in facts) + 1
    lines = [f"{name + ':':<{width}} {value}" for name, value in facts]
    if status["networks"]:
        lines += ["", traffic_table(status["networks"])]
    return "\n".join(lines)


def traffic_table(networks: Iterable[Document]) -> str:
    """The networks that have endpoints on this host, with what was carried for them."""
    rows = []
    for network in networks:
        counters = network["counters"]
        drops = sum(counters["egress_drops"].values()) + sum(counters["ingress_drops"].values())
        rows.append(
            (
                network["name"],
                str(network["vni"]),
                str(network["endpoints"]),
                f"{counters['egress_frames']} ({size(counters['egress_bytes'])})",
                f"{counters['ingress_frames']} ({size(counters['ingress_bytes'])})",
                str(drops),
                "" if network["offloads"] is None else _named(network["offloads"]),
            )
        )
    return table(
        ("NETWORK", "VNI", "ENDPOINTS", "FRAMES OUT", "FRAMES IN", "DROPS", "OFFLOADS"), rows
    )


def store_report(report: Document) -> str:
    """The text of `pyvxlan store check`: the store, its members, and what was found."""
    facts = [("store", report["store"]), ("cluster", report["cluster"] or "none yet")]
    if report["server_cluster"]:
        facts.append(("servers", report["server_cluster"]))
    width = max(len(name) for name, _ in facts) + 1
    members = table(
        ("MEMBER", "STATE", "VERSION", "LATENCY"),
        (
            (
                member["address"],
                "fails" if member["error"] else "serves",
                member["version"],
                "" if member["latency_s"] is None else f"{member['latency_s'] * 1000:.1f} ms",
            )
            for member in report["members"]
        ),
    )
    findings = findings_table(report["findings"])
    lines = [f"{name + ':':<{width}} {value}" for name, value in facts]
    return "\n".join([*lines, "", members, "", findings])


def findings_table(findings: Iterable[Document]) -> str:
    """The table of `pyvxlan doctor` and its like."""
    return table(
        ("CHECK", "RESULT", "DETAIL"),
        ((found["what"], found["level"], found["text"]) for found in findings),
    )


def duration(seconds: float) -> str:
    """Shows a time span in its two largest units."""
    minutes, rest_s = divmod(int(seconds), 60)
    hours, rest_min = divmod(minutes, 60)
    days, rest_h = divmod(hours, 24)
    parts = ((days, "d"), (rest_h, "h"), (rest_min, "min"), (rest_s, "s"))
    shown = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "0 s"


def size(count: int) -> str:
    """Shows a number of bytes with a decimal prefix."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _store_state(store: Document) -> str:
    if store["synced"]:
        return "in step"
    cause = f": {store['cause']}" if store["cause"] else ""
    if store["state"] == "init":
        return f"never read{cause}" if cause else "being read"
    return f"not reachable for {duration(store['stale_s'] or 0)}, shown is what was known{cause}"


def _offloads(status: Document) -> str:
    """What the sockets of the underlay use, worker by worker if they differ."""
    workers = status["workers"]
    used = [_named(name for name in ("segment", "gro") if worker[name]) for worker in workers]
    if len(set(used)) > 1:
        used = [f"worker {w['number']}: {names}" for w, names in zip(workers, used, strict=True)]
    off = f"; switched off: {' '.join(status['no_offload'])}" if status["no_offload"] else ""
    return ", ".join(dict.fromkeys(used)) + off if used else f"none known{off}"


def _named(names: Iterable[str]) -> str:
    return " ".join(names) or "none"


def _forwarder_state(forwarder: Document) -> str:
    if not forwarder["up"]:
        return "down: see forwarder.log in the run directory"
    return f"pid {forwarder['pid']}, {forwarder['workers']} workers"
