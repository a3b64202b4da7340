"""Veth pairs between a bridge of ours and a sandbox: made, put right, recognised, removed."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping

from pyvxlan.daemon.errors import ConflictError, ExhaustedError, NetError
from pyvxlan.daemon.net import links, namespaces, sysctl
from pyvxlan.daemon.net.links import KernelLink
from pyvxlan.daemon.net.netlink import Netlink
from pyvxlan.daemon.net.values import Veth

log = logging.getLogger(__name__)

BRIDGE_PORTS_MAX = 1023
"""Ports that a Linux bridge can have (BR_PORT_BITS in net/bridge/br_private.h)."""


def ensure(outer_netns: int, sandbox: int, veth: Veth) -> None:
    """Makes a pair what it should be; if it can't, a pair that this call made is removed again.

    Raises:
        ConflictError: The sandbox has an interface of that name, or a route to the same
            destination.
        ExhaustedError: The bridge has all the ports that it can have.
        NetError: The bridge is missing.
    """
    with namespaces.entered(outer_netns) as outer:
        made = _ensure_pair(outer, sandbox, veth)
        try:
            _shape_outer(outer, veth)
            _shape_inner(sandbox, veth)
        except BaseException:
            if made:
                remove(outer, veth.outer_name)
            raise


def hand_over(outer_netns: int, home: int, sandbox: int | None, veth: Veth) -> None:
    """Makes a pair whose inner end waits in the host's namespace, unless there is the pair already.

    With the name that Docker has given it, it was fetched before: a pair that is missing was lost,
    and is made inside the sandbox, whole.
    """
    if not veth.inner_name:
        sandbox = None
    with namespaces.entered(outer_netns) as outer:
        made = links.find(outer, veth.outer_name) is None
        if made and sandbox is None:
            with namespaces.entered(home) as own:
                remove(own, veth.handover)
            ends = (veth.outer_name, veth.outer), (veth.handover, veth.inner)
            links.create_veth(outer, *ends, home)
        if not made or sandbox is None:
            try:
                _shape_outer(outer, veth)
            except BaseException:
                if made:
                    remove(outer, veth.outer_name)
                raise
            return
    ensure(outer_netns, sandbox, veth)


def is_pair(outer: KernelLink | None, inner: KernelLink | None) -> bool:
    """Whether two links of two namespaces are the ends of one pair."""
    return (
        outer is not None
        and inner is not None
        and outer.kind == inner.kind == "veth"
        and (outer.peer, inner.peer) == (inner.index, outer.index)
    )


def remove(netlink: Netlink, outer_name: str) -> None:
    """Removes a pair by its outer end; one that is not there is no error."""
    found = links.find(netlink, outer_name)
    if found is None:
        return
    try:
        links.delete(netlink, found.index)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def _ensure_pair(outer: Netlink, sandbox: int, veth: Veth) -> bool:
    """Makes the pair unless it is there; tells whether it did."""
    with namespaces.entered(sandbox) as inner:
        if is_pair(links.find(outer, veth.outer_name), links.find(inner, veth.inner_name)):
            return False
        remove(outer, veth.outer_name)
        if links.find(inner, veth.inner_name) is not None:
            raise ConflictError(
                f"the sandbox has an interface {veth.inner_name} that is not ours: "
                "choose another name with --ifname, or remove it"
            )
    ends = (veth.outer_name, veth.outer), (veth.inner_name, veth.inner)
    links.create_veth(outer, *ends, sandbox)
    return True


def _shape_outer(outer: Netlink, veth: Veth) -> None:
    end, bridge = links.find(outer, veth.outer_name), links.find(outer, veth.outer.master)
    if end is None or bridge is None:
        missing = veth.outer.master if end else veth.outer_name
        raise NetError(f"{missing} is missing; it is made again in a moment")
    try:
        links.shape(outer, end, veth.outer, master=bridge.index, alias=veth.alias)
    except OSError as error:
        if error.errno != errno.EXFULL:
            raise
        raise ExhaustedError(
            f"bridge {veth.outer.master} is full: it has {BRIDGE_PORTS_MAX} ports, the most that "
            "Linux allows; detach an endpoint of this network on this host, or use another host"
        ) from error
    sysctl.limit_ipv6(veth.outer_name, enabled=False)
    links.activate(outer, end.index, veth.outer)


def _shape_inner(sandbox: int, veth: Veth) -> None:
    with namespaces.entered(sandbox) as inner:
        if loopback := links.find(inner, "lo"):
            links.set_up(inner, loopback.index)
        if (end := links.find(inner, veth.inner_name)) is None:
            raise NetError(f"{veth.inner_name} vanished from the sandbox; it is made again")
        links.shape(inner, end, veth.inner)
        sysctl.limit_ipv6(veth.inner_name, enabled=veth.inner.ipv6)
        links.activate(inner, end.index, veth.inner)
        _ensure_routes(inner, links.read_links(inner, routes=True), veth)


def _ensure_routes(inner: Netlink, found: Mapping[str, KernelLink], veth: Veth) -> None:
    end = found[veth.inner_name]
    missing = veth.inner.routes - end.link.routes
    for route in sorted(missing, key=lambda route: route.destination.prefixlen, reverse=True):
        default = route.destination.prefixlen == 0
        if default and route.destination.version in end.link.default_routes:
            log.info("default route left alone interface=%s alias=%s", veth.inner_name, veth.alias)
            continue
        try:
            links.add_route(inner, end.index, route)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            raise ConflictError(
                f"the sandbox has another route to {route.destination}: remove that one, or "
                "attach to a network whose subnets do not overlap with it"
            ) from error
