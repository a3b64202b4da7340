"""What somebody deletes by hand in a store is put back, on every store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pyvxlan.daemon import records
from pyvxlan.daemon.kv import Delete
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec
from tests.kv.labs.lab import Lab
from tests.kv.test_races import member, members
from tests.unit.cluster import Member

PUT_BACK_S = 8
"""It takes a second, and more on a busy machine."""


@asynccontextmanager
async def keeping(lab: Lab, directory: Path, count: int) -> AsyncIterator[list[Member]]:
    """Hosts that keep their part of the store right, as daemons do."""
    async with members(lab, directory, count) as hosts:
        keepers = [asyncio.create_task(host.service.keep()) for host in hosts]
        try:
            yield hosts
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)


async def content(host: Member, *prefixes: str) -> dict[str, bytes]:
    """What stands below some prefixes."""
    every = await host.store.list("")
    return {key: item.value for key, item in every.items() if key.startswith(prefixes)}


async def delete(host: Member, *prefixes: str) -> None:
    for key in await content(host, *prefixes):
        await host.store.txn([], [Delete(key)])


async def stands_again(host: Member, before: dict[str, bytes], *prefixes: str) -> None:
    async with asyncio.timeout(PUT_BACK_S):
        while await content(host, *prefixes) != before:
            await asyncio.sleep(0.05)


async def attached(host: Member, network: str, name: str) -> None:
    sandbox = host.net.add(f"{network}-{name}")
    await host.service.attach(
        AttachSpec(network, sandbox.path.rpartition("/")[2], EndpointSpec(name))
    )


async def test_networks_are_put_back(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with keeping(lab, tmp_path, 2) as hosts:
        for number in range(6):
            await hosts[0].service.create_network(NetworkSpec(f"n{number}"))
        await attached(hosts[1], "n1", "c1")
        for host in hosts:
            await host.until(lambda host=host: len(host.state.networks) == 6)  # type: ignore[misc]
        before = await content(hosts[0], records.NETWORKS)
        caplog.clear()
        await delete(hosts[0], records.NETWORKS)
        for host in hosts:
            assert len(host.state.networks) == 6
        await stands_again(hosts[0], before, records.NETWORKS)
        for host in hosts:
            await host.until(lambda host=host: not host.state.held)  # type: ignore[misc]
            assert len(host.state.networks) == 6
        await attached(hosts[0], "n1", "c2")
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR], caplog.text


CLAIMS = ("ip/", "name/", "mac/", "own/", "netname/", "vni/", "pools", "vtep/")


def look_at_claims(*hosts: Member) -> None:
    """Hosts do so every few minutes, at their next comparison."""
    for host in hosts:
        host.service.upkeep._claimed_at = float("-inf")


async def test_claims_are_put_back(lab: Lab, tmp_path: Path) -> None:
    async with members(lab, tmp_path, 2) as hosts:
        network = await hosts[0].service.create_network(NetworkSpec("n1"))
        await hosts[1].until(lambda: len(hosts[1].state.networks) == 1)
        for number in range(20):
            await attached(hosts[number % 2], "n1", f"c{number}")
        before = await content(hosts[0], *CLAIMS)
        assert {key.partition("/")[0] for key in before} == {c.strip("/") for c in CLAIMS} - {"mac"}
        await delete(hosts[0], *CLAIMS)
        newcomer = await member(lab, tmp_path, 3)
        await newcomer.start()
        made = await newcomer.service.create_endpoint("n1", EndpointSpec())
        found = [one.addresses[0].ip for one in await newcomer.service.endpoints(network.id)]
        assert len(set(found)) == len(found) == 21, "no address was given out again"
        await newcomer.service.delete_endpoint(made.id)
        await newcomer.membership.withdraw()
        await newcomer.stop()
        look_at_claims(*hosts)
        for host in hosts:
            await host.service.repair()
        assert await content(hosts[0], *CLAIMS) == before


async def test_whose_claim_was_deleted_and_taken_gives_way(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with members(lab, tmp_path, 2) as hosts:
        network = await hosts[0].service.create_network(NetworkSpec("n1"))
        await hosts[1].until(lambda: len(hosts[1].state.networks) == 1)
        await attached(hosts[0], "n1", "c1")
        await delete(hosts[0], "name/")
        await attached(hosts[1], "n1", "c1")
        await hosts[0].until(lambda: len(hosts[0].state.endpoints[network.id]) == 2)
        look_at_claims(*hosts)
        for host in (hosts[1], hosts[0]):
            await host.service.repair()
        assert "endpoint fenced" in caplog.text
        assert [len(host.local.endpoints) for host in hosts] == [0, 1]
        (left,) = await hosts[1].service.endpoints("n1")
        assert left.host_id == hosts[1].host.id
        claims = await content(hosts[0], "name/")
        assert claims == {f"name/{network.id}/c1": records.emit(left.id)}


async def test_network_that_was_removed_stays_so(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with keeping(lab, tmp_path, 2) as hosts:
        for number in range(6):
            await hosts[0].service.create_network(NetworkSpec(f"n{number}"))
        await hosts[1].until(lambda: len(hosts[1].state.networks) == 6)
        caplog.clear()
        for number in range(6):
            await hosts[number % 2].service.remove_network(f"n{number}")
        for host in hosts:
            await host.until(lambda host=host: not host.state.networks)  # type: ignore[misc]
            assert not host.state.held
            told = [event for event in host.events.after(0) if event.kind == "network_removed"]
            assert len(told) == 6
        await asyncio.sleep(1)
        assert await content(hosts[0], records.NETWORKS, "netname/", "vni/") == {}
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text
