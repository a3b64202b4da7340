"""What Prometheus reads."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyvxlan import DROP_REASONS
from pyvxlan.daemon.errors import ConfigError, DataplaneError
from pyvxlan.daemon.metrics import Metrics, serving
from pyvxlan.daemon.requests import AttachSpec, NetworkSpec
from pyvxlan.daemon.status import NetworkReading, Reading, Traffic
from tests.unit.doorway import doorway

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
                    "egress_drops": {"destination_unknown": 6},
                    "ingress_drops": {"truncated": 7},
                }
            ),
        ),
    ),
    forwarder={"pid": 77, "workers": 2, "restarts": 1},
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
    hosts_alive=3,
    hosts_down=1,
    repairs=11,
    problems=("one", "two"),
    store_state="synced",
    resyncs={"start": 6, "resume": 0, "gap": 0, "check": 1},
    held=0,
    stale_s=None,
    session_valid_s=12.5,
    invalid={"net/x": "not JSON"},
    names_served=2,
    name_outcomes={"answered": 13, "nxdomain": 0},
    uptime_s=60.0,
)


LABELS = ("version", "network", "place", "direction", "reason", "state", "outcome")


async def samples(reading: Reading) -> dict[str, float]:
    """All samples by name and label values."""

    async def give() -> Reading:
        return reading

    text = (await Metrics(give, "0.1.0").exposition()).decode()
    return {
        "/".join(
            [
                sample.name.removeprefix("pyvxlan_"),
                *(sample.labels[name] for name in LABELS if name in sample.labels),
            ]
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_reading_becomes_samples() -> None:
    found = await samples(READING)
    expected = {
        "build_info/0.1.0": 1,
        "frames_total/blue/egress": 10,
        "frames_total/blue/ingress": 20,
        "bytes_total/blue/egress": 1000,
        "bytes_total/blue/ingress": 0,
        "flood_frames_total/blue": 4,
        "local_replies_total/blue": 5,
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
        "uptime_seconds": 60,
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


async def test_metrics_are_served_as_prometheus_wants_them() -> None:
    async def give() -> Reading:
        return READING

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = Metrics(give, "0.1.0").application()
    async with (
        serving(app, "127.0.0.1", port),
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert "pyvxlan_forwarder_up 1.0" in await answer.text()


async def test_taken_address_is_named_with_the_remedy() -> None:
    async def give() -> Reading:
        return READING

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} is taken.*--metrics-address"):
            async with serving(Metrics(give, "0.1.0").application(), "127.0.0.1", port):
                pass


def test_status_reads_what_the_data_plane_counts() -> None:
    async def stats() -> dict[str, object]:
        return {
            "pid": 5,
            "workers": 2,
            "restarts": 0,
            "since": 1.5,
            "underlay": {"sent_datagrams": 3, "drops": {"truncated": 1}},
            "networks": {4242: {"egress_frames": 9, "egress_drops": {"flood_rate": 2}}},
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
        assert reading.underlay["sent_datagrams"] == 3
        assert reading.underlay_drops == {"truncated": 1}
        (network,) = reading.networks
        assert (network.name, network.local, network.remote) == ("blue", 1, 0)
        assert network.traffic.counters["egress_frames"] == 9
        assert network.traffic.egress_drops == {"flood_rate": 2}
        document = door.do(door.status.document("1"))
        assert document["networks"][0]["counters"]["egress_drops"] == {"flood_rate": 2}
        assert document["forwarder"]["pid"] == 5
        door.dataplane.stats = refuse
        assert door.do(door.status.document("1"))["forwarder"]["up"] is False


async def test_page_lists_every_metric() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "metrics.md").read_text("utf-8")
    names = {f"pyvxlan_{name.split('/')[0]}" for name in await samples(READING)}
    alike = {f"pyvxlan_underlay_{what}_total" for what in ("bytes", "syscalls", "batches")}
    assert [name for name in sorted(names - alike) if f"| `{name}` |" not in page] == []
