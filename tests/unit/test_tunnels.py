"""Tunnels: which are probed, how a reading becomes their state, how they are shown."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pyvxlan.daemon import cli_peers
from pyvxlan.daemon.dataplane.tunnels import Tunnels
from pyvxlan.daemon.tunnels import Changes, Tunnel, judge, quantile, read_tunnels
from tests.unit.test_metrics import HOST2, TUNNEL


def test_a_vtep_is_probed_for_the_largest_mtu_of_its_networks() -> None:
    tunnels = Tunnels()
    assert tunnels.set(7, 1450, ["198.18.0.2", "198.18.0.3"])
    assert tunnels.set(8, 8950, ["198.18.0.3"])
    assert not tunnels.set(8, 8950, ["198.18.0.3"])
    assert tunnels.wanted() == {"198.18.0.2": 1450, "198.18.0.3": 8950}
    assert tunnels.networks("198.18.0.3") == {7, 8}
    assert tunnels.set(8, 1400, ["198.18.0.3"])
    assert tunnels.wanted()["198.18.0.3"] == 1450
    assert tunnels.set(7, 0, ())
    assert tunnels.wanted() == {"198.18.0.3": 1400}
    assert tunnels.set(8, 0, ())
    assert not tunnels.set(8, 0, ())
    assert tunnels.wanted() == {}


def read(interval_s: float = 1.0, **counters: Any) -> Tunnel:
    hosts = {"198.18.0.2": HOST2}
    return read_tunnels({"198.18.0.2": {**TUNNEL, **counters}}, hosts, {7: "blue"}, interval_s)[0]


@pytest.mark.parametrize(
    ("age_ns", "interval_s", "state"),
    [
        (-1, 1.0, "silent"),
        (2_900_000_000, 1.0, "up"),
        (3_100_000_000, 1.0, "lost"),
        (29_000_000_000, 10.0, "up"),
        (100, 0, "off"),
    ],
)
def test_state_follows_from_the_last_answer(age_ns: int, interval_s: float, state: str) -> None:
    assert read(interval_s, answer_age_ns=age_ns).state == state


@pytest.mark.parametrize(
    ("share", "seconds"), [(0.5, 0.0002), (0.25, 0.00015), (0.75, 0.0006), (1.0, 0.001)]
)
def test_quantiles_are_those_of_prometheus(share: float, seconds: float) -> None:
    assert quantile(read().round_trips, share) == pytest.approx(seconds)


def test_quantiles_at_the_ends() -> None:
    assert quantile([(0.1, 0), (float("inf"), 0)], 0.5) is None
    assert quantile([(0.1, 1), (float("inf"), 9)], 0.99) == 0.1


def test_tunnels_are_shown_for_people() -> None:
    silent = read(answer_age_ns=-1, answered=0, path_mtu_bytes=0, round_trips={"50": 0, "inf": 0})
    shown = cli_peers.text([read().document(), silent.document()])
    header, one, two = (" ".join(line.split()) for line in shown.splitlines())
    assert header == "HOST VTEP STATE P50 P99 LOSS REORDERED PATH MTU ANSWERED NETWORKS"
    assert one == "host2 198.18.0.2 up 200 us 984 us 25.0% 3 1400 of 1500 now blue"
    assert two == "host2 198.18.0.2 silent - - - 3 - never blue"


def test_all_tunnels_are_shown_as_a_matrix() -> None:
    good = read(recent_lost=0, path_mtu_bytes=1500).document() | {"host_id": "b"}
    bad = read().document() | {"host_id": "a"}
    lost = read(answer_age_ns=60_000_000_000).document() | {"host_id": "c"}
    hosts = [
        {"host": "h1", "host_id": "a", "error": "", "tunnels": [good, lost]},
        {"host": "h2", "host_id": "b", "error": "", "tunnels": [bad]},
        {"host": "h3", "host_id": "c", "error": "gone", "tunnels": []},
    ]
    assert [re.split(r"  +", line) for line in cli_peers.matrix(hosts).splitlines()] == [
        ["FROM \\ TO", "h1", "h2", "h3"],
        ["h1", "-", "200 us", "lost"],
        ["h2", "200 us, loss 25.0%, mtu 1400", "-", "-"],
        ["h3", "?", "?", "?"],
    ]


def test_what_becomes_of_a_tunnel_is_told_once() -> None:
    wide, narrow = read(path_mtu_bytes=1500), read()
    lost = read(path_mtu_bytes=1500, answer_age_ns=60_000_000_000)
    silent = read(path_mtu_bytes=0, answer_age_ns=-1)
    changes = Changes()
    assert changes.tell([silent]) == changes.tell([wide]) == []
    assert changes.tell([lost]) == [("tunnel_lost", "to host2 (198.18.0.2)")]
    assert changes.tell([lost]) == []
    assert changes.tell([wide]) == [("tunnel_back", "to host2 (198.18.0.2)")]
    assert changes.tell([narrow]) == [
        (
            "tunnel_narrow",
            "to host2 (198.18.0.2): packets of 1400 bytes get through, of 1500 do not",
        )
    ]
    assert changes.tell([narrow]) == []
    assert changes.tell([wide]) == [("tunnel_wide", "to host2 (198.18.0.2): packets of 1500 bytes")]


def test_what_was_found_of_a_tunnel_outlives_the_forwarder() -> None:
    """A new one has at first no tunnels at all, and then has not asked anybody yet."""
    changes = Changes()

    def tell(**counters: Any) -> tuple[str, list[str]]:
        stats = {"198.18.0.2": {**TUNNEL, **counters}}
        tunnels = read_tunnels(stats, {"198.18.0.2": HOST2}, {7: "blue"}, 1.0, changes.lost)
        return tunnels[0].state, [kind for kind, _ in changes.tell(tunnels)]

    fresh = {"answer_age_ns": -1, "path_mtu_bytes": 0}
    assert tell(answer_age_ns=10**11) == ("lost", ["tunnel_lost", "tunnel_narrow"])
    assert changes.tell([]) == []
    assert tell(**fresh) == ("lost", [])
    assert tell(path_mtu_bytes=0) == ("up", ["tunnel_back"])
    assert tell(path_mtu_bytes=1500) == ("up", ["tunnel_wide"])
    assert tell(**fresh) == ("silent", [])


def test_a_narrow_tunnel_is_one_of_which_less_is_known_to_get_through() -> None:
    assert read().narrow
    assert not read(path_mtu_bytes=1500).narrow
    assert not read(path_mtu_bytes=0).narrow


@pytest.mark.parametrize(
    ("tunnels", "level", "text"),
    [
        ([], None, ""),
        ([read(0)], None, ""),
        ([read(path_mtu_bytes=1500)], "ok", "1 of 1 hosts answer"),
        (
            [read(path_mtu_bytes=1500), read(answer_age_ns=-1)],
            "ok",
            "1 of 2 hosts answer; never answered: host2 (198.18.0.2)",
        ),
        (
            [read(path_mtu_bytes=1500), read()],
            "warning",
            "only packets of 1400 bytes get to host2 (198.18.0.2), the networks need 1500: widen"
            " the underlay's path, or create networks with --mtu 1350",
        ),
        (
            [read(), read(answer_age_ns=10**10)],
            "error",
            "no answer any more from host2 (198.18.0.2)",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(
    tunnels: list[Tunnel], level: str | None, text: str
) -> None:
    found = judge(tunnel.document() for tunnel in tunnels)
    assert (found.level if found else None) == level
    assert (found.text if found else "").startswith(text)
