"""How long Docker takes with our plug-in and with the original overlay driver, in one run.

Two hosts each, in namespaces, both on an etcd; the two take turns, and who begins changes from
round to round. Times are those of the Engine's API as a client sees them. "ready on the other
host" is counted from the call, since the original makes a network known before its call returns.
Prints medians with the smallest and the largest, and the ratio; writes all samples as JSON.

    python -m benches.docker.speed [--rounds N] [--late N] [--seconds S] [--only SIDE] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import socket
import statistics
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import dns.message
import dns.rdatatype

from benches.docker.sides import ORIGINAL, OURS, Side, sides
from tests.docker.hosts import DockerHost
from tests.docker.load import create_container, remove_container, start_container
from tests.netns.world import inside

POLL_S = 0.003
PATIENCE_S = 20.0
SETTLE_S = 0.4
"""Between two measurements: what goes on in the background after a call ends meanwhile."""
Samples = defaultdict[str, defaultdict[str, list[float]]]
"""Values by measure and side; milliseconds, or requests where the measure says so."""

OVERLAY = "10.80.0.0/24"


class Bench:
    """The measurements of one side."""

    def __init__(self, side: Side, samples: Samples) -> None:
        self.side = side
        self.here, self.there = side.world.hosts
        self._samples = samples
        self._address = 16

    def prepare(self) -> None:
        """Makes the networks that are there all the time."""
        self.side.create_network(self.here, "ov", OVERLAY)
        self.here.api("POST", "/networks/create", {"Name": "user", "Driver": "bridge"})
        until(lambda: "ov" in names(self.there))
        start_container(self.here, create_container(self.here, "ov", "10.80.0.8"))

    def staff(self) -> None:
        """Starts the containers that are there all the time, after the late joiners."""
        self._watcher = create_container(self.there, "ov", "10.80.0.9")
        start_container(self.there, self._watcher)
        self._mover = create_container(self.here, "bridge")
        start_container(self.here, self._mover)
        self._watching = Path(f"/proc/{self.there.pid_of(self._watcher)}/ns/net")
        time.sleep(1)

    def round(self) -> None:
        """Each measurement once."""
        for network in ("none", "bridge", "user"):
            container = create_container(self.here, network)
            self._timed(f"start on {network}", lambda c=container: start_container(self.here, c))
            time.sleep(SETTLE_S)
            self._timed(f"rm -f on {network}", lambda c=container: remove_container(self.here, c))
        self._overlay_start()
        self._network()
        self._connect()

    def late(self) -> None:
        """The first ping of a container on a host that joined after its target was started."""
        target = self._next_address()
        container = create_container(self.here, "ov", target)
        start_container(self.here, container)
        self.side.rejoin(self.there)
        until(lambda: "ov" in names(self.there))
        late = create_container(self.there, "ov", self._next_address())
        start_container(self.there, late)
        place = Path(f"/proc/{self.there.pid_of(late)}/ns/net")
        self._timed("first ping of a late joiner", lambda: pinged(place, target))
        remove_container(self.there, late)
        remove_container(self.here, container)

    def _overlay_start(self) -> None:
        address = self._next_address()
        name = f"c{secrets.token_hex(4)}"
        container = create_container(self.here, "ov", address, name=name)
        time.sleep(SETTLE_S)
        before = self.side.requests()
        with self._beside(
            "start on overlay -> its name answers on the other host",
            lambda: resolved(self._watching, name),
        ):
            self._timed("start on overlay", lambda: start_container(self.here, container))
        self._timed("first ping from the other host", lambda: pinged(self._watching, address))
        time.sleep(SETTLE_S)
        asked = self.side.requests() - before
        self._note("store reads per start", asked.reads)
        self._note("store writes per start", asked.writes)
        before = self.side.requests()
        self._timed("rm -f on overlay", lambda: remove_container(self.here, container))
        time.sleep(SETTLE_S)
        asked = self.side.requests() - before
        self._note("store reads per rm -f", asked.reads)
        self._note("store writes per rm -f", asked.writes)

    def _network(self) -> None:
        name = f"n{secrets.token_hex(4)}"
        with self._beside(
            "network create -> visible on the other host",
            lambda: until(lambda: name in names(self.there)),
        ):
            self._timed("network create", lambda: self.side.create_network(self.here, name))
        time.sleep(SETTLE_S)
        first = create_container(self.here, name)
        self._timed(
            "start of a network's first container", lambda: start_container(self.here, first)
        )
        time.sleep(SETTLE_S)
        remove_container(self.here, first)
        time.sleep(SETTLE_S)
        with self._beside(
            "network rm -> gone on the other host",
            lambda: until(lambda: name not in names(self.there)),
        ):
            self._timed("network rm", lambda: self.here.api("DELETE", f"/networks/{name}"))
        time.sleep(SETTLE_S)

    def _connect(self) -> None:
        for what in ("connect", "disconnect"):
            body = {"Container": self._mover} | ({"Force": False} if what == "disconnect" else {})
            self._timed(
                f"network {what}",
                lambda w=what, b=body: self.here.api("POST", f"/networks/ov/{w}", b),
            )
            time.sleep(SETTLE_S)

    def _next_address(self) -> str:
        self._address += 1
        return f"10.80.0.{self._address}"

    def _timed(self, measure: str, action: Callable[[], object]) -> None:
        started = time.perf_counter()
        action()
        self._note(measure, (time.perf_counter() - started) * 1000)

    @contextmanager
    def _beside(self, measure: str, wait: Callable[[], object]) -> Iterator[None]:
        """Times how long after now `wait` returns, while something else goes on."""
        failures: list[Exception] = []

        def body() -> None:
            try:
                self._timed(measure, wait)
            except Exception as error:  # noqa: BLE001 - raised below
                failures.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        try:
            yield
        finally:
            thread.join()
        if failures:
            raise failures[0]

    def _note(self, measure: str, value: float) -> None:
        self._samples[measure][self.side.name].append(value)


def until(condition: Callable[[], bool]) -> None:
    """Returns when a condition holds; looks every few milliseconds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("not in time")
        time.sleep(POLL_S)


