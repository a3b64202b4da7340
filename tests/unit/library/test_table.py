"""`ForwardingTable`: what is put in comes out, and the decisions are those of DESIGN.md."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from pyvxlan import (
    DROP_REASONS,
    Drop,
    Flood,
    ForwardingTable,
    Reply,
    TableDump,
    Unicast,
    parse_mac,
)
from tests.unit.library.frames import DESTINATION, SOURCE, UDP4, WHO_HAS, frame, ipv4, ipv6, macs

VTEP = IPv4Address("198.18.0.2")
OTHER_VTEP = IPv4Address("198.18.0.3")
REMOTE = parse_mac(DESTINATION)
BROADCAST = b"\xff" * 6 + UDP4[6:]
FROM_REMOTE = bytes(Ether(src=DESTINATION, dst=SOURCE) / IP() / UDP())


@pytest.fixture
def table():
    table = ForwardingTable(42)
    table.apply({DESTINATION: VTEP})
    table.set_flood([VTEP, OTHER_VTEP])
    table.set_neighbours({"10.0.0.3": DESTINATION, "fd00::3": DESTINATION})
    return table


@given(
    st.dictionaries(macs, ipv4 | ipv6, max_size=20),
    st.dictionaries(ipv4 | ipv6, macs, max_size=20),
    st.lists(ipv4 | ipv6, max_size=10, unique=True),
)
def test_dump_gives_back_what_was_put_in(fdb, neighbours, flood):
    table = ForwardingTable(1)
    table.apply(fdb)
    table.set_neighbours(neighbours)
    table.set_flood(flood)
    assert table.dump() == TableDump(fdb, neighbours, tuple(flood))
    assert len(table) == len(fdb)
    for mac, vtep in fdb.items():
        assert table.lookup(mac) == vtep
    for address, mac in neighbours.items():
        assert table.neighbour(address) == mac
    for vtep in flood:
        assert table.is_vtep(vtep)


@given(
    st.dictionaries(macs, ipv4, max_size=10),
    st.lists(macs, max_size=5),
    st.dictionaries(macs, ipv4, max_size=10),
)
def test_apply_is_removal_and_then_addition(before, remove, add):
    table = ForwardingTable(1)
    table.apply(before)
    table.apply(add, remove)
    assert table.dump().fdb == {k: v for k, v in before.items() if k not in remove} | add


def test_macs_and_addresses_may_be_text_or_values(table):
    assert table.lookup("02:42:0A:00:00:03") == table.lookup("02-42-0a-00-00-03") == VTEP
    assert table.lookup(bytearray(REMOTE)) == VTEP
    assert table.neighbour(IPv6Address("fd00::3")) == table.neighbour("fd00:0::3") == REMOTE


def test_what_is_not_there_is_none(table):
    assert table.lookup("02:42:0a:00:00:09") is None
    assert table.neighbour("10.0.0.9") is None
    assert not table.is_vtep("198.18.0.9")


def test_a_vtep_that_only_the_fdb_names_is_one():
    table = ForwardingTable(1)
    table.apply({DESTINATION: VTEP})
    assert table.is_vtep(VTEP)
    table.apply(remove=[DESTINATION])
    assert not table.is_vtep(VTEP)


@pytest.mark.parametrize(
    ("add", "named"),
    [
        ({"ff:ff:ff:ff:ff:ff": VTEP}, "ff:ff:ff:ff:ff:ff"),
        ({"00:00:00:00:00:00": VTEP}, "00:00:00:00:00:00"),
        ({"01:00:5e:00:00:01": VTEP}, "01:00:5e:00:00:01"),
        ({DESTINATION: "0.0.0.0"}, "0.0.0.0"),
        ({DESTINATION: "239.1.1.1"}, "239.1.1.1"),
        ({DESTINATION: "198.18.0"}, "198.18.0"),
        ({"02:42:0a:00:00": VTEP}, "02:42:0a:00:00"),
        ({"02:42:0a-00:00:03": VTEP}, "02:42:0a-00:00:03"),
        ({b"\x02\x42": VTEP}, "02:42"),
    ],
)
def test_an_invalid_entry_is_named_and_nothing_is_changed(table, add, named):
    before = table.dump()
    with pytest.raises(ValueError, match=named):
        table.apply({"02:42:0a:00:00:04": VTEP} | add, [DESTINATION])
    assert table.dump() == before


@pytest.mark.parametrize("vtep", ["::", "ff02::1", "nowhere"])
def test_an_invalid_flood_list_changes_nothing(table, vtep):
    before = table.dump()
    with pytest.raises(ValueError, match=vtep):
        table.set_flood([VTEP, vtep])
    assert table.dump() == before


def test_a_frame_for_a_known_mac_goes_to_its_vtep(table):
    assert table.egress(UDP4) == Unicast(VTEP)


def test_a_frame_for_an_unknown_mac_is_dropped_not_flooded(table):
    unknown = frame(IP(), UDP()).replace(REMOTE, parse_mac("02:42:0a:00:00:09"))
    assert table.egress(unknown) == Drop("destination_unknown")


def test_a_broadcast_goes_to_the_flood_list(table):
    assert table.egress(BROADCAST) == Flood((VTEP, OTHER_VTEP))


def test_a_broadcast_with_nobody_to_send_to_is_counted_so():
    assert ForwardingTable(42).egress(BROADCAST) == Drop("flood_empty")


def test_a_broadcast_is_dropped_where_multicast_is_off():
    table = ForwardingTable(42, multicast=False)
    table.set_flood([VTEP])
    assert not table.multicast
    assert table.egress(BROADCAST) == Drop("multicast_off")


def test_an_arp_request_for_a_neighbour_is_answered_here(table):
    decision = table.egress(WHO_HAS)
    assert isinstance(decision, Reply)
    reply = Ether(decision.frame)
    assert (reply.src, reply.dst) == (DESTINATION, SOURCE)
    assert (reply[ARP].op, reply[ARP].psrc, reply[ARP].hwsrc) == (2, "10.0.0.3", DESTINATION)
    assert (reply[ARP].pdst, reply[ARP].hwdst) == ("10.0.0.2", SOURCE)


def test_a_neighbour_solicitation_for_a_neighbour_is_answered_here(table):
    solicitation = (
        Ether(src=SOURCE, dst="33:33:ff:00:00:03")
        / IPv6(src="fd00::2", dst="ff02::1:ff00:3")
        / ICMPv6ND_NS(tgt="fd00::3")
        / ICMPv6NDOptSrcLLAddr(lladdr=SOURCE)
    )
    decision = table.egress(bytes(solicitation))
    assert isinstance(decision, Reply)
    reply = Ether(decision.frame)
    assert (reply[IPv6].src, reply[IPv6].dst, reply[IPv6].hlim) == ("fd00::3", "fd00::2", 255)
    assert (reply[ICMPv6ND_NA].tgt, reply[ICMPv6ND_NA].S) == ("fd00::3", 1)
    checksum = reply[ICMPv6ND_NA].cksum
    del reply[ICMPv6ND_NA].cksum
    assert Ether(bytes(reply))[ICMPv6ND_NA].cksum == checksum


def test_an_arp_request_for_an_unknown_address_is_never_flooded(table):
    unknown = Ether(src=SOURCE, dst="ff:ff:ff:ff:ff:ff") / ARP(
        op=1, hwsrc=SOURCE, psrc="10.0.0.2", pdst="10.0.0.99"
    )
    assert table.egress(bytes(unknown)) == Drop("neighbour_unknown")


def test_a_container_may_not_claim_a_remote_mac(table):
    spoofed = UDP4[:6] + REMOTE + UDP4[12:]
    assert table.egress(spoofed) == Drop("source_mac_elsewhere")


def test_a_frame_from_the_vtep_of_its_source_is_delivered(table):
    assert table.ingress(FROM_REMOTE, VTEP) is None


def test_a_frame_from_who_is_no_vtep_is_dropped(table):
    assert table.ingress(FROM_REMOTE, "198.18.0.66") == Drop("source_not_vtep")


def test_a_frame_with_the_mac_of_another_vtep_is_dropped(table):
    assert table.ingress(FROM_REMOTE, OTHER_VTEP) == Drop("source_mac_elsewhere")


def test_a_frame_with_an_unknown_source_mac_is_dropped(table):
    assert table.ingress(UDP4, VTEP) == Drop("source_mac_unknown")


@given(st.binary(max_size=200), ipv4 | ipv6)
def test_any_frame_gets_a_decision_and_every_reason_is_listed(bits, source):
    table = ForwardingTable(1)
    table.apply({DESTINATION: VTEP})
    table.set_flood([VTEP])
    for decision in (table.egress(bits), table.ingress(bits, source)):
        if isinstance(decision, Drop):
            assert decision.reason in DROP_REASONS


def test_drop_reasons_are_distinct_words():
    assert len(set(DROP_REASONS)) == len(DROP_REASONS)
    assert all(reason.replace("_", "").isalpha() for reason in DROP_REASONS)


def test_a_table_says_what_it_is(table):
    assert repr(table) == "<ForwardingTable vni=42 fdb=1>"
    assert ip_address("198.18.0.2") == table.lookup(REMOTE)
