"""`pyvxlan top`: rates from two readings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pyvxlan.daemon import cli_top
from pyvxlan.daemon.cli import run as run_cli
from pyvxlan.daemon.dataplane.threads import Worker
from pyvxlan.daemon.model import host_ifname
from pyvxlan.daemon.net import Carried
from pyvxlan.daemon.rates import rates
from pyvxlan.daemon.requests import AttachSpec, NetworkSpec
from tests.unit.doorway import doorway


def reading(uptime_s: float, times: int, *, networks: bool = True) -> dict[str, Any]:
    """What a daemon says whose counters have grown `times` times."""
    return {
        "host": {"name": "h1"},
        "pid": 7,
        "uptime_s": uptime_s,
        "store": {"state": "synced"},
        "forwarder": {"up": True},
        "workers": [
            {
                "number": 0,
                "idle_s": 0.5 * times,
                "queue_bytes": 10,
                "queue_limit_bytes": 100,
            }
        ],
        "peers": [
            {"host": "h2", "sent_datagrams": 2 * times, "sent_bytes": 200 * times,
             "received_datagrams": 0, "received_bytes": 0},
            {"host": "h3", "sent_datagrams": 0, "sent_bytes": 0,
             "received_datagrams": 4 * times, "received_bytes": 1_000_000 * times},
        ],
        "networks": [
            {
                "id": name,
                "name": name,
                "counters": {
                    "egress_frames": weight * times,
                    "egress_bytes": 100 * weight * times,
                    "ingress_frames": 0,
                    "ingress_bytes": 0,
                    "egress_drops": {"port_full": 3 * times, "flood_rate": 5},
                    "ingress_drops": {"port_full": times},
                },
            }
            for name, weight in (("quiet", 1), ("busy", 10))
        ]
        if networks
        else [],
        "traffic": [
            {"id": f"{name}{'0' * 60}", "name": name, "network": "busy", "network_id": "busy",
             "sent_frames": weight * times, "sent_bytes": 125 * weight * times,
             "received_frames": 0, "received_bytes": 0}
            for name, weight in (("box1", 2), ("box2", 40))
        ],
    }  # fmt: skip


def test_rates_are_of_the_time_between_and_the_busiest_is_first() -> None:
    found = rates(reading(10, 1), reading(12, 3))
    assert [network["name"] for network in found["networks"]] == ["busy", "quiet"]
    busy = found["networks"][0]
    assert (busy["egress_frames"], busy["egress_bytes"]) == (10, 1000)
    assert (busy["drops"], busy["reasons"]) == (4, {"port_full": 4})
    assert found["workers"] == [{"number": 0, "busy": 0.5, "queue": 0.1}]
    assert [peer["host"] for peer in found["peers"]] == ["h3", "h2"]
    assert found["peers"][1]["sent_bytes"] == 200
    assert [endpoint["name"] for endpoint in found["endpoints"]] == ["box2", "box1"]
    assert (found["endpoints"][1]["sent_frames"], found["endpoints"][1]["sent_bytes"]) == (2, 250)


def test_readings_without_endpoints_have_no_rates_of_them() -> None:
    before, after = reading(10, 1), reading(12, 3)
    del before["traffic"], after["traffic"]
    assert rates(before, after)["endpoints"] == []


def test_counters_of_a_new_forwarder_begin_at_zero() -> None:
    found = rates(reading(10, 100), reading(12, 2))
    assert found["networks"][0]["egress_frames"] == 10
    assert found["workers"][0]["busy"] == 0.5


def test_network_that_has_just_come_counts_from_zero() -> None:
    found = rates(reading(10, 1, networks=False), reading(11, 2))
    assert found["networks"][0]["egress_frames"] == 20
    assert rates(reading(10, 1), reading(11, 2, networks=False))["networks"] == []


def test_page_is_for_people() -> None:
    assert cli_top.text(rates(reading(10, 1), reading(12, 3))) == (
        "h1, up 12 s, store synced, forwarder up\n"
        "thread 0: busy 50%, queue 10%\n"
        "\n"
        "NETWORK   OUT FRAMES/S   OUT BIT/S   IN FRAMES/S   IN BIT/S   DROPS/S   WHY\n"
        "busy      10             8.0 k       0             0          4         port_full\n"
        "quiet     1              800         0             0          4         port_full\n"
        "\n"
        "ENDPOINT   NETWORK   SENT/S   SENT BIT/S   RECEIVED/S   RECEIVED BIT/S\n"
        "box2       busy      40       40.0 k       0            0\n"
        "box1       busy      2        2.0 k        0            0\n"
        "\n"
        "HOST   TO IT/S   TO IT BIT/S   FROM IT/S   FROM IT BIT/S\n"
        "h3     0         0             4           8.0 M\n"
        "h2     2         1.6 k         0           0"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (999, "999"), (999.6, "1.0 k"), (99_940, "99.9 k"), (99_960, "100 k"),
     (1e6, "1.0 M"), (999.4e9, "999 G"), (5e12, "5.0 T")],
)  # fmt: skip
def test_rates_are_short(value: float, shown: str) -> None:
    assert cli_top.count(value) == shown


def test_command_reads_a_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    sent = iter(range(0, 1_000_000, 1000))

    async def stats() -> dict[str, object]:
        return {
            "pid": 5,
            "workers": 1,
            "threads": (Worker(0, 1.0, 0.0, 0, 100, segment=True, gro=True),),
            "networks": {4242: {"egress_frames": next(sent)}},
            "vteps": {"198.18.0.2": {"sent_bytes": 7}},
        }

    with doorway() as door:
        door.node.net.add("box")
        door.do(door.node.service.create_network(NetworkSpec("blue", vni=4242)))
        box = door.do(door.node.service.attach(AttachSpec("blue", "box")))
        door.node.net.ports[host_ifname(box.id)] = Carried(1, 100, 2, 200)
        door.dataplane.stats = stats
        words = ["--run-dir", str(door.run_dir), "top", "--interval", "0.2", "--count", "2"]
        assert run_cli([*words, "--format", "json"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert run_cli(words) == 0
        assert capsys.readouterr().out.count("\nNETWORK ") == 2
    assert len(lines) == 2
    for line in lines:
        page = json.loads(line)
        assert [(box["network"], box["sent_frames"]) for box in page["endpoints"]] == [("blue", 0)]
        (network,) = page["networks"]
        assert network["name"] == "blue"
        # A thousand in a fifth of a second, by clocks that are rounded.
        assert 0 < network["egress_frames"] < 5500