def names(host: DockerHost) -> set[str]:
    """Names of an Engine's networks."""
    return {entry["Name"] for entry in host.api("GET", "/networks")}


def pinged(place: Path, address: str) -> None:
    """Sends one ping from a namespace, and returns when it is answered."""

    def ping() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.settimeout(PATIENCE_S)
            mark = os.getpid() & 0xFFFF
            raw.sendto(echo_request(mark), (address, 0))
            while True:
                answer = raw.recv(256)[20:]
                if answer[0] == 0 and struct.unpack("!H", answer[4:6])[0] == mark:
                    return

    inside(place, ping)


def echo_request(mark: int) -> bytes:
    """Builds an ICMP echo request (RFC 792)."""
    total = (8 << 8) + mark
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, mark, 0)


def resolved(place: Path, name: str) -> None:
    """Asks the name server of a container again and again until it knows a name."""

    def ask() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            query = dns.message.make_query(name, dns.rdatatype.A)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                udp.settimeout(0.05)
                udp.connect(("127.0.0.11", 53))
                udp.send(query.to_wire())
                try:
                    answer = dns.message.from_wire(udp.recv(4096))
                except OSError:
                    continue
            if answer.answer:
                return
            time.sleep(POLL_S)
        raise AssertionError(f"{name} does not resolve")

    inside(place, ask)


def table(samples: Samples) -> str:
    """The samples as a table: medians, and the smallest and the largest of them."""
    lines = [
        "| milliseconds unless it says otherwise | here | original | here / original |",
        "|---|---|---|---|",
    ]
    for measure, values in samples.items():
        cells = []
        for name in (OURS, ORIGINAL):
            found = values.get(name)
            cells.append(
                f"{statistics.median(found):.0f} [{min(found):.0f}..{max(found):.0f}]"
                if found
                else ""
            )
        ratio = ""
        if len(values) == 2 and statistics.median(values[ORIGINAL]):
            medians = statistics.median(values[OURS]), statistics.median(values[ORIGINAL])
            ratio = f"{medians[0] / medians[1]:.2f}"
        lines.append(f"| {measure} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints; the bounds hold for the measuring, starting and ending come on top."""
    parser = argparse.ArgumentParser(description="Docker's speed with ours and with the original.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--late", type=int, default=3, help="rounds with a late joiner")
    parser.add_argument("--seconds", type=float, default=600, help="begin no round after that")
    parser.add_argument("--only", choices=(OURS, ORIGINAL))
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    samples: Samples = defaultdict(lambda: defaultdict(list))
    with sides("bd", *((wanted.only,) if wanted.only else (OURS, ORIGINAL))) as found:
        benches = [Bench(side, samples) for side in found]
        for bench in benches:
            bench.prepare()
        deadline = time.monotonic() + wanted.seconds
        for _ in range(wanted.late):
            for bench in benches:
                if time.monotonic() < deadline:
                    bench.late()
        for bench in benches:
            bench.staff()
        for number in range(wanted.rounds):
            if time.monotonic() > deadline:
                break
            for bench in benches[:: 1 if number % 2 else -1]:
                bench.round()
    print(table(samples))
    if wanted.json:
        document = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": {"kernel": platform.release(), "cpus": os.cpu_count()},
            "samples": samples,
        }
        wanted.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    sys.exit(main())
