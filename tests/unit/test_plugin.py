"""The plug-in against Docker in memory: networks on all hosts, and what must never happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pyvxlan.daemon.errors import ConflictError, NetError
from pyvxlan.daemon.model import Network
from pyvxlan.daemon.plugin import naming, server, steward
from pyvxlan.daemon.plugin import network as network_driver
from pyvxlan.daemon.plugin.engine import EngineContainer, EngineNetwork
from pyvxlan.daemon.requests import NetworkSpec
from tests.unit.memory_docker import Disk, DockerCluster, DockerNode


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[DockerCluster]:
    made = DockerCluster(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def one(cluster: DockerCluster) -> DockerNode:
    return await cluster.add(1)


@pytest.fixture
async def two(cluster: DockerCluster, one: DockerNode) -> DockerNode:
    return await cluster.add(2)


async def everywhere(one: DockerNode, two: DockerNode, name: str = "n1") -> tuple[str, str]:
    """A network that host 1 has made and both show; gives the ids there."""
    engine_id = await one.docker.create_network(name)
    await one.knows(name)
    return engine_id, (await two.shows(name)).id


async def claims(host: DockerNode, prefix: str) -> set[str]:
    return set(await host.node.store.list(prefix))


# Networks


async def test_network_of_one_docker_appears_in_the_other(one: DockerNode, two: DockerNode) -> None:
    here, there = await everywhere(one, two)
    assert here != there
    assert one.docker.disk.networks[here].subnets == two.docker.disk.networks[there].subnets
    assert len(one.node.state.networks) == 1


async def test_network_removed_from_one_docker_goes_everywhere(
    one: DockerNode, two: DockerNode
) -> None:
    _, there = await everywhere(one, two)
    await two.docker.remove_network(there)
    await one.hides("n1")
    assert not await claims(one, "net/")
    assert not one.node.state.networks


async def test_docker_that_lost_its_disk_removes_nothing_and_gets_its_networks_back(
    one: DockerNode, two: DockerNode
) -> None:
    here, _ = await everywhere(one, two)
    network = await two.knows("n1")
    two.docker.restart(Disk())
    shown = await two.shows("n1")
    assert shown.subnets == {subnet.cidr for subnet in network.subnets}
    assert one.docker.disk.networks.keys() == {here}
    assert one.node.state.networks.keys() == {network.id}


async def test_docker_that_lost_its_disk_while_the_daemon_was_down_removes_nothing(
    cluster: DockerCluster, one: DockerNode, two: DockerNode
) -> None:
    await everywhere(one, two)
    network = await one.knows("n1")
    await cluster.end(two)
    two.docker.disk = Disk()
    again = await cluster.add(2, two.docker)
    await again.shows("n1")
    assert one.node.state.networks.keys() == {network.id}


async def test_network_in_use_elsewhere_is_hidden_here_and_shown_again_when_asked_for(
    one: DockerNode, two: DockerNode
) -> None:
    here, there = await everywhere(one, two)
    await one.docker.run("c1", here)
    await two.docker.remove_network(there)
    assert two.has("n1")
    network = await two.knows("n1")
    await one.docker.create_network("n2")
    await two.shows("n2")  # So a comparison came after it.
    assert two.docker.of_name("n1") is None
    (subnet,) = network.subnets
    again = await two.docker.create_network("n1", (str(subnet.cidr), ""))
    assert two.docker.disk.networks.keys() >= {again}
    await two.docker.run("c2", again)
    assert two.node.state.networks.keys() == one.node.state.networks.keys()


async def test_network_whose_name_is_not_usable_goes_again_and_an_event_says_why(
    one: DockerNode,
) -> None:
    await one.docker.create_network("with/slash")
    await one.hides("with/slash")
    (event,) = one.events.after(0)
    assert event.kind == "network_refused"
    assert "network name 'with/slash' is not usable" in event.text
    assert not await claims(one, "net/")


async def test_hidden_network_stays_hidden_over_a_restart(
    cluster: DockerCluster, one: DockerNode, two: DockerNode
) -> None:
    here, there = await everywhere(one, two)
    await one.docker.run("c1", here)
    await two.docker.remove_network(there)
    await cluster.end(two)
    again = await cluster.add(2, two.docker)
    await one.docker.create_network("n2")
    await again.shows("n2")
    assert again.docker.of_name("n1") is None


async def test_network_removed_at_once_after_its_creation_stays_removed(
    one: DockerNode, two: DockerNode
) -> None:
    for _ in range(5):
        engine_id = await one.docker.create_network("brief")
        await one.docker.remove_network(engine_id)
    await one.docker.create_network("last")
    await two.shows("last")
    await one.lacks("brief")
    await two.hides("brief")
    assert len(await claims(one, "net/")) == 1


async def test_docker_that_refuses_a_removal_for_a_moment_is_asked_again(
    one: DockerNode, two: DockerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = await everywhere(one, two)
    remove, refused = two.docker.remove, asyncio.Event()

    async def busy(engine_id: str) -> None:
        if not refused.is_set():
            refused.set()
            raise ConflictError("network n1 has active endpoints")
        await remove(engine_id)

    monkeypatch.setattr(two.docker, "remove", busy)
    await one.docker.remove_network(here)
    await refused.wait()
    await two.hides("n1")


async def test_removal_is_not_begun_again_while_it_is_under_way(
    one: DockerNode, two: DockerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = await everywhere(one, two)
    remove, begun, end = one.node.service.remove_network, list[str](), asyncio.Event()

    async def slowly(ref: str) -> Network:
        begun.append(ref)
        await end.wait()
        return await remove(ref)

    monkeypatch.setattr(network_driver, "GOODBYE_S", 30.0)
    monkeypatch.setattr(one.node.service, "remove_network", slowly)
    removal = asyncio.create_task(one.docker.remove_network(here))
    await one.node.until(lambda: bool(begun))
    await one.docker.create_network("n2")
    await two.shows("n2")  # So comparisons went by.
    end.set()
    await removal
    await two.hides("n1")
    assert len(begun) == 1


async def test_name_of_a_network_that_is_being_removed_is_free_when_it_is_gone(
    one: DockerNode, two: DockerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = await everywhere(one, two)
    before = await one.knows("n1")
    remove, end = one.node.service.remove_network, asyncio.Event()

    async def slowly(ref: str) -> Network:
        await end.wait()
        return await remove(ref)

    monkeypatch.setattr(network_driver, "GOODBYE_S", 0.05)
    monkeypatch.setattr(one.node.service, "remove_network", slowly)
    await one.docker.remove_network(here)
    again = await one.docker.create_network("n1")
    await one.docker.create_network("n2")
    end.set()
    await two.shows("n2")
    await one.node.until(lambda: before.id not in one.node.state.networks and one.has("n1"))
    assert one.docker.disk.networks.keys() >= {again}
    await two.shows("n1")


async def test_attachable_network_is_so_on_the_other_host(one: DockerNode, two: DockerNode) -> None:
    await one.docker.create_network("n1", attachable=True)
    await one.docker.create_network("n2")
    assert (await two.shows("n1")).attachable
    assert not (await two.shows("n2")).attachable


async def test_network_is_told_of_before_docker_says_that_it_is_made(
    one: DockerNode, two: DockerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one.docker, "_happened", lambda *_, **__: None)
    await one.docker.create_network("n1")
    await two.shows("n1")


async def test_new_network_of_another_host_does_not_wait_for_dockers_list(
    one: DockerNode, two: DockerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    await everywhere(one, two)
    listed, networks = asyncio.Event(), two.docker.networks

    async def later() -> list[EngineNetwork]:
        await listed.wait()
        return await networks()

    monkeypatch.setattr(two.docker, "networks", later)
    await one.docker.create_network("n2")
    await two.shows("n2")
    listed.set()
    await one.docker.create_network("n3")
    await two.shows("n3")
    assert len(two.docker.disk.networks) == 3, "each once"


async def test_network_that_docker_still_lists_after_its_end_is_not_published_again(
    one: DockerNode, two: DockerNode
) -> None:
    here, _ = await everywhere(one, two)
    one.docker.deleting.clear()
    removal = asyncio.create_task(one.docker.remove_network(here))
    await one.lacks("n1")
    await one.docker.create_network("n2")
    await two.shows("n2")  # Comparisons went by while n1 was listed.
    assert not one.has("n1")
    one.docker.deleting.set()
    await removal
    await two.hides("n1")


@pytest.mark.parametrize("lost_s", [60.0, 0.0], ids=["at once", "after it was taken for lost"])
async def test_network_that_vanishes_before_docker_says_why_is_removed(
    one: DockerNode, two: DockerNode, monkeypatch: pytest.MonkeyPatch, lost_s: float
) -> None:
    here, _ = await everywhere(one, two)
    monkeypatch.setattr(steward, "LOST_S", lost_s)
    one.docker.telling.clear()
    removal = asyncio.create_task(one.docker.remove_network(here))
    await one.docker.create_network("n2")
    await two.shows("n2")  # Comparisons went by while n1 was not listed.
    if lost_s:
        assert one.docker.of_name("n1") is None, "no copy takes its place at once"
    else:
        await one.shows("n1")
    one.docker.telling.set()
    await removal
    await two.hides("n1")
    await one.lacks("n1")
    await one.hides("n1")


async def test_hidden_network_that_docker_still_lists_stays_hidden(
    one: DockerNode, two: DockerNode
) -> None:
    here, there = await everywhere(one, two)
    network = await two.knows("n1")
    await one.docker.run("c1", here)
    two.docker.deleting.clear()
    removal = asyncio.create_task(two.docker.remove_network(there))
    await one.docker.create_network("n2")
    await two.shows("n2")  # Comparisons went by while n1 was listed.
    two.docker.deleting.set()
    await removal
    await one.docker.create_network("n3")
    await two.shows("n3")
    assert two.docker.of_name("n1") is None
    assert two.node.local.document("docker")["hidden"] == [network.id]


async def test_network_removed_while_it_is_published_stays_removed(
    one: DockerNode, two: DockerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, removed = asyncio.Event(), asyncio.Event()
    create = one.node.service.create_network

    async def slowly(*args: Any, **held: Any) -> Network:
        network = await create(*args, **held)
        published.set()
        await removed.wait()
        return network

    monkeypatch.setattr(one.node.service, "create_network", slowly)
    engine_id = await one.docker.create_network("brief")
    await published.wait()
    await one.docker.remove_network(engine_id)
    removed.set()
    await one.lacks("brief")
    await two.hides("brief")
    assert one.docker.of_name("brief") is None
    assert not await claims(one, "net/")


async def test_copy_of_a_network_that_was_removed_meanwhile_is_refused(
    one: DockerNode, two: DockerNode
) -> None:
    here, _ = await everywhere(one, two)
    network = await one.knows("n1")
    await one.docker.remove_network(here)
    await two.hides("n1")
    await two.lacks("n1")
    assert two.plugin._ipam
    two.plugin._ipam.copying[network.id] = network  # It began before it heard of the removal.
    with pytest.raises(ConflictError, match="n1 was just removed"):
        await two.docker.create(network)
    assert not await claims(one, "net/")
    assert await one.node.service.reservations.subnets() == set()
    assert await two.node.service.reservations.subnets() == set()


async def test_two_hosts_that_make_one_name_at_once_end_with_one_network(
    one: DockerNode, two: DockerNode
) -> None:
    for number in range(5):
        name = f"race{number}"
        await asyncio.gather(*(host.docker.create_network(name) for host in (one, two)))
        for host in (one, two):
            network = await host.knows(name)
            await host.node.until(
                lambda host=host, network=network: (  # type: ignore[misc]
                    (shown := host.docker.of_name(network.name)) is not None
                    and shown.subnets == {subnet.cidr for subnet in network.subnets}
                )
            )
    assert len(await claims(one, "net/")) == 5
    for host in (one, two):
        assert await host.node.service.reservations.subnets() == set()


async def test_network_of_the_cluster_appears_and_goes(one: DockerNode, two: DockerNode) -> None:
    await one.node.service.create_network(NetworkSpec("byhand"))
    for host in (one, two):
        await host.shows("byhand")
    await two.node.service.remove_network("byhand")
    for host in (one, two):
        await host.hides("byhand")


async def test_network_removed_while_the_store_is_away_goes_when_it_is_back(
    one: DockerNode, two: DockerNode
) -> None:
    here, _ = await everywhere(one, two)
    container = await one.docker.run("c1", here)
    one.node.store.lose()
    await one.docker.rm(container)
    await one.docker.remove_network(here)
    assert two.has("n1")
    one.node.store.recover()
    await two.hides("n1")
    await one.lacks("n1")
    assert one.docker.of_name("n1") is None
    assert not await claims(two, "ip/") | await claims(two, "ep/") | await claims(two, "own/")


async def test_network_removed_while_the_daemon_starts_goes_when_it_has(
    cluster: DockerCluster,
    one: DockerNode,
    two: DockerNode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, there = await everywhere(one, two)
    monkeypatch.setattr(server, "READY_S", 0.02)
    await cluster.end(two)
    again = await cluster.add(2, two.docker, connect=False)
    await again.docker.remove_network(there)
    again.connect()
    await one.hides("n1")


async def test_pools_end_although_docker_asks_again_and_again(one: DockerNode) -> None:
    given: set[str] = set()
    for _ in range(8):
        answer = await one.docker.call(
            "IpamDriver.RequestPool", Pool="", SubPool="", Options={}, V6=False
        )
        assert answer["Pool"] not in given
        given.add(answer["Pool"])
    for pool in given:
        await one.docker.call("IpamDriver.ReleasePool", PoolID=f"pyvxlan/{pool}")
    assert await one.node.service.reservations.subnets() == set()


async def test_address_for_another_drivers_network_is_refused_with_the_reason(
    one: DockerNode,
) -> None:
    pool = await one.docker.call("IpamDriver.RequestPool", Pool="10.9.0.0/24", V6=False)
    with pytest.raises(ConflictError, match="goes with -d pyvxlan alone"):
        await one.docker.call("IpamDriver.RequestAddress", PoolID=pool["PoolID"], Address="")


async def test_network_that_docker_can_not_finish_leaves_no_subnet(one: DockerNode) -> None:
    """Docker takes back in this order, for example with `--scope global`."""
    pool = await one.docker.call("IpamDriver.RequestPool", Pool="", Options={}, V6=False)
    cidr = pool["Pool"]
    data = [{"AddressSpace": "pyvxlan", "Gateway": "", "Pool": cidr}]
    await one.docker.call("NetworkDriver.CreateNetwork", NetworkID="n", IPv4Data=data)
    await one.docker.call("NetworkDriver.DeleteNetwork", NetworkID="n")
    await one.docker.call("IpamDriver.ReleasePool", PoolID=pool["PoolID"])
    assert await one.node.service.reservations.subnets() == set()


async def test_subnet_that_the_store_did_not_take_back_goes_later(
    one: DockerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await one.docker.call("IpamDriver.RequestPool", Pool="", Options={}, V6=False)
    one.node.store.lose()
    await one.docker.call("IpamDriver.ReleasePool", PoolID=pool["PoolID"])
    one.node.store.recover()
    monkeypatch.setattr(steward, "ORPHAN_S", 0.0)
    await one.docker.create_network("n1")
    async with asyncio.timeout(5):
        while await one.node.service.reservations.subnets():
            await asyncio.sleep(0.01)
    await one.knows("n1")


# Endpoints


async def test_address_that_no_endpoint_comes_for_is_given_back(
    one: DockerNode, two: DockerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker keeps silent of the IPv4 address of a container whose `--ip6` is taken."""
    await everywhere(one, two)
    network = await one.knows("n1")
    pool_id = f"pyvxlan/{network.subnets[0].cidr}"
    await one.docker.call("IpamDriver.RequestAddress", PoolID=pool_id, Address="", Options=None)
    assert len(await claims(one, "ip/")) == 2
    monkeypatch.setattr(steward, "ORPHAN_S", 0.0)
    await one.docker.create_network("n2")
    async with asyncio.timeout(5):
        while await claims(one, f"ip/{network.id}/") != {
            f"ip/{network.id}/{network.subnets[0].gateway}"
        }:
            await asyncio.sleep(0.01)


