"""What the dashboards show: every panel with its unit, its words and its queries.

`build.py` makes Grafana's JSON of it. `$host` and `$network` are the variables of a dashboard;
`$__rate_interval` is Grafana's: four scrapes or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HOST = 'instance=~"$host"'
NETWORK = f'{HOST},network=~"$network"'
EGRESS = 'direction="egress"'
INGRESS = 'direction="ingress"'


@dataclass(frozen=True, slots=True)
class Query:
    """One query and how Grafana names each of its series."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. `width` is of 24; from `warn` on a value is orange, from `alarm` on red."""

    title: str
    text: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 12
    warn: float | None = None
    alarm: float | None = None
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard; its file and its address are named by `uid`."""

    uid: str
    title: str
    text: str
    rows: tuple[Row, ...]
    variables: tuple[Literal["host", "network"], ...] = ("host",)


def rate(metric: str, labels: str = HOST, by: str = "instance") -> str:
    """Gives a counter's rate per second, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantiles(metric: str, labels: str = HOST, by: str = "") -> tuple[Query, ...]:
    """Gives the median and the 99th percentile of a histogram, over all hosts chosen."""
    kept = f"le, {by}" if by else "le"
    shown = f" {{{{{by}}}}}" if by else ""
    return tuple(
        Query(
            f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, kept)})",
            f"{name}{shown}",
        )
        for share, name in ((0.5, "median"), (0.99, "99 %"))
    )


def bits(labels: str, by: str) -> str:
    """Gives the bits per second of inner frames."""
    return f"8 * {rate('pyvxlan_bytes_total', labels, by)}"


def number(title: str, text: str, expr: str, *, alarm: float | None = None) -> Panel:
    """A single figure."""
    return Panel(title, text, "none", (Query(expr, title),), "stat", 4, alarm=alarm)


DROPS = Panel(
    "Drops by reason",
    "Frames and datagrams that went nowhere. docs/dataplane.md tells of each reason what to do.",
    "pps",
    (
        Query(rate("pyvxlan_drops_total", HOST, "direction, reason") + " > 0", "{{reason}} {{direction}}"),
        Query(rate("pyvxlan_underlay_drops_total", HOST, "reason") + " > 0", "{{reason}} underlay"),
        Query(
            f"{rate('pyvxlan_drops_total', HOST, 'job')} + {rate('pyvxlan_underlay_drops_total', HOST, 'job')}",
            "all",
        ),
    ),
)  # fmt: skip

OVERVIEW = Board(
    "pyvxlan-overview",
    "pyvxlan: overview",
    "All hosts and networks of a cluster: who is there, what flows, what is lost.",
    (
        Row(
            "The cluster",
            (
                number("Hosts alive", "Hosts whose daemon holds a session in the store.",
                       'max(pyvxlan_hosts{state="alive"})'),
                number("Hosts down", "Hosts that are registered and hold no session.",
                       'max(pyvxlan_hosts{state="down"})', alarm=1),
                number("Daemons not read", "Targets that Prometheus can't reach.",
                       'count(up{job="pyvxlan"} == 0) or vector(0)', alarm=1),
                number("Forwarders down", "Hosts whose forwarder does not answer.",
                       "count(pyvxlan_forwarder_up == 0) or vector(0)", alarm=1),
                number("Networks", "Networks of the cluster.", "max(pyvxlan_networks)"),
                number("Endpoints", "Endpoints on all hosts.",
                       'sum(pyvxlan_endpoints{place="local"})'),
            ),
        ),
        Row(
            "Traffic",
            (
                Panel("Sent by host", "Bits of inner frames that containers of a host sent to others.",
                      "bps", (Query(bits(f"{HOST},{EGRESS}", "instance"), "{{instance}}"),)),
                Panel("Frames by host", "Frames from and to the containers of a host.", "pps",
                      (Query(rate("pyvxlan_frames_total", HOST, "instance, direction"),
                             "{{instance}} {{direction}}"),)),
                Panel("Busiest networks", "The ten networks with the most traffic, over all hosts.",
                      "bps", (Query(f"topk(10, {bits(f'{HOST},{EGRESS}', 'network')})", "{{network}}"),)),
                Panel("Between hosts", "UDP payload from host to host, as the sender counts it.", "bps",
                      (Query("8 * " + rate("pyvxlan_peer_bytes_total", f'{HOST},direction="sent"',
                                           "instance, peer"), "{{instance}} to {{peer}}"),)),
                DROPS,
                Panel("Out of step with the store", "Hosts that show what was known last.", "none",
                      (Query(f"1 - pyvxlan_store_synced{{{HOST}}}", "{{instance}}"),)),
                Panel("Versions", "Hosts by the version of their daemon.", "none",
                      (Query(f"count by (version) (pyvxlan_build_info{{{HOST}}})", "{{version}}"),)),
                Panel("Subnets left", "Blocks that are free in each pool, as the hosts see it.", "none",
                      (Query("min by (pool) (pyvxlan_ipam_pool_subnets - "
                             "pyvxlan_ipam_pool_used_subnets)", "{{pool}}"),)),
            ),
        ),
    ),
)  # fmt: skip

