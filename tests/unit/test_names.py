"""Which name means whom, to a container on given networks."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network

import pytest

from pyvxlan.daemon.model import Endpoint, Network, Subnet
from pyvxlan.daemon.names import Names, canonical_name

BLUE, RED = "b" * 32, "c" * 32


def network(network_id: str, name: str, *subnets: str) -> Network:
    ranges = [ip_network(text) for text in subnets]
    return Network(network_id, name, 4096, tuple(Subnet(cidr, cidr[1]) for cidr in ranges), 1450)


def endpoint(
    number: int,
    network_id: str,
    *addresses: str,
    name: str = "",
    aliases: tuple[str, ...] = (),
    hostname: str = "",
    container_id: str = "",
) -> Endpoint:
    return Endpoint(
        f"{number:032x}",
        network_id,
        "a" * 32,
        bytes(6),
        tuple(ip_interface(text) for text in addresses),
        name,
        aliases,
        hostname,
        container_id,
    )


class FakeDirectory:
    """Two networks; `add` plays the store."""

    def __init__(self) -> None:
        self.networks = {
            BLUE: network(BLUE, "blue", "10.0.0.0/24", "fd00::/64"),
            RED: network(RED, "Red.Net", "10.0.1.0/24"),
        }
        self.endpoints: dict[str, dict[str, Endpoint]] = {BLUE: {}, RED: {}}
        self.versions = {BLUE: 0, RED: 0}

    def version(self, network_id: str) -> int:
        return self.versions[network_id]

    def add(self, added: Endpoint) -> None:
        self.endpoints[added.network_id][added.id] = added
        self.versions[added.network_id] += 1

    def remove(self, gone: Endpoint) -> None:
        del self.endpoints[gone.network_id][gone.id]
        self.versions[gone.network_id] += 1


@pytest.fixture
def directory() -> FakeDirectory:
    made = FakeDirectory()
    made.add(
        endpoint(
            1, BLUE, "10.0.0.2/24", "fd00::2/64", name="bbox1", aliases=("web", "Www"),
            hostname="boxhost", container_id="76db3f97486a" + "0" * 52,
        )
    )  # fmt: skip
    made.add(endpoint(2, BLUE, "10.0.0.3/24", name="bbox2", aliases=("web",), hostname="bbox1"))
    made.add(endpoint(3, RED, "10.0.1.2/24", name="bbox1"))
    return made


def texts(names: Names, networks: tuple[str, ...], asked: str) -> list[str] | None:
    found = names.addresses(networks, asked)
    return None if found is None else sorted(map(str, found))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bbox1", ["10.0.0.2", "fd00::2"]),
        ("BBox1", ["10.0.0.2", "fd00::2"]),
        ("bbox1.blue", ["10.0.0.2", "fd00::2"]),
        ("bbox1.BLUE", ["10.0.0.2", "fd00::2"]),
        ("www", ["10.0.0.2", "fd00::2"]),
        ("web", ["10.0.0.2", "10.0.0.3", "fd00::2"]),
        ("web.blue", ["10.0.0.2", "10.0.0.3", "fd00::2"]),
        ("web.pyvxlan", ["10.0.0.2", "10.0.0.3", "fd00::2"]),
        ("Web.Blue.PYvxlan", ["10.0.0.2", "10.0.0.3", "fd00::2"]),
        ("bbox3.pyvxlan", None),
        ("web.pyvxlan.pyvxlan", None),
        (".pyvxlan", None),
        ("boxhost", ["10.0.0.2", "fd00::2"]),
        ("76db3f97486a", ["10.0.0.2", "fd00::2"]),
        ("000000000000", ["10.0.0.2", "10.0.0.3", "fd00::2"]),
        ("bbox3", None),
        ("bbox1.red.net", None),
        ("blue", None),
        (".blue", None),
        ("", None),
    ],
)
def test_name_means_those_that_have_it(
    directory: FakeDirectory, asked: str, expected: list[str] | None
) -> None:
    assert texts(Names(directory), (BLUE,), asked) == expected


def test_names_of_other_networks_do_not_exist(directory: FakeDirectory) -> None:
    names = Names(directory)
    assert texts(names, (RED,), "bbox2") is None
    assert texts(names, (RED,), "bbox2.blue") is None
    assert texts(names, (), "bbox1") is None
    assert texts(names, ("d" * 32,), "bbox1") is None


def test_container_on_two_networks_sees_both_and_may_choose(directory: FakeDirectory) -> None:
    names = Names(directory)
    assert texts(names, (BLUE, RED), "bbox1") == ["10.0.0.2", "10.0.1.2", "fd00::2"]
    assert texts(names, (BLUE, RED), "bbox1.red.net") == ["10.0.1.2"]


def test_hostname_takes_no_name_away(directory: FakeDirectory) -> None:
    assert "10.0.0.3" not in (texts(Names(directory), (BLUE,), "bbox1") or [])


def test_change_is_seen_at_once(directory: FakeDirectory) -> None:
    names = Names(directory)
    late = endpoint(4, BLUE, "10.0.0.9/24", name="late")
    assert names.addresses((BLUE,), "late") is None
    directory.add(late)
    assert names.addresses((BLUE,), "late") == [IPv4Address("10.0.0.9")]
    assert names.name_of((BLUE,), IPv4Address("10.0.0.9")) == "late.blue"
    directory.remove(late)
    assert names.addresses((BLUE,), "late") is None
    del directory.networks[BLUE]
    assert names.addresses((BLUE,), "bbox1") is None


def test_address_means_name_and_network(directory: FakeDirectory) -> None:
    names = Names(directory)
    assert names.name_of((BLUE,), IPv6Address("fd00::2")) == "bbox1.blue"
    assert names.name_of((RED,), IPv4Address("10.0.1.2")) == "bbox1.Red.Net"
    assert names.name_of((BLUE,), IPv4Address("10.0.1.2")) is None
    assert names.covers((BLUE,), ip_address("10.0.0.77"))
    assert not names.covers((BLUE,), ip_address("10.0.1.2"))


@pytest.mark.parametrize("name", ["my net", "Ünï", "x" * 64, "a..b", ".".join("x" * 200)])
def test_name_that_is_none_of_the_dns_is_no_part_of_one(
    directory: FakeDirectory, name: str
) -> None:
    directory.networks[BLUE] = replace(directory.networks[BLUE], name=name)
    names = Names(directory)
    assert names.name_of((BLUE,), IPv6Address("fd00::2")) == "bbox1"
    assert texts(names, (BLUE,), "bbox1") == ["10.0.0.2", "fd00::2"]
    assert names.addresses((BLUE,), f"bbox1.{name}") is None
    assert names.addresses((BLUE,), "nobody") is None


def test_endpoint_without_name_is_shown_by_hostname_or_id() -> None:
    assert canonical_name(endpoint(1, BLUE, hostname="box")) == "box"
    assert canonical_name(endpoint(1, BLUE)) == "0" * 12