async def test_container_has_its_claims_while_it_runs_and_no_longer(
    one: DockerNode, two: DockerNode
) -> None:
    here, there = await everywhere(one, two)
    first = await one.docker.run("c1", here)
    second = await two.docker.run("c2", there)
    assert len(await claims(one, "ep/")) == 2
    assert len(await claims(one, "ip/")) == 3, "two containers and the gateway"
    await one.docker.rm(first)
    await two.docker.rm(second)
    assert not await claims(one, "ep/") | await claims(one, "name/") | await claims(one, "own/")
    assert len(await claims(one, "ip/")) == 1


async def test_full_subnet_is_followed_by_the_next_though_docker_asks_of_the_first_alone(
    one: DockerNode,
) -> None:
    # Docker itself goes on to the next one only for its own IPAM's error.
    n1 = await one.docker.create_network("n1", ("10.7.0.0/30", ""), ("10.8.0.0/30", ""))
    network = await one.knows("n1")
    containers = [await one.docker.run(name, n1) for name in ("c1", "c2")]
    held = {key.removeprefix(f"ip/{network.id}/") for key in await claims(one, "ip/")}
    assert held == {"10.7.0.1", "10.7.0.2", "10.8.0.1", "10.8.0.2"}
    with pytest.raises(ConflictError, match=r"no free address in 10\.[78].*, 10\.[78].*: remove"):
        await one.docker.run("c3", n1)
    for container in containers:
        await one.docker.rm(container)
    assert len(await claims(one, "ip/")) == 2


