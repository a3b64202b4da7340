"""Addresses: which subnet a network gets, and which address an endpoint. Pure.

Nothing here knows the store: what is taken comes in as a set, and randomness as an argument.
Messages name the value and the remedy, since they reach the user as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from random import Random
from types import MappingProxyType

from pyvxlan.daemon.errors import ConflictError, ExhaustedError, InvalidError
from pyvxlan.daemon.model import Address, Cidr, Interface, Subnet
from pyvxlan.daemon.records import Pool, derived_mac

RANDOM_TRIES = 64
SUBNETS_MAX = 8
AUX_MAX = 12
"""Addresses of a network that nobody gets; each is a claim, and a transaction has 32 parts."""
PREFIX_LENGTHS = {4: (8, 30), 6: (48, 126)}
"""Shortest and longest prefix of a network's subnet, by IP version."""
RESERVED: tuple[Cidr, ...] = (
    *map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4")),
    *map(IPv6Network, ("::/8", "fe80::/10", "ff00::/8")),
)
"""Addresses that are no host's outside of one link (RFC 6890); with `::/8` all that mean IPv4."""


def overlap(one: Cidr, other: Cidr) -> bool:
    """Tells whether two ranges share an address; ranges of different versions never do."""
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def within(inner: Cidr, outer: Cidr) -> bool:
    """Tells whether all of `inner` lies in `outer`."""
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def as_cidr(address: Address) -> Cidr:
    """Gives the range that holds one address alone."""
    return ip_network(address)


def with_prefix(address: Address, cidr: Cidr) -> Interface:
    """Gives an address the prefix length of its subnet."""
    return ip_interface((address, cidr.prefixlen))


def address_in(cidr: Cidr, packed: bytes) -> Address | None:
    """Gives the address with these bytes if it lies in `cidr`."""
    if len(packed) * 8 != cidr.max_prefixlen:
        return None
    address = ip_address(packed)
    return address if address in cidr else None


def mac_for(address: Address) -> bytes:
    """Gives 02:42 followed by the last four bytes of an address: unique in an IPv4 network."""
    return derived_mac(address)


def link_local(mac: bytes) -> IPv6Interface:
    """Derives the link-local address of an interface, as the kernel does (RFC 4291, appendix A)."""
    packed = bytes((mac[0] ^ 2, mac[1], mac[2], 0xFF, 0xFE, *mac[3:]))
    return IPv6Interface((b"\xfe\x80" + bytes(6) + packed, 64))


def parse_subnet(text: str) -> Cidr:
    """Reads a subnet that a user wrote.

    Raises:
        InvalidError: Not a CIDR, with host bits, of a useless size, or of a reserved range.
    """
    _refuse_interface(text, "subnet")
    try:
        cidr = ip_network(text)
    except ValueError as error:
        try:
            meant = ip_interface(text).network
        except ValueError:
            raise InvalidError(
                f"subnet {text!r} is not a range such as 10.1.0.0/24 or fd00:1::/64"
            ) from error
        raise InvalidError(f"subnet {text!r} has host bits set: did you mean {meant}?") from error
    low, high = PREFIX_LENGTHS[cidr.version]
    if not low <= cidr.prefixlen <= high:
        raise InvalidError(f"subnet {text}: the prefix must be from /{low} to /{high}")
    for reserved in RESERVED:
        if overlap(cidr, reserved):
            raise InvalidError(
                f"subnet {text} shares addresses with {reserved}, which is reserved: "
                "choose a private one such as 10.1.0.0/24 or fd00:1::/64"
            )
    return cidr


