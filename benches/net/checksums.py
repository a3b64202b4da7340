"""Looks for a bad checksum in what really crosses the cable: `python -m benches.net.checksums`.

Needs root and tshark. TCP and UDP, of IPv4 and IPv6, run from container to container while every
frame between the hosts, none above 1500 bytes, is captured; tshark then verifies the checksums of
all outer and inner headers.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Iterable
from pathlib import Path

from benches.net.__main__ import build_load, load
from benches.net.peers import Ends, Pyvxlan
from tests.netns.captures import capture, end_capture, tshark

STATUS_BAD = "0"
"""`Bad` among tshark's values of a checksum's status (the others: good, unverified, missing)."""
PROTOCOLS = ("ip", "tcp", "udp")


class DualStack(Pyvxlan):
    """pyvxlan with IPv6 in the overlay as well."""

    network_options = ("--ipv6",)


def main() -> int:
    """Captures at least so many frames; fails if one has a bad checksum."""
    parser = argparse.ArgumentParser(prog="python -m benches.net.checksums", description=__doc__)
    parser.add_argument("--frames", default=100_000, type=int, help="how many to verify, at least")
    wanted = parser.parse_args().frames
    build_load()
    peer = DualStack("sums")
    seen: collections.Counter[str] = collections.Counter()
    try:
        peer.site.show("nic")
        while seen["frames"] < wanted:
            for address in peer.overlay_addresses[1]:
                seen += _verified(peer, address)
                print(dict(seen), file=sys.stderr, flush=True)
    finally:
        peer.close()
    print(", ".join(f"{name}: {count}" for name, count in seen.items()))
    bad = [name for name in seen if name.endswith(" bad")]
    return 1 if bad else 0


def _verified(peer: DualStack, address: str) -> collections.Counter[str]:
    """Counts frames that crossed the cable during some load, and their checksums by status."""
    path = peer.site.directory / "wire.pcap"
    ends = Ends(peer.ends.netns, (peer.ends.addresses[0], address))
    host = peer.site.hosts[1]
    # Room for all of it, and whole frames.
    room = ("-B", 131072, "-s", 2048)
    running = capture(host.netns, "under0", path, *room, "udp", "port", 4789)
    load(peer, "tcp", 4, 0.3, ends=ends)
    load(peer, "udp", 1400, 0.02, 1, ends=ends)
    load(peer, "connect", 0.1, ends=ends)
    end_capture(running)
    found = _counted(path)
    path.unlink()
    return found


def _counted(path: Path) -> collections.Counter[str]:
    fields = [f"{protocol}.checksum.status" for protocol in PROTOCOLS]
    counted: collections.Counter[str] = collections.Counter()
    for row in tshark(path, "vxlan.vni", *fields):
        if not row[0]:
            raise AssertionError(f"a frame is no VXLAN: {row}")
        counted["frames"] += 1
        for protocol, statuses in zip(PROTOCOLS, row[1:], strict=True):
            counted.update(_names(protocol, statuses.split(",")))
    return counted


def _names(protocol: str, statuses: Iterable[str]) -> Iterable[str]:
    for status in statuses:
        if status == STATUS_BAD:
            yield f"{protocol} bad"
        elif status:
            yield f"{protocol} {'good' if status == '1' else 'not verified'}"


if __name__ == "__main__":
    sys.exit(main())