async def test_name_of_another_host_is_refused_and_nothing_stays(
    one: DockerNode, two: DockerNode
) -> None:
    here, there = await everywhere(one, two)
    await one.docker.run("c1", here)
    with pytest.raises(ConflictError, match="name c1 is taken"):
        await two.docker.run("c1", there)
    assert len(await claims(one, "ip/")) == 2
    assert two.handover.endpoints == []


async def test_names_of_a_container_are_published(one: DockerNode, two: DockerNode) -> None:
    here, _ = await everywhere(one, two)
    container = await one.docker.run("c1", here, aliases=("web", "not_a host"))
    network = await one.knows("n1")
    two.node.state.join(network.id)

    def described() -> bool:
        return any(
            endpoint.name == "c1"
            and endpoint.aliases == ("web",)
            and endpoint.hostname == container[:12]
            for endpoint in two.node.state.endpoints[network.id].values()
        )

    await two.node.until(described)


async def test_endpoints_that_docker_forgot_are_removed_when_it_is_back(
    one: DockerNode, two: DockerNode
) -> None:
    here, _ = await everywhere(one, two)
    container = await one.docker.run("c1", here)
    # The container ended while nobody listened: a killed Engine, a daemon that was down.
    made = one.docker.disk.attached.pop((container, here))
    one.docker._list(here, {})
    del one.docker.disk.containers[container]
    one.docker.restart()
    await one.node.until(lambda: not one.handover.endpoints)
    async with asyncio.timeout(5):
        while len(await claims(one, "ip/")) > 1:
            await asyncio.sleep(0.01)
    assert made.endpoint_id
    assert not await claims(one, "ep/")


