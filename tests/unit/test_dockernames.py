"""Names for Docker's containers: who asks, and where servers are open."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, ip_interface
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from pyvxlan.daemon import ipam
from pyvxlan.daemon.dns import NameServers
from pyvxlan.daemon.dockernames import HOST, DockerNames
from pyvxlan.daemon.errors import ConflictError
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.model import Endpoint, LocalEndpoint, Sandbox
from pyvxlan.daemon.names import Names
from pyvxlan.daemon.upstream import Upstream
from tests.unit.test_comparison import network
from tests.unit.test_names import FakeDirectory

ADDRESS = IPv4Address("169.254.53.53")
ONE, TWO = network(1), network(2)


class Sockets:
    """Opens sockets of this machine in place of those in namespaces; remembers which are open."""

    def __init__(self) -> None:
        self.opened: dict[str, tuple[socket.socket, socket.socket]] = {}
        self.refused: set[str] = set()
        self.asked: list[str] = []

    async def __call__(
        self, netns: str, address: IPv4Address
    ) -> tuple[socket.socket, socket.socket]:
        assert address == ADDRESS
        self.asked.append(netns)
        if netns in self.refused:
            raise ConflictError("address in use")
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for sock in (udp, tcp):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        tcp.listen()
        self.opened[netns] = udp, tcp
        return udp, tcp

    @property
    def open(self) -> set[str]:
        return {netns for netns, (udp, _) in self.opened.items() if udp.fileno() >= 0}

    async def are_open_in(self, *wanted: str) -> None:
        """Returns once these are open; asyncio closes sockets a moment after it is told to."""
        async with asyncio.timeout(5):
            while self.open != set(wanted):
                await asyncio.sleep(0)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalRecords]:
    made = LocalRecords(tmp_path)
    yield made
    made.close()


@pytest.fixture
def sockets() -> Sockets:
    return Sockets()


@pytest.fixture
def links() -> dict[str, dict[str, str]]:
    return {}


@pytest.fixture
async def names(
    local: LocalRecords, sockets: Sockets, links: dict[str, dict[str, str]], tmp_path: Path
) -> AsyncIterator[DockerNames]:
    (tmp_path / "resolv.conf").touch()
    upstream = Upstream(resolv_conf=tmp_path / "resolv.conf")

    async def nowhere(sandbox: Sandbox) -> tuple[socket.socket, socket.socket]:
        raise AssertionError(sandbox)

    servers = NameServers(list, Names(FakeDirectory()), upstream, nowhere)
    made = DockerNames(servers, local, sockets, ADDRESS, links)
    yield made
    await made.close()


def attach(
    local: LocalRecords, number: int, container: str, *, of: int = 1, docker: bool = True
) -> None:
    """An endpoint of a container with the address 10.0.<of>.<number>."""
    wanted = network(of)
    address = ip_interface(f"10.0.{of}.{number}/24")
    id_ = f"{of:016x}{number:016x}"
    here = LocalEndpoint(
        id_,
        wanted.id,
        Sandbox(f"/var/run/docker/netns/{container}", inode=0),
        ifname="",
        engine_id=id_ + "0" * 32 if docker else "",
    )
    record = Endpoint(
        id=id_,
        network_id=wanted.id,
        host_id="h" * 32,
        mac=ipam.mac_for(address.ip),
        addresses=(address,),
    )
    local.netns_name(wanted.id)
    local.put(here, endpoint=record, network=wanted)


async def test_servers_are_where_dockers_endpoints_are_and_on_the_host(
    names: DockerNames, local: LocalRecords, sockets: Sockets
) -> None:
    attach(local, 2, "aaa")
    attach(local, 3, "bbb", of=2, docker=False)
    await names.sync()
    assert sockets.open == {HOST, local.netns_names[ONE.id]}
    local.remove(next(iter(one for one in local.endpoints if one.startswith(f"{1:016x}"))))
    await names.sync()
    await sockets.are_open_in(HOST)
    await names.close()
    await sockets.are_open_in()


async def test_containers_that_are_served_are_counted(
    names: DockerNames, local: LocalRecords
) -> None:
    attach(local, 2, "aaa")
    attach(local, 2, "aaa", of=2)
    attach(local, 3, "bbb")
    attach(local, 4, "ccc", docker=False)
    assert names.serving == 0
    await names.sync()
    assert names.serving == 2


async def test_server_that_could_not_be_opened_is_tried_again(
    names: DockerNames, local: LocalRecords, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    sockets.refused.add(HOST)
    for _ in range(3):
        await names.sync()
    assert sockets.open == set()
    assert len([one for one in caplog.records if "names not served" in one.message]) == 1
    sockets.refused.clear()
    await names.sync()
    await names.sync()
    assert sockets.open == {HOST}
    assert sockets.asked == [HOST] * 4


async def test_asker_is_told_of_the_networks_of_its_container(
    names: DockerNames, local: LocalRecords
) -> None:
    attach(local, 2, "aaa")
    attach(local, 2, "aaa", of=2)
    attach(local, 3, "bbb")
    assert set(names.networks_of(ONE.id, "10.0.1.2")) == {ONE.id, TWO.id}
    assert set(names.networks_of(ONE.id, "10.0.1.3")) == {ONE.id}
    assert set(names.networks_of(ONE.id, "10.0.1.99")) == {ONE.id}, "it can reach no other"
    assert set(names.networks_of("", "172.17.0.2")) == set(), "a container on no overlay"


async def test_links_are_those_of_the_container_that_asks(
    names: DockerNames, local: LocalRecords, links: dict[str, dict[str, str]]
) -> None:
    attach(local, 2, "aaa")
    attach(local, 2, "aaa", of=2)
    attach(local, 3, "bbb")
    first, second, other = (here.engine_id for here in local.endpoints.values())
    links |= {first: {"db": "mysql"}, second: {"queue": "mq"}, other: {"db": "other"}}
    assert names.links_of(ONE.id, "10.0.1.2") == {"db": "mysql", "queue": "mq"}
    assert names.links_of(ONE.id, "10.0.1.3") == {"db": "other"}
    assert names.links_of(ONE.id, "10.0.1.99") == names.links_of("", "172.17.0.2") == {}


async def test_server_of_the_host_knows_no_name_of_an_overlay(
    names: DockerNames, sockets: Sockets
) -> None:
    await names.sync()
    udp, _ = sockets.opened[HOST]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.setblocking(False)
        asker.connect(udp.getsockname())
        asker.send(dns.message.make_query("bbox1", "A").to_wire())
        async with asyncio.timeout(5):
            answer = await asyncio.get_running_loop().sock_recv(asker, 512)
    assert dns.message.from_wire(answer).rcode() == dns.rcode.NXDOMAIN
