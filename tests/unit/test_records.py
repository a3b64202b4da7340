"""The store's schema: what is written is read back, and nothing else passes."""

from __future__ import annotations

import contextlib
import json
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import InvalidError
from pyvxlan.daemon.model import Endpoint, Host, Network, Peer, Subnet

ids = st.text("0123456789abcdef", min_size=32, max_size=32)
names = st.from_regex(records.NAME, fullmatch=True)
v4 = st.integers(0x0A000000, 0x0AFFFFFF).map(IPv4Address)
v6 = st.integers(0xFD << 120, (0xFD << 120) + 2**100).map(IPv6Address)
texts = st.text(max_size=20)
macs = st.binary(min_size=5, max_size=5).map(lambda rest: b"\x02" + rest)

endpoints = st.builds(
    Endpoint,
    id=ids,
    network_id=ids,
    host_id=ids,
    mac=macs,
    addresses=st.one_of(
        st.tuples(st.builds(lambda a: IPv4Interface((a, 24)), v4)),
        st.tuples(st.builds(lambda a: IPv6Interface((a, 64)), v6)),
        st.tuples(
            st.builds(lambda a: IPv4Interface((a, 24)), v4),
            st.builds(lambda a: IPv6Interface((a, 64)), v6),
        ),
    ),
    name=st.one_of(st.just(""), names),
    aliases=st.lists(names, max_size=3).map(tuple),
    hostname=texts,
    container_id=texts,
)
networks = st.builds(
    Network,
    id=ids,
    name=st.text(min_size=1, max_size=20).filter(records.is_network_name),
    vni=st.integers(1, 2**24 - 2),
    subnets=st.builds(
        lambda gateway: (
            Subnet(ip_network("10.0.0.0/8"), gateway, ip_network("10.1.0.0/16")),
            Subnet(ip_network("fd00::/64"), IPv6Address("fd00::1")),
        ),
        v4,
    ),
    mtu_bytes=st.integers(576, 65535),
    internal=st.booleans(),
    attachable=st.booleans(),
    multicast=st.booleans(),
    options=st.dictionaries(texts, texts, max_size=3),
    labels=st.dictionaries(texts, texts, max_size=3),
    created_by=ids,
    created=texts,
    state=st.sampled_from(["up", "down"]),
)
hosts = st.builds(
    Host,
    id=ids,
    name=texts,
    vtep=st.one_of(v4, v6),
    port=st.integers(1, 65535),
    version=texts,
    peer=st.none() | st.builds(Peer, st.integers(1, 65535), st.binary(max_size=400)),
)


@given(endpoints)
def test_endpoint_is_read_back_as_written(endpoint: Endpoint) -> None:
    value = records.emit_endpoint(endpoint)
    assert records.parse_endpoint(endpoint.network_id, endpoint.id, value) == endpoint


@given(networks)
def test_network_is_read_back_as_written(network: Network) -> None:
    assert records.parse_network(network.id, records.emit_network(network)) == network


@given(hosts)
def test_host_is_read_back_as_written(host: Host) -> None:
    assert records.parse_host(host.id, records.emit_host(host)) == host


@pytest.mark.parametrize("peer", [7, {}, {"port": 0, "cert": ""}, {"port": 1, "cert": "%"}])
def test_a_peer_that_is_not_valid_costs_no_host(peer: object) -> None:
    value = {"v": 1, "name": "h", "vtep": "198.18.0.1", "port": 4789, "peer": peer}
    assert records.parse_host("a" * 32, json.dumps(value).encode()).peer is None


@given(st.dictionaries(st.sampled_from([ip_network(f"10.0.{n}.0/24") for n in range(9)]), ids))
def test_pools_are_read_back_as_written(used: dict[Any, str]) -> None:
    pools = records.PoolUse(used)
    assert records.parse_pools(records.emit_pools(pools)) == pools


def test_records_look_as_the_schema_says() -> None:
    endpoint = Endpoint(
        id="e" * 32,
        network_id="a" * 32,
        host_id="b" * 32,
        mac=bytes.fromhex("02420a000003"),
        addresses=(IPv4Interface("10.0.0.3/24"),),
        name="bbox1",
        aliases=("web",),
        container_id="76db3f97486a",
    )
    assert records.emit_endpoint(endpoint) == (
        b'{"v":1,"host":"' + b"b" * 32 + b'","ip4":"10.0.0.3/24","mac":"02:42:0a:00:00:03",'
        b'"name":"bbox1","aliases":["web"],"cid":"76db3f97486a"}'
    )


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
)
FIELDS = """
v host ip4 ip6 mac name aliases cid hostname vni subnets mtu internal mcast opts labels by state
vtep port inc ver used cluster min_reader pools gc_grace_s session_ttl_s cidr gw range attachable
""".split()  # noqa: SIM905 - a list of literals would be a page long


