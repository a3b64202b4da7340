"""Why frames are dropped, in words. docs/dataplane.md says what to do about each."""

from __future__ import annotations

from typing import Final

DROPS: Final = {
    "truncated": "datagram shorter than a VXLAN header",
    "vxlan_flags": "no VXLAN, or another variant of it",
    "vni_unknown": "no network of this host has its VNI",
    "source_not_vtep": "its sender is no host of this network",
    "source_mac_unknown": "no endpoint has its source MAC",
    "source_mac_elsewhere": "its source MAC is that of an endpoint on another host",
    "frame_malformed": "no Ethernet frame of a station, or a broken ARP or neighbour message",
    "frame_too_big": "longer than the network's MTU",
    "offload_malformed": "the kernel asked for an offload that the frame does not allow",
    "destination_unknown": "no endpoint of another host has its destination MAC",
    "neighbour_unknown": "asks for an address that no endpoint of another host has",
    "multicast_off": "broadcast or multicast on a network without it",
    "flood_rate": "more broadcast and multicast than the network's rate",
    "flood_empty": "broadcast or multicast while no other host is in the network",
    "port_full": "the receiving bridge or container is too slow",
    "port_down": "the network's port here is down or gone",
    "receive_full": "the socket's buffer was full, or the outer checksum wrong",
    "underlay_full": "the underlay's queue was full",
    "underlay_mtu": "its datagram is longer than the underlay's MTU",
    "underlay_error": "the kernel refused to send: no route, address gone, or firewall",
    "path_mtu": "longer than gets through to its host; the sender was told",
    "probe_stranger": "a probe of a host that shares no network, or an answer to no request",
    "probe_rate": "more probes of one host than are answered",
}


def in_words(reason: str) -> str:
    """Gives what a reason means, with its name."""
    words = DROPS.get(reason)
    return f"{words} ({reason})" if words else reason