def plan_subnets(
    subnets: Sequence[Cidr],
    gateways: Sequence[str],
    ip_ranges: Sequence[str],
    aux_addresses: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Subnet, ...]:
    """Joins subnets with the gateways, ranges and spared addresses that lie in them.

    A subnet without a gateway gets its own first address that is not spared.
    """
    if len(subnets) > SUBNETS_MAX:
        raise InvalidError(f"{len(subnets)} subnets: a network has at most {SUBNETS_MAX}")
    for position, cidr in enumerate(subnets):
        for other in subnets[:position]:
            if overlap(cidr, other):
                raise InvalidError(f"subnets {other} and {cidr} overlap: make them disjoint")
    spared = _spared(subnets, aux_addresses)
    planned = {cidr: Subnet(cidr, _first(cidr, spared[cidr]), aux=spared[cidr]) for cidr in subnets}
    chosen: set[Cidr] = set()
    for text in gateways:
        gateway = parse_address(text, "gateway")
        cidr = _home(subnets, gateway, f"gateway {text}")
        if cidr in chosen:
            raise InvalidError(f"gateway {text}: subnet {cidr} has one already")
        _check_host(gateway, cidr, "gateway")
        if any(gateway == address for _, address in spared[cidr]):
            raise InvalidError(f"gateway {text} is an aux address too: choose another")
        chosen.add(cidr)
        planned[cidr] = replace(planned[cidr], gateway=gateway)
    for text in ip_ranges:
        _add_range(planned, text)
    for subnet in planned.values():
        if subnet.ip_range and not _free_bounds(subnet):
            raise InvalidError(f"ip range {subnet.ip_range} leaves no address to give out")
    return tuple(planned.values())


def first_free(cidr: Cidr, spared: Collection[Address]) -> Address:
    """Gives the lowest host address of a subnet that is not spared.

    Raises:
        ExhaustedError: There is none.
    """
    for step in range(1, len(spared) + 2):
        if step < cidr.num_addresses - 1 and cidr[step] not in spared:
            return cidr[step]
    raise ExhaustedError(f"subnet {cidr} has no address left for the gateway: spare fewer")


def parse_address(text: str, what: str) -> Address:
    """Reads an address that a user wrote for `what`."""
    _refuse_interface(text, what)
    try:
        return ip_address(text)
    except ValueError as error:
        raise InvalidError(f"{what} {text!r} is not an IP address such as 10.0.0.5") from error


def static_address(text: str, version: int, subnets: Sequence[Subnet]) -> Interface:
    """Checks an address that a user chose for an endpoint, and gives it its prefix length."""
    flag = "--ip" if version == 4 else "--ip6"
    address = parse_address(text, flag)
    if address.version != version:
        raise InvalidError(f"{flag} {text} is an IPv{address.version} address: wrong option")
    fitting = [subnet.cidr for subnet in subnets if subnet.cidr.version == version]
    if not fitting:
        raise InvalidError(
            f"{flag} {text}: the network has no IPv{version} subnet; "
            f"create it with {'--subnet' if version == 4 else '--ipv6 or --subnet'}"
        )
    cidr = _home(fitting, address, f"{flag} {text}")
    _check_host(address, cidr, flag)
    for subnet in subnets:
        if address == subnet.gateway:
            raise InvalidError(f"{flag} {text} is the gateway of {cidr}: choose another address")
        if any(address == spared for _, spared in subnet.aux):
            raise InvalidError(f"{flag} {text} is an aux address of {cidr}: choose another")
    return with_prefix(address, cidr)


def pick_address(
    subnet: Subnet,
    taken: Set[Address],
    tried: Set[Address] = frozenset(),
    *,
    cursor: Address | None = None,
    rng: Random | None = None,
) -> Address | None:
    """Picks a free address of a subnet, neither taken nor tried, or None if there is none.

    Without `rng` it is the lowest one after `cursor`, going round, so that a freed address is not
    given out again at once. With `rng` it is any: the way to go on after a conflict, because the
    lowest free one is what everybody else tries too.
    """
    bounds = _free_bounds(subnet)
    if bounds is None:
        return None
    low, high = bounds
    spared = {subnet.gateway, *(address for _, address in subnet.aux)}
    unfit = (taken, tried, spared)
    size = high - low + 1
    base = subnet.cidr.network_address
    origin = int(base)
    if rng:
        start = rng.randrange(size)
        for _ in range(RANDOM_TRIES):
            address = base + (low + rng.randrange(size) - origin)
            if not any(address in refused for refused in unfit):
                return address
    elif cursor is not None and low <= int(cursor) <= high:
        start = int(cursor) - low + 1
    else:
        start = 0
    for step in range(min(size, sum(map(len, unfit)) + 1)):
        address = base + (low + (start + step) % size - origin)
        if not any(address in refused for refused in unfit):
            return address
    return None