HOST_BOARD = Board(
    "pyvxlan-host",
    "pyvxlan: host",
    "One host, or several side by side: its forwarder, its underlay, its daemon.",
    (
        Row(
            "Forwarder",
            (
                Panel("Throughput", "Bits of inner frames, by direction.", "bps",
                      (Query(bits(HOST, "instance, direction"), "{{instance}} {{direction}}"),)),
                Panel("Frames", "Frames as they are on the wire, by direction.", "pps",
                      (Query(rate("pyvxlan_frames_total", HOST, "instance, direction"),
                             "{{instance}} {{direction}}"),)),
                Panel("Busy share of a thread", "Time that a thread has work; at 100 % it is the bottleneck.",
                      "percentunit",
                      (Query("1 - " + rate("pyvxlan_forwarder_idle_seconds_total", HOST, "instance, worker"),
                             "{{instance}} thread {{worker}}"),), warn=0.8, alarm=0.95),
                Panel("CPU of a thread", "With what it spends on looking for work before it sleeps.",
                      "percentunit",
                      (Query(rate("pyvxlan_forwarder_cpu_seconds_total", HOST, "instance, worker"),
                             "{{instance}} thread {{worker}}"),)),
                Panel("Receive queue", "Of the room for datagrams that wait for a thread, how much is "
                      "taken; full means drops (receive_full).", "percentunit",
                      (Query(f"pyvxlan_forwarder_queue_bytes{{{HOST}}} / "
                             f"pyvxlan_forwarder_queue_limit_bytes{{{HOST}}}",
                             "{{instance}} thread {{worker}}"),), warn=0.5, alarm=0.9),
                Panel("Batch size", "Datagrams moved by one system call: more is cheaper.", "none",
                      (Query(f"{rate('pyvxlan_underlay_datagrams_total', HOST, 'instance, direction')} / "
                             f"{rate('pyvxlan_underlay_batches_total', HOST, 'instance, direction')}",
                             "{{instance}} {{direction}}"),)),
                Panel("System calls", "Calls on the underlay's sockets.", "ops",
                      (Query(rate("pyvxlan_underlay_syscalls_total", HOST, "instance, direction"),
                             "{{instance}} {{direction}}"),)),
                Panel("Threads with offloads", "Share of the threads for which the kernel cuts (segment) "
                      "and joins (gro) datagrams; without, each is paid for by itself.", "percentunit",
                      (Query(f"avg by (instance, offload) (pyvxlan_forwarder_offload{{{HOST}}})",
                             "{{instance}} {{offload}}"),)),
                DROPS,
                Panel("Forwarder replaced", "How often the daemon had to start another one.", "none",
                      (Query(f"increase(pyvxlan_forwarder_restarts_total{{{HOST}}}[1h])",
                             "{{instance}}"),), alarm=1),
            ),
        ),
        Row(
            "Underlay",
            (
                Panel("Sent to hosts", "UDP payload by the host at the other end.", "bps",
                      (Query("8 * " + rate("pyvxlan_peer_bytes_total", f'{HOST},direction="sent"',
                                           "instance, peer"), "{{instance}} to {{peer}}"),), stacked=True),
                Panel("Received from hosts", "UDP payload that the tables let in, by its sender.", "bps",
                      (Query("8 * " + rate("pyvxlan_peer_bytes_total", f'{HOST},direction="received"',
                                           "instance, peer"), "{{instance}} from {{peer}}"),),
                      stacked=True),
                Panel("Datagrams", "Datagrams by the host at the other end.", "pps",
                      (Query(rate("pyvxlan_peer_datagrams_total", HOST, "instance, peer, direction"),
                             "{{instance}} {{peer}} {{direction}}"),)),
                Panel("Round trip", "From a probe to its answer, inside VXLAN, by the host at the other end.",
                      "s", quantiles("pyvxlan_tunnel_round_trip_seconds", by="peer")),
                Panel("Probes lost", "Share of the probes of a tunnel that were not answered.", "percentunit",
                      (Query(rate("pyvxlan_tunnel_probes_total", f'{HOST},result="lost"', "instance, peer")
                             + " / " + rate("pyvxlan_tunnel_probes_total", HOST, "instance, peer"),
                             "{{instance}} {{peer}}"),), warn=0.01, alarm=0.1),
                Panel("Order", "Answers that came behind one that was asked later.", "ops",
                      (Query(rate("pyvxlan_tunnel_reordered_total", HOST, "instance, peer"),
                             "{{instance}} {{peer}}"),)),
                Panel("Tunnels", "1 while the host at the other end answers.", "none",
                      (Query(f"pyvxlan_tunnel_up{{{HOST}}}", "{{instance}} {{peer}}"),)),
                Panel("Path MTU", "Longest packet that is known to get through to a host, and what the "
                      "networks need.", "bytes",
                      (Query(f"pyvxlan_tunnel_path_mtu_bytes{{{HOST}}}", "{{instance}} {{peer}}"),
                       Query(f"max by (instance) (pyvxlan_tunnel_needed_mtu_bytes{{{HOST}}})",
                             "{{instance}} needed"))),
                Panel("Narrowed", "How often less got through than before, in an hour.", "none",
                      (Query(f"increase(pyvxlan_tunnel_narrowed_total{{{HOST}}}[1h])",
                             "{{instance}} {{peer}}"),)),
                Panel("Underlay throughput", "UDP payload on the underlay's sockets.", "bps",
                      (Query("8 * " + rate("pyvxlan_underlay_bytes_total", HOST, "instance, direction"),
                             "{{instance}} {{direction}}"),)),
            ),
        ),
        Row(
            "Daemon",
            (
                Panel("Attaching a container", "From the request until frames can flow.", "s",
                      quantiles("pyvxlan_attach_seconds")),
                Panel("Attachments that failed", "Bad requests included.", "ops",
                      (Query(rate("pyvxlan_attach_failures_total"), "{{instance}}"),)),
                Panel("Names", "Containers whose names are served.", "none",
                      (Query(f"pyvxlan_dns_sandboxes{{{HOST}}}", "{{instance}}"),)),
                Panel("Threads", "Threads of the forwarder.", "none",
                      (Query(f"pyvxlan_forwarder_workers{{{HOST}}}", "{{instance}}"),)),
                Panel("Memory", "Memory of the daemon; the forwarder is another process.", "bytes",
                      (Query(f'process_resident_memory_bytes{{{HOST},job="pyvxlan"}}', "{{instance}}"),)),
                Panel("CPU", "CPU time of the daemon.", "percentunit",
                      (Query(rate("process_cpu_seconds_total", f'{HOST},job="pyvxlan"'),
                             "{{instance}}"),)),
                Panel("Up", "Time since the daemon started.", "s",
                      (Query(f"pyvxlan_uptime_seconds{{{HOST}}}", "{{instance}}"),)),
            ),
        ),
    ),
)  # fmt: skip

