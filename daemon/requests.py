"""What users ask for: specs as they say it, wishes as it was checked. Pure.

Whatever can be told wrong without a look at the store is refused here, before anything is made.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from pyvxlan.daemon import ipam, records
from pyvxlan.daemon.dataplane import DATAPATHS, KERNEL
from pyvxlan.daemon.errors import InvalidError
from pyvxlan.daemon.model import MTU_MIN_BYTES, VNI_MAX, Cidr

DOCKERS = "com.docker.network."
"""How Docker's own options begin."""
UNDERLAY_MTU = f"{DOCKERS}driver.mtu"
"""Docker's option; it means the MTU of the underlay, and the overlay gets less. 0 is any."""
ORIGINALS = {
    f"{DOCKERS}driver.overlay.vxlanid_list": "give vni=N, which is one for all subnets",
    f"{DOCKERS}driver.overlay.bind_interface": "the daemon's setting advertise names the interface",
    "encrypted": "pyvxlan does not encrypt, so leave it out",
}
"""What to do instead of options that the original overlay driver knows, and nothing here."""
OPTIONS = frozenset({"multicast", "flood-rate", "vni", "mtu", "datapath", UNDERLAY_MTU})
IPV6_MTU_MIN_BYTES = 1280
ALIASES_MAX = 64
LABELS_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A wish for a network. What is left out is chosen.

    `gateways`, `ip_ranges` and `aux_addresses` (by name; nobody gets them) belong to the subnet
    that they lie in, in any order. `ipv6` adds a /64 of unique local addresses unless an IPv6
    subnet is given. `vni` and `mtu` beat the options of the same meaning.
    """

    name: str
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ip_ranges: tuple[str, ...] = ()
    aux_addresses: Mapping[str, str] = field(default_factory=dict)
    ipv6: bool = False
    mtu: int | None = None
    vni: int | None = None
    internal: bool = False
    attachable: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """A wish for an endpoint; an empty field is chosen or stays empty."""

    name: str = ""
    ip: str = ""
    ip6: str = ""
    mac: str = ""
    aliases: tuple[str, ...] = ()
    hostname: str = ""
    container_id: str = ""


@dataclass(frozen=True, slots=True)
class AttachSpec:
    """A wish to connect a sandbox to a network.

    `sandbox` is the name of a network namespace, a path, or a process id; a pid's endpoint lives
    as long as the process. An empty `ifname` means the first free of eth0, eth1, ...
    """

    network: str
    sandbox: str
    endpoint: EndpointSpec = field(default_factory=EndpointSpec)
    ifname: str = ""


@dataclass(frozen=True, slots=True)
class WhySpec:
    """A question: does `a` reach `b`? Each is a name, an address, an id or a namespace.

    `network` says which to go by if they share several; empty for the first.
    """

    a: str
    b: str
    network: str = ""


@dataclass(frozen=True, slots=True)
class NetworkWish:
    """A `NetworkSpec` whose every value was checked; None and empty mean: to be chosen."""

    name: str
    subnets: tuple[Cidr, ...]
    gateways: tuple[str, ...]
    ip_ranges: tuple[str, ...]
    aux_addresses: Mapping[str, str]
    ipv6: bool
    mtu_bytes: int
    vni: int | None
    internal: bool
    attachable: bool
    multicast: bool
    options: Mapping[str, str]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class EndpointWish:
    """An `EndpointSpec` whose every value was checked by itself; `ip` still needs its network."""

    name: str
    ip: str
    ip6: str
    mac: bytes | None
    aliases: tuple[str, ...]
    hostname: str
    container_id: str


@dataclass(frozen=True, slots=True)
class Mtu:
    """What the MTU of a network may be: `default_bytes` unless chosen, `underlay_bytes` around.

    `overhead_bytes` is what encapsulation adds on this host's underlay.
    """

    underlay_bytes: int
    overhead_bytes: int
    default_bytes: int | None = None


def parse_network_spec(spec: NetworkSpec, mtu: Mtu) -> NetworkWish:
    """Checks a wish for a network as far as it can be checked by itself.

    Raises:
        InvalidError: A value is not acceptable; the message names it and the remedy.
    """
    options = _check_options(spec.options)
    lying = (*spec.gateways, *spec.ip_ranges, *spec.aux_addresses.values())
    if lying and not spec.subnets:
        raise InvalidError(f"{lying[0]} needs a --subnet that it lies in")
    subnets = tuple(ipam.parse_subnet(text) for text in spec.subnets)
    if spec.subnets:
        ipam.plan_subnets(subnets, spec.gateways, spec.ip_ranges, spec.aux_addresses)
    return NetworkWish(
        name=check_network_name(spec.name),
        subnets=subnets,
        gateways=spec.gateways,
        ip_ranges=spec.ip_ranges,
        aux_addresses=spec.aux_addresses,
        ipv6=spec.ipv6,
        mtu_bytes=_choose_mtu(
            spec, options, mtu, ipv6=spec.ipv6 or any(cidr.version == 6 for cidr in subnets)
        ),
        vni=_choose_vni(spec, options),
        internal=spec.internal,
        attachable=spec.attachable,
        multicast=options.get("multicast", "on") == "on",
        options=options,
        labels=_check_labels(spec.labels),
    )


def parse_endpoint_spec(spec: EndpointSpec) -> EndpointWish:
    """Checks a wish for an endpoint as far as it can be checked by itself.

    Raises:
        InvalidError: A value is not acceptable; the message names it and the remedy.
    """
    if len(spec.aliases) > ALIASES_MAX:
        raise InvalidError(f"{len(spec.aliases)} aliases: an endpoint has at most {ALIASES_MAX}")
    if len(spec.container_id) > 64 or (not spec.container_id.isalnum() and spec.container_id):
        raise InvalidError(f"container id {spec.container_id!r} is not up to 64 letters and digits")
    return EndpointWish(
        name=check_dns_name(spec.name, "endpoint name") if spec.name else "",
        ip=spec.ip,
        ip6=spec.ip6,
        mac=records.parse_mac(spec.mac) if spec.mac else None,
        aliases=tuple(dict.fromkeys(check_dns_name(alias, "alias") for alias in spec.aliases)),
        hostname=check_dns_name(spec.hostname, "hostname") if spec.hostname else "",
        container_id=spec.container_id,
    )


def check_network_name(name: str) -> str:
    """Refuses a name that is no line of text, or that no key could hold."""
    if not records.is_network_name(name):
        raise InvalidError(
            f"network name {name!r} is not usable: a line of text without a slash, of up to "
            f"{records.NETWORK_NAME_MAX} characters, of which those outside of a-z A-Z 0-9 _ . - ~ "
            "count three for each byte"
        )
    return name


def check_dns_name(name: str, what: str) -> str:
    """Refuses a name that could not be looked up."""
    if not records.NAME.fullmatch(name) or not all(name.split(".")):
        raise InvalidError(
            f"{what} {name!r} can't be looked up: up to 63 of a-z A-Z 0-9 _ . - with a letter or "
            "digit first, and no dot at the end or beside another"
        )
    try:
        ip_address(name)
    except ValueError:
        return name
    raise InvalidError(f"{what} {name!r} reads as an address: choose a name")


def _check_options(options: Mapping[str, str]) -> dict[str, str]:
    for key, value in options.items():
        if key not in OPTIONS:
            raise InvalidError(f"option {key!r} is unknown: {_suggestion(key)}")
        if key == "multicast" and value not in {"on", "off"}:
            raise InvalidError(f"option multicast={value} must be on or off")
    if "datapath" in options and options["datapath"] not in DATAPATHS:
        raise InvalidError(
            f"option datapath={options['datapath']} must be {' or '.join(DATAPATHS)}"
        )
    if "flood-rate" in options:
        if options.get("datapath") == KERNEL:
            raise InvalidError(
                "option flood-rate does nothing with datapath=kernel, whose device has no such "
                "limit: leave one of the two out"
            )
        _number(options["flood-rate"], "option flood-rate", 1, 10_000_000)
    return dict(options)


def _suggestion(option: str) -> str:
    if option in ORIGINALS:
        return ORIGINALS[option]
    # What all of Docker's have in common makes none of them alike.
    short = {known.removeprefix(DOCKERS): known for known in OPTIONS}
    if near := difflib.get_close_matches(option.removeprefix(DOCKERS), short, n=1):
        return f"did you mean {short[near[0]]}?"
    return f"known are {', '.join(sorted(OPTIONS))}"


def _check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Takes any text, as Docker does, which tells of labels only when it has made the network."""
    try:
        size = sum(len(text.encode()) for pair in labels.items() for text in pair)
    except UnicodeEncodeError as error:
        raise InvalidError(
            f"label with {error.object!r} is no text: it has half a character"
        ) from None
    if size > LABELS_BYTES:
        raise InvalidError(f"labels are longer than {LABELS_BYTES} bytes together: shorten them")
    return dict(labels)