class Cursors:
    """The addresses that were picked last, by subnet; a subnet's next network begins anew."""

    def __init__(self) -> None:
        self._picked: dict[Cidr, tuple[str, Address]] = {}

    def last(self, network_id: str, cidr: Cidr) -> Address | None:
        """The address of a network's subnet that was picked last."""
        owner, address = self._picked.get(cidr, ("", None))
        return address if owner == network_id else None

    def note(self, network_id: str, cidr: Cidr, address: Address) -> None:
        """Notes that an address was picked."""
        self._picked[cidr] = (network_id, address)


def capacity(subnet: Subnet) -> int:
    """How many addresses of a subnet endpoints can have."""
    bounds = _free_bounds(subnet)
    if bounds is None:
        return 0
    low, high = bounds
    spared = {subnet.gateway, *(address for _, address in subnet.aux)}
    return high - low + 1 - sum(low <= int(address) <= high for address in spared)


def blocks_used(pool: Pool, used: Iterable[Cidr]) -> int:
    """How many blocks of a pool the subnets `used` take; they do not overlap."""
    return sum(1 << max(0, pool.size - cidr.prefixlen) for cidr in used if within(cidr, pool.base))


def next_pool(pools: Sequence[Pool], used: Iterable[Cidr], routed: Iterable[Cidr]) -> Cidr:
    """Picks the lowest block of the pools that no network uses and the host does not route.

    Raises:
        ExhaustedError: There is none.
    """
    spoken_for = [*used, *routed]
    for pool in pools:
        if block := _free_block(pool, spoken_for):
            return block
    shown = ", ".join(f"{pool.base} in /{pool.size}" for pool in pools) or "none"
    raise ExhaustedError(
        f"no free subnet in the pools ({shown}): remove networks, give --subnet, or add a pool"
    )


def unique_local_pool(cluster: str) -> Pool:
    """Gives a cluster's own IPv6 range, a /48 of unique local addresses, in blocks of /64.

    The 40 bits of the global id are a hash of the cluster's id (RFC 4193, section 3.2, asks for
    a pseudo-random number), so that every host derives the same.
    """
    digest = hashlib.sha256(cluster.encode()).digest()
    return Pool(IPv6Network((b"\xfd" + digest[:5] + bytes(10), 48)), 64)


def next_gateway_subnet(wanted: IPv4Network, routed: Collection[Cidr]) -> IPv4Network:
    """Picks the gateway bridge's subnet: the wanted one, or the next of its size not routed.

    Raises:
        ExhaustedError: None of the 64 that follow is free.
    """
    size = wanted.num_addresses
    for step in range(64):
        start = int(wanted.network_address) + step * size
        if start + size > 2**32:
            break
        candidate = IPv4Network((IPv4Address(start), wanted.prefixlen))
        if not any(overlap(candidate, route) for route in routed):
            return candidate
    raise ExhaustedError(
        f"gateway subnet {wanted} and those after it are routed by this host: set gateway_subnet"
    )


def check_disjoint(cidr: Cidr, used: Iterable[tuple[Cidr, str]]) -> None:
    """Refuses a subnet that shares addresses with one in use; each comes with its owner's name.

    Raises:
        ConflictError: It does; the message names both.
    """
    for other, owner in used:
        if overlap(cidr, other):
            raise ConflictError(f"subnet {cidr} overlaps {other} of {owner}: choose another")


