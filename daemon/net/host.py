"""What the host has on its own: addresses, routes, the interface that carries the underlay."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable, Mapping

from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.model import DOCKER_BRIDGE, Address, Cidr, Interface
from pyvxlan.daemon.net import links, namespaces
from pyvxlan.daemon.net.links import KernelLink
from pyvxlan.daemon.net.values import GATEWAY_BRIDGE, NAMES_LINK

NOT_UNDERLAY = frozenset({GATEWAY_BRIDGE, NAMES_LINK, "docker0", DOCKER_BRIDGE})
"""Links for this host's own containers: other hosts reach none of their addresses."""


def read(home: int) -> Mapping[str, KernelLink]:
    """Reads all links of the host's namespace, with addresses and routes."""
    with namespaces.entered(home) as netlink:
        return links.read_links(netlink, routes=True)


def addresses(found: Mapping[str, KernelLink]) -> list[tuple[str, Interface]]:
    """Addresses that other hosts might reach, each with its interface, IPv4 first."""
    pairs = [
        (name, address)
        for name, entry in found.items()
        if name not in NOT_UNDERLAY
        for address in entry.link.addresses
        if _is_global(address.ip)
    ]
    return sorted(pairs, key=lambda pair: (pair[1].version, pair[0], pair[1]))


def routes(found: Mapping[str, KernelLink]) -> list[tuple[Cidr, str]]:
    """What the host routes, and over which link.

    Without default routes, link-local ranges and our gateway bridge.
    """
    routed = {
        (route.destination, name)
        for name, entry in found.items()
        if name != GATEWAY_BRIDGE
        for route in entry.link.routes
        if route.destination.prefixlen and not route.destination.is_link_local
    }
    return sorted(routed, key=lambda one: (one[0].version, *one))


def mtu(found: Mapping[str, KernelLink], address: Address) -> int:
    """MTU in bytes of the interface that holds an address.

    Raises:
        ConfigError: No interface has it.
    """
    return found[holder(found, address)].link.mtu_bytes


def holder(found: Mapping[str, KernelLink], address: Address) -> str:
    """Name of the interface that holds an address.

    Raises:
        ConfigError: None does.
    """
    for name, entry in found.items():
        if any(held.ip == address for held in entry.link.addresses):
            return name
    raise ConfigError(f"{address} is no address of this host; {_choice(found)}")


def unusable(home: int, address: Address) -> bool:
    """Tells whether the kernel keeps an address of the host's from use.

    It does so with IPv6 addresses: until nobody on the link was found to have the same one, for
    good if somebody was, and on a link that is down or has no carrier.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with namespaces.inside(home), socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return True
    return False


def advertised(found: Mapping[str, KernelLink], text: str | None) -> Address:
    """Finds the underlay address: the one given, or of the interface given, or the obvious one.

    Without `text`, that is an address on the interface of the default route, or the host's only
    address; IPv4 goes before IPv6.

    Raises:
        ConfigError: There is none, or no way to choose.
    """
    if text:
        return _named(found, text)
    pairs = addresses(found)
    if ways_out := _default_interfaces(found):
        pairs = [(name, address) for name, address in pairs if name in ways_out] or pairs
    for version in (4, 6):
        fitting = [address.ip for _, address in pairs if address.version == version]
        if len(fitting) == 1 or (fitting and ways_out):
            return fitting[0]
        if fitting:
            break
    raise ConfigError(f"the underlay address is not obvious; {_choice(found)}")


def _named(found: Mapping[str, KernelLink], text: str) -> Address:
    if text in found:
        return _of_interface(found, text)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"{text} is no address or interface; {_choice(found)}") from None
    holder(found, address)
    return address


def _of_interface(found: Mapping[str, KernelLink], name: str) -> Address:
    usable = [address.ip for of, address in addresses(found) if of == name]
    preferred = [address for address in usable if address.version == usable[0].version]
    if len(preferred) == 1:
        return preferred[0]
    if preferred:
        raise ConfigError(
            f"interface {name} has several addresses: set --advertise to one of "
            f"{', '.join(map(str, preferred))}"
        )
    held = sorted(address.ip.compressed for address in found[name].link.addresses)
    if not held:
        why = "has no address"
    elif name in NOT_UNDERLAY:
        why = "is for this host's own containers: no other host reaches it"
    else:
        why = f"has no address that another host can reach (only {', '.join(held)})"
    raise ConfigError(f"interface {name} {why}; {_choice(found)}")


def _default_interfaces(found: Mapping[str, KernelLink]) -> set[str]:
    return {
        name
        for name, entry in found.items()
        if any(route.destination.prefixlen == 0 for route in entry.link.routes)
    }


def _choice(found: Mapping[str, KernelLink]) -> str:
    pairs: Iterable[str] = (f"{address.ip} ({name})" for name, address in addresses(found))
    listed = ", ".join(pairs)
    if not listed:
        return "this host has no usable address: give an interface one"
    return f"set --advertise to one of {listed}"


def _is_global(address: Address) -> bool:
    return not (address.is_loopback or address.is_link_local or address.is_multicast)
