"""What is read before and after a phase: etcd's own metrics, processes' time and memory."""

from __future__ import annotations

import os
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.servers.etcd import EtcdServer

TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Gauge:
    """A moment. Sums that etcd keeps by label are added up."""

    at_s: float
    etcd_cpu_s: float
    etcd_rss: int
    own_cpu_s: float
    own_rss: int
    sent: int
    """Bytes that etcd has sent to clients."""
    watchers: int
    streams: int
    events: int
    """Changes that etcd has delivered, each once per watch."""
    database: int
    """Bytes of etcd's database file."""


def cpu_s(pid: int) -> float:
    """Seconds that a process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def read(server: EtcdServer) -> Gauge:
    """Reads everything now."""
    assert server.process
    pid, own = server.process.pid, os.getpid()
    sums = _metrics(server)
    return Gauge(
        at_s=time.monotonic(),
        etcd_cpu_s=cpu_s(pid),
        etcd_rss=rss(pid),
        own_cpu_s=cpu_s(own),
        own_rss=rss(own),
        sent=sums["etcd_network_client_grpc_sent_bytes_total"],
        watchers=sums["etcd_debugging_mvcc_watcher_total"],
        streams=sums["etcd_debugging_mvcc_watch_stream_total"],
        events=sums["etcd_debugging_mvcc_events_total"],
        database=sums["etcd_mvcc_db_total_size_in_bytes"],
    )


def _metrics(server: EtcdServer) -> dict[str, int]:
    url = f"http://{server.address}:{server.port}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            sums[name] = sums.get(name, 0) + float(value)
    return {name: int(value) for name, value in sums.items()}
