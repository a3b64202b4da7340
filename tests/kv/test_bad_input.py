"""Stores that can't be used, or not well, of every kind with a server: what a daemon says of them.

`tests/netns/test_store_input.py` shows on etcd that the daemon says so in its log.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import secrets
import socket
import ssl
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from pyvxlan.daemon.clusterstore import ClusterStore
from pyvxlan.daemon.errors import InvalidError, StoreDeniedError, StoreError
from pyvxlan.daemon.kv import Store, Write
from pyvxlan.daemon.kv.bounded import REMEDY
from pyvxlan.daemon.kv.etcd import messages as pb
from pyvxlan.daemon.kv.etcd.channel import EtcdChannel
from pyvxlan.daemon.kv.etcd.store import EtcdStore
from pyvxlan.daemon.kv.kinds import NAMES, misnamed
from pyvxlan.daemon.kv.memory import MemoryStore
from pyvxlan.daemon.kv.open import open_store
from pyvxlan.daemon.kv.tls import _no_connection, refused_handshake
from pyvxlan.daemon.kv.url import parse_url
from pyvxlan.daemon.kv.zookeeper.access import Access
from pyvxlan.daemon.kv.zookeeper.access import cause as zookeeper_cause
from pyvxlan.daemon.membership import Membership
from pyvxlan.daemon.state import State
from pyvxlan.daemon.upkeep.check import check, warn
from tests.servers.etcd import EtcdServer
from tests.servers.process import Server
from tests.unit.memory_net import host

SCHEMES = {"etcd": "etcd", "consul": "consul", "zookeeper": "zk"}
KINDS = list(SCHEMES)
NOBODY = "127.0.0.1:1"

AddressOf = Callable[[str], str]
"""The address of the server of a kind."""


@pytest.fixture
def address_of(request: pytest.FixtureRequest) -> AddressOf:
    def address(kind: str) -> str:
        server: Server = request.getfixturevalue(f"{kind}_server")
        return f"{server.address}:{server.port}"

    return address


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, address_of: AddressOf) -> str:
    """A store with a prefix of its own."""
    return f"{SCHEMES[request.param]}://{address_of(request.param)}/bad-input/{request.node.name}"


@pytest.mark.parametrize(("is_", "named"), list(product(KINDS, KINDS)))
async def test_store_of_another_kind_is_told_with_the_right_scheme(
    address_of: AddressOf, is_: str, named: str
) -> None:
    address, scheme = address_of(is_), SCHEMES[named]
    told = f"is {NAMES[SCHEMES[is_]]}, not {NAMES[scheme]}: write {SCHEMES[is_]}:// for {scheme}://"
    found = await misnamed(parse_url(f"{scheme}://{address}"))
    assert found == ({} if is_ == named else {address: f"{told}, or the right address"})


async def test_check_tells_a_store_of_another_kind(address_of: AddressOf) -> None:
    report = await check(f"etcd://{address_of('consul')}")
    assert not report.good
    assert "is Consul, not etcd: write consul:// for etcd://" in report.findings[0].text


@pytest.mark.parametrize("kind", KINDS)
async def test_store_that_nobody_serves_is_told(kind: str) -> None:
    report = await check(f"{SCHEMES[kind]}://{NOBODY}")
    assert not report.good
    assert f"no member serves: {NOBODY}: " in report.findings[0].text
    assert "can't be reached: Connection refused" in report.findings[0].text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), "Connection refused"),
        (
            # What asyncio says of a name with two addresses, as localhost is on Debian.
            OSError(
                "Multiple exceptions: [Errno 111] Connect call failed ('::1', 2379, 0, 0), "
                "[Errno 111] Connect call failed ('127.0.0.1', 2379)"
            ),
            "can't be reached: Connection refused",
        ),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "is its name right?"),
    ],
)
def test_why_there_is_no_connection_is_told(error: OSError, told: str) -> None:
    assert _no_connection(error, tls=False).endswith(told)


@pytest.mark.parametrize(
    ("code", "message", "told"),
    [
        (10, "certificate has expired", r"\(certificate has expired\): renew it"),
        (
            62,
            "Hostname mismatch.",
            r"\(Hostname mismatch\): it must hold this host name or address",
        ),
        (20, "unable to get local issuer certificate", "ca= must name the authority that signed"),
    ],
)
def test_remedy_fits_what_is_wrong_with_a_certificate(code: int, message: str, told: str) -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = code, message
    assert re.search(told, refused_handshake(error, certificate=False))
    assert re.search(told, zookeeper_cause(error, Access(())))


async def test_member_that_is_down_is_told(url: str) -> None:
    report = await check(url.replace("/bad-input/", f",{NOBODY}/bad-input/"))
    assert report.findings[0].level == "warning"
    assert f"1 of 2 members serve: {NOBODY}: " in report.findings[0].text
    assert "can't be reached: Connection refused" in report.findings[0].text


async def test_store_of_a_newer_schema_is_refused(url: str) -> None:
    store = await open_store(url)
    meta = {"v": 1, "cluster": "a" * 32, "min_reader": 99, "created": "2026-11-25T00:00:00Z"}
    await store.txn([], [Write("meta", json.dumps(meta).encode())])
    state = State(store, host())
    with pytest.raises(
        InvalidError, match="needs a reader of schema 99, this one knows 1: upgrade"
    ):
        await Membership(store, state, host()).register()
    await store.close()


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        (b"garbage", "store record meta: not JSON: b'garbage': correct it, or put a dump back"),
        (b'{"v":1,"cluster":5}', "store record meta: field min_reader is None.*: correct it"),
        (b'{"v":1,"min_reader":99}', "store record meta: .*schema 99, this one knows 1: upgrade"),
    ],
)
async def test_meta_that_can_not_be_used_ends_the_start(meta: bytes, told: str) -> None:
    store = MemoryStore()
    await store.txn([], [Write("meta", meta)])

    async def opener(_url: str) -> Store:
        return store

    with pytest.raises(InvalidError, match=told):
        await ClusterStore.open("memory:", host_id="", opener=opener)
    with pytest.raises(StoreError, match="closed"):
        await store.get("meta")


async def test_host_that_is_not_let_in_is_not_told_to_start_the_store(
    zookeeper_server: Server, tmp_path: Path
) -> None:
    location = f"{zookeeper_server.address}:{zookeeper_server.port}/{secrets.token_hex(8)}"
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text("secret")
    owner = await open_store(f"zk://{location}?user=owner&password-file={password}")
    await owner.txn([], [Write("meta", b"{}")])
    stranger = await open_store(f"zk://{location}")
    with pytest.raises(StoreDeniedError) as refused:
        await stranger.get("meta")
    with pytest.raises(StoreDeniedError):
        await stranger.txn([], [Write("meta", b"")])
    assert str(refused.value).startswith(f"store zk://{location}: ")
    assert "a client without a user has no permission for" in str(refused.value)
    assert REMEDY not in str(refused.value)
    await owner.close()
    await stranger.close()


class OldEtcd(EtcdChannel):
    """Calls to an etcd whose members say that they are of an old version."""

    async def ask(self, member_name: str, method: pb.Method, request: pb.Message) -> pb.Message:
        answer = await super().ask(member_name, method, request)
        if method is pb.STATUS:
            answer.version = "3.5.1"
        return answer


async def test_etcd_of_a_version_that_loses_data_is_warned_of(
    etcd_server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = EtcdStore(OldEtcd(parse_url(etcd_server.url)))
    with caplog.at_level(logging.WARNING):
        await warn(store, etcd_server.url)
    await store.close()
    told = f"{etcd_server.member} runs etcd 3.5.1, which can lose data after a crash: upgrade to 3."
    assert f"store check what=version cause={told}" in caplog.text


async def test_value_that_is_not_ours_is_told_and_left_alone(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(url)
    await store.txn([], [Write("net/x", b"hello")])
    state = State(store, host())
    with caplog.at_level(logging.WARNING):
        assert await state.start()
    assert "store record skipped key=net/x cause=not JSON: b'hello': correct or remove it" in (
        caplog.text
    )
    item = await store.get("net/x")
    assert item is not None
    assert item.value == b"hello"
    await state.close()
    await store.close()
