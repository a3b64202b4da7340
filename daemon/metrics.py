"""What Prometheus reads: every counter and state of this host, at `/metrics`.

docs/metrics.md lists all names. Each scrape takes one reading (`status.py`) and what `timings.py`
keeps; nothing is counted here. Labels come from small sets: names of networks on this host and of
hosts, directions, reasons.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from pyvxlan import DROP_REASONS
from pyvxlan.daemon.exposition import Family, Histogram, counter, gauge, label
from pyvxlan.daemon.status import STORE_STATES, NetworkReading, Reading
from pyvxlan.daemon.timings import Timings
from pyvxlan.daemon.tunnels import UP, Tunnel

DIRECTIONS = ("egress", "ingress")


class Metrics:
    """Renders readings in Prometheus' text format.

    Args:
        reading: Takes a reading.
        timings: What else is shown.
        version: Of the daemon.
    """

    def __init__(
        self, reading: Callable[[], Awaitable[Reading]], timings: Timings, version: str
    ) -> None:
        self._take_reading = reading
        self._timings = timings
        self._version = version

    async def exposition(self) -> bytes:
        """Takes a reading and renders it, in a thread, since 1,000 networks are many lines."""
        return await asyncio.to_thread(self._render, await self._take_reading())

    def application(self) -> web.Application:
        """Makes the application that serves `/metrics`."""
        app = web.Application()
        app.add_routes([web.get("/metrics", self._serve)])
        return app

    async def _serve(self, _: web.Request) -> web.Response:
        return web.Response(
            body=await self.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    def _render(self, reading: Reading) -> bytes:
        built = Family("gauge", "build_info", "Always 1; the version is in the label.", "version")
        built.add(1, label(self._version))
        families = [
            built,
            *_host_families(reading),
            *_store_families(reading),
            *_network_families(reading.networks),
            *_underlay_families(reading),
            *_tunnel_families(reading.tunnels),
        ]
        return "".join(map(str, families)).encode() + generate_latest(self._timings.registry)


def _host_families(reading: Reading) -> Iterator[Family]:
    yield gauge("uptime_seconds", "Time since the daemon started.", reading.uptime_s)
    forwarder = reading.forwarder
    yield gauge("forwarder_up", "1 while the forwarder answers.", int(bool(forwarder)))
    yield gauge("forwarder_workers", "Threads of the forwarder.", forwarder.get("workers", 0))
    yield counter(
        "forwarder_restarts",
        "How often the daemon had to replace the forwarder since it started.",
        forwarder.get("restarts", 0),
    )
    cpu = Family("counter", "forwarder_cpu_seconds", "CPU time of a thread.", "worker")
    idle = Family("counter", "forwarder_idle_seconds", "Time without work of a thread.", "worker")
    queued = Family(
        "gauge", "forwarder_queue_bytes", "What waits to be received, in kernel memory.", "worker"
    )
    room = Family("gauge", "forwarder_queue_limit_bytes", "At most as much can wait.", "worker")
    offload = Family(
        "gauge", "forwarder_offload", "1 if the kernel does this for it.", "worker", "offload"
    )
    for worker in reading.workers:
        name = str(worker.number)
        offload.add(int(worker.segment), name, "segment")
        offload.add(int(worker.gro), name, "gro")
        cpu.add(worker.cpu_s, name)
        idle.add(worker.idle_s, name)
        queued.add(worker.queue_bytes, name)
        room.add(worker.queue_limit_bytes, name)
    yield from (cpu, idle, queued, room, offload)
    yield gauge("networks", "Networks of the cluster.", reading.cluster_networks)
    hosts = Family("gauge", "hosts", "Hosts of the cluster.", "state")
    hosts.add(reading.hosts_alive, "alive")
    hosts.add(reading.hosts_down, "down")
    yield hosts
    yield counter(
        "reconcile_repairs",
        "Things that somebody else changed on this host and that were put right.",
        reading.repairs,
    )
    yield gauge(
        "reconcile_problems",
        "Things that could not be done yet and are tried again.",
        len(reading.problems),
    )
    used = Family("gauge", "ipam_pool_used_subnets", "Blocks in use, of a pool.", "pool")
    size = Family("gauge", "ipam_pool_subnets", "Blocks of a pool.", "pool")
    for pool in reading.pools:
        used.add(pool.used, pool.name)
        size.add(pool.size, pool.name)
    yield from (used, size)
    told = Family("counter", "events", "Changes that were noted, by kind.", "kind")
    for kind, count in reading.events.items():
        told.add(count, kind)
    yield told
    yield gauge("dns_sandboxes", "Sandboxes whose names are served.", reading.names_served)
    queries = Family(
        "counter", "dns_queries", "Queries of sandboxes, by what became of them.", "outcome"
    )
    for outcome, count in sorted(reading.name_outcomes.items()):
        queries.add(count, outcome)
    yield queries


def _store_families(reading: Reading) -> Iterator[Family]:
    synced = reading.store_state == "synced"
    yield gauge("store_synced", "1 while this host is in step with the store.", int(synced))
    states = Family("gauge", "store_state", "1 for the state of this host's view.", "state")
    for state in STORE_STATES:
        states.add(int(state == reading.store_state), state)
    yield states
    yield gauge("store_stale_seconds", "How long the store has not answered.", reading.stale_s or 0)
    resyncs = Family("counter", "store_resyncs", "Watched prefixes taken up.", "reason")
    for reason, count in sorted(reading.resyncs.items()):
        resyncs.add(count, reason)
    yield resyncs
    yield gauge(
        "store_held_records",
        "Records that the store lacks and that are kept until that is sure.",
        reading.held,
    )
    yield gauge(
        "store_session_valid_seconds",
        "How long this host's session surely lives without another keepalive.",
        reading.session_valid_s,
    )
    yield gauge(
        "store_invalid_records", "Records in the store that are left out.", len(reading.invalid)
    )


def _network_families(networks: tuple[NetworkReading, ...]) -> Iterator[Family]:
    directed = ("network", "direction")
    frames = Family("counter", "frames", "Frames carried, as they are on the wire.", *directed)
    octets = Family("counter", "bytes", "Bytes of inner frames carried, without VXLAN.", *directed)
    drops = Family("counter", "drops", "Frames dropped.", *directed, "reason")
    floods = Family(
        "counter", "flood_frames", "Copies sent to the VTEPs of flood lists.", "network"
    )
    replies = Family(
        "counter",
        "local_replies",
        "ARP requests and neighbour solicitations answered on this host.",
        "network",
    )
    told = Family(
        "counter",
        "path_mtu_replies",
        "Senders told that a frame is too long for its tunnel.",
        "network",
    )
    clamped = Family(
        "counter",
        "mss_clamped",
        "TCP connections of which a side was told to send what gets through.",
        "network",
    )
    endpoints = Family(
        "gauge", "endpoints", "Endpoints of networks on this host.", "network", "place"
    )
    used = Family("gauge", "ipam_used_addresses", "Addresses of endpoints.", "network", "family")
    sizes = {
        "fdb_entries": "MACs in the forwarder's FDB.",
        "neighbour_entries": "Addresses in the forwarder's table of neighbours.",
        "flood_vteps": "VTEPs in the forwarder's flood list.",
    }
    tables = {what: Family("gauge", what, text, "network") for what, text in sizes.items()}
    free = Family(
        "gauge", "ipam_addresses", "Addresses that endpoints can have.", "network", "family"
    )
    names = Counter(network.name for network in networks)
    for network in networks:
        # Two of one name, as can be while the store is away, must not make one series.
        shown = network.name if names[network.name] == 1 else f"{network.name} {network.id[:12]}"
        name, traffic = label(shown), network.traffic
        counters = traffic.counters
        frames.add(counters["egress_frames"], name, "egress")
        frames.add(counters["ingress_frames"], name, "ingress")
        octets.add(counters["egress_bytes"], name, "egress")
        octets.add(counters["ingress_bytes"], name, "ingress")
        for direction, counted in zip(
            DIRECTIONS, (traffic.egress_drops, traffic.ingress_drops), strict=True
        ):
            for reason in DROP_REASONS:
                drops.add(counted.get(reason, 0), name, direction, reason)
        floods.add(counters["flood_frames"], name)
        replies.add(counters["replies"], name)
        told.add(counters["path_mtu_replies"], name)
        clamped.add(counters["mss_clamped"], name)
        endpoints.add(network.local, name, "local")
        endpoints.add(network.remote, name, "remote")
        for what, table in tables.items():
            table.add(traffic.sizes[what], name)
        for use in network.addresses:
            used.add(use.used, name, use.name)
            free.add(use.size, name, use.name)
    yield from (frames, octets, drops, floods, replies, told, clamped)
    yield from (endpoints, *tables.values(), used, free)


def _underlay_families(reading: Reading) -> Iterator[Family]:
    families = {
        "datagrams": "Datagrams on the underlay.",
        "bytes": "UDP payload on the underlay.",
        "syscalls": "System calls that the underlay's sockets took.",
        "batches": "System calls that moved at least one datagram.",
    }
    for what, text in families.items():
        family = Family("counter", f"underlay_{what}", text, "direction")
        for direction in ("sent", "received"):
            family.add(reading.underlay[f"{direction}_{what}"], direction)
        yield family
    datagrams = Family(
        "counter", "peer_datagrams", "Datagrams exchanged with a host.", "peer", "direction"
    )
    octets = Family(
        "counter", "peer_bytes", "UDP payload exchanged with a host.", "peer", "direction"
    )
    for peer, counters in sorted(reading.peers.items()):
        for direction in ("sent", "received"):
            datagrams.add(counters[f"{direction}_datagrams"], label(peer), direction)
            octets.add(counters[f"{direction}_bytes"], label(peer), direction)
    yield from (datagrams, octets)
    drops = Family(
        "counter",
        "underlay_drops",
        "Datagrams dropped that belong to no network of this host.",
        "reason",
    )
    for reason in DROP_REASONS:
        drops.add(reading.underlay_drops.get(reason, 0), reason)
    yield drops


def _tunnel_families(tunnels: tuple[Tunnel, ...]) -> Iterator[Family | Histogram]:
    up = Family("gauge", "tunnel_up", "1 while the host answers probes, once it did.", "peer")
    probes = Family("counter", "tunnel_probes", "Probes, by what became of them.", "peer", "result")
    reordered = Family(
        "counter", "tunnel_reordered", "Answers behind one that was asked later.", "peer"
    )
    narrowed = Family(
        "counter", "tunnel_narrowed", "How often less got through than before.", "peer"
    )
    path = Family(
        "gauge",
        "tunnel_path_mtu_bytes",
        "Longest packet of the underlay that is known to get through.",
        "peer",
    )
    needed = Family(
        "gauge", "tunnel_needed_mtu_bytes", "Longest packet that the networks need.", "peer"
    )
    round_trips = Histogram(
        "tunnel_round_trip_seconds", "From a probe to its answer, inside VXLAN.", "peer"
    )
    # Two hosts of one name must not make one series twice; a VTEP of no host is gone in a moment.
    for name, tunnel in {tunnel.host: tunnel for tunnel in tunnels if tunnel.host}.items():
        peer, counters = label(name), tunnel.counters
        probes.add(counters["answered"], peer, "answered")
        probes.add(counters["lost"], peer, "lost")
        reordered.add(counters["reordered"], peer)
        narrowed.add(counters["narrowed"], peer)
        needed.add(tunnel.needed_mtu_bytes, peer)
        round_trips.add(tunnel.round_trips, tunnel.round_trip_sum_s, peer)
        if tunnel.answer_age_s is not None:
            up.add(int(tunnel.state == UP), peer)
        if tunnel.path_mtu_bytes:
            path.add(tunnel.path_mtu_bytes, peer)
    yield from (up, probes, reordered, narrowed, path, needed, round_trips)
