"""The simulator of large clusters, at a small size: every phase comes to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
HOSTS, NETWORKS, ENDPOINTS = 6, 6, 24


def test_small_cluster_goes_through_every_phase() -> None:
    words = f"--hosts {HOSTS} --networks {NETWORKS} --endpoints {ENDPOINTS} --rate 20 --churn-s 0.5"
    words += " --processes 2"
    done = subprocess.run(
        [sys.executable, "-m", "benches.scale.simulate", *words.split(), "--json"],
        stdout=subprocess.PIPE,
        check=True,
        cwd=REPO,
        timeout=180,
    )
    figures = {(one["phase"], one["what"]): one["value"] for one in json.loads(done.stdout)}
    # `cfg` and `pools`; four records of each network with its gateway, and four of each endpoint.
    assert figures["load", "records"] == 2 + 4 * NETWORKS + 4 * ENDPOINTS
    assert figures["start", "endpoints that it knows"] == ENDPOINTS / NETWORKS * 4
    assert figures["hosts", "streams of watches in etcd"] == HOSTS
    assert figures["hosts", "watches of endpoints"] == ENDPOINTS
    assert figures["churn", "skipped, as all networks were busy"] < 10
    # Each comes and goes in the sight of the four hosts of its network.
    assert figures["churn", "events delivered per endpoint"] >= 8
    assert figures["resume", "prefixes taken up, resume"] >= ENDPOINTS
    assert figures["relist", "prefixes taken up, gap"] >= HOSTS
