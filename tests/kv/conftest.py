"""The stores under test, each a `Lab`. A store joins the suite by a lab and a line in `LABS`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pyvxlan.daemon.kv import Store
from tests.kv.labs.consul import ConsulLab
from tests.kv.labs.etcd import EtcdLab
from tests.kv.labs.lab import Lab
from tests.kv.labs.local import MemoryLab, SqliteLab
from tests.servers.consul import ConsulServer
from tests.servers.etcd import KIND, EtcdServer
from tests.servers.process import Server
from tests.servers.zookeeper import ZookeeperServer


def zookeeper_lab(request: pytest.FixtureRequest, _: Path) -> Lab:
    from tests.kv.labs.zookeeper import ZookeeperLab  # noqa: PLC0415 - not everywhere is kazoo

    return ZookeeperLab(request.getfixturevalue("zookeeper_server").member)


LABS: Mapping[str, Callable[[pytest.FixtureRequest, Path], Lab]] = {
    "sqlite": lambda _, directory: SqliteLab(directory / "store.db"),
    "memory": lambda _, __: MemoryLab(),
    "consul": lambda request, _: ConsulLab(request.getfixturevalue("consul_server")),
    "etcd": lambda request, _: EtcdLab(request.getfixturevalue("etcd_server")),
    "zookeeper": zookeeper_lab,
}
"""By kind: makes a lab in a directory; a server comes from a fixture of the session."""


REMOTES: Mapping[str, Callable[..., Server]] = {
    "consul": ConsulServer,
    "etcd": EtcdServer,
    "zookeeper": ZookeeperServer,
}
"""By kind: makes a server of its own, for outages; called as `Server` is."""

if KIND == "etcd+python-etcd3":
    # Its environment has no other client, and what the other stores do was tested in theirs.
    LABS, REMOTES = {"etcd": LABS["etcd"]}, {"etcd": EtcdServer}


LONGEST_S = 300
"""A test that takes so long waits for what never comes."""


@pytest.fixture(autouse=True)
def ending() -> Iterator[None]:
    """Fails a test that waits for ever, so that its servers are ended, and others have a turn."""

    def ring(_number: int, _frame: object) -> None:
        pytest.fail(f"not over within {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def consul_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    with ConsulServer(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(scope="session")
def zookeeper_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZookeeperServer]:
    with ZookeeperServer(tmp_path_factory.mktemp("zookeeper")) as server:
        yield server


@pytest.fixture
async def sqlite_lab(tmp_path: Path) -> AsyncIterator[SqliteLab]:
    lab = SqliteLab(tmp_path / "state" / "store.db")
    yield lab
    await lab.close()


@pytest.fixture(params=list(LABS))
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    made = LABS[request.param](request, tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def store(lab: Lab) -> Store:
    return await lab.open()


async def eventually(condition: Callable[[], bool], within_s: float = 5) -> None:
    """Returns once `condition` holds."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)
