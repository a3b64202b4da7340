"""Races for names, VNIs, addresses and VTEPs between hosts, on every store: one wins, each time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import ConflictError, DaemonError
from pyvxlan.daemon.kv.mirror import Mirror
from pyvxlan.daemon.model import Endpoint, Network
from pyvxlan.daemon.requests import EndpointSpec, NetworkSpec
from tests.kv.labs.lab import Lab
from tests.unit.cluster import Member, MemoryNet

RACES = 100
CLIENTS = 16
EACH = 16
"""Addresses that each of the clients takes."""


async def member(lab: Lab, directory: Path, number: int, *, host: str = "") -> Member:
    """A host whose daemon has its own connection to the store; not started."""
    home = directory / (host or f"host{number}")
    mirror = await Mirror.open(directory / f"mirror{host or number}.db", "memory:")
    return Member(await lab.open(), mirror, MemoryNet(), home, number)


@asynccontextmanager
async def members(lab: Lab, directory: Path, count: int) -> AsyncIterator[list[Member]]:
    """Registered hosts."""
    made = [await member(lab, directory, number) for number in range(1, count + 1)]
    try:
        await asyncio.gather(*(each.start() for each in made))
        yield made
    finally:
        for each in made:
            await each.stop()


async def race(*runners: Awaitable[object]) -> tuple[list[object], list[DaemonError]]:
    """Runs all at once; gives what succeeded, and the refusals."""
    results = await asyncio.gather(*runners, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, DaemonError):
            raise result
    won = [result for result in results if not isinstance(result, DaemonError)]
    return won, [result for result in results if isinstance(result, DaemonError)]


async def keys(hosts: Sequence[Member], prefix: str) -> set[str]:
    return set(await hosts[0].store.list(prefix))


async def test_one_of_two_hosts_gets_a_network_name(lab: Lab, tmp_path: Path) -> None:
    async with members(lab, tmp_path, 2) as hosts:
        for number in range(RACES):
            spec = NetworkSpec(f"n{number}")
            won, lost = await race(*(host.service.create_network(spec) for host in hosts))
            assert len(won) == 1, f"race {number}: {lost}"
            assert isinstance(lost[0], ConflictError)
            assert f"network name n{number} is taken by network" in str(lost[0])
        assert len(await keys(hosts, records.NETWORKS)) == RACES
        assert len(await keys(hosts, "netname/")) == len(await keys(hosts, "vni/")) == RACES
        networks = await hosts[0].service.networks()
        assert len({network.subnets[0].cidr for network in networks}) == RACES


async def test_one_of_two_hosts_gets_a_vni(lab: Lab, tmp_path: Path) -> None:
    async with members(lab, tmp_path, 2) as hosts:
        for vni in range(5000, 5000 + RACES):
            specs = [NetworkSpec(f"n{vni}-{number}", vni=vni) for number in range(2)]
            won, lost = await race(
                *(
                    host.service.create_network(spec)
                    for host, spec in zip(hosts, specs, strict=True)
                )
            )
            assert len(won) == 1, f"race for {vni}: {lost}"
            assert f"VNI {vni} is taken" in str(lost[0])
        assert len(await keys(hosts, records.NETWORKS)) == RACES


async def test_one_of_two_hosts_gets_an_address_and_a_name(lab: Lab, tmp_path: Path) -> None:
    async with members(lab, tmp_path, 2) as hosts:
        network = await hosts[0].service.create_network(NetworkSpec("n1", subnets=("10.8.0.0/20",)))
        for number in range(RACES):
            if number % 2:
                spec = EndpointSpec(name=f"e{number}")
            else:
                spec = EndpointSpec(ip=str(network.subnets[0].cidr[100 + number]))
            won, lost = await race(*(host.service.create_endpoint("n1", spec) for host in hosts))
            assert len(won) == 1, f"race {number}: {lost}"
            assert "is taken in network n1 by endpoint" in str(lost[0])
        assert len(await keys(hosts, "ep/")) == len(await keys(hosts, records.OWNED)) == RACES
        assert len(await keys(hosts, "name/")) == RACES // 2
        assert len(await keys(hosts, "ip/")) == RACES + 1, "and the gateway"


async def test_one_of_two_hosts_gets_a_vtep(lab: Lab, tmp_path: Path) -> None:
    """Every time by two hosts that nobody knew; the winner then leaves for good."""
    stores = [await lab.open(), await lab.open()]
    for number in range(RACES):
        pair = [await member(lab, tmp_path, 1, host=f"{number}-{side}") for side in "ab"]
        for each in pair:
            await each.state.start()
        won, lost = await race(*(each.membership.register() for each in pair))
        assert won == [True], f"race {number}: {lost}"
        assert "VTEP address 198.18.0.1 belongs to host host1, which is alive" in str(lost[0])
        claim = await stores[0].get(records.vtep_key(IPv4Address("198.18.0.1")))
        assert claim is not None
        winner = next(each for each in pair if each.membership.session)
        assert records.parse_claim(claim.value) == winner.host.id
        assert set(await stores[1].list(records.HOSTS)) == {records.host_key(winner.host.id)}
        await winner.membership.withdraw()
        for each in pair:
            await each.stop()


async def test_many_hosts_take_addresses_at_once(lab: Lab, tmp_path: Path) -> None:
    async with members(lab, tmp_path, CLIENTS) as hosts:
        network: Network = await hosts[0].service.create_network(
            NetworkSpec("n1", subnets=("10.8.0.0/20",))
        )

        async def take(host: Member) -> list[Endpoint]:
            return [await host.service.create_endpoint("n1", EndpointSpec()) for _ in range(EACH)]

        taken = [each for made in await asyncio.gather(*map(take, hosts)) for each in made]
        addresses = {endpoint.addresses[0].ip for endpoint in taken}
        assert len(addresses) == len(taken) == CLIENTS * EACH
        claims = await keys(hosts, records.addresses_prefix(network.id))
        gateway = records.address_key(network.id, network.subnets[0].gateway)
        assert claims == {records.address_key(network.id, ip) for ip in addresses} | {gateway}
