"""Stores that can't be used, or not well: what the daemon says, in one line with the remedy."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pytest

from tests.netns.world import Host, World, eventually, world
from tests.servers.etcd import EtcdServer

pytestmark = pytest.mark.root

SAID_S = 30
OTHER = "b" * 32
LOUD = re.compile(" (WARNING|ERROR) ")
FILL = """
import asyncio, sys
from pyvxlan.daemon.kv import Write
from pyvxlan.daemon.kv.open import open_store

async def fill(url):
    store = await open_store(url)

    async def some():
        for _ in range(160):
            await store.txn([], [Write("noise", b"")])

    await asyncio.gather(*(some() for _ in range(64)))
    await store.close()

asyncio.run(fill(sys.argv[1]))
"""
"""Makes more history than a store may have without any compaction: 10,240 revisions."""


@dataclass(frozen=True)
class Case:
    """What a daemon is given, and what it has to say of it."""

    url: str
    """`MEMBER` stands for the server's address."""
    said: str
    """`{url}` stands for the whole URL."""
    refused: bool = False
    """Whether the daemon ends, instead of trying again."""


CASES: Mapping[str, Case] = {
    "malformed": Case("etcd://h:port", "port 'port' of member h must be a number", refused=True),
    "scheme": Case("etc://h", "no kind that pyvxlan knows: did you mean etcd?", refused=True),
    "library": Case(
        "etcd+python-etcd3://MEMBER",
        "{url}: etcd+python-etcd3 needs the Python package etcd3: "
        "pip install 'pyvxlan[python-etcd3]'",
        refused=True,
    ),
    "another kind": Case(
        "zk://MEMBER",
        "store never reached, no network is known, tried again store={url} cause=MEMBER is etcd, "
        "not ZooKeeper: write etcd:// for zk://, or the right address\n",
    ),
    "password file": Case(
        "etcd://MEMBER?user=host&password-file=/none",
        "password file /none can't be read: No such file or directory",
        refused=True,
    ),
    "schema": Case(
        "etcd://MEMBER/newer/v1",
        "needs a reader of schema 99, this one knows 1: upgrade pyvxlan, or name another store",
        refused=True,
    ),
    "unreachable": Case(
        "etcd://198.18.0.250:1",
        "ERROR pyvxlan.daemon.main store never reached, no network is known, tried again "
        "store={url} cause=no member can be used: 198.18.0.250:1 can't be reached: Connection "
        "refused: start the store, or name another with --store",
    ),
    "foreign value": Case(
        "etcd://MEMBER/foreign/v1",
        "store record skipped key=net/x cause=not JSON: b'hello': correct or remove it; if it is "
        "not pyvxlan's, give the store's URL a prefix of its own",
    ),
    "compaction": Case("etcd://MEMBER/foreign/v1", "--auto-compaction-retention=1h"),
    "a member of two": Case(
        "etcd://MEMBER,198.18.0.250:1/foreign/v1",
        "1 of 2 members serve: 198.18.0.250:1: can't be reached: Connection refused",
    ),
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Mapping[str, Host]]:
    """A host for each case, whose daemon was started with it."""
    with world("psi", len(CASES), start=False, store="etcd") as made:
        server = etcd(made)
        server.ctl("put", "newer/v1/meta", meta("a" * 32, min_reader=99))
        server.ctl("put", "foreign/v1/net/x", "hello")
        made[1].run(sys.executable, "-c", FILL, f"etcd://{server.member}/noise")
        for host, case in zip(made.hosts, CASES.values(), strict=True):
            host.start("--store", url_of(case, server), wait=False)
        yield dict(zip(CASES, made.hosts, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_is_said_with_the_remedy(hosts: Mapping[str, Host], name: str) -> None:
    host, case = hosts[name], CASES[name]
    server = etcd(host.world)
    wanted = case.said.format(url=url_of(case, server)).replace("MEMBER", server.member)
    eventually(lambda: wanted in host.log.read_text(), within_s=SAID_S, what=f"{name}: {wanted}")
    if case.refused:
        assert host.process is not None
        assert host.process.wait(SAID_S) == 1
        host.process = None
        last = host.log.read_text().splitlines()[-1]
        assert last.startswith("pyvxlan-daemon: ")
        assert wanted in last
    else:
        host.wait()
    if name in {"unreachable", "another kind"}:
        loud = [line for line in host.log.read_text().splitlines() if LOUD.search(line)]
        assert len(loud) == 1, loud
    assert "Traceback" not in host.log.read_text()


def test_another_cluster_in_its_place_is_told() -> None:
    with world("psj", 1, store="etcd") as made:
        host = made[1]
        eventually(lambda: host.status()["store"]["state"] == "synced")
        host.stop()
        etcd(made).ctl("put", "test/v1/meta", meta(OTHER))
        host.start()
        told = f"store is of another cluster cluster={OTHER}"
        eventually(lambda: told in host.log.read_text(), within_s=SAID_S)
        assert "point --store at the right one" in host.log.read_text()


USERS = (
    ("test/v1", "wrong", "refuses user host with the password in {file}: correct them"),
    ("test/v1", "", "wants a user: add ?user=NAME&password-file=PATH to the URL"),
    ("other/v1", "secret", "does not let user host use other/v1/: run etcdctl role grant"),
)
"""Where a store is, the password for it, and what is said."""


def test_refused_user_is_told_what_to_correct() -> None:
    with world("psk", len(USERS), start=False, store="etcd") as made:
        server = etcd(made)
        server.guard({"host": ("secret", "test/v1/")})
        for host, (location, password, _) in zip(made.hosts, USERS, strict=True):
            path = made.directory / f"password{host.number}"
            path.touch(mode=0o600)
            path.write_text(password)
            options = f"?user=host&password-file={path}" if password else ""
            host.start("--store", f"etcd://{server.member}/{location}{options}", wait=False)
        for host, (_, _, told) in zip(made.hosts, USERS, strict=True):
            wanted = told.format(file=made.directory / f"password{host.number}")
            line = eventually(partial(never_reached, host), within_s=SAID_S)
            assert wanted in line
            assert "start the store" not in line
            host.wait()
        server.ctl("auth", "disable")  # so that the hosts can clean up
        server.administrator = ()


def never_reached(host: Host) -> str:
    """What a daemon says when its store could not be used at the start; empty so far."""
    text = host.log.read_text()
    return next((line for line in text.splitlines() if "store never reached" in line), "")


def etcd(made: World) -> EtcdServer:
    (server,) = made.servers
    assert isinstance(server, EtcdServer)
    return server


def url_of(case: Case, server: EtcdServer) -> str:
    return case.url.replace("MEMBER", server.member)


def meta(cluster: str, *, min_reader: int = 1) -> str:
    created = "2026-11-25T00:00:00Z"
    return json.dumps({"v": 1, "cluster": cluster, "min_reader": min_reader, "created": created})