NETWORK_BOARD = Board(
    "pyvxlan-network",
    "pyvxlan: network",
    "One network, or several, on all hosts: traffic, drops, tables, addresses.",
    (
        Row(
            "Traffic",
            (
                Panel("Throughput", "Bits of inner frames, by host and direction.", "bps",
                      (Query(bits(NETWORK, "network, instance, direction"),
                             "{{network}} {{instance}} {{direction}}"),)),
                Panel("Frames", "Frames by host and direction.", "pps",
                      (Query(rate("pyvxlan_frames_total", NETWORK, "network, instance, direction"),
                             "{{network}} {{instance}} {{direction}}"),)),
                Panel("Drops by reason", "Frames that went nowhere; docs/dataplane.md tells what to do.",
                      "pps",
                      (Query(rate("pyvxlan_drops_total", NETWORK, "network, direction, reason") + " > 0",
                             "{{network}} {{reason}} {{direction}}"),
                       Query(rate("pyvxlan_drops_total", NETWORK, "network"), "{{network}} all"))),
                Panel("Broadcast and multicast", "Copies that were sent to other hosts.", "pps",
                      (Query(rate("pyvxlan_flood_frames_total", NETWORK, "network, instance"),
                             "{{network}} {{instance}}"),)),
                Panel("Answered locally", "ARP requests and neighbour solicitations that never crossed "
                      "the underlay.", "pps",
                      (Query(rate("pyvxlan_local_replies_total", NETWORK, "network, instance"),
                             "{{network}} {{instance}}"),)),
                Panel("Told the path MTU", "Senders of frames that are too long for their tunnel, and TCP "
                      "connections told before they sent any.", "ops",
                      (Query(rate("pyvxlan_path_mtu_replies_total", NETWORK, "network, instance"),
                             "{{network}} {{instance}} senders"),
                       Query(rate("pyvxlan_mss_clamped_total", NETWORK, "network, instance"),
                             "{{network}} {{instance}} connections"))),
            ),
        ),
        Row(
            "Members",
            (
                Panel("Endpoints", "Endpoints by the host that they run on.", "none",
                      (Query(f'pyvxlan_endpoints{{{NETWORK},place="local"}}', "{{network}} {{instance}}"),)),
                Panel("Forwarding table", "MACs of other hosts' endpoints in each forwarder; the same as "
                      "the endpoints elsewhere, once the tables have converged.", "none",
                      (Query(f"pyvxlan_fdb_entries{{{NETWORK}}}", "{{network}} {{instance}} entries"),
                       Query(f'pyvxlan_endpoints{{{NETWORK},place="remote"}}',
                             "{{network}} {{instance}} endpoints"))),
                Panel("Neighbours and flood list", "What ARP is answered from, and who gets broadcast.",
                      "none",
                      (Query(f"pyvxlan_neighbour_entries{{{NETWORK}}}",
                             "{{network}} {{instance}} neighbours"),
                       Query(f"pyvxlan_flood_vteps{{{NETWORK}}}", "{{network}} {{instance}} flood list"))),
                Panel("Addresses in use", "Share of the addresses that endpoints can have.", "percentunit",
                      (Query(f"max by (network, family) (pyvxlan_ipam_used_addresses{{{NETWORK}}} / "
                             f"pyvxlan_ipam_addresses{{{NETWORK}}})", "{{network}} {{family}}"),),
                      warn=0.8, alarm=0.95),
            ),
        ),
    ),
    ("host", "network"),
)  # fmt: skip

