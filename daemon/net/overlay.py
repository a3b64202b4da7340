"""An overlay namespace: its file, its bridge, its port; see docs/host.md."""

from __future__ import annotations

from pathlib import Path

from pyvxlan.daemon.errors import NetError
from pyvxlan.daemon.net import links, namespaces, sysctl
from pyvxlan.daemon.net.values import BRIDGE, PORT, Link


def ensure_namespace(file: Path, adopt: int | None) -> None:
    """Puts a namespace on `file`, the one behind the descriptor `adopt` if given.

    In a new one nothing has IPv6 unless it is given to it, since bridge ports need none.
    """
    namespaces.create(file, adopt)
    if adopt is None:
        opened = namespaces.open_namespace(file)
        with namespaces.closing(opened), namespaces.inside(opened):
            sysctl.write("ipv6/conf/default/disable_ipv6", "1")


def ensure_bridge(netns: int, wanted: Link) -> None:
    """Makes `br0` what it should be, and brings the loopback up."""
    with namespaces.entered(netns) as netlink:
        if loopback := links.find(netlink, "lo"):
            links.set_up(netlink, loopback.index)
        bridge = links.find(netlink, BRIDGE)
        if bridge is not None and bridge.kind != "bridge":
            links.delete(netlink, bridge.index)
            bridge = None
        if bridge is None:
            links.create_bridge(netlink, BRIDGE, wanted)
            bridge = links.find(netlink, BRIDGE)
        if bridge is None:
            raise NetError(f"{BRIDGE} vanished while it was made; it is made again in a moment")
        for family in ("arp", "ip", "ip6"):
            # Nobody has rules for frames in here; to look for some would cost time with each frame.
            sysctl.write(f"bridge/bridge-nf-call-{family}tables", "0")
        # In this order: an MTU under 1280 takes IPv6 from an interface, one above makes it anew.
        links.shape(netlink, bridge, wanted)
        sysctl.limit_ipv6(BRIDGE, enabled=wanted.ipv6)
        links.activate(netlink, bridge.index, wanted)
        links.add_missing_routes(netlink, bridge.index, wanted)


def ensure_port(netns: int, wanted: Link) -> None:
    """Hangs `vxlan0`, which the data plane has made, on the bridge and sets it up."""
    with namespaces.entered(netns) as netlink:
        port, bridge = links.find(netlink, PORT), links.find(netlink, BRIDGE)
        if port is None or bridge is None:
            missing = BRIDGE if port else PORT
            raise NetError(f"{missing} is missing in the overlay namespace; it is made again")
        links.shape(netlink, port, wanted, master=bridge.index)
        sysctl.limit_ipv6(PORT, enabled=wanted.ipv6)
        links.queue_nothing(netlink, port.index)
        links.activate(netlink, port.index, wanted)