def _choose_vni(spec: NetworkSpec, options: Mapping[str, str]) -> int | None:
    vni = spec.vni
    if vni is None and "vni" in options:
        vni = _number(options["vni"], "option vni", 0, VNI_MAX + 1)
    if vni is not None and not 1 <= vni <= VNI_MAX:
        raise InvalidError(
            f"VNI {vni} must be from 1 to {VNI_MAX}; {VNI_MAX + 1} is that of probes between hosts"
        )
    return vni


def _choose_mtu(spec: NetworkSpec, options: Mapping[str, str], mtu: Mtu, *, ipv6: bool) -> int:
    highest = mtu.underlay_bytes - mtu.overhead_bytes
    chosen = spec.mtu
    if chosen is None and "mtu" in options:
        chosen = _number(options["mtu"], "option mtu", 0, 65535)
    around = _number(options.get(UNDERLAY_MTU, "0"), f"option {UNDERLAY_MTU}", 0, 65535)
    if chosen is None and around:
        chosen = around - mtu.overhead_bytes
        if chosen < MTU_MIN_BYTES:
            raise InvalidError(
                f"option {UNDERLAY_MTU}={around} is the underlay's MTU: choose at least "
                f"{MTU_MIN_BYTES + mtu.overhead_bytes}"
            )
    if chosen is None:
        chosen = mtu.default_bytes if mtu.default_bytes is not None else highest
    lowest = IPV6_MTU_MIN_BYTES if ipv6 else MTU_MIN_BYTES
    if chosen < lowest:
        why = " for IPv6 (RFC 8200, section 5)" if ipv6 else ""
        raise InvalidError(
            f"MTU {chosen} is below {lowest}{why}: choose {lowest} to {highest}"
            if highest >= lowest
            else f"MTU {chosen} is below {lowest}{why}: the underlay's MTU {mtu.underlay_bytes} "
            f"must be at least {lowest + mtu.overhead_bytes}"
        )
    if chosen > highest:
        raise InvalidError(
            f"MTU {chosen} is above {highest}: the underlay's MTU {mtu.underlay_bytes} less "
            f"{mtu.overhead_bytes} bytes of encapsulation; choose at most {highest}"
        )
    return chosen


def _number(text: str, what: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or not low <= int(text) <= high:
        raise InvalidError(f"{what}={text} must be a number from {low} to {high}")
    return int(text)
