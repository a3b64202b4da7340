"""Many things at once, at full size: names raced for, containers started together, many networks.

Two Engines with our plug-in in namespaces, on an etcd; `growth` starts the original as well. Each
ends with 1 if what the first line of its output demands is not so.

    python -m benches.docker.load races [--races 100]     0 duplicates
    python -m benches.docker.load starts [--rounds 4]     128 of 128 start, nothing is left
    python -m benches.docker.load growth [--starts 20]    60 networks slow a start by less than 10 %
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

from benches.docker.sides import ORIGINAL, OURS, Side, sides
from tests.docker.hosts import DockerHost
from tests.docker.load import (
    create_container,
    race,
    remove_container,
    start_container,
    stored,
    storm,
)
from tests.netns.world import eventually

EACH = 16
AT_ONCE = 8
NETWORKS = 60
SLOWER_MAX = 1.10


def races(count: int) -> bool:
    """Two hosts create a network of one name at the same moment, again and again."""
    print(f"{count} races of two hosts for a name: 0 duplicates")
    with sides("blr", OURS) as (side,):
        found = [race(side.world, f"raced{number}") for number in range(count)]
        used = stored(side.world[1])["pools"]["used"]
    duplicates = sum(one.duplicates for one in found)
    both = sum(one.accepted == len(side.world.hosts) for one in found)
    settled_s = [one.settled_s for one in found]
    print(
        f"duplicates {duplicates}; both calls taken at first {both}; one network everywhere after "
        f"{spread([s * 1000 for s in settled_s])} ms; subnets left over {len(used)}"
    )
    return not duplicates and not used


def starts(rounds: int) -> bool:
    """16 containers on each of two hosts, 8 at a time; then all of them removed."""
    wanted = rounds * 2 * EACH
    print(f"{EACH} + {EACH} starts, {AT_ONCE} at a time and host, {rounds} rounds: {wanted} start")
    started = 0
    with sides("bls", OURS) as (side,):
        here, there = side.world.hosts
        side.create_network(here, "stormy", "10.81.0.0/24")
        eventually(lambda: "stormy" in there.networks(), what="the network is there")
        for number in range(1, rounds + 1):
            outcome = storm(side.world, "stormy", each=EACH, at_once=AT_ONCE)
            started += outcome.started
            print(
                f"round {number}: {outcome.started} of {outcome.wanted} in "
                f"{outcome.starts_s:.1f} s, removed in {outcome.removals_s:.1f} s"
            )
            for failure in outcome.failures:
                print(f"    {failure}")
        here.api("DELETE", "/networks/stormy")
    print(f"{started} of {wanted} started; no address twice, nothing left")
    return started == wanted


def growth(count: int) -> bool:
    """Starts on one network, alone and beside 59 others, and beside 59 that are in use."""
    print(f"{NETWORKS} networks slow a start by less than {(SLOWER_MAX - 1) * 100:.0f} %")
    good = True
    with sides("blg", OURS, ORIGINAL) as found:
        for side in found:
            slower = _growth_of(side, count)
            good = good and (side.name != OURS or max(slower) < SLOWER_MAX)
    return good


def _growth_of(side: Side, count: int) -> list[float]:
    here, there = side.world.hosts
    side.create_network(here, "first", "10.82.0.0/24")
    start_container(here, create_container(here, "first"))
    mover = create_container(here, "first")
    start_container(here, mover)
    alone = [_start_ms(side) for _ in range(count)]
    others = [f"other{number}" for number in range(NETWORKS - 1)]
    for name in others:
        side.create_network(here, name)
    eventually(lambda: _listed(there) >= set(others), within_s=30, what="all are there")
    beside = [_start_ms(side) for _ in range(count)]
    for name in others:
        here.api("POST", f"/networks/{name}/connect", {"Container": mover})
    among = [_start_ms(side) for _ in range(count)]
    remove_container(here, mover)
    for name in others:
        here.api("DELETE", f"/networks/{name}")
    eventually(lambda: not _listed(there) & set(others), within_s=30, what="all are gone")
    # The machine may be slower by now than it was at first.
    alone += [_start_ms(side) for _ in range(count)]
    base = statistics.median(alone)
    slower = [statistics.median(values) / base for values in (beside, among)]
    print(
        f"{side.name}: alone {spread(alone)} ms; beside {NETWORKS - 1} networks {spread(beside)} "
        f"ms, {slower[0]:.2f} times; beside {NETWORKS - 1} in use on the host {spread(among)} ms, "
        f"{slower[1]:.2f} times"
    )
    return slower


def _start_ms(side: Side) -> float:
    host = side.world[1]
    container = create_container(host, "first")
    began = time.perf_counter()
    start_container(host, container)
    elapsed_ms = (time.perf_counter() - began) * 1000
    remove_container(host, container)
    return elapsed_ms


def spread(values: Sequence[float]) -> str:
    """The median, and the smallest and the largest."""
    return f"{statistics.median(values):.0f} [{min(values):.0f}..{max(values):.0f}]"


def _listed(host: DockerHost) -> set[str]:
    return {network["Name"] for network in host.api("GET", "/networks")}


def main() -> int:
    """Does one of the three."""
    parser = argparse.ArgumentParser(description="Many things at once on two Engines.")
    kinds = parser.add_subparsers(required=True)
    for name, action, option, default in (
        ("races", races, "--races", 100),
        ("starts", starts, "--rounds", 4),
        ("growth", growth, "--starts", 20),
    ):
        kind = kinds.add_parser(name)
        kind.add_argument(option, dest="size", type=int, default=default)
        kind.set_defaults(action=action)
    wanted = parser.parse_args()
    return 0 if wanted.action(wanted.size) else 1


if __name__ == "__main__":
    sys.exit(main())