async def test_running_container_keeps_its_endpoint_when_docker_comes_back(
    one: DockerNode, two: DockerNode
) -> None:
    here, _ = await everywhere(one, two)
    await one.docker.run("c1", here)
    one.docker.restart()
    await one.docker.create_network("n2")
    await two.shows("n2")
    assert len(one.handover.endpoints) == 1


async def test_farewells_succeed_without_a_store_and_are_settled_later(
    one: DockerNode, two: DockerNode
) -> None:
    here, _ = await everywhere(one, two)
    container = await one.docker.run("c1", here)
    one.node.store.lose()
    async with asyncio.timeout(2):
        await one.docker.rm(container)
    assert one.handover.endpoints == []
    assert len(await claims(two, "ep/")) == 1
    one.node.store.recover()
    await one.node.until(lambda: one.node.state.synced)
    await one.node.service.repair()
    assert not await claims(two, "ep/") | await claims(two, "name/") | await claims(two, "own/")
    assert len(await claims(two, "ip/")) == 1


async def test_start_without_a_store_is_refused_and_leaves_nothing(
    one: DockerNode, two: DockerNode
) -> None:
    here, _ = await everywhere(one, two)
    one.node.store.lose("gone fishing")
    with pytest.raises(ConflictError, match="gone fishing"):
        await one.docker.run("c1", here)
    one.node.store.recover()
    assert one.handover.endpoints == []
    assert len(await claims(two, "ip/")) == 1