@given(
    st.one_of(
        st.binary(max_size=60),
        st.dictionaries(st.sampled_from(FIELDS), json_values).map(
            lambda record: json.dumps({"v": 1} | record).encode()
        ),
        json_values.map(lambda value: json.dumps(value).encode()),
    )
)
def test_any_other_record_is_refused_and_never_crashes(value: bytes) -> None:
    id_ = "c" * 32
    for parse in (
        lambda: records.parse_network(id_, value),
        lambda: records.parse_endpoint(id_, id_, value),
        lambda: records.parse_host(id_, value),
        lambda: records.parse_meta(value),
        lambda: records.parse_pools(value),
        lambda: records.parse_config(value),
        lambda: records.parse_claim(value),
    ):
        with contextlib.suppress(InvalidError):
            parse()


GOOD: dict[str, Any] = {
    "v": 1,
    "name": "n1",
    "vni": 5000,
    "subnets": [{"cidr": "10.0.0.0/24", "gw": "10.0.0.1"}],
    "mtu": 1450,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": None}, "v is None"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"vni": 0}, "vni is 0"),
        ({"vni": 2**24}, "vni is 16777216"),
        ({"vni": True}, "vni is True"),
        ({"subnets": []}, "subnets is empty"),
        ({"subnets": [{"cidr": "10.0.0.0/24", "gw": "10.0.1.1"}]}, "not within"),
        ({"subnets": [{"cidr": "10.0.0.1/24", "gw": "10.0.0.1"}]}, "host bits"),
        ({"mtu": 100}, "mtu is 100"),
        ({"state": "sideways"}, "state is 'sideways'"),
        ({"opts": {"a": 1}}, "opts holds 1"),
    ],
)
def test_wrong_field_is_named_with_its_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        records.parse_network("a" * 32, json.dumps(GOOD | change).encode())


def test_fields_of_newer_versions_survive_a_change_of_state() -> None:
    value = json.dumps(GOOD | {"v": 2, "shiny": [1]}).encode()
    changed = json.loads(records.with_state(value, "down"))
    assert changed == GOOD | {"v": 2, "shiny": [1], "state": "down"}
    assert records.parse_network("a" * 32, value).name == "n1"


def test_store_that_needs_a_newer_reader_is_refused() -> None:
    value = records.emit_meta(records.Meta("a" * 32, min_reader=2))
    with pytest.raises(InvalidError, match="upgrade"):
        records.parse_meta(value)


def test_config_keeps_defaults_for_what_it_leaves_out() -> None:
    config = records.parse_config(
        b'{"v":1,"vni":[5000,5001],"pools":[{"base":"10.9.0.0/16","size":26}]}'
    )
    assert config.vni == (5000, 5001)
    assert config.pools == (records.parse_pool("10.9.0.0/16:26"),)
    assert config.gc_grace_s == 600


def test_chosen_mac_is_claimed_and_a_derived_one_is_not() -> None:
    address = IPv4Interface("10.0.0.3/24")
    derived = Endpoint("e" * 32, "a" * 32, "b" * 32, records.derived_mac(address), (address,))
    chosen = Endpoint("e" * 32, "a" * 32, "b" * 32, b"\x02\x00\x00\x00\x00\x01", (address,))
    assert not any(claim.startswith("mac/") for claim in records.endpoint_claims(derived))
    assert f"mac/{'a' * 32}/02:00:00:00:00:01" in records.endpoint_claims(chosen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("01:00:5e:00:00:01", "multicast"),
        ("ff:ff:ff:ff:ff:ff", "multicast"),
        ("00:00:00:00:00:00", "all zero"),
        ("02:42:0a:00:00", "six bytes"),
        ("02:42:0a:00:00:0g", "six bytes"),
        ("", "six bytes"),
    ],
)
def test_mac_that_no_interface_could_have_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        records.parse_mac(text)


def test_mac_is_read_in_any_usual_spelling() -> None:
    assert records.parse_mac("02-AA-0B-00-00-01") == bytes.fromhex("02aa0b000001")
