"""The benchmark of the whole path runs and its samples say what they must, at the smallest size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]


def test_the_whole_path_is_measured_beside_the_kernel(tmp_path):
    written = tmp_path / "samples.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benches.net", "--peers", "kernel,pyvxlan"),
            *("--pictures", "nic", "--measurements", "tcp1,trip,connect"),
            *("--rounds", "1", "--seconds", "0.1", "--json", written),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    samples = json.loads(written.read_text())["samples"]
    assert [(sample["measurement"], sample["peer"]) for sample in samples] == [
        (measurement, peer)
        for measurement in ("tcp1", "trip", "connect")
        for peer in ("kernel", "pyvxlan")
    ]
    for sample in samples:
        carried = sample["peer"] == "pyvxlan"
        assert (sample["forwarders_cpu_s"] > 0) == carried, sample
    assert "round trip p50" in done.stdout
