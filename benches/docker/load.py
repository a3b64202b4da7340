"""Many things at once, at full size: names raced for, containers started together, many networks.

Two Engines with our plug-in in namespaces, on an etcd; `growth` has two such pairs, or two of the
original's. Each ends with 1 if what the first line of its output demands is not so, and fails if it
is not done in time.

    python -m benches.docker.load races [--races 100]     0 duplicates
    python -m benches.docker.load starts [--rounds 4]     128 of 128 start, nothing is left
    python -m benches.docker.load growth [--rounds 16]    60 networks slow a start by less than 10 %
    python -m benches.docker.load growth --side original  the same of the original overlay driver
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from types import FrameType

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
SETTLE_S = 0.15
"""Between two calls that are timed: what goes on in the background after a call ends meanwhile."""


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


def growth(rounds: int, kind: str) -> bool:
    """Starts beside 59 other networks and without, by turns on two pairs of hosts that are alike.

    The others lie idle at first; then a container of the same host is on all of them. Starts on a
    bridge of the user's tell how much of it is Docker's own.
    """
    print(f"{NETWORKS} networks slow a start by less than {(SLOWER_MAX - 1) * 100:.0f} %")
    with sides("blg", kind, kind) as (few, many):
        movers = [_staff(side) for side in (few, many)]
        here, there = many.world.hosts
        others = [f"other{number}" for number in range(NETWORKS - 1)]
        for name in others:
            many.create_network(here, name)
        eventually(lambda: _listed(there) >= set(others), within_s=30, what="all are there")
        idle = _compare(f"{kind}, beside {len(others)} networks", few, many, rounds)
        for name in others:
            here.api("POST", f"/networks/{name}/connect", {"Container": movers[1]})
        used = _compare(f"{kind}, beside {len(others)} in use", few, many, rounds)
        remove_container(here, movers[1])
        for name in others:
            here.api("DELETE", f"/networks/{name}")
        eventually(lambda: not _listed(there) & set(others), within_s=30, what="all are gone")
    return kind == ORIGINAL or max(idle, used) < SLOWER_MAX


def _staff(side: Side) -> str:
    """Makes what both pairs of hosts have; gives a container that may join other networks."""
    here, there = side.world.hosts
    side.create_network(here, "first", "10.82.0.0/24")
    here.api("POST", "/networks/create", {"Name": "user", "Driver": "bridge"})
    eventually(lambda: "first" in _listed(there), within_s=30, what="first is there")
    mover = create_container(here, "first")
    for container in (create_container(here, "first"), create_container(here, "user"), mover):
        start_container(here, container)
    return mover


def _compare(what: str, few: Side, many: Side, rounds: int) -> float:
    """Starts a container on each side by turns; gives how many times as long the second takes."""
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(rounds):
        for network in ("first", "user"):
            pairs = [("few", few), ("many", many)]
            for name, side in pairs[:: 1 if number % 2 else -1]:
                samples[network, name].append(_start_ms(side, network))
    ratios = {}
    for network, label in (("first", "overlay"), ("user", "Docker's own bridge")):
        alone, beside = samples[network, "few"], samples[network, "many"]
        ratios[network] = statistics.median(beside) / statistics.median(alone)
        print(
            f"{what}: start on {label} {spread(alone)} ms without them, {spread(beside)} ms with "
            f"them: {ratios[network]:.2f} times"
        )
    return ratios["first"]


def _start_ms(side: Side, network: str) -> float:
    host = side.world[1]
    container = create_container(host, network)
    time.sleep(SETTLE_S)
    began = time.perf_counter()
    start_container(host, container)
    elapsed_ms = (time.perf_counter() - began) * 1000
    time.sleep(SETTLE_S)
    remove_container(host, container)
    return elapsed_ms


def spread(values: Sequence[float]) -> str:
    """The median, and the smallest and the largest."""
    return f"{statistics.median(values):.0f} [{min(values):.0f}..{max(values):.0f}]"


def _listed(host: DockerHost) -> set[str]:
    return {network["Name"] for network in host.api("GET", "/networks")}


def main() -> int:
    """Does one of the three, within a time."""
    parser = argparse.ArgumentParser(description="Many things at once on two Engines.")
    kinds = parser.add_subparsers(required=True)
    for name, action, option, default in (
        ("races", races, "--races", 100),
        ("starts", starts, "--rounds", 4),
        ("growth", growth, "--rounds", 16),
    ):
        kind = kinds.add_parser(name)
        kind.add_argument(option, dest="size", type=int, default=default)
        kind.add_argument("--seconds", type=int, default=600, help="fail after that")
        if action is growth:
            kind.add_argument("--side", choices=(OURS, ORIGINAL), default=OURS)
        kind.set_defaults(action=action)
    wanted = parser.parse_args()

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done in {wanted.seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(wanted.seconds)
    extra = [wanted.side] if wanted.action is growth else []
    good = wanted.action(wanted.size, *extra)
    signal.alarm(0)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