def _add_range(planned: dict[Cidr, Subnet], text: str) -> None:
    _refuse_interface(text, "ip range")
    try:
        ip_range = ip_network(text)
    except ValueError as error:
        raise InvalidError(
            f"ip range {text!r} is not a range such as 10.1.0.128/25 ({error})"
        ) from error
    cidr = _home(list(planned), ip_range.network_address, f"ip range {text}")
    if not within(ip_range, cidr):
        raise InvalidError(f"ip range {text} is not within subnet {cidr}")
    if planned[cidr].ip_range:
        raise InvalidError(f"ip range {text}: subnet {cidr} has one already")
    planned[cidr] = replace(planned[cidr], ip_range=ip_range)


def _first(cidr: Cidr, spared: Sequence[tuple[str, Address]]) -> Address:
    return first_free(cidr, [address for _, address in spared])


def _spared(
    subnets: Sequence[Cidr], aux_addresses: Mapping[str, str]
) -> dict[Cidr, tuple[tuple[str, Address], ...]]:
    if len(aux_addresses) > AUX_MAX:
        raise InvalidError(f"{len(aux_addresses)} aux addresses: a network has at most {AUX_MAX}")
    spared: dict[Cidr, tuple[tuple[str, Address], ...]] = dict.fromkeys(subnets, ())
    for name, text in aux_addresses.items():
        address = parse_address(text, "aux address")
        cidr = _home(subnets, address, f"aux address {text}")
        _check_host(address, cidr, "aux address")
        if any(address == other for _, other in spared[cidr]):
            raise InvalidError(f"aux address {text} is given twice: once is enough")
        spared[cidr] += ((name, address),)
    return spared


def _refuse_interface(text: str, what: str) -> None:
    """Refuses what RFC 4007 allows behind an IPv6 address: it means nothing on another host."""
    _, percent, zone = text.partition("%")
    if percent:
        raise InvalidError(f"{what} {text!r} names an interface: leave out %{zone.split('/')[0]}")


def _home(subnets: Sequence[Cidr], address: Address, what: str) -> Cidr:
    for cidr in subnets:
        if address in cidr:
            return cidr
    shown = ", ".join(map(str, subnets))
    raise InvalidError(
        f"{what} is in none of the network's subnets ({shown})"
        if shown
        else f"{what} needs a --subnet that it lies in"
    )


def _check_host(address: Address, cidr: Cidr, what: str) -> None:
    if address == cidr.network_address:
        raise InvalidError(f"{what} {address} is the network address of {cidr}: choose another")
    if cidr.version == 4 and address == cidr.broadcast_address:
        raise InvalidError(f"{what} {address} is the broadcast address of {cidr}: choose another")


def _free_bounds(subnet: Subnet) -> tuple[int, int] | None:
    """Gives the lowest and highest address that may be given out, the gateway not considered."""
    cidr = subnet.cidr
    scope = subnet.ip_range or cidr
    low = max(int(scope.network_address), int(cidr.network_address) + 1)
    last = int(cidr.broadcast_address) - (1 if cidr.version == 4 else 0)
    high = min(int(scope.broadcast_address), last)
    only_gateway = low == high == int(subnet.gateway)
    return None if low > high or only_gateway else (low, high)


def _free_block(pool: Pool, spoken_for: Iterable[Cidr]) -> Cidr | None:
    step = 1 << (pool.base.max_prefixlen - pool.size)
    candidate = int(pool.base.network_address)
    end = int(pool.base.broadcast_address)
    ranges = sorted(
        (int(cidr.network_address), int(cidr.broadcast_address))
        for cidr in spoken_for
        if overlap(cidr, pool.base)
    )
    for low, high in ranges:
        if candidate + step <= low:
            break
        if high >= candidate:
            candidate += -(-(high + 1 - candidate) // step) * step
    if candidate + step - 1 > end:
        return None
    offset = candidate - int(pool.base.network_address)
    return ip_network((pool.base.network_address + offset, pool.size))
