"""The table of everything that was measured, from figures that are easy to see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benches.goals import GOALS
from benches.net.report import FIGURES
from benches.net.site import PICTURES
from benches.summary import Result, lines, main, read_criterion, read_net, shown, table


def cells(printed: str) -> list[list[str]]:
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def net_file(*samples: tuple[str, float], **left_out: list[str]) -> Mapping[str, Any]:
    trips = [
        {"peer": peer, "picture": "nic", "measurement": "trip", "p50_us": us, "p99_us": 2 * us}
        for peer, us in samples
    ]
    return {"samples": trips, "against": "kernel", "left_out": left_out}


def times(path: Path, **medians: float) -> Path:
    benchmarks = [
        {
            "group": "codec",
            "name": f"test_{name}",
            "stats": {"median": median, "min": median / 2, "max": median * 2},
        }
        for name, median in medians.items()
    ]
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    return path


def test_ratios_are_to_the_quickest_of_a_group_and_to_the_run_before():
    results = [
        Result("a", "slow", 3e-6, 2e-6, 4e-6, "s"),
        Result("a", "quick", 2e-6, 1e-6, 2.5e-6, "s"),
        Result("b", "alone", 1.0, 1.0, 1.0, "s"),
    ]
    assert cells(table(lines(results, {"a | slow": 1.5e-6})))[1:] == [
        ["a", "quick", "2 us", "1 us-2.5 us", "x1.00", ""],
        ["", "slow", "3 us", "2 us-4 us", "x1.50", "x2.00"],
        ["b", "alone", "1 s", "", "", ""],
    ]


def test_a_peer_has_a_median_a_spread_and_a_ratio_to_the_kernel_and_pyvxlan_a_goal():
    written = net_file(
        *(("underlay", us) for us in (9, 8, 10)),
        *(("kernel", us) for us in (10, 30, 20)),
        *(("pyvxlan", us) for us in (25, 31, 32)),
    )
    found = cells(table(lines(read_net(written), {})))
    assert found[1:4] == [
        ["nic: round trip p50, us", "underlay", "9", "8-10", "x0.45", ""],
        ["", "kernel", "20", "10-30", "x1.00", ""],
        ["", "pyvxlan", "31", "25-32", "x1.55", "at most 1.5 x kernel: 1.55, MISSED"],
    ]
    assert found[6][-1] == "at most 2 x kernel: 1.55, reached"


def test_goal_whose_peer_was_not_measured_says_so():
    found = cells(table(lines(read_net(net_file(("pyvxlan", 9))), {})))
    assert found[1][-1] == "at most 1.5 x kernel: not measured"


def test_peers_whose_datagrams_overtook_each_other_are_named(tmp_path, capsys):
    written = net_file(("kernel", 9), ("kernel", 9), ("pyvxlan", 9), ("pyvxlan", 9))
    samples = [
        {**sample, "disorder": late}
        for sample, late in zip(written["samples"], (1200, 34, 0, 0), strict=True)
    ]
    path = tmp_path / "net.json"
    path.write_text(json.dumps({**written, "samples": samples}))
    main(["--net", str(path)])
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("out of")]
    assert told == ["out of order: 1,234 datagrams of kernel in nic"]


def test_processor_time_stands_beside_a_rate():
    sample = {
        "peer": "pyvxlan",
        "picture": "nic",
        "measurement": "connect",
        "connections_per_s": 4321.0,
        "connections": 2000,
        "cpu_s": 1.0,
    }
    (line,) = lines(read_net({"samples": [sample], "against": "kernel"}), {})
    assert line["cpu_s"] == 0.5
    assert cells(table([line]))[1][2:4] == ["4,321", "0.5 per thousand"]


def test_only_variants_of_one_thing_in_rust_are_compared(tmp_path: Path):
    for ns, id_ in (
        (9, "table/lookup of a known mac in 1k"),
        (63, "table/lookup of a known mac in 1M"),
        (4000, "table/publish one moved entry in 1M"),
        (20, "lane/egress"),
        (10, "lane/egress dropped, alike"),
    ):
        new = tmp_path / id_ / "new"
        new.mkdir(parents=True)
        (new / "benchmark.json").write_text(json.dumps({"full_id": id_}))
        (new / "estimates.json").write_text(json.dumps({"median": {"point_estimate": ns}}))
        (new / "sample.json").write_text(json.dumps({"iters": [1], "times": [ns]}))
    found = cells(table(lines(read_criterion(tmp_path), {})))[1:]
    assert sorted([row[0], row[1], row[-1]] for row in found) == [
        ["", "dropped, alike", "x0.50"],
        ["", "in 1M", "x7.00"],
        ["rust lane: egress", "egress", "x1.00"],
        ["rust table: lookup of a known mac", "in 1k", "x1.00"],
        ["rust table: publish one moved entry", "in 1M", ""],
    ]


def test_every_part_is_in_one_table_and_saved_to_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    new = tmp_path / "criterion" / "wire" / "parse" / "new"
    new.mkdir(parents=True)
    (new / "benchmark.json").write_text(json.dumps({"full_id": "wire/parse"}))
    (new / "estimates.json").write_text(json.dumps({"median": {"point_estimate": 44.6}}))
    (new / "sample.json").write_text(json.dumps({"iters": [10, 20], "times": [400, 1000]}))
    memory = tmp_path / "memory.json"
    memory.write_text(json.dumps({"memory, MB": {"at the start": [10, 12], "after load": [22]}}))
    net = tmp_path / "net.json"
    net.write_text(json.dumps(net_file(("kernel", 20), ovs=["ovs-vswitchd"])))
    saved = tmp_path / "saved"
    words = ["--criterion", tmp_path / "criterion", "--memory", memory, "--net", net]
    for median in (0.002, 0.004):
        words += ["--pytest", times(tmp_path / "python.json", encap=median), "--save", saved]
        main([str(word) for word in words])
        words = []
    first, _, second = capsys.readouterr().out.rpartition("| what")
    assert ["rust wire: parse", "parse", "44.6 ns", "40 ns-50 ns", ""] in cells(first)
    assert ["", "after load", "22", "", "x2.00"] in cells(first)
    assert "left out: ovs, which needs ovs-vswitchd" in first
    assert [row[-1] for row in cells(second)] == ["x2.00"]
    documents = [json.loads(path.read_text()) for path in sorted(saved.iterdir())]
    assert [line["group"] for line in documents[0]["results"]] == [
        "rust wire: parse",
        "codec",
        "memory, MB",
        "memory, MB",
        "nic: round trip p50, us",
        "nic: round trip p99, us",
    ]
    assert documents[0]["machine"]["processors"] > 0
    assert documents[1]["results"][0]["before"] == 2


def test_goals_of_the_whole_path_are_of_figures_that_are_measured():
    figures = {f"{picture}: {figure.title}" for picture in PICTURES for figure in FIGURES}
    asked = {goal.group for goal in GOALS if goal.group.startswith(("nic", "veth"))}
    assert asked
    assert asked <= figures


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.5, "s", "1.5 s"),
        (0.0125, "s", "12.5 ms"),
        (4.5e-5, "s", "45 us"),
        (3e-9, "s", "3 ns"),
        (0.99999, "s", "1,000 ms"),
        (5.6123, "", "5.61"),
        (13311.2, "", "13,311"),
        (0.0601, "", "0.0601"),
        (0, "", "0"),
    ],
)
def test_figures_have_three_digits_and_times_a_unit(value: float, unit: str, text: str):
    assert shown(value, unit) == text
