"""The invariants of docs/schema.md, each broken in turn."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from pyvxlan.daemon import records
from pyvxlan.daemon.kv.health import Finding
from pyvxlan.daemon.upkeep import integrity
from tests.unit import stored
from tests.unit.memory_net import endpoint, hex_id, host, network

ALIVE = {records.alive_key(host(number).id): b"{}" for number in (1, 2)}


def found(values: dict[str, bytes], level: str = "error") -> list[str]:
    return [f"{f.what}: {f.text}" for f in integrity.examine(values) if f.level == level]


def test_whole_cluster_has_nothing_but_good_news() -> None:
    assert integrity.examine(stored.cluster() | ALIVE) == [
        Finding("ok", "records", "2 networks, 2 hosts, 6 endpoints; all fit each other"),
        Finding("ok", "hosts", "2 up, none down"),
    ]


def test_empty_store_is_whole() -> None:
    assert integrity.examine({}) == [
        Finding("ok", "records", "0 networks, 0 hosts, 0 endpoints; all fit each other")
    ]


@pytest.mark.parametrize("key", sorted(set(stored.cluster()) - {records.META}))
def test_no_record_can_vanish_unseen(key: str) -> None:
    values = stored.cluster() | ALIVE
    del values[key]
    assert any(finding.level != "ok" for finding in integrity.examine(values))


@pytest.mark.parametrize("key", sorted(stored.cluster()))
def test_record_that_is_not_valid_is_named_with_the_reason(key: str) -> None:
    values = stored.cluster() | ALIVE | {key: b"{nonsense"}
    assert found(values)[0].startswith(f"records: not valid (1): {key} (not JSON")


def test_record_of_a_newer_version_is_not_to_be_deleted() -> None:
    key = f"net/{'9' * 32}"
    (told,) = found(stored.cluster() | ALIVE | {key: b'{"v":2,"name":"newer"}'})
    assert told.startswith(f"records: of a newer version (1): {key} (field vni")
    assert told.endswith("; upgrade this pyvxlan")


def test_claim_of_nobody_is_named() -> None:
    key = records.network_name_key("ghost")
    values = stored.cluster() | ALIVE | {key: records.emit(hex_id(0x99))}
    assert found(values) == [
        f"claims: claims without owner (1): {key}; repair or delete them in the store"
    ]


def test_claim_of_another_is_named() -> None:
    net = network(1)
    key = records.vni_key(net.vni)
    values = stored.cluster() | ALIVE | {key: records.emit(network(2).id)}
    (text,) = found(values)
    assert f"{key} of net/{net.id} is claimed by {network(2).id}" in text


def test_endpoint_of_no_network_is_named() -> None:
    stray = endpoint(9, network(7), host(1))
    values = stored.cluster() | ALIVE | stored.of_endpoint(stray)
    assert found(values) == [
        f"networks: endpoints of no network (1): ep/{stray.network_id}/{stray.id}; "
        "repair or delete them in the store"
    ]


def test_subnets_that_overlap_are_named() -> None:
    other = network(3)
    wide = replace(other.subnets[0], cidr=ip_network("10.0.0.0/16"))
    values = stored.cluster() | ALIVE | stored.of_network(replace(other, subnets=(wide,)))
    assert "10.0.0.0/16 of ov_net3 and 10.0.1.0/24 of ov_net1" in found(values)[0]


def test_pool_that_no_network_has_is_named() -> None:
    values = stored.cluster() | ALIVE
    used = {**records.parse_pools(values[records.POOLS]).used, ip_network("10.9.0.0/24"): hex_id(9)}
    values[records.POOLS] = records.emit_pools(records.PoolUse(used))
    assert "10.9.0.0/24" in found(values)[0]


def test_host_that_is_down_is_a_warning_with_its_endpoints() -> None:
    values = stored.cluster() | {records.alive_key(host(1).id): b"{}"}
    (text,) = found(values, "warning")
    assert text.startswith("hosts: down (1): host2 (2 endpoints); ")
    assert "600 s" in text
    assert found(values) == []


def test_endpoints_of_a_host_without_record_wait_for_collection_too() -> None:
    values = stored.cluster() | ALIVE | stored.of_endpoint(endpoint(9, network(1), host(7)))
    (text,) = found(values, "warning")
    assert f"{host(7).id[:12]} (1 endpoint)" in text


def test_closed_network_is_a_warning() -> None:
    values = stored.cluster() | ALIVE
    key = records.network_key(network(1).id)
    values[key] = records.with_state(values[key], "down")
    assert found(values, "warning")[0].startswith("networks: closed, and not removed (1): ov_net1")


def test_foreign_keys_are_counted_and_the_first_named() -> None:
    values = stored.cluster() | ALIVE | {f"else/{n}": b"1" for n in range(7)}
    (text,) = found(values, "warning")
    assert (
        "keys that are not pyvxlan's (7): else/0, else/1, else/2, else/3, else/4, and 2 more"
        in (text)
    )
