"""Measures peers in turn and prints their table, with ratios to the kernel's vxlan device."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benches.net import peers as known
from benches.net.peers import Ends, Peer
from benches.net.report import measurements
from benches.net.site import PICTURES
from benches.summary import lines, read_net, table

ROOT = Path(__file__).parents[2]
LOAD = ROOT / "target" / "release" / "examples" / "net-load"


def main() -> int:
    """Runs what the command line asks for."""
    options = _options()
    if os.geteuid() != 0:
        sys.exit("needs root: it makes network namespaces")
    classes, left_out = _peers(options)
    build_load()
    samples: list[dict[str, Any]] = []
    if options.json and options.append and options.json.exists():
        samples = json.loads(options.json.read_text())["samples"]
    with contextlib.ExitStack() as standing:
        peers = [standing.enter_context(_standing(name, kind)) for name, kind in classes.items()]
        for picture in options.pictures:
            for peer in peers:
                peer.site.show(picture)
            if picture != "veth":
                for peer in peers:
                    _check_no_large_frames(peer)
            for _ in range(options.rounds):
                for name in options.measurements:
                    for peer in peers:
                        arguments = measurements(options.seconds)[name]
                        sample = {"peer": peer.name, "picture": picture, "measurement": name}
                        samples.append(sample | _measured(peer, arguments))
                        print(_line(samples[-1]), file=sys.stderr, flush=True)
    result = {
        "seconds": options.seconds,
        "against": options.against,
        "left_out": left_out,
        "samples": samples,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(lines(read_net(result), {})))
    return 0


def build_load() -> None:
    """Builds the load generator."""
    subprocess.run(
        ["cargo", "build", "--quiet", "--release", "--locked", "--example", "net-load"],
        cwd=ROOT,
        check=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.net", description=__doc__)
    parser.add_argument("--peers", default=",".join(known.PEERS), type=_words)
    parser.add_argument("--pictures", default=",".join(PICTURES), type=_words)
    parser.add_argument("--measurements", default=",".join(measurements(1)), type=_words)
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--seconds", default=1.0, type=float, help="of one measurement")
    parser.add_argument("--against", default="kernel", help="peer that ratios are taken to")
    parser.add_argument("--json", type=Path, help="file for all samples")
    parser.add_argument("--append", action="store_true", help="adds to the samples of that file")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=DIRECTORY[,FLAG...]",
        help="one more pyvxlan: the directory of its programs, flags of its daemon",
    )
    options = parser.parse_args()
    for name, allowed in (("pictures", PICTURES), ("measurements", measurements(1))):
        if unknown := set(getattr(options, name)) - set(allowed):
            parser.error(f"--{name}: no {', '.join(sorted(unknown))}; there are {list(allowed)}")
    return options


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _peers(options: argparse.Namespace) -> tuple[dict[str, type[Peer]], dict[str, list[str]]]:
    """The peers to measure, and what those need that can't be."""
    chosen: dict[str, type[Peer]] = {}
    left_out: dict[str, list[str]] = {}
    for name in options.peers:
        if name not in known.PEERS:
            sys.exit(f"--peers: no {name}; there are {list(known.PEERS)}")
        if missing := known.PEERS[name].missing():
            left_out[name] = missing
            print(f"left out: {name}, which needs {', '.join(missing)}", file=sys.stderr)
        else:
            chosen[name] = known.PEERS[name]
    for word in options.also:
        name, _, where = word.partition("=")
        directory, *flags = where.split(",")
        programs = Path(directory) if directory else Path(sys.executable).parent
        chosen[name] = known.another(name, programs, *flags)
    return chosen, left_out


@contextlib.contextmanager
def _standing(name: str, kind: type[Peer]) -> Iterator[Peer]:
    peer = kind(name)
    try:
        yield peer
    finally:
        peer.close()


def _check_no_large_frames(peer: Peer) -> None:
    watch = peer.site.watch_large_frames()
    load(peer, "tcp", 1, 0.1)
    if watch.seen():
        raise AssertionError(f"{peer.name}: a frame above 1514 bytes crossed the cable")


def _measured(peer: Peer, arguments: Sequence[object]) -> dict[str, Any]:
    before = _cpu_s(peer.pids())
    values = load(peer, *arguments)
    values["forwarders_cpu_s"] = round(_cpu_s(peer.pids()) - before, 3)
    return values


def _cpu_s(pids: Sequence[int]) -> float:
    """Processor time of processes with their threads; their share of softirqs is in it."""
    total_ns = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def load(peer: Peer, kind: str, *arguments: object, ends: Ends | None = None) -> dict[str, Any]:
    """Runs the load generator once, between the peer's ends or others; returns what it printed."""
    ends = ends or peer.ends
    client, server = (f"/run/netns/{netns}" for netns in ends.netns)
    words = [LOAD, client, server, ends.addresses[1], kind, *arguments]
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise AssertionError(f"{peer.name}: load {kind} {arguments} failed:\n{done.stderr}")
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def _line(sample: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in sample.items())


if __name__ == "__main__":
    sys.exit(main())