async def test_interface_that_can_not_be_made_refuses_the_start_and_nothing_stays(
    one: DockerNode, two: DockerNode
) -> None:
    here, _ = await everywhere(one, two)
    one.node.reconciler.fail = NetError("no room for a veth")
    with pytest.raises(ConflictError, match="no room for a veth"):
        await one.docker.run("c1", here)
    assert one.handover.endpoints == []
    assert len(await claims(one, "ip/")) == 1
    assert not await claims(one, "ep/") | await claims(one, "name/") | await claims(one, "own/")
    await one.docker.run("c1", here)


async def test_address_reserved_by_a_daemon_that_died_is_given_back(
    cluster: DockerCluster, one: DockerNode, two: DockerNode
) -> None:
    _, there = await everywhere(one, two)
    pool = next(iter(two.docker.disk.networks[there].subnets))
    await two.docker.call(
        "IpamDriver.RequestAddress", PoolID=f"pyvxlan/{pool}", Address="", Options=None
    )
    assert len(await claims(one, "ip/")) == 2
    await cluster.end(two)
    await cluster.add(2, two.docker)
    async with asyncio.timeout(5):
        while len(await claims(one, "ip/")) > 1:
            await asyncio.sleep(0.01)


async def test_container_on_two_overlays_asks_for_names_through_one_that_is_left(
    one: DockerNode,
) -> None:
    first = await one.docker.create_network("n1")
    second = await one.docker.create_network("n2")
    await one.docker.run("c1", first, second)
    leads = {here.engine_id: here.names_route for here in one.handover.endpoints}
    assert sorted(leads.values()) == [False, True]
    leading = next(id_ for id_, leading in leads.items() if leading)
    await one.handover.note_ifname(
        next(here for here in one.handover.endpoints if not here.names_route)
    )
    await one.handover.leave(leading)
    (left,) = one.handover.endpoints
    assert left.names_route
    assert one.wires.routes == [left.sandbox.path]


