"""Which subnet a network gets, and which address an endpoint."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvxlan.daemon import ipam
from pyvxlan.daemon.errors import ConflictError, ExhaustedError, InvalidError
from pyvxlan.daemon.model import Address, Cidr, Subnet
from pyvxlan.daemon.records import parse_pool

POOLS = (parse_pool("10.0.0.0/8:24"),)


def subnet(cidr: str, ip_range: str | None = None, *aux: str) -> Subnet:
    network = ip_network(cidr)
    spared = tuple((text, ip_address(text)) for text in aux)
    return Subnet(network, network[1], ip_network(ip_range) if ip_range else None, spared)


def cidrs(*texts: str) -> list[Cidr]:
    return [ip_network(text) for text in texts]


@pytest.mark.parametrize(
    ("used", "routed", "picked"),
    [
        ([], [], "10.0.0.0/24"),
        (["10.0.0.0/24"], [], "10.0.1.0/24"),
        (["10.0.1.0/24"], [], "10.0.0.0/24"),
        (["10.0.0.0/24", "10.0.2.0/24"], [], "10.0.1.0/24"),
        ([], ["10.0.0.0/16"], "10.1.0.0/24"),
        (["10.0.0.128/25"], ["10.0.1.7/32"], "10.0.2.0/24"),
        (["10.0.0.0/22"], ["10.0.4.0/30", "fd00::/8"], "10.0.5.0/24"),
        (["10.0.0.0/24", "10.0.0.0/16"], [], "10.1.0.0/24"),
    ],
)
def test_pools_give_the_lowest_free_block(used: list[str], routed: list[str], picked: str) -> None:
    assert ipam.next_pool(POOLS, cidrs(*used), cidrs(*routed)) == ip_network(picked)


def test_second_pool_follows_when_the_first_is_full() -> None:
    pools = [parse_pool("192.168.0.0/24:25"), parse_pool("172.30.0.0/16:24")]
    used = cidrs("192.168.0.0/25", "192.168.0.128/25")
    assert ipam.next_pool(pools, used, []) == ip_network("172.30.0.0/24")


def test_exhausted_pools_are_named_with_the_remedy() -> None:
    with pytest.raises(ExhaustedError, match=r"10\.0\.0\.0/8 in /24.*give --subnet"):
        ipam.next_pool(POOLS, [], cidrs("0.0.0.0/0"))


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 32)), max_size=30))
def test_picked_block_never_overlaps(ranges: list[tuple[int, int]]) -> None:
    taken = [ip_network((start, length), strict=False) for start, length in ranges]
    try:
        picked = ipam.next_pool(POOLS, taken, [])
    except ExhaustedError:
        return
    assert not any(ipam.overlap(picked, cidr) for cidr in taken)
    assert ipam.within(picked, POOLS[0].base)


def test_unique_local_pool_is_the_same_on_all_hosts_and_differs_by_cluster() -> None:
    pool = ipam.unique_local_pool("a" * 32)
    assert pool == ipam.unique_local_pool("a" * 32)
    assert pool != ipam.unique_local_pool("b" * 32)
    assert ipam.within(pool.base, ip_network("fd00::/8"))
    assert (pool.base.prefixlen, pool.size) == (48, 64)
    assert ipam.next_pool([pool], [], []).prefixlen == 64


def test_gateway_subnet_moves_on_from_what_is_routed() -> None:
    wanted = ip_network("172.18.0.0/16")
    assert wanted.version == 4
    assert ipam.next_gateway_subnet(wanted, []) == wanted
    routed = cidrs("172.18.5.0/24", "172.19.0.0/16", "::/64")
    assert ipam.next_gateway_subnet(wanted, routed) == ip_network("172.20.0.0/16")
    with pytest.raises(ExhaustedError, match="set gateway_subnet"):
        ipam.next_gateway_subnet(wanted, cidrs("0.0.0.0/0"))


def test_first_address_after_the_gateway_comes_first() -> None:
    assert ipam.pick_address(subnet("10.0.0.0/24"), set()) == ip_address("10.0.0.2")
    assert ipam.pick_address(subnet("fd00::/64"), set()) == ip_address("fd00::2")


def test_freed_address_is_not_given_out_again_at_once() -> None:
    cursor = ip_address("10.0.0.5")
    picked = ipam.pick_address(subnet("10.0.0.0/24"), {ip_address("10.0.0.6")}, cursor=cursor)
    assert picked == ip_address("10.0.0.7")


def test_picking_goes_round_at_the_end_of_the_subnet() -> None:
    picked = ipam.pick_address(subnet("10.0.0.0/24"), set(), cursor=ip_address("10.0.0.254"))
    assert picked == ip_address("10.0.0.2")


def test_subnets_next_network_begins_anew() -> None:
    cursors, cidr, address = ipam.Cursors(), subnet("10.0.0.0/24").cidr, ip_address("10.0.0.5")
    cursors.note("first", cidr, address)
    assert cursors.last("first", cidr) == address
    assert cursors.last("second", cidr) is None


def test_range_limits_what_is_given_out() -> None:
    limited = subnet("10.0.0.0/24", "10.0.0.128/30")
    taken: set[Address] = {ip_address(f"10.0.0.{last}") for last in (128, 129, 130)}
    assert ipam.pick_address(limited, taken) == ip_address("10.0.0.131")
    assert ipam.pick_address(limited, taken | {ip_address("10.0.0.131")}) is None


@given(st.integers(24, 30), st.integers(0, 2**32), st.booleans())
def test_every_address_of_a_subnet_is_given_out_once(length: int, seed: int, random: bool) -> None:
    small = subnet(f"10.0.0.0/{length}")
    rng = Random(seed)
    taken: set[Address] = set()
    while (picked := ipam.pick_address(small, taken, rng=rng if random else None)) is not None:
        assert picked not in taken
        taken.add(picked)
    assert taken == set(small.cidr.hosts()) - {small.gateway}


def test_subnets_take_the_gateways_and_ranges_that_lie_in_them() -> None:
    planned = ipam.plan_subnets(
        cidrs("10.1.0.0/24", "fd01::/64", "10.2.0.0/24"),
        ["fd01::9", "10.2.0.254"],
        ["10.1.0.64/26"],
    )
    assert [str(one.gateway) for one in planned] == ["10.1.0.1", "fd01::9", "10.2.0.254"]
    assert planned[0].ip_range == ip_network("10.1.0.64/26")


@pytest.mark.parametrize(
    ("subnets", "gateways", "ranges", "message"),
    [
        (["10.0.0.0/24", "10.0.0.128/25"], [], [], "overlap"),
        (["10.0.0.0/24"], ["10.0.1.1"], [], r"10\.0\.1\.1 is in none .*10\.0\.0\.0/24"),
        (["10.0.0.0/24"], ["10.0.0.0"], [], "network address"),
        (["10.0.0.0/24"], ["10.0.0.255"], [], "broadcast address"),
        (["10.0.0.0/24"], ["10.0.0.1", "10.0.0.2"], [], "has one already"),
        (["10.0.0.0/24"], ["abc"], [], "'abc' is not an IP address"),
        (["10.0.0.0/24"], [], ["10.0.0.0/16"], "not within"),
        (["10.0.0.0/24"], [], ["10.1.0.0/25"], "in none"),
        (["10.0.0.0/24"], [], ["10.0.0.3/25"], "host bits"),
        (["10.0.0.0/24"], [], ["10.0.0.1/32"], "leaves no address"),
        ([f"10.{n}.0.0/24" for n in range(9)], [], [], "at most 8"),
    ],
)
def test_subnets_that_can_not_be_are_refused(
    subnets: list[str], gateways: list[str], ranges: list[str], message: str
) -> None:
    with pytest.raises(InvalidError, match=message):
        ipam.plan_subnets(cidrs(*subnets), gateways, ranges)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.5/24", r"did you mean 10\.0\.0\.0/24"),
        ("10.0.0.0/31", "from /8 to /30"),
        ("10.0.0.0/7", "is not a range|did you mean|from /8"),
        ("fd00::/20", "from /48 to /126"),
        ("224.0.0.0/24", "reserved"),
        ("127.0.0.0/24", "reserved"),
        ("fe80::/64", "reserved"),
        ("169.0.0.0/8", r"169\.254\.0\.0/16, which is reserved"),
        ("0.0.0.0/24", "reserved"),
        ("::/64", "reserved"),
        ("::ffff:10.0.0.0/112", "reserved"),
        ("fd00::%eth0/64", "leave out %eth0"),
        ("nonsense", "'nonsense' is not a range"),
        ("", "is not a range"),
        ("10.0.0.0/33", "is not a range"),
    ],
)
def test_subnet_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        ipam.parse_subnet(text)


@pytest.mark.parametrize(
    ("text", "version", "message"),
    [
        ("10.0.0.0", 4, "network address"),
        ("10.0.0.255", 4, "broadcast address"),
        ("10.0.0.1", 4, "gateway"),
        ("10.0.1.7", 4, r"in none of the network's subnets \(10\.0\.0\.0/24\)"),
        ("fd00::5", 4, "wrong option"),
        ("fd00::5%eth0", 6, "leave out %eth0"),
        ("10.0.0.5", 6, "wrong option"),
        ("fd00::5", 6, "no IPv6 subnet"),
        ("10.0.0.300", 4, "not an IP address"),
    ],
)
def test_chosen_address_that_can_not_be_is_refused(text: str, version: int, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        ipam.static_address(text, version, [subnet("10.0.0.0/24")])


def test_gateway_or_range_on_an_interface_is_refused() -> None:
    with pytest.raises(InvalidError, match="gateway 'fd00::9%eth0' names an interface"):
        ipam.plan_subnets(cidrs("fd00::/64"), ["fd00::9%eth0"], [])
    with pytest.raises(InvalidError, match="leave out %eth0"):
        ipam.plan_subnets(cidrs("fd00::/64"), [], ["fd00::8%eth0/125"])


def test_chosen_address_gets_the_prefix_length_of_its_subnet() -> None:
    subnets = [subnet("10.0.0.0/24"), subnet("10.1.0.0/16")]
    assert str(ipam.static_address("10.1.2.3", 4, subnets)) == "10.1.2.3/16"


def test_overlap_with_a_subnet_in_use_names_both() -> None:
    with pytest.raises(
        ConflictError, match=r"10\.0\.0\.0/25 overlaps 10\.0\.0\.0/24 of network n1"
    ):
        ipam.check_disjoint(ip_network("10.0.0.0/25"), [(ip_network("10.0.0.0/24"), "network n1")])


def test_mac_is_02_42_and_the_address() -> None:
    assert ipam.mac_for(ip_address("10.0.0.2")).hex(":") == "02:42:0a:00:00:02"
    assert ipam.mac_for(ip_address("fd00::1:2")).hex(":") == "02:42:00:01:00:02"


@pytest.mark.parametrize(
    ("one", "size"),
    [
        (subnet("10.0.0.0/24"), 253),
        (subnet("10.0.0.0/24", "10.0.0.128/25"), 127),
        (subnet("10.0.0.0/30"), 1),
        (subnet("10.0.0.0/29", None, "10.0.0.3"), 4),
        (subnet("fd00::/64"), 2**64 - 2),
    ],
)
def test_capacity_is_what_endpoints_can_get(one: Subnet, size: int) -> None:
    assert ipam.capacity(one) == size
    if size < 1000:
        taken: set[Address] = set()
        while address := ipam.pick_address(one, taken):
            taken.add(address)
        assert len(taken) == size


def test_blocks_of_a_pool_are_counted_by_what_they_hold() -> None:
    (pool,) = POOLS
    used = cidrs("10.0.0.0/24", "10.1.0.0/16", "10.2.0.0/30", "192.168.0.0/24", "fd00::/64")
    assert ipam.blocks_used(pool, used) == 1 + 256 + 1
