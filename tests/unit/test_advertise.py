"""Which address a host tells the others, by the setting and what its interfaces have."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.net.host import advertised
from pyvxlan.daemon.net.links import KernelLink
from pyvxlan.daemon.net.values import Link, Route

DEFAULT = Route(ip_network("0.0.0.0/0"), ip_address("198.18.0.254"))
ONE, OTHER = "198.18.0.1 (eth0)", "198.18.1.1 (eth1)"


def link(*addresses: str, default: bool = False) -> KernelLink:
    held = frozenset(map(ip_interface, addresses))
    routes = frozenset({DEFAULT} if default else ())
    return KernelLink(2, "veth", 0, "", Link(bytes(6), 1500, addresses=held, routes=routes))


LO = link("127.0.0.1/8", "::1/128")
PLAIN = {
    "lo": LO,
    "eth0": link("198.18.0.1/24", "fd00::1/64", "fe80::1/64"),
    "eth1": link("198.18.1.1/24"),
    "docker0": link("172.17.0.1/16"),
    "empty0": link(),
    "local0": link("fe80::2/64"),
    "six0": link("fd00:1::1/64"),
    "two0": link("198.18.2.1/24", "198.18.2.2/24", "fd00:2::1/64"),
}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("eth0", "198.18.0.1"),
        ("eth1", "198.18.1.1"),
        ("six0", "fd00:1::1"),
        ("198.18.2.2", "198.18.2.2"),
        ("fd00::1", "fd00::1"),
    ],
)
def test_interface_gives_its_one_address_and_an_address_itself(text: str, address: str) -> None:
    assert advertised(PLAIN, text) == ip_address(address)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "lo",
            "interface lo has no address that another host can reach (only 127.0.0.1, ::1); set "
            f"--advertise to one of {ONE}, {OTHER}",
        ),
        ("local0", "interface local0 has no address that another host can reach (only fe80::2); "),
        ("empty0", "interface empty0 has no address; set --advertise to one of "),
        ("docker0", "interface docker0 is for this host's own containers: no other host reaches "),
        (
            "two0",
            "interface two0 has several addresses: set --advertise to one of 198.18.2.1, "
            "198.18.2.2",
        ),
        ("eth9", "eth9 is no address or interface; set --advertise to one of "),
        ("198.18.0.9", "198.18.0.9 is no address of this host; set --advertise to one of "),
    ],
)
def test_what_can_not_be_advertised_is_named_with_the_choice(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        advertised(PLAIN, text)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("found", "address"),
    [
        ({"lo": LO, "eth0": link("198.18.0.1/24")}, "198.18.0.1"),
        ({"lo": LO, "eth0": link("198.18.0.1/24"), "eth1": link("fd00::1/64")}, "198.18.0.1"),
        ({"lo": LO, "eth0": link("fd00::1/64", "fe80::1/64")}, "fd00::1"),
        (
            {"eth0": link("198.18.0.1/24"), "eth1": link("198.18.1.1/24", default=True)},
            "198.18.1.1",
        ),
        ({"docker0": link("172.17.0.1/16"), "eth0": link("198.18.0.1/24")}, "198.18.0.1"),
    ],
)
def test_obvious_address_is_found(found: Mapping[str, KernelLink], address: str) -> None:
    assert advertised(found, None) == ip_address(address)


def test_host_without_an_obvious_address_is_told_its_addresses() -> None:
    two = {"eth0": link("198.18.0.1/24"), "eth1": link("198.18.1.1/24")}
    with pytest.raises(ConfigError, match="the underlay address is not obvious; set --advertise"):
        advertised(two, None)


def test_host_without_any_usable_address_is_told_to_get_one() -> None:
    with pytest.raises(ConfigError, match="no usable address: give an interface one"):
        advertised({"lo": LO}, None)
