"""Time of a scrape, in milliseconds, as the daemon renders it for Prometheus.

Input: a reading of 1, 100 and 1,000 networks on one host, each with all counters. Each benchmark
checks that Prometheus' own parser finds every network; a scrape of 1,000 must stay below 200 ms.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyvxlan.daemon.metrics import Metrics
from pyvxlan.daemon.plugin import TIMED
from pyvxlan.daemon.timings import Timings
from tests.unit.test_metrics import READING

LIMIT_S = 0.2


@pytest.mark.benchmark(group="scrape")
@pytest.mark.parametrize("count", [1, 100, 1_000])
def test_scrape(benchmark, count):
    (network,) = READING.networks
    networks = [replace(network, name=f"network{number}") for number in range(count)]
    reading = replace(READING, networks=tuple(networks))

    async def give():
        return reading

    metrics = Metrics(give, Timings(TIMED), "0.1.0")
    with asyncio.Runner() as runner:
        text = benchmark(lambda: runner.run(metrics.exposition()))
    frames = next(
        family
        for family in text_string_to_metric_families(text.decode())
        if family.name == "pyvxlan_frames"
    )
    assert {sample.labels["network"] for sample in frames.samples} == {n.name for n in networks}
    if benchmark.enabled:
        assert benchmark.stats.stats.min < LIMIT_S
