"""Whether the network cards below the underlay join what they receive (GRO): a check of `doctor`.

With it the kernel joins datagrams of one flow before they go through IP and UDP, and the forwarder
gets a run of up to 64 at once (docs/performance.md). It is on by default and needs nothing of the
card but a driver that uses NAPI. Virtual links below the underlay (veth) are no cards: what crosses
them may never have been cut.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyvxlan.daemon.findings import Finding
from pyvxlan.daemon.hostview import Host

SIOCETHTOOL = 0x8946
"""linux/sockios.h"""
ETHTOOL_GGRO = 0x2B
"""linux/ethtool.h"""
LINKS = Path("/sys/class/net")


def check_receive_offload(host: Host) -> Finding | None:
    """Whether the cards below the underlay join what they receive."""
    if host.underlay is None:
        return None
    return receive_offload_of({card: joins(card) for card in cards(host.underlay["ifname"])})


def receive_offload_of(joining: Mapping[str, bool | None]) -> Finding | None:
    """Judges cards by name, of which None does not tell; there is nothing to say of no card."""
    told = {card: on for card, on in joining.items() if on is not None}
    if not told:
        return None
    if off := [card for card, on in told.items() if not on]:
        text = (
            f"generic-receive-offload of {', '.join(off)} is off, so the kernel takes every "
            f"datagram by itself, and TCP is slower: ethtool -K {off[0]} gro on"
        )
        return Finding("warning", "offload", text)
    return Finding("ok", "offload", f"generic-receive-offload of {', '.join(told)} is on")


def cards(link: str, links: Path = LINKS) -> Iterator[str]:
    """Gives the cards that a link stands on (bridge, bond, VLAN), or the link itself if it is one.

    Args:
        link: Name of an interface.
        links: Where the kernel lists them.
    """
    if (links / link / "device").exists():
        yield link
    for entry in sorted((links / link).glob("lower_*")):
        yield from cards(entry.name.removeprefix("lower_"), links)


def joins(link: str) -> bool | None:
    """Whether GRO is on at a link; None if the kernel does not tell."""
    value = array.array("I", [ETHTOOL_GGRO, 0])  # struct ethtool_value
    address, _ = value.buffer_info()
    request = struct.pack("16sP16x", link.encode(), address)  # struct ifreq
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCETHTOOL, request)
    except OSError:
        return None
    return bool(value[1])