async def test_name_whose_event_was_missed_is_learnt_later(
    one: DockerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "NAMELESS_S", 0.0)
    here = await one.docker.create_network("n1")
    network = await one.knows("n1")
    one.docker.reachable = False  # So nobody is asked for a name, and no event is heard.
    monkeypatch.setattr(one.docker, "_happened", lambda *_, **__: None)
    await one.docker.run("c1", here)
    assert {e.name for e in one.node.state.endpoints[network.id].values()} == {""}
    await one.node.service.create_network(NetworkSpec("n2"))  # A reason to compare.
    await one.node.until(
        lambda: {e.name for e in one.node.state.endpoints[network.id].values()} == {"c1"}
    )


def rename(host: DockerNode, container: str, name: str) -> None:
    """`docker rename`."""
    shown = host.docker.disk.containers[container]
    host.docker.disk.containers[container] = EngineContainer(
        shown.id, name, shown.hostname, shown.aliases
    )
    host.docker._happened("container", "rename", container)


def called(host: DockerNode, network: Network) -> set[str]:
    """What a network's endpoints are called, as a host knows."""
    return {endpoint.name for endpoint in host.node.state.endpoints[network.id].values()}


async def test_renamed_container_answers_to_its_new_name(one: DockerNode) -> None:
    here = await one.docker.create_network("n1")
    container = await one.docker.run("c1", here)
    network = await one.knows("n1")
    rename(one, container, "other")
    await one.node.until(lambda: called(one, network) == {"other"})
    rename(one, container, "x" * 64)  # Can't be looked up; but it is "other" no more.
    await one.node.until(lambda: called(one, network) == {""})


async def test_container_renamed_to_a_taken_name_has_it_when_it_is_free(
    one: DockerNode, two: DockerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steward, "INTERVAL_S", 0.05)
    here, there = await everywhere(one, two)
    network = await one.knows("n1")
    other = await two.docker.run("c2", there)
    container = await one.docker.run("c1", here, aliases=("web",))
    rename(one, container, "c2")
    await one.node.until(lambda: called(one, network) == {"c2", ""})
    (event,) = [event for event in one.events.after(0) if event.kind == "name_refused"]
    assert "name c2 is taken in network n1 by endpoint c2 on host host2" in event.text
    assert container[:12] in event.text
    again = await one.docker.run("c1", here)
    await two.docker.rm(other)
    await one.node.until(lambda: called(one, network) == {"c2", "c1"})
    assert len([event for event in one.events.after(0) if event.kind == "name_refused"]) == 1
    for id_ in (container, again):
        await one.docker.rm(id_)
    assert not await claims(one, "name/")


