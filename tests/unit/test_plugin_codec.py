"""Docker's requests: those recorded from a real one, and whatever else may come."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvxlan.daemon.errors import InvalidError
from pyvxlan.daemon.plugin import codec, server
from pyvxlan.daemon.plugin.codec import (
    AddressRelease,
    AddressRequest,
    EndpointCall,
    EndpointCreation,
    JoinCall,
    NetworkCreation,
    NetworkDeletion,
    PoolData,
    PoolRelease,
    PoolRequest,
    parse,
)

DATA = Path(__file__).parents[1] / "data"
CALLS = {
    version: [json.loads(line) for line in file.read_text().splitlines()]
    for version in ("20.10", "28.5", "29.8")
    if (file := DATA / f"docker-{version}-requests.jsonl")
}
"""What dockerd 20.10.24, 28.5.2 and 29.8 sent to this plug-in, with the command that made them do
so (`tests/docker/record.py`)."""
EVERY = [(version, call) for version, calls in CALLS.items() for call in calls]
versions = pytest.mark.parametrize("version", CALLS)


def bodies(version: str, when: str, method: str) -> list[Any]:
    found = [parse(method, json.dumps(one["body"]).encode()) for one in CALLS[version]
             if (one["when"], one["method"]) == (when, method)]  # fmt: skip
    assert found, (version, when, method)
    return found


@pytest.mark.parametrize(
    "call", [pytest.param(one, id=f"{v}: {one['when']}: {one['method']}") for v, one in EVERY]
)
def test_every_recorded_request_is_understood(call: dict[str, Any]) -> None:
    assert call["method"] in server.METHODS
    assert parse(call["method"], json.dumps(call["body"]).encode()) is not None


@versions
def test_network_with_every_option_is_read_whole(version: str) -> None:
    when = "network create, every option"
    assert bodies(version, when, "IpamDriver.RequestPool") == [
        PoolRequest("10.88.0.0/16", "10.88.5.0/24", v6=False),
        PoolRequest("fd88::/64", "", v6=True),
    ]
    four, six = "pyvxlan/10.88.0.0/16", "pyvxlan/fd88::/64"
    assert bodies(version, when, "IpamDriver.RequestAddress") == [
        AddressRequest(four, "10.88.0.254", gateway=True),
        AddressRequest(four, "10.88.5.9"),
        AddressRequest(six, "", gateway=True),
    ]
    (network,) = bodies(version, when, "NetworkDriver.CreateNetwork")
    assert network == NetworkCreation(
        network.network_id,
        (
            PoolData("10.88.0.0/16", "10.88.0.254/16", "pyvxlan", {"r": "10.88.5.9/16"}),
            PoolData("fd88::/64", "fd88::1/64", "pyvxlan"),
        ),
        {"com.docker.network.driver.mtu": "1400", "vni": "4711"},
        internal=True,
        ipv6=True,
    )


@versions
def test_container_with_every_option_is_read_whole(version: str) -> None:
    when = "run, every option"
    (address,) = bodies(version, when, "IpamDriver.RequestAddress")
    name = "c2" if version == "29.8" else ""
    assert address == AddressRequest("pyvxlan/10.0.9.0/24", "10.0.9.99", name=name)
    (creation,) = bodies(version, when, "NetworkDriver.CreateEndpoint")
    assert creation == EndpointCreation(
        creation.network_id, creation.endpoint_id, "10.0.9.99/24", "", "02:aa:bb:cc:dd:ee"
    )
    (joining,) = bodies(version, when, "NetworkDriver.Join")
    assert joining == JoinCall(creation.network_id, creation.endpoint_id, joining.sandbox_key)
    assert joining.sandbox_key.startswith("/var/run/docker/netns/")


@versions
def test_dual_stack_container_has_both_addresses(version: str) -> None:
    when = "run on a dual-stack internal network"
    (creation,) = bodies(version, when, "NetworkDriver.CreateEndpoint")
    assert (creation.address, creation.address6) == ("10.88.5.0/16", "fd88::77/64")


@versions
def test_end_of_a_container_and_of_a_network_are_read(version: str) -> None:
    (left,) = bodies(version, "rm -f", "NetworkDriver.Leave")
    assert left == EndpointCall(left.network_id, left.endpoint_id)
    assert bodies(version, "rm -f", "NetworkDriver.DeleteEndpoint") == [left]
    assert bodies(version, "rm -f", "IpamDriver.ReleaseAddress") == [
        AddressRelease("pyvxlan/10.0.9.0/24", "10.0.9.2")
    ]
    assert bodies(version, "network rm", "IpamDriver.ReleasePool") == [
        PoolRelease("pyvxlan/10.0.9.0/24")
    ]
    (deleted,) = bodies(version, "network rm", "NetworkDriver.DeleteNetwork")
    assert deleted == NetworkDeletion(left.network_id)


@versions
def test_copy_asks_for_its_subnet(version: str) -> None:
    assert bodies(version, "copy by the daemon", "IpamDriver.RequestPool") == [
        PoolRequest("10.77.0.0/24", "", v6=False)
    ]


@versions
def test_addresses_of_dockers_own_ipam_are_told_from_ours(version: str) -> None:
    when = "network create without --ipam-driver"
    (network,) = bodies(version, when, "NetworkDriver.CreateNetwork")
    assert [pool.space for pool in network.pools] == ["LocalDefault"]


SYSCTLS = "com.docker.network.endpoint.sysctls"
IFNAME = "com.docker.network.endpoint.ifname"
NO_PROXY = "com.docker.network.driver.private.no_proxy_6to4"


@pytest.mark.parametrize(
    ("version", "method", "options"),
    [
        ("27", "NetworkDriver.CreateEndpoint", {SYSCTLS: "net.ipv6.conf.IFNAME.accept_ra=0"}),
        ("27", "NetworkDriver.Join", {SYSCTLS: "net.ipv6.conf.IFNAME.accept_ra=0"}),
        ("28", "NetworkDriver.CreateNetwork", {"com.docker.network.enable_ipv4": True}),
        ("28", "NetworkDriver.CreateEndpoint", {IFNAME: "overlay0"}),
        ("28", "NetworkDriver.Join", {IFNAME: "overlay0"}),
        ("29", "NetworkDriver.CreateEndpoint", {NO_PROXY: True}),
        ("later", "IpamDriver.RequestPool", {"new": {"a": [1]}}),
        ("later", "IpamDriver.RequestAddress", {"new": None}),
    ],
)
def test_what_newer_dockers_add_changes_nothing(
    version: str, method: str, options: dict[str, Any]
) -> None:
    """By their source; recorded are those of 20.10 and 28.5."""
    for call in (one for _, one in EVERY if one["method"] == method):
        body = call["body"]
        newer = {**body, "Options": {**(body.get("Options") or {}), **options}, "Newer": 1}
        old, new = (parse(method, json.dumps(one).encode()) for one in (body, newer))
        assert new == old, version


def test_name_that_docker_29_tells_with_an_address_is_read() -> None:
    options = {"com.docker.network.endpoint.name": "bbox1"}
    body = {"PoolID": "pyvxlan/10.0.0.0/24", "Address": "", "Options": options}
    asked = parse("IpamDriver.RequestAddress", json.dumps(body).encode())
    assert asked == AddressRequest("pyvxlan/10.0.0.0/24", "", name="bbox1")


def test_network_of_docker_28_without_ipv4_has_ipv6_alone() -> None:
    body = {
        "NetworkID": "n",
        "Options": {"com.docker.network.enable_ipv4": False, codec.ENABLE_IPV6: True},
        "IPv4Data": None,
        "IPv6Data": [{"AddressSpace": "pyvxlan", "Gateway": "fd88::1/64", "Pool": "fd88::/64"}],
    }
    assert parse("NetworkDriver.CreateNetwork", json.dumps(body).encode()) == NetworkCreation(
        "n", (PoolData("fd88::/64", "fd88::1/64", "pyvxlan"),), {}, ipv6=True
    )


def test_call_that_docker_repeats_without_its_body_says_what_happened() -> None:
    with pytest.raises(InvalidError, match=r"ended while it did that.*try again"):
        parse("NetworkDriver.Join", b"")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["NetworkID", "EndpointID", "Options", "Interface", "Address", "PoolID", "Pool",
             "IPv4Data", "IPv6Data", "AuxAddresses", codec.GENERIC, codec.INTERNAL, "V6"]
        ),
        inner,
        max_size=6,
    ),
    max_leaves=20,
)  # fmt: skip


@given(method=st.sampled_from(sorted(server.METHODS)), body=JSON | st.binary(max_size=40))
def test_no_body_makes_the_reader_fail_in_another_way(method: str, body: object) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with contextlib.suppress(InvalidError):
        parse(method, raw)
