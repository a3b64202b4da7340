"""What Prometheus reads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyvxlan import DROP_REASONS, Engine, open_underlay, receive_offload
from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.dataplane.threads import Worker, read_workers
from pyvxlan.daemon.errors import ConfigError, DataplaneError, StoreConflictError
from pyvxlan.daemon.events import KINDS
from pyvxlan.daemon.kv import ABSENT, Check, Write
from pyvxlan.daemon.kv.memory import MemoryStore
from pyvxlan.daemon.kv.timed import TimedStore
from pyvxlan.daemon.listening import bind, serving, tls_context
from pyvxlan.daemon.metrics import Metrics
from pyvxlan.daemon.model import Host
from pyvxlan.daemon.plugin import TIMED
from pyvxlan.daemon.requests import AttachSpec, NetworkSpec
from pyvxlan.daemon.status import PEER_COUNTERS, NetworkReading, Reading, Traffic, Use
from pyvxlan.daemon.timings import Timings
from pyvxlan.daemon.tunnels import read_tunnels
from tests.servers.pki import Authority
from tests.unit.doorway import doorway

TUNNEL: Mapping[str, Any] = {
    "sent": 100,
    "answered": 90,
    "lost": 9,
    "reordered": 3,
    "replies": 80,
    "narrowed": 1,
    "recent": 64,
    "recent_lost": 16,
    "round_trip_sum_ns": 45_000_000,
    "round_trips": {"100": 0, "200": 45, "1000": 45, "inf": 0},
    "path_mtu_bytes": 1400,
    "needed_mtu_bytes": 1500,
    "answer_age_ns": 500_000_000,
    "vnis": frozenset({7}),
}
HOST2 = Host("2" * 32, "host2", ip_address("198.18.0.2"), 4789, "0.1.0")
READING = Reading(
    networks=(
        NetworkReading(
            id="a" * 32,
            name="blue",
            vni=4097,
            netns="1-aaaaaaaaaa",
            local=2,
            remote=3,
            traffic=Traffic.of(
                {
                    "egress_frames": 10,
                    "egress_bytes": 1000,
                    "ingress_frames": 20,
                    "flood_frames": 4,
                    "replies": 5,
                    "path_mtu_replies": 17,
                    "mss_clamped": 19,
                    "fdb_entries": 3,
                    "neighbour_entries": 4,
                    "flood_vteps": 2,
                    "egress_drops": {"destination_unknown": 6},
                    "ingress_drops": {"truncated": 7},
                }
            ),
            addresses=(Use("ipv4", 5, 253),),
            offloads=("csum",),
        ),
    ),
    forwarder={"pid": 77, "workers": 2, "restarts": 1},
    workers=(
        Worker(0, 1.5, 9.5, 4096, 8192, segment=True, gro=False),
        Worker(1, 2.5, 8.5, 0, 8192, segment=False, gro=True),
    ),
    underlay=dict.fromkeys(
        [
            f"{direction}_{what}"
            for direction in ("sent", "received")
            for what in ("datagrams", "bytes", "syscalls", "batches")
        ],
        8,
    ),
    underlay_drops={"vni_unknown": 9},
    endpoints=2,
    cluster_networks=5,
    pools=(Use("10.0.0.0/8:24", 5, 65536),),
    hosts_alive=3,
    hosts_down=1,
    repairs=11,
    problems=("one", "two"),
    store_state="synced",
    tunnels=read_tunnels(
        {"198.18.0.2": TUNNEL, "198.18.0.9": TUNNEL}, {"198.18.0.2": HOST2}, {7: "blue"}, 1.0
    ),
    peers={"host2": dict.fromkeys(PEER_COUNTERS, 21)},
    resyncs={"start": 6, "resume": 0, "gap": 0, "check": 1},
    held=0,
    stale_s=None,
    session_valid_s=12.5,
    invalid={"net/x": "not JSON"},
    names_served=2,
    name_outcomes={"answered": 13, "nxdomain": 0},
    events=dict.fromkeys(KINDS, 0) | {"repaired": 11},
    uptime_s=60.0,
)


LABELS = (
    *("version", "network", "place", "direction", "reason", "state", "outcome", "worker", "peer"),
    "offload",
    *("family", "pool", "kind", "call", "method", "le", "result"),
)


async def page(reading: Reading, timings: Timings | None = None) -> str:
    """What Prometheus gets."""

    async def give() -> Reading:
        return reading

    return (await Metrics(give, timings or Timings(TIMED), "0.1.0").exposition()).decode()


async def samples(reading: Reading, timings: Timings | None = None) -> dict[str, float]:
    """All samples by name and label values."""
    return {
        "/".join(
            [
                sample.name.removeprefix("pyvxlan_"),
                *(sample.labels[name] for name in LABELS if name in sample.labels),
            ]
        ): sample.value
        for family in text_string_to_metric_families(await page(reading, timings))
        for sample in family.samples
    }


async def test_reading_becomes_samples() -> None:
    found = await samples(READING)
    expected = {
        "build_info/0.1.0": 1,
        "tunnel_up/host2": 1,
        "tunnel_probes_total/host2/answered": 90,
        "tunnel_probes_total/host2/lost": 9,
        "tunnel_reordered_total/host2": 3,
        "tunnel_narrowed_total/host2": 1,
        "tunnel_path_mtu_bytes/host2": 1400,
        "tunnel_needed_mtu_bytes/host2": 1500,
        "tunnel_round_trip_seconds_bucket/host2/0.0002": 45,
        "tunnel_round_trip_seconds_bucket/host2/+Inf": 90,
        "tunnel_round_trip_seconds_count/host2": 90,
        "tunnel_round_trip_seconds_sum/host2": 0.045,
        "frames_total/blue/egress": 10,
        "frames_total/blue/ingress": 20,
        "bytes_total/blue/egress": 1000,
        "bytes_total/blue/ingress": 0,
        "flood_frames_total/blue": 4,
        "local_replies_total/blue": 5,
        "path_mtu_replies_total/blue": 17,
        "mss_clamped_total/blue": 19,
        "drops_total/blue/egress/destination_unknown": 6,
        "drops_total/blue/ingress/truncated": 7,
        "drops_total/blue/ingress/destination_unknown": 0,
        "underlay_datagrams_total/sent": 8,
        "underlay_drops_total/vni_unknown": 9,
        "endpoints/blue/local": 2,
        "endpoints/blue/remote": 3,
        "networks": 5,
        "hosts/alive": 3,
        "hosts/down": 1,
        "forwarder_up": 1,
        "forwarder_workers": 2,
        "forwarder_restarts_total": 1,
        "reconcile_repairs_total": 11,
        "reconcile_problems": 2,
        "store_synced": 1,
        "store_stale_seconds": 0,
        "store_state/init": 0,
        "store_state/synced": 1,
        "store_state/stale": 0,
        "store_resyncs_total/start": 6,
        "store_resyncs_total/check": 1,
        "store_held_records": 0,
        "store_session_valid_seconds": 12.5,
        "store_invalid_records": 1,
        "dns_queries_total/answered": 13,
        "dns_queries_total/nxdomain": 0,
        "dns_sandboxes": 2,
        "events_total/repaired": 11,
        "events_total/host_down": 0,
        "uptime_seconds": 60,
        "fdb_entries/blue": 3,
        "neighbour_entries/blue": 4,
        "flood_vteps/blue": 2,
        "peer_datagrams_total/sent/host2": 21,
        "peer_bytes_total/received/host2": 21,
        "forwarder_cpu_seconds_total/0": 1.5,
        "forwarder_idle_seconds_total/1": 8.5,
        "forwarder_queue_bytes/0": 4096,
        "forwarder_offload/0/segment": 1,
        "forwarder_offload/0/gro": 0,
        "forwarder_offload/1/segment": 0,
        "forwarder_offload/1/gro": 1,
        "forwarder_queue_limit_bytes/1": 8192,
        "ipam_used_addresses/blue/ipv4": 5,
        "ipam_addresses/blue/ipv4": 253,
        "ipam_pool_used_subnets/10.0.0.0/8:24": 5,
        "ipam_pool_subnets/10.0.0.0/8:24": 65536,
    }
    assert {name: found[name] for name in expected} == expected


async def test_every_reason_of_a_drop_is_there_from_the_start() -> None:
    found = await samples(READING)
    for direction in ("egress", "ingress"):
        assert {f"drops_total/blue/{direction}/{reason}" for reason in DROP_REASONS} <= set(found)
    assert {f"underlay_drops_total/{reason}" for reason in DROP_REASONS} <= set(found)


async def test_forwarder_that_is_gone_is_told() -> None:
    found = await samples(replace(READING, forwarder={}, stale_s=3.0, store_state="stale"))
    assert found["forwarder_up"] == 0
    assert found["store_synced"] == 0
    assert found["store_stale_seconds"] == 3


async def test_durations_and_failures_are_there_from_the_start() -> None:
    found = await samples(READING)
    assert found["attach_seconds_count"] == 0
    assert found["attach_failures_total"] == 0
    assert found["convergence_seconds_count"] == 0
    for kind in ("full", "change"):
        assert found[f"reconcile_round_seconds_count/{kind}"] == 0
    for call in ("get", "list", "txn", "session"):
        assert found[f"store_call_failures_total/{call}"] == 0
    assert {f"plugin_call_failures_total/{method}" for method in TIMED} <= set(found)


async def test_work_is_timed_and_its_failures_are_counted() -> None:
    timings = Timings()
    store = TimedStore(MemoryStore(), timings)
    await store.txn([Check("a", ABSENT)], [Write("a", b"1")])
    with pytest.raises(StoreConflictError):
        await store.txn([Check("a", ABSENT)], [Write("a", b"2")])
    with pytest.raises(RuntimeError), timings.attach.timed():
        raise RuntimeError("no")
    found = await samples(READING, timings)
    assert found["store_call_seconds_count/txn"] == 2
    assert found["store_call_failures_total/txn"] == 0
    assert found["attach_seconds_count"] == 1
    assert found["attach_failures_total"] == 1


async def test_label_is_escaped_and_a_name_is_never_twice() -> None:
    (network,) = READING.networks
    twin = replace(network, id="b" * 32)
    odd = replace(network, id="c" * 32, name='a"b\\c\n')
    found = await samples(replace(READING, networks=(network, twin, odd)))
    assert found["endpoints/blue aaaaaaaaaaaa/local"] == 2
    assert found["endpoints/blue bbbbbbbbbbbb/local"] == 2
    assert found['endpoints/a"b\\c\n/local'] == 2


async def test_promtool_finds_nothing_wrong() -> None:
    promtool = shutil.which("promtool")
    assert promtool, "install the package prometheus, which brings promtool"
    checked = await asyncio.to_thread(
        subprocess.run,
        [promtool, "check", "metrics"],
        input=await page(READING),
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


async def test_metrics_are_served_as_prometheus_wants_them() -> None:
    async with (
        served() as url,
        aiohttp.ClientSession() as session,
        session.get(url) as answer,
    ):
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert "pyvxlan_forwarder_up 1\n" in await answer.text()


@contextlib.asynccontextmanager
async def served(settings: Settings = Settings()) -> AsyncIterator[str]:  # noqa: B008 - frozen
    async def give() -> Reading:
        return READING

    tls = tls_context(settings)
    bound = bind("metrics_address", "127.0.0.1", 0)
    port = bound.getsockname()[1]
    async with serving(Metrics(give, Timings(), "0.1.0").application(), bound, tls):
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/metrics"


async def test_tls_asks_for_a_certificate_of_the_authority(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    server, client, stranger = ours.issue("server"), ours.issue("client"), theirs.issue("stranger")
    settings = Settings(metrics_cert=server.cert, metrics_key=server.key, metrics_client_ca=ours.ca)
    async with served(settings) as url, aiohttp.ClientSession() as session:
        for certificate, welcome in ((client, True), (stranger, False), (None, False)):
            context = ssl.create_default_context(cafile=ours.ca)
            if certificate:
                context.load_cert_chain(certificate.cert, certificate.key)
            with contextlib.nullcontext() if welcome else pytest.raises(aiohttp.ClientError):
                async with session.get(url, ssl=context) as answer:
                    assert answer.status == 200


def test_certificate_that_can_not_be_is_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    one, two = authority.issue("one"), authority.issue("two")
    text = tmp_path / "text"
    text.write_text("no certificate")
    whole = Settings(metrics_cert=one.cert, metrics_key=one.key)
    for settings, told in (
        (Settings(metrics_cert=one.cert), "belong together"),
        (Settings(metrics_client_ca=authority.ca), "metrics_client_ca needs both"),
        (replace(whole, metrics_key=two.key), "are not a certificate and its private key"),
        (replace(whole, metrics_key=tmp_path / "none"), "metrics_key .*none can't be read"),
        (replace(whole, metrics_client_ca=text), "text holds no certificate"),
    ):
        with pytest.raises(ConfigError, match=told):
            tls_context(settings)


def test_taken_address_is_named_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} is taken.*--metrics-address"):
            bind("metrics_address", "127.0.0.1", port)


def test_status_reads_what_the_data_plane_counts() -> None:
    async def stats() -> dict[str, object]:
        return {
            "pid": 5,
            "threads": (Worker(0, 1.5, 2.5, 10, 20, segment=True, gro=False),),
            "workers": 2,
            "restarts": 0,
            "since": 1.5,
            "underlay": {"sent_datagrams": 3, "drops": {"truncated": 1}},
            "vteps": {"198.18.0.2": {"sent_bytes": 7}, "198.18.0.9": {"sent_bytes": 5}},
            "networks": {4242: {"egress_frames": 9, "egress_drops": {"flood_rate": 2}}},
            "offloads": {4242: ("csum", "tso4")},
        }

    async def refuse() -> dict[str, object]:
        raise DataplaneError("no forwarder")

    with doorway() as door:
        door.node.net.add("box")
        door.do(door.node.service.create_network(NetworkSpec("blue", vni=4242)))
        door.do(door.node.service.attach(AttachSpec("blue", "box")))
        door.dataplane.stats = stats
        reading = door.do(door.status.reading())
        assert reading.forwarder == {"pid": 5, "workers": 2, "restarts": 0}
        assert reading.workers == (Worker(0, 1.5, 2.5, 10, 20, segment=True, gro=False),)
        assert {name: peer["sent_bytes"] for name, peer in reading.peers.items()} == {
            "host2": 7,
            "": 5,
        }
        assert reading.pools == (Use("10.0.0.0/8:24", 1, 65536),)
        assert reading.underlay["sent_datagrams"] == 3
        assert reading.underlay_drops == {"truncated": 1}
        (network,) = reading.networks
        assert (network.name, network.local, network.remote) == ("blue", 1, 0)
        assert network.traffic.counters["egress_frames"] == 9
        assert network.addresses == (Use("ipv4", 1, 253),)
        assert network.traffic.egress_drops == {"flood_rate": 2}
        document = door.do(door.status.document("1"))
        assert document["networks"][0]["counters"]["egress_drops"] == {"flood_rate": 2}
        assert document["networks"][0]["offloads"] == ["csum", "tso4"]
        assert [(w["segment"], w["gro"]) for w in document["workers"]] == [(True, False)]
        assert document["forwarder"]["pid"] == 5
        door.dataplane.stats = refuse
        without = door.do(door.status.document("1"))
        assert without["forwarder"]["up"] is False
        assert without["networks"][0]["offloads"] is None


async def test_page_lists_every_metric_and_no_other() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "metrics.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    shown = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(await page(READING))
    }
    assert listed == {name for name in shown if name.startswith("pyvxlan_")}


def test_workers_are_read_from_the_kernel() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sockets = open_underlay("127.0.0.1", port, workers=2, send_sockets=1)
    held = [os.dup(descriptor) for descriptor in sockets[:2]]
    try:
        with Engine(sockets, workers=2, paused=True):
            deadline = time.monotonic() + 10
            # A thread has its name shortly after its start.
            given = [1.0, 2.0], [True, False]
            while len(quiet := read_workers(os.getpid(), held, *given)) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with socket.socket(type=socket.SOCK_DGRAM) as sender:
                sender.sendto(bytes(100), ("127.0.0.1", port))
            receive_offload(held[1], on=False)
            waiting = read_workers(os.getpid(), held, *given)
            assert len(read_workers(os.getpid(), held, [1.0], [True])) == 1
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert [(worker.number, worker.idle_s) for worker in quiet] == [(0, 1.0), (1, 2.0)]
    assert [worker.queue_bytes for worker in quiet] == [0, 0]
    assert sum(worker.queue_bytes >= 100 for worker in waiting) == 1
    assert all(worker.queue_limit_bytes > 100_000 and worker.cpu_s >= 0 for worker in waiting)
    assert [(worker.segment, worker.gro) for worker in quiet] == [(True, True), (False, True)]
    assert [worker.gro for worker in waiting] == [True, False]


def test_workers_of_a_process_that_is_gone_are_none() -> None:
    assert read_workers(0, (), (), ()) == ()