async def test_container_renamed_while_the_store_is_away_has_its_name_when_it_is_back(
    one: DockerNode,
) -> None:
    here = await one.docker.create_network("n1")
    container = await one.docker.run("c1", here)
    network = await one.knows("n1")
    one.node.store.lose()
    rename(one, container, "other")
    await asyncio.sleep(0.1)
    one.node.store.recover()
    await one.node.until(lambda: called(one, network) == {"other"})


# The protocol


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("NetworkDriver.CreateNetwork", b"{"),
        ("NetworkDriver.CreateNetwork", b'{"NetworkID": 7}'),
        ("NetworkDriver.CreateNetwork", b'{"NetworkID": "x"}'),
        ("NetworkDriver.Join", b'{"NetworkID": "x", "EndpointID": "y"}'),
        ("IpamDriver.RequestAddress", b'{"PoolID": "elsewhere/10.0.0.0/24"}'),
        ("IpamDriver.RequestPool", b'{"Pool": "10.0.0.7/24"}'),
        ("IpamDriver.RequestPool", b'{"Pool": "fd00::/64", "V6": false}'),
        ("IpamDriver.RequestPool", b'{"Pool": "", "SubPool": "10.0.0.0/28"}'),
    ],
)
async def test_bad_request_is_refused_in_one_line(
    one: DockerNode, method: str, body: bytes
) -> None:
    answer = await one.plugin.answer(method, body)
    (text,) = answer.values()
    assert text
    assert "\n" not in text
    assert "internal error" not in text


async def test_constants_are_answered_while_the_daemon_has_not_started() -> None:
    plugin = server.Plugin()
    async with asyncio.timeout(0.5):
        activated = await plugin.answer("Plugin.Activate", b"")
    assert activated == {"Implements": ["NetworkDriver", "IpamDriver"]}


@pytest.mark.parametrize("method", sorted(server.FAREWELLS))
async def test_farewell_is_answered_as_done_while_the_daemon_starts(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "READY_S", 0.02)
    body = b'{"NetworkID": "n", "EndpointID": "e", "PoolID": "p", "Address": "10.0.0.2"}'
    assert await server.Plugin().answer(method, body) == {}


async def test_anything_else_says_that_the_daemon_is_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "READY_S", 0.02)
    answer = await server.Plugin().answer("IpamDriver.RequestPool", b"{}")
    assert "is starting" in answer["Error"]


@pytest.mark.parametrize("host", ["", "plugin.moby.localhost"], ids=["before 25", "25 and later"])
async def test_every_dockers_http_is_answered(tmp_path: Path, host: str) -> None:
    async def status(method: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "plugin.sock"))
        writer.write(
            f"POST /{method} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Go-http-client/1.1\r\n"
            "Content-Length: 0\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n\r\n".encode()
        )
        async with asyncio.timeout(5):
            line = await reader.readline()
        writer.close()
        return line.decode().split()[1]

    async with server.Plugin().serving(tmp_path / "plugin.sock"):
        assert await status("Plugin.Activate") == "200"
        # Docker 28 asks it of those alone that say GwAllocChecker among their capabilities.
        assert await status("NetworkDriver.GwAllocCheck") == "404"
    assert "GwAllocChecker" not in server.CONSTANT["NetworkDriver.GetCapabilities"]


async def test_network_without_ipv4_has_containers_without_it(
    one: DockerNode, two: DockerNode
) -> None:
    """Docker 28 and later make such ones."""
    here = await one.docker.create_network("six", ("fd60::/64", ""))
    await two.shows("six")
    await one.docker.run("c1", here)
    network = await one.knows("six")
    (endpoint,) = one.handover.endpoints
    published = one.handover.endpoint(endpoint)
    assert published
    assert [str(address) for address in published.addresses] == ["fd60::2/64"]
    assert [subnet.cidr.version for subnet in network.subnets] == [6]
