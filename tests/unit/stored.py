"""What a store of a small cluster holds, as values by key."""

from __future__ import annotations

from collections.abc import Iterable

from pyvxlan.daemon import records
from pyvxlan.daemon.model import Cidr, Endpoint, Host, Network
from tests.unit import memory_net
from tests.unit.memory_net import hex_id

CLUSTER = hex_id(0xC1)


def cluster(*, networks: int = 2, hosts: int = 2, endpoints: int = 3) -> dict[str, bytes]:
    """Networks, hosts, and on each network endpoints, taken by the hosts in turn."""
    made = [memory_net.host(number) for number in range(1, hosts + 1)]
    values = {records.META: records.emit_meta(records.Meta(CLUSTER, created="2026-11-25"))}
    for host in made:
        values |= of_host(host)
    used: dict[Cidr, str] = {}
    for number in range(1, networks + 1):
        network = memory_net.network(number, ipv6=number % 2 == 0)
        used |= {subnet.cidr: network.id for subnet in network.subnets}
        values |= of_network(network)
        for step in range(endpoints):
            host = made[step % hosts]
            values |= of_endpoint(memory_net.endpoint(2 + step, network, host))
    values[records.POOLS] = records.emit_pools(records.PoolUse(used))
    return values


def of_host(host: Host) -> dict[str, bytes]:
    return _owned(records.host_key(host.id), records.emit_host(host), [records.vtep_key(host.vtep)])


def of_network(network: Network) -> dict[str, bytes]:
    claims = [records.network_name_key(network.name), records.vni_key(network.vni)]
    claims += [records.address_key(network.id, subnet.gateway) for subnet in network.subnets]
    return _owned(records.network_key(network.id), records.emit_network(network), claims)


def of_endpoint(endpoint: Endpoint) -> dict[str, bytes]:
    key = records.endpoint_key(endpoint.network_id, endpoint.id)
    return _owned(key, records.emit_endpoint(endpoint), records.endpoint_claims(endpoint))


def _owned(key: str, value: bytes, claims: Iterable[str]) -> dict[str, bytes]:
    owner = records.emit(key.rpartition("/")[2])
    return {key: value} | dict.fromkeys(claims, owner)
