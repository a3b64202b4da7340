"""What this host keeps on its own disk."""

from __future__ import annotations

import logging
from ipaddress import IPv4Interface, IPv4Network, ip_address, ip_network
from pathlib import Path

import pytest

from pyvxlan.daemon.errors import ConflictError, InvalidError, NetError
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.model import Endpoint, LocalEndpoint, Network, Sandbox, Subnet

NETWORK = Network(
    id="a" * 32,
    name="n1",
    vni=5000,
    subnets=(Subnet(ip_network("10.0.0.0/24"), ip_address("10.0.0.1")),),
    mtu_bytes=1450,
)
ENDPOINT = Endpoint(
    id="e" * 32,
    network_id=NETWORK.id,
    host_id="b" * 32,
    mac=bytes.fromhex("02420a000002"),
    addresses=(IPv4Interface("10.0.0.2/24"),),
    name="bbox1",
)
LOCAL = LocalEndpoint(
    id=ENDPOINT.id,
    network_id=NETWORK.id,
    sandbox=Sandbox("/run/netns/x", 42, pid=7, start_ticks=99),
    ifname="eth0",
    gateway_ifname="eth1",
    gateway_address=IPv4Interface("172.18.0.2/16"),
)


def reopened(local: LocalRecords, path: Path) -> LocalRecords:
    local.close()
    return LocalRecords(path)


def test_everything_outlives_the_daemon(tmp_path: Path) -> None:
    local = LocalRecords(tmp_path)
    host_id = local.host_id
    local.put(LOCAL, endpoint=ENDPOINT, network=NETWORK)
    local.remember_gateway_subnet(IPv4Network("172.19.0.0/16"))
    local.remember_sysctl("net.ipv4.ip_forward", "0")
    name = local.netns_name(NETWORK.id)
    local = reopened(local, tmp_path)
    assert local.host_id == host_id
    assert dict(local.endpoints) == {LOCAL.id: LOCAL}
    assert dict(local.records) == {LOCAL.id: ENDPOINT}
    assert dict(local.networks) == {NETWORK.id: NETWORK}
    assert local.gateway_subnet == IPv4Network("172.19.0.0/16")
    assert local.gateway_addresses == {ip_address("172.18.0.2")}
    assert local.sysctls() == {"net.ipv4.ip_forward": "0"}
    assert local.netns_name(NETWORK.id) == name
    local.close()


def test_removed_endpoint_is_gone_with_its_copies(tmp_path: Path) -> None:
    local = LocalRecords(tmp_path)
    local.put(LOCAL, endpoint=ENDPOINT, network=NETWORK)
    local.remove(LOCAL.id)
    local.remove(LOCAL.id)
    for state in (local, local := reopened(local, tmp_path)):
        assert not state.endpoints
        assert not state.records
        assert not state.networks
    local.close()


def test_changed_endpoint_keeps_its_copies(tmp_path: Path) -> None:
    local = LocalRecords(tmp_path)
    local.put(LOCAL, endpoint=ENDPOINT, network=NETWORK)
    local.put(LOCAL)
    local = reopened(local, tmp_path)
    assert local.records[LOCAL.id] == ENDPOINT
    assert local.networks[NETWORK.id] == NETWORK
    local.close()


def test_namespace_is_named_by_counter_and_network(tmp_path: Path) -> None:
    local = LocalRecords(tmp_path)
    assert local.netns_name(NETWORK.id) == "1-aaaaaaaaaa"
    assert local.netns_name("b" * 32) == "2-bbbbbbbbbb"
    assert local.netns_name(NETWORK.id) == "1-aaaaaaaaaa"
    local.forget_netns(NETWORK.id)
    assert local.next_netns_counter(NETWORK.id) == 3
    assert local.netns_name(NETWORK.id) == "3-aaaaaaaaaa"
    assert set(local.netns_names.values()) == {"2-bbbbbbbbbb", "3-aaaaaaaaaa"}
    local.close()


def test_first_value_of_a_sysctl_is_the_one_to_restore(tmp_path: Path) -> None:
    local = LocalRecords(tmp_path)
    local.remember_sysctl("net.ipv4.ip_forward", "0")
    local.remember_sysctl("net.ipv4.ip_forward", "1")
    assert local.sysctls() == {"net.ipv4.ip_forward": "0"}
    local.forget_sysctl("net.ipv4.ip_forward")
    assert local.sysctls() == {}
    local.close()


def test_two_daemons_can_not_share_a_state_directory(tmp_path: Path) -> None:
    local = LocalRecords(tmp_path)
    with pytest.raises(ConflictError, match="--state-dir"):
        LocalRecords(tmp_path)
    local.close()
    LocalRecords(tmp_path).close()


def test_state_directory_that_can_not_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NetError, match="--state-dir"):
        LocalRecords(tmp_path / "file" / "state")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": 1}', b"\xff\xfe", b"null"])
def test_damaged_endpoint_is_set_aside_and_reported(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    local = LocalRecords(tmp_path)
    local.put(LOCAL, endpoint=ENDPOINT)
    damaged = tmp_path / "endpoints" / f"{'f' * 32}.json"
    damaged.write_bytes(content)
    with caplog.at_level(logging.ERROR):
        local = reopened(local, tmp_path)
    assert set(local.endpoints) == {LOCAL.id}
    assert str(damaged) in caplog.text
    assert not damaged.exists()
    local.close()


def test_damaged_host_file_is_set_aside(tmp_path: Path) -> None:
    LocalRecords(tmp_path).close()
    (tmp_path / "host.json").write_text('{"netns": {"a": "no counter"}}')
    local = LocalRecords(tmp_path)
    assert local.netns_name(NETWORK.id) == "1-aaaaaaaaaa"
    local.close()


def test_damaged_host_id_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "host-id").write_text("nonsense")
    with pytest.raises(InvalidError, match="32 hex digits"):
        LocalRecords(tmp_path)


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    local = LocalRecords(tmp_path / "state")
    local.put(LOCAL, endpoint=ENDPOINT)
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert files
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    local.close()


def test_store_that_the_cluster_left_stays_left(tmp_path: Path) -> None:
    local = LocalRecords(tmp_path)
    assert local.store_for("etcd://h1") == "etcd://h1"
    local.remember_store("etcd://h1", "zk://h2")
    local.close()
    again = LocalRecords(tmp_path)
    assert again.store_for("etcd://h1") == "zk://h2"
    assert again.store_for("etcd://h3") == "etcd://h3"
    assert again.last_store == "zk://h2"
    again.remember_store("etcd://h1", "etcd://h1")
    assert again.store_for("etcd://h1") == "etcd://h1"
    assert again.last_store == "etcd://h1"
    again.close()
