"""The table of all micro-benchmarks, from figures that are easy to see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benches.summary import Result, main, shown, table


def pytest_file(path: Path, **medians: float) -> Path:
    benchmarks = [
        {"group": "codec", "name": f"test_{name}", "stats": {"median": median}}
        for name, median in medians.items()
    ]
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    return path


def test_ratios_are_to_the_quickest_of_a_group_and_to_the_run_before():
    results = [Result("a", "slow", 3e-6), Result("a", "quick", 2e-6), Result("b", "alone", 1.0)]
    lines = table(results, {"a | slow": 1.5e-6}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2:] == [
        ["a", "quick", "2 us", "x1.00", ""],
        ["a", "slow", "3 us", "x1.50", "x2.00"],
        ["b", "alone", "1 s", "", ""],
    ]


def test_runs_are_saved_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    new = tmp_path / "criterion" / "wire" / "parse" / "new"
    new.mkdir(parents=True)
    (new / "benchmark.json").write_text(json.dumps({"group_id": "wire", "full_id": "wire/parse"}))
    (new / "estimates.json").write_text(json.dumps({"median": {"point_estimate": 44.6}}))
    saved = tmp_path / "saved"
    rust = ["--criterion", str(tmp_path / "criterion")]
    for median in (0.002, 0.004):
        file = pytest_file(tmp_path / "python.json", encap=median)
        main([*rust, "--pytest", str(file), "--save", str(saved)])
        rust = []
    first, _, second = capsys.readouterr().out.rpartition("| group")
    assert "rust wire | parse" in first
    assert "44.6 ns" in first
    assert "x2.00" not in first
    assert "x2.00" in second
    assert "rust wire | parse" in sorted(saved.iterdir())[-1].read_text()


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5, "1.5 s"), (0.0125, "12.5 ms"), (4.5e-5, "45 us"), (3e-9, "3 ns")]
)
def test_times_have_three_digits_and_a_unit(seconds: float, text: str):
    assert shown(seconds) == text
