"""What scrapes of a daemon with many networks cost the traffic beside them, in one run.

Two hosts with a cable, a container on each, and on the first one as many networks more as asked
for, each attached. Round after round the same is measured in turn: while nobody scrapes, while its
/metrics are read once a second, and while they are read again as soon as they were answered.
Printed are medians, the mean of the ratios to the first, pair by pair, with its standard error,
and what was lost of a steady stream. Whoever scrapes runs here too, so its share of the processors
is counted in.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from benches.net.__main__ import build_load, load
from benches.net.peers import Pyvxlan
from pyvxlan.daemon.apiclient import ApiClient
from tests.netns.world import inside

PORT = 9472
AT_ONCE = 4
"""Requests to the daemon at a time, while networks are made."""
PAYLOAD_BYTES = 1400
PAUSES_S: Mapping[str, float | None] = {"none": None, "each second": 1.0, "at once": 0.0}
"""From one scrape's begin to the next; None for no scrape."""
FIGURES = {
    "tcp": ("TCP, 1 stream, Gbit/s", lambda sample: sample["bytes_per_s"] * 8e-9),
    "stream": ("UDP of 1400 bytes, received/s", lambda sample: sample["frames_per_s"]),
    "trip": ("round trip p50, us", lambda sample: sample["p50_us"]),
}


class Scraped(Pyvxlan):
    """A daemon whose metrics are read; it compares everything once only: no scrape does that."""

    options = ("--metrics-address", f"127.0.0.1:{PORT}", "--reconcile-interval-s", "3600")

    def crowd(self, networks: int) -> None:
        """Attaches one more container of the first host to so many networks more."""
        host = self.site[1]
        sandbox = host.container().netns

        def add(number: int) -> None:
            api, name = ApiClient(host.run_dir), f"crowd{number}"
            api.post("networks", body={"name": name}, doing="")
            api.post("endpoints", body={"network": name, "sandbox": sandbox}, doing="")

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(add, number) for number in range(networks)]:
                done.result()


@contextlib.contextmanager
def scraping(netns: str, networks: int, pause_s: float | None) -> Iterator[list[float]]:
    """Reads the metrics of the daemon in `netns` while inside; gives how long each took, in s."""
    took: list[float] = []
    ending = threading.Event()

    def scrape() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
        while pause_s is not None and not ending.is_set():
            begin = time.monotonic()
            connection.request("GET", "/metrics")
            text = connection.getresponse().read()
            took.append(time.monotonic() - begin)
            found = text.count(b"\npyvxlan_frames_total{")
            assert found == 2 * networks, f"{found} counters of frames of {networks} networks"
            ending.wait(begin + pause_s - time.monotonic())
        connection.close()

    with ThreadPoolExecutor(1) as pool:
        scraper = pool.submit(inside, netns, scrape)
        try:
            yield took
        finally:
            ending.set()
            scraper.result()


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benches.net.scrape", description=__doc__)
    parser.add_argument("--networks", default=1000, type=int)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--seconds", default=2.0, type=float, help="of one measurement")
    parser.add_argument("--rate", default=20_000, type=int, help="datagrams a second of the stream")
    parser.add_argument("--json", type=Path, help="file for all samples")
    options = parser.parse_args()
    build_load()
    samples = measured(options.networks, options.rounds, options.seconds, options.rate)
    if options.json:
        options.json.write_text(json.dumps(samples, indent=1) + "\n")
    print(report(samples))
    return 0


def measured(networks: int, rounds: int, seconds: float, rate: int) -> list[dict[str, Any]]:
    """Measures everything: one sample a round, pause and kind of load."""
    kinds = {
        "tcp": ("tcp", 1, seconds),
        "stream": ("stream", PAYLOAD_BYTES, rate, seconds),
        "trip": ("trip", seconds),
    }
    samples = []
    peer = Scraped("scraped")
    try:
        peer.site.show("nic")
        began = time.monotonic()
        peer.crowd(networks - 1)
        print(f"{networks} networks after {time.monotonic() - began:.0f} s", file=sys.stderr)
        for _ in range(rounds):
            for kind, arguments in kinds.items():
                for name, pause_s in PAUSES_S.items():
                    with scraping(peer.site[1].netns, networks, pause_s) as took:
                        found = load(peer, *arguments)
                    sample = {"load": kind, "scrapes": name, "took_s": took}
                    samples.append(sample | found)
    finally:
        peer.close()
    return samples


def report(samples: list[dict[str, Any]]) -> str:
    """One line for each kind of load and pause, and what the scrapes themselves took."""
    lines = []
    for kind, (title, read) in FIGURES.items():
        plain = [read(sample) for sample in samples if _is(sample, kind, "none")]
        for name in PAUSES_S:
            found = [sample for sample in samples if _is(sample, kind, name)]
            values = [read(sample) for sample in found]
            ratios = [value / other for value, other in zip(values, plain, strict=True)]
            error = stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0
            line = f"{title}, scraped {name}: {median(values):.2f}"
            line += f" x{mean(ratios):.3f} +- {error:.3f}"
            if kind == "stream":
                sent, arrived = (sum(one[what] for one in found) for what in ("sent", "frames"))
                line += f", {sent - arrived} of {sent} lost"
            lines.append(line)
    for name in PAUSES_S:
        took = [s for sample in samples if sample["scrapes"] == name for s in sample["took_s"]]
        if took:
            lines.append(
                f"scraped {name}: {len(took)} scrapes, median {median(took) * 1e3:.0f} ms, at most"
                f" {max(took) * 1e3:.0f} ms"
            )
    return "\n".join(lines)


def _is(sample: Mapping[str, Any], kind: str, name: str) -> bool:
    return (sample["load"], sample["scrapes"]) == (kind, name)


if __name__ == "__main__":
    sys.exit(main())