CONTROL_BOARD = Board(
    "pyvxlan-control-plane",
    "pyvxlan: store and control plane",
    "Whether hosts are in step with the store, how fast changes arrive, what had to be repaired.",
    (
        Row(
            "Store",
            (
                Panel("State", "1 for the state of each host's view: init was never read, stale is what "
                      "was known last.", "none",
                      (Query(f"pyvxlan_store_state{{{HOST}}}", "{{instance}} {{state}}"),)),
                Panel("Without answer", "How long the store has not answered a host.", "s",
                      (Query(f"pyvxlan_store_stale_seconds{{{HOST}}}", "{{instance}}"),), warn=5, alarm=60),
                Panel("Duration of calls", "Of all hosts.", "s",
                      quantiles("pyvxlan_store_call_seconds", by="call")),
                Panel("Calls", "Calls of all hosts, by kind.", "ops",
                      (Query(rate("pyvxlan_store_call_seconds_count", HOST, "call"), "{{call}}"),)),
                Panel("Calls that failed", "Without an answer, or refused.", "ops",
                      (Query(rate("pyvxlan_store_call_failures_total", HOST, "instance, call"),
                             "{{instance}} {{call}}"),)),
                Panel("Session", "How long a host's session surely lives without another keepalive.", "s",
                      (Query(f"pyvxlan_store_session_valid_seconds{{{HOST}}}", "{{instance}}"),)),
                Panel("Taken up again", "Watched prefixes that were listed or gone on with, in an hour.",
                      "none",
                      (Query(f"increase(pyvxlan_store_resyncs_total{{{HOST}}}[1h])",
                             "{{instance}} {{reason}}"),)),
                Panel("Records held or left out", "Held: the store lacks them, and that is not sure yet. "
                      "Left out: they are not valid.", "none",
                      (Query(f"pyvxlan_store_held_records{{{HOST}}}", "{{instance}} held"),
                       Query(f"pyvxlan_store_invalid_records{{{HOST}}}", "{{instance}} left out"))),
            ),
        ),
        Row(
            "Reconciling",
            (
                Panel("Convergence", "From a change of the store to the forwarding tables.", "s",
                      quantiles("pyvxlan_convergence_seconds")),
                Panel("Duration of a round", "Full: all is compared. Change: what has changed only.", "s",
                      quantiles("pyvxlan_reconcile_round_seconds", by="kind")),
                Panel("Repairs", "Things that somebody else changed and that were put right, in an hour.",
                      "none",
                      (Query(f"increase(pyvxlan_reconcile_repairs_total{{{HOST}}}[1h])",
                             "{{instance}}"),)),
                Panel("Events", "What came, went, broke and was mended, in an hour, by kind; `pyvxlan events` "
                      "has the words.", "none",
                      (Query(f"sum by (kind) (increase(pyvxlan_events_total{{{HOST}}}[1h])) > 0",
                             "{{kind}}"),
                       Query(f"sum(increase(pyvxlan_events_total{{{HOST}}}[1h]))", "all"))),
                Panel("Rounds that failed", "Something could not be done; it is tried again.", "ops",
                      (Query(rate("pyvxlan_reconcile_round_failures_total"), "{{instance}}"),)),
                Panel("Not done yet", "Things that could not be done and are tried again.", "none",
                      (Query(f"pyvxlan_reconcile_problems{{{HOST}}}", "{{instance}}"),), alarm=1),
            ),
        ),
        Row(
            "Doors",
            (
                Panel("Docker's calls", "Calls of the plug-in, by method.", "ops",
                      (Query(rate("pyvxlan_plugin_call_seconds_count", HOST, "method"), "{{method}}"),)),
                Panel("Duration of Docker's calls", "Of all hosts.", "s",
                      quantiles("pyvxlan_plugin_call_seconds")),
                Panel("Docker's calls refused", "Docker's users see why.", "ops",
                      (Query(rate("pyvxlan_plugin_call_failures_total", HOST, "instance, method") + " > 0",
                             "{{instance}} {{method}}"),
                       Query(rate("pyvxlan_plugin_call_failures_total", HOST, "instance"),
                             "{{instance}} all"))),
                Panel("Name queries", "Queries of containers, by what became of them.", "reqps",
                      (Query(rate("pyvxlan_dns_queries_total", HOST, "outcome"), "{{outcome}}"),),
                      stacked=True),
                Panel("Subnets in use", "Share of the blocks of each pool.", "percentunit",
                      (Query(f"max by (pool) (pyvxlan_ipam_pool_used_subnets{{{HOST}}} / "
                             f"pyvxlan_ipam_pool_subnets{{{HOST}}})", "{{pool}}"),), warn=0.8, alarm=0.95),
            ),
        ),
    ),
)  # fmt: skip

BOARDS = (OVERVIEW, HOST_BOARD, NETWORK_BOARD, CONTROL_BOARD)
