"""What Prometheus reads: every counter and state of this host, at `/metrics`.

docs/metrics.md lists all names. Each scrape takes one reading (`status.py`); nothing is counted
here. Labels come from small sets: names of networks on this host, directions, reasons.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pyvxlan import DROP_REASONS
from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.status import STORE_STATES, NetworkReading, Reading

DIRECTIONS = ("egress", "ingress")


class Metrics(Collector):
    """Renders readings in Prometheus' text format.

    Args:
        reading: Takes a reading.
        version: Of the daemon.
    """

    def __init__(self, reading: Callable[[], Awaitable[Reading]], version: str) -> None:
        self._take_reading = reading
        self._version = version
        self._reading: Reading | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    async def exposition(self) -> bytes:
        """Takes a reading and renders it."""
        self._reading = await self._take_reading()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yields all metrics of the last reading; none before the first."""
        if self._reading is None:
            return
        yield _gauge(
            "build_info", "Always 1; the version is in the label.", 1, version=self._version
        )
        yield from _state_metrics(self._reading)
        yield from _traffic_metrics(self._reading.networks)
        yield from _underlay_metrics(self._reading)

    def application(self) -> web.Application:
        """Makes the application that serves `/metrics`."""
        app = web.Application()
        app.add_routes([web.get("/metrics", self._serve)])
        return app

    async def _serve(self, _: web.Request) -> web.Response:
        return web.Response(
            body=await self.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )


@contextlib.asynccontextmanager
async def serving(app: web.Application, host: str, port: int) -> AsyncIterator[None]:
    """Serves on a TCP address while inside.

    Raises:
        ConfigError: The address can't be had.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "is taken by another program" if taken else f"can't be used: {error.strerror}"
            raise ConfigError(
                f"metrics address {host}:{port} {why}; choose another with --metrics-address, or "
                '--metrics-address "" for no metrics'
            ) from error
        yield
    finally:
        await runner.cleanup()


def _state_metrics(reading: Reading) -> Iterator[Metric]:
    yield _gauge("uptime_seconds", "Time since the daemon started.", reading.uptime_s)
    yield _gauge("forwarder_up", "1 while the forwarder answers.", bool(reading.forwarder))
    workers = reading.forwarder.get("workers", 0)
    yield _gauge("forwarder_workers", "Threads of the forwarder.", workers)
    yield CounterMetricFamily(
        "pyvxlan_forwarder_restarts",
        "How often the daemon had to replace the forwarder since it started.",
        value=reading.forwarder.get("restarts", 0),
    )
    synced = reading.store_state == "synced"
    yield _gauge("store_synced", "1 while this host is in step with the store.", synced)
    states = GaugeMetricFamily(
        "pyvxlan_store_state", "1 for the state of this host's view.", labels=["state"]
    )
    for state in STORE_STATES:
        states.add_metric([state], state == reading.store_state)
    yield states
    yield _gauge(
        "store_stale_seconds", "How long the store has not answered.", reading.stale_s or 0.0
    )
    resyncs = CounterMetricFamily(
        "pyvxlan_store_resyncs", "Times that a watched prefix was taken up.", labels=["reason"]
    )
    for reason, count in sorted(reading.resyncs.items()):
        resyncs.add_metric([reason], count)
    yield resyncs
    yield _gauge(
        "store_held_records",
        "Records that the store lacks and that are kept until that is sure.",
        reading.held,
    )
    yield _gauge(
        "store_session_valid_seconds",
        "How long this host's session surely lives without another keepalive.",
        reading.session_valid_s,
    )
    yield _gauge(
        "store_invalid_records", "Records in the store that are left out.", len(reading.invalid)
    )
    yield _gauge("networks", "Networks of the cluster.", reading.cluster_networks)
    hosts = GaugeMetricFamily("pyvxlan_hosts", "Hosts of the cluster.", labels=["state"])
    hosts.add_metric(["alive"], reading.hosts_alive)
    hosts.add_metric(["down"], reading.hosts_down)
    yield hosts
    endpoints = GaugeMetricFamily(
        "pyvxlan_endpoints", "Endpoints of networks on this host.", labels=["network", "place"]
    )
    for network in reading.networks:
        endpoints.add_metric([network.name, "local"], network.local)
        endpoints.add_metric([network.name, "remote"], network.remote)
    yield endpoints
    yield CounterMetricFamily(
        "pyvxlan_reconcile_repairs",
        "Things that somebody else changed on this host and that were put right.",
        value=reading.repairs,
    )
    yield _gauge(
        "reconcile_problems",
        "Things that could not be done yet and are tried again.",
        len(reading.problems),
    )
    yield _gauge("dns_sandboxes", "Sandboxes whose names are served.", reading.names_served)
    queries = CounterMetricFamily(
        "pyvxlan_dns_queries", "Queries of sandboxes, by what became of them.", labels=["outcome"]
    )
    for outcome, count in sorted(reading.name_outcomes.items()):
        queries.add_metric([outcome], count)
    yield queries


def _traffic_metrics(networks: tuple[NetworkReading, ...]) -> Iterator[Metric]:
    directed = ["network", "direction"]
    frames = CounterMetricFamily(
        "pyvxlan_frames", "Frames carried, as they are on the wire.", labels=directed
    )
    octets = CounterMetricFamily(
        "pyvxlan_bytes", "Bytes of inner frames carried, without VXLAN.", labels=directed
    )
    drops = CounterMetricFamily(
        "pyvxlan_drops", "Frames dropped, by reason.", labels=[*directed, "reason"]
    )
    floods = CounterMetricFamily(
        "pyvxlan_flood_frames", "Copies sent to the VTEPs of flood lists.", labels=["network"]
    )
    replies = CounterMetricFamily(
        "pyvxlan_local_replies",
        "ARP requests and neighbour solicitations answered on this host.",
        labels=["network"],
    )
    for network in networks:
        traffic = network.traffic
        floods.add_metric([network.name], traffic.counters["flood_frames"])
        replies.add_metric([network.name], traffic.counters["replies"])
        for direction in DIRECTIONS:
            labels = [network.name, direction]
            frames.add_metric(labels, traffic.counters[f"{direction}_frames"])
            octets.add_metric(labels, traffic.counters[f"{direction}_bytes"])
            counted = traffic.egress_drops if direction == "egress" else traffic.ingress_drops
            for reason in DROP_REASONS:
                drops.add_metric([*labels, reason], counted.get(reason, 0))
    yield from (frames, octets, drops, floods, replies)


def _underlay_metrics(reading: Reading) -> Iterator[Metric]:
    families = {
        "datagrams": "Datagrams on the underlay.",
        "bytes": "UDP payload on the underlay.",
        "syscalls": "System calls that the underlay's sockets took.",
        "batches": "System calls that moved at least one datagram.",
    }
    for what, text in families.items():
        family = CounterMetricFamily(f"pyvxlan_underlay_{what}", text, labels=["direction"])
        for direction in ("sent", "received"):
            family.add_metric([direction], reading.underlay[f"{direction}_{what}"])
        yield family
    drops = CounterMetricFamily(
        "pyvxlan_underlay_drops",
        "Datagrams dropped that belong to no network of this host, by reason.",
        labels=["reason"],
    )
    for reason in DROP_REASONS:
        drops.add_metric([reason], reading.underlay_drops.get(reason, 0))
    yield drops


def _gauge(name: str, text: str, value: float, **labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"pyvxlan_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family
