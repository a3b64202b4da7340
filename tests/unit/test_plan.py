"""The plan as tables of cases, and as a property: it leads to what is desired, then is empty."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvxlan.daemon.dataplane import NetworkTables, PortConfig
from pyvxlan.daemon.desired import (
    Desired,
    Site,
    Tables,
    wanted_gateway,
    wanted_network,
    wanted_tables,
)
from pyvxlan.daemon.model import gateway_host_ifname, host_ifname
from pyvxlan.daemon.net import BRIDGE, PORT, Link, Observed, Route, alias_of, faults
from pyvxlan.daemon.operations import (
    Actual,
    AttachPort,
    DetachPort,
    EnsureBridge,
    EnsureGateway,
    EnsureNamespace,
    EnsurePort,
    EnsureVeth,
    RemoveNamespace,
    RemoveVeth,
    UpdateTables,
    applied,
    blocked,
)
from pyvxlan.daemon.plan import difference, plan
from tests.unit.memory_net import endpoint, host, local, network

SITE = Site(host(1), alias_of(host(1).id))
HOSTS = {one.id: one for one in (host(1), host(2), host(3))}
NETNS = "1-0000000001"
NOTHING = Actual()


def wanted(number=1, *, here=(2,), there=(3,), gateway=True, ipv6=False, **fields):
    """Network `number` with endpoints here and on host 2."""
    net = network(number, ipv6=ipv6, **fields)
    mine = [endpoint(n, net, host(1)) for n in here]
    others = [endpoint(n, net, host(2)) for n in there]
    return wanted_network(
        SITE,
        net,
        netns=f"{number}-{net.id[:10]}",
        local=[(local(one, gateway=gateway), one) for one in mine],
        endpoints={one.id: one for one in (*mine, *others)},
        hosts=HOSTS,
    )


def desired(*networks, hold=False):
    return Desired({one.id: one for one in networks}, wanted_gateway(SITE, networks), hold)


def carried_out(wish, actual=NOTHING):
    for op in plan(wish, actual):
        actual = applied(actual, op)
    return actual


def kinds(operations):
    return [type(op) for op in operations]


def with_link(actual, name, link, netns=NETNS):
    links = dict(actual.net.namespaces[netns])
    if link is None:
        del links[name]
    else:
        links[name] = link
    namespaces = {**actual.net.namespaces, netns: links}
    return replace(actual, net=replace(actual.net, namespaces=namespaces))


def with_inner(actual, name, link):
    inner = {key: value for key, value in actual.net.inner.items() if key != name}
    if link is not None:
        inner[name] = link
    return replace(actual, net=replace(actual.net, inner=inner))


def with_tables(actual, vni, tables):
    held = {key: value for key, value in actual.tables.items() if key != vni}
    if tables is not None:
        held[vni] = tables
    return replace(actual, tables=held)


# What should be


def test_first_endpoint_is_built_in_order():
    assert kinds(plan(desired(wanted()), Actual())) == [
        EnsureGateway,
        EnsureNamespace,
        EnsureBridge,
        AttachPort,
        EnsurePort,
        UpdateTables,
        EnsureVeth,
        EnsureVeth,
    ]


def test_removal_is_the_reverse():
    standing = carried_out(desired(wanted()))
    assert kinds(plan(Desired(), standing)) == [
        RemoveVeth,
        RemoveVeth,
        DetachPort,
        RemoveNamespace,
    ]


def test_second_plan_is_empty():
    wish = desired(wanted(), wanted(2, ipv6=True))
    assert plan(wish, carried_out(wish)) == []


def test_internal_network_needs_no_gateway():
    wish = desired(wanted(gateway=False))
    assert wish.gateway is None
    assert EnsureGateway not in kinds(plan(wish, Actual()))


def test_bridge_has_the_gateways_addresses_and_mac():
    bridge = wanted(ipv6=True).overlay.bridge
    assert bridge.mac == bytes.fromhex("02420a000101")
    assert bridge.addresses == {
        ip_interface("10.0.1.1/24"),
        ip_interface("fd00:1::1/64"),
        ip_interface("fe80::42:aff:fe00:101/64"),
    }
    assert bridge.ipv6


def test_the_routes_that_the_kernel_makes_of_addresses_are_wanted_too():
    one = wanted(ipv6=True)
    on_link = {Route(ip_network(cidr)) for cidr in ("10.0.1.0/24", "fd00:1::/64", "fe80::/64")}
    assert one.overlay.bridge.routes == on_link
    assert one.attachments[0].overlay.inner.routes == on_link


def test_ipv4_network_has_no_ipv6_anywhere():
    one = wanted()
    assert not one.overlay.bridge.ipv6
    assert not one.attachments[0].overlay.inner.ipv6


def test_endpoint_reaches_the_networks_other_subnets_on_the_link():
    net = network()
    second = replace(net.subnets[0], cidr=ip_network("10.9.0.0/24"), gateway=ip_address("10.9.0.1"))
    one = wanted(subnets=(*net.subnets, second))
    assert one.attachments[0].overlay.inner.routes == {
        Route(ip_network("10.0.1.0/24")),
        Route(ip_network("10.9.0.0/24")),
    }


def test_uplink_is_isolated_and_carries_the_default_route():
    uplink = wanted().attachments[0].uplink
    assert uplink.outer.isolated
    assert uplink.netns == ""
    assert uplink.inner.routes == {
        Route(ip_network("172.18.0.0/16")),
        Route(ip_network("0.0.0.0/0"), ip_address("172.18.0.1")),
    }


def test_a_bridge_knows_each_container_by_its_mac_and_learns_no_other():
    one = wanted().attachments[0]
    assert one.overlay.outer.stations == {one.overlay.inner.mac}
    assert one.uplink.outer.stations == {one.uplink.inner.mac}


def test_gateway_bridge_is_the_first_address_of_the_subnet():
    gateway = desired(wanted()).gateway
    assert gateway.link.addresses == {IPv4Interface("172.18.0.1/16")}


def test_flood_rate_option_is_the_ports():
    assert wanted(options={"flood-rate": "77"}).port.flood_rate == 77


def test_datapath_option_is_the_ports():
    assert wanted().port.datapath == "forwarder"
    kernel = wanted(options={"datapath": "kernel"})
    assert kernel.port.datapath == "kernel"
    assert kernel.overlay.port.ipv6 == kernel.overlay.bridge.ipv6
    assert not wanted().overlay.port.ipv6


@pytest.mark.parametrize("text", ["", "-1", "0", "many"])
def test_useless_flood_rate_is_the_default(text):
    assert wanted(options={"flood-rate": text}).port.flood_rate == 10_000


# Tables


def tables_of(*endpoints, this=None, hosts=HOSTS):
    return wanted_tables(this or host(1), {one.id: one for one in endpoints}, hosts)


def test_tables_hold_remote_endpoints_only():
    net = network()
    assert tables_of(endpoint(2, net, host(1)), endpoint(3, net, host(2))) == Tables(
        {bytes.fromhex("02420a000103"): "198.18.0.2"},
        {"10.0.1.3": bytes.fromhex("02420a000103")},
        ("198.18.0.2",),
    )


def test_flood_list_is_sorted_without_this_host():
    net = network()
    found = tables_of(*(endpoint(n, net, host(h)) for n, h in ((2, 3), (3, 1), (4, 2), (5, 2))))
    assert found.flood == ("198.18.0.2", "198.18.0.3")


def test_newest_claim_of_a_mac_wins():
    net, mac = network(), b"\x02\x42\0\0\0\x09"
    older, newer = endpoint(2, net, host(2), mac=mac), endpoint(3, net, host(3), mac=mac)
    assert tables_of(older, newer).fdb == {mac: "198.18.0.3"}


def test_earlier_claim_comes_back_when_the_newest_is_withdrawn():
    net, mac = network(), b"\x02\x42\0\0\0\x09"
    assert tables_of(endpoint(2, net, host(2), mac=mac)).fdb == {mac: "198.18.0.2"}


def test_mac_that_this_host_claimed_last_is_not_remote():
    net, mac = network(), b"\x02\x42\0\0\0\x09"
    assert (
        tables_of(endpoint(2, net, host(2), mac=mac), endpoint(3, net, host(1), mac=mac)).fdb == {}
    )


def test_endpoint_of_an_unknown_host_is_left_out():
    net = network()
    assert tables_of(endpoint(3, net, host(9))) == Tables()


def test_vtep_of_the_other_ip_version_is_left_out():
    net = network()
    other = replace(host(2), vtep=ip_address("fd98::2"))
    assert tables_of(endpoint(3, net, other), hosts={**HOSTS, other.id: other}) == Tables()


def test_tables_stay_while_the_store_has_not_told():
    one = replace(wanted(), tables=None)
    standing = carried_out(desired(wanted()))
    assert plan(desired(one), standing) == []


def test_multicast_off_keeps_the_flood_list():
    one = wanted(multicast=False)
    assert not one.port.multicast
    assert one.tables.flood == ("198.18.0.2",)


def test_one_update_holds_all_changes_of_a_network():
    standing = carried_out(desired(wanted(there=(3, 4, 5))))
    (op,) = plan(desired(wanted(there=(5, 6, 7))), standing)
    macs = {n: bytes.fromhex(f"02420a0001{n:02x}") for n in range(3, 8)}
    assert op.update.add == {macs[6]: "198.18.0.2", macs[7]: "198.18.0.2"}
    assert set(op.update.remove) == {macs[3], macs[4]}
    assert op.update.neighbours is not None
    assert op.update.flood is None


def test_no_difference_is_no_update():
    held = NetworkTables(PortConfig(1, 1450), {b"\x02" * 6: "198.18.0.2"}, {}, ("198.18.0.2",))
    same = Tables(held.fdb, held.neighbours, held.flood)
    assert difference(1, same, held) is None


# Repairs: one thing is changed by hand

V = host_ifname(endpoint(2, network(), host(1)).id)
G = gateway_host_ifname(endpoint(2, network(), host(1)).id)


def standing():
    return carried_out(desired(wanted()))


def changed(actual, name, **fields):
    return with_link(actual, name, replace(actual.net.namespaces[NETNS][name], **fields))


def changed_inner(actual, name, **fields):
    return with_inner(actual, name, replace(actual.net.inner[name], **fields))


def changed_gateway(actual, **fields):
    gateway = replace(actual.net.gateway, **fields)
    return replace(actual, net=replace(actual.net, gateway=gateway))


def changed_tables(actual, **fields):
    return with_tables(actual, 4097, replace(actual.tables[4097], **fields))


def without_veth(actual):
    return with_inner(with_link(actual, V, None), V, None)


def without_bridge(actual):
    bare = with_link(actual, BRIDGE, None)
    return changed(changed(bare, PORT, master=""), V, master="")


def without_namespace(actual):
    return replace(actual, net=replace(actual.net, namespaces={}))


@pytest.mark.parametrize(
    ("by_hand", "repair"),
    [
        (without_veth, [EnsureVeth]),
        (without_bridge, [EnsureBridge, EnsurePort, EnsureVeth]),
        (without_namespace, [EnsureNamespace]),
        (
            lambda a: without_namespace(with_tables(a, 4097, None)),
            [EnsureNamespace, EnsureBridge, AttachPort, EnsurePort, UpdateTables, EnsureVeth],
        ),
        (lambda a: changed(a, BRIDGE, mtu_bytes=1500), [EnsureBridge]),
        (lambda a: changed(a, BRIDGE, up=False), [EnsureBridge]),
        (lambda a: changed(a, BRIDGE, mac=b"\x02" * 6), [EnsureBridge]),
        (lambda a: changed(a, BRIDGE, addresses=frozenset()), [EnsureBridge]),
        (lambda a: changed(a, BRIDGE, ipv6=True), [EnsureBridge]),
        (lambda a: changed(a, PORT, master=""), [EnsurePort]),
        (lambda a: changed(a, PORT, up=False), [EnsurePort]),
        (lambda a: with_link(a, PORT, None), [AttachPort, EnsurePort]),
        (lambda a: changed_tables(a, port_alive=False), [AttachPort, EnsurePort]),
        (lambda a: changed_tables(a, port=PortConfig(4097, 1400)), [AttachPort, EnsurePort]),
        (lambda a: with_tables(a, 4097, None), [AttachPort, EnsurePort, UpdateTables]),
        (lambda a: changed_tables(a, fdb={}), [UpdateTables]),
        (lambda a: changed_tables(a, flood=()), [UpdateTables]),
        (lambda a: changed_tables(a, neighbours={}), [UpdateTables]),
        (lambda a: changed(a, V, master=""), [EnsureVeth]),
        (lambda a: changed_inner(a, V, mac=b"\x02" * 6), [EnsureVeth]),
        (lambda a: changed_inner(a, V, mtu_bytes=900), [EnsureVeth]),
        (lambda a: changed_inner(a, V, up=False), [EnsureVeth]),
        (lambda a: changed_inner(a, V, addresses=frozenset()), [EnsureVeth]),
        (lambda a: changed_inner(a, V, ipv6=True), [EnsureVeth]),
        (lambda a: changed_inner(a, V, odd=frozenset({"noarp"})), [EnsureVeth]),
        (lambda a: changed(a, BRIDGE, odd=frozenset({"mcast_snooping"})), [EnsureBridge]),
        (lambda a: changed(a, V, isolated=True), [EnsureVeth]),
        (lambda a: changed_inner(a, G, routes=frozenset()), [EnsureVeth]),
        (lambda a: with_inner(a, G, None), [EnsureVeth]),
        (lambda a: replace(a, net=replace(a.net, gateway=None)), [EnsureGateway]),
        (lambda a: changed_gateway(a, ruled=False), [EnsureGateway]),
        (lambda a: changed_gateway(a, forwarding=False), [EnsureGateway]),
    ],
)
def test_what_was_changed_by_hand_is_put_right(by_hand, repair):
    wish = desired(wanted())
    damaged = by_hand(standing())
    assert kinds(plan(wish, damaged)) == repair


@pytest.mark.parametrize(
    "by_hand",
    [
        lambda a: with_link(a, "mine0", Link(b"\x02" * 6, 1500)),
        lambda a: changed_inner(
            a, V, addresses=a.net.inner[V].addresses | {ip_interface("192.0.2.9/24")}
        ),
        lambda a: changed_inner(
            a, V, routes=a.net.inner[V].routes | {Route(ip_network("192.0.2.0/24"))}
        ),
        lambda a: changed_inner(
            a,
            G,
            routes=frozenset({Route(ip_network("172.18.0.0/16"))}),
            default_routes=frozenset({4}),
        ),
    ],
)
def test_what_others_added_is_left_alone(by_hand):
    assert plan(desired(wanted()), by_hand(standing())) == []


def test_unknown_veth_in_our_namespace_is_removed():
    stray = with_link(standing(), "v0123456789", Link(b"\x02" * 6, 1450))
    (op,) = plan(desired(wanted()), stray)
    assert op == RemoveVeth(scope="0000000001", netns=NETNS, outer_name="v0123456789")


def test_on_hold_nothing_is_removed():
    assert plan(Desired(hold=True), standing()) == []


def test_default_route_of_the_other_version_does_not_count():
    want = Link(
        b"", 1450, routes=frozenset({Route(ip_network("0.0.0.0/0"), ip_address("10.0.0.1"))})
    )
    assert faults(want, replace(want, routes=frozenset(), default_routes=frozenset({6}))) == (
        "route",
    )


# One failed operation


def test_only_what_builds_on_a_failed_operation_is_blocked():
    operations = plan(desired(wanted(1), wanted(2)), Actual())
    failed = [op for op in operations if isinstance(op, EnsureBridge) and op.netns == NETNS]
    stopped = [op for op in operations if blocked(op, failed)]
    assert kinds(stopped) == [EnsurePort, EnsureVeth]
    assert {op.scope for op in stopped} == {"0000000001"}


def test_failed_gateway_blocks_uplinks_only():
    operations = plan(desired(wanted()), Actual())
    stopped = [op for op in operations if blocked(op, operations[:1])]
    assert [op.veth.outer_name for op in stopped] == [G]


def test_removals_are_never_blocked():
    operations = plan(Desired(), standing())
    assert not any(blocked(op, operations) for op in operations)


# From anything to anything


@st.composite
def desires(draw):
    networks = []
    for number in draw(st.sets(st.integers(1, 3))):
        numbers = draw(st.sets(st.integers(2, 6), min_size=1))
        split = draw(st.integers(1, len(numbers)))
        ordered = sorted(numbers)
        networks.append(
            wanted(
                number,
                here=ordered[:split],
                there=ordered[split:],
                gateway=draw(st.booleans()),
                ipv6=draw(st.booleans()),
                mtu_bytes=draw(st.sampled_from([1400, 1450])),
            )
        )
    return desired(*networks)


@st.composite
def actuals(draw):
    """What stands after some other wish, with pieces missing or wrong."""
    actual = carried_out(draw(desires()))
    net = actual.net
    for netns in draw(st.sets(st.sampled_from(sorted(net.namespaces)))) if net.namespaces else ():
        for name in draw(st.sets(st.sampled_from(sorted(actual.net.namespaces[netns])))):
            link = actual.net.namespaces[netns][name]
            broken = draw(
                st.sampled_from([None, replace(link, up=False), replace(link, master="")])
            )
            actual = with_link(actual, name, broken, netns)
    for name in draw(st.sets(st.sampled_from(sorted(net.inner)))) if net.inner else ():
        actual = with_inner(actual, name, draw(st.sampled_from([None, Link(b"", 9)])))
    for vni in draw(st.sets(st.sampled_from(sorted(actual.tables)))) if actual.tables else ():
        tables = NetworkTables(PortConfig(vni, 1450), {b"\x02" * 6: "198.18.0.9"})
        actual = with_tables(actual, vni, draw(st.sampled_from([None, tables])))
    if draw(st.booleans()):
        actual = replace(actual, net=replace(actual.net, gateway=None))
    gone = draw(st.sets(st.sampled_from(sorted(net.namespaces)))) if net.namespaces else set()
    left = {name: links for name, links in actual.net.namespaces.items() if name not in gone}
    return replace(actual, net=replace(actual.net, namespaces=left))


@settings(max_examples=150, deadline=None)
@given(desires(), actuals())
def test_plan_leads_from_anything_to_what_is_desired_and_then_says_nothing(wish, actual):
    # A namespace that is adopted must be read before more is planned: the second round does that.
    actual = carried_out(wish, carried_out(wish, actual))
    assert plan(wish, actual) == []


@settings(max_examples=60, deadline=None)
@given(desires(), actuals())
def test_nothing_is_left_once_nothing_is_desired(wish, actual):
    empty = carried_out(Desired(), carried_out(wish, actual))
    assert (empty.net.namespaces, empty.net.uplinks, empty.tables) == ({}, {}, {})
    assert isinstance(empty.net, Observed)
