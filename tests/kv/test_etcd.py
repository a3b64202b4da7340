"""etcd beyond the contract: history, a cluster of three, users, TLS, backups, and what is told.

All of it holds for both clients, each in its environment, unless a test is marked `own_client`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from pyvxlan.daemon.errors import (
    ConfigError,
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import (
    ABSENT,
    Check,
    Delete,
    Live,
    Put,
    Removal,
    Snapshot,
    Stale,
    Store,
    Write,
)
from pyvxlan.daemon.kv.etcd import findings as judged
from pyvxlan.daemon.kv.etcd import keys
from pyvxlan.daemon.kv.health import Finding, Health
from tests.kv.conftest import eventually
from tests.kv.labs.etcd import first_choice, member_in_use, open_client, token_in_use
from tests.kv.mirror import Mirror
from tests.servers.etcd import KIND, EtcdCluster, EtcdServer
from tests.servers.pki import Authority
from tests.servers.relay import Relay

NOTICED_S = 12.0
HEALED_S = 5.0

Opener = Callable[[str], Awaitable[Store]]


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Opens stores, and closes them at the end."""
    stores: list[Store] = []

    async def open_(url: str) -> Store:
        stores.append(await open_client(url))
        return stores[-1]

    yield open_
    for store in stores:
        await store.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    """A server of the test's own."""
    with EtcdServer(tmp_path / "server") as server:
        yield server


@pytest.fixture
async def relay(server: EtcdServer) -> AsyncIterator[Relay]:
    relay = Relay(server.port)
    await relay.start()
    yield relay
    await relay.cut()


def through(relay: Relay) -> str:
    return f"{KIND}://127.0.0.1:{relay.port}/test/v1"


async def broken_off(relay: Relay, mirror: Mirror) -> None:
    await relay.cut()
    await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=NOTICED_S)


# History


@pytest.mark.own_client
async def test_watch_that_was_cut_off_gets_what_it_missed_and_no_more(
    server: EtcdServer, relay: Relay, opened: Opener
) -> None:
    store, other = await opened(through(relay)), await opened(server.url)
    await other.txn([], [Write("k/a", b"1"), Write("k/b", b"1")])
    mirror = Mirror(store, "k/")
    await mirror.until(lambda: bool(mirror.events))
    await broken_off(relay, mirror)
    await other.txn([], [Write("k/a", b"2")])
    await other.txn([], [Delete("k/b"), Write("other", b"1")])
    await relay.start()
    await mirror.until(lambda: isinstance(mirror.events[-1], Live))
    _, _, put, removal, _ = mirror.events
    assert isinstance(put, Put)
    assert (put.item.key, put.item.value) == ("k/a", b"2")
    assert isinstance(removal, Removal)
    assert removal.key == "k/b"
    await mirror.stop()


@pytest.mark.own_client
async def test_watch_is_live_only_after_thousands_of_missed_changes(
    server: EtcdServer, relay: Relay, opened: Opener
) -> None:
    store, other = await opened(through(relay)), await opened(server.url)
    await other.txn([], [Write("k/first", b"1")])
    mirror = Mirror(store, "k/")
    await mirror.until(lambda: bool(mirror.events))
    await broken_off(relay, mirror)

    async def write(part: int) -> None:
        for number in range(100):
            await other.txn([], [Write(f"k/{part}/{number}", b"1")])

    await asyncio.gather(*map(write, range(25)))
    await relay.start()
    await mirror.until(lambda: isinstance(mirror.events[-1], Live), within_s=10)
    assert len(mirror.values) == 2501
    assert len(mirror.seen(Snapshot)) == 1
    await mirror.stop()


async def test_history_compacted_meanwhile_is_replaced_by_a_snapshot(
    server: EtcdServer, relay: Relay, opened: Opener
) -> None:
    store, other = await opened(through(relay)), await opened(server.url)
    await other.txn([], [Write("k/a", b"1"), Write("k/b", b"1")])
    mirror = Mirror(store, "k/")
    await mirror.until(lambda: bool(mirror.events))
    await broken_off(relay, mirror)
    await other.txn([], [Delete("k/a"), Write("k/c", b"1")])
    await other.txn([], [Write("other", b"1")])
    server.ctl("compact", str(server.revision()))
    await relay.start()
    await mirror.until(lambda: isinstance(mirror.events[-1], Live))
    told = [False, True] if KIND == "etcd" else [False]  # python-etcd3 begins anew every time
    assert [stale.anew for stale in mirror.seen(Stale)] == told
    expected = [Snapshot, *(Stale for _ in told), Snapshot, Live]
    assert [type(event) for event in mirror.events] == expected
    assert set(mirror.values) == {"k/b", "k/c"}
    await mirror.stop()


@pytest.mark.own_client
async def test_watch_that_would_go_on_from_long_ago_is_read_anew(
    server: EtcdServer, relay: Relay, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyvxlan.daemon.kv.etcd.watch.RECENT_REVISIONS", 5)
    store, other = await opened(through(relay)), await opened(server.url)
    await other.txn([], [Write("old/a", b"1")])
    old, new = Mirror(store, "old/"), Mirror(store, "new/")
    await old.until(lambda: bool(old.events))
    for number in range(8):
        await other.txn([], [Write("new/a", b"%d" % number)])
    await new.until(lambda: new.values.get("new/a") == b"7")
    snapshots = len(new.seen(Snapshot))
    await broken_off(relay, old)
    await relay.start()
    for mirror in (old, new):
        await mirror.until(lambda mirror=mirror: isinstance(mirror.events[-1], Live))  # type: ignore[misc]
    assert len(old.seen(Snapshot)) == 2
    assert len(new.seen(Snapshot)) == snapshots
    await old.stop()
    await new.stop()


@pytest.mark.own_client
async def test_removal_that_was_compacted_away_is_no_event_to_go_on_from(
    server: EtcdServer, relay: Relay, opened: Opener
) -> None:
    store, other = await opened(through(relay)), await opened(server.url)
    await other.txn([], [Write("k/a", b"1"), Write("k/b", b"1")])
    mirror = Mirror(store, "k/")
    await mirror.until(lambda: bool(mirror.events))
    await other.txn([], [Delete("k/a")])
    await mirror.until(lambda: set(mirror.values) == {"k/b"})
    await broken_off(relay, mirror)
    server.ctl("compact", str(server.revision()))
    await relay.start()
    await mirror.until(lambda: isinstance(mirror.events[-1], Live), within_s=2 * HEALED_S)
    assert set(mirror.values) == {"k/b"}
    await mirror.stop()


async def test_compaction_leaves_a_live_watch_alone(server: EtcdServer, opened: Opener) -> None:
    store = await opened(server.url)
    mirror = Mirror(store, "k/")
    await mirror.until(lambda: bool(mirror.events))
    for number in range(60):
        await store.txn([], [Write(f"k/{number}", b"1")])
        if number % 20 == 10:
            server.ctl("compact", str(server.revision()))
    await mirror.until(lambda: len(mirror.values) == 60)
    assert len(mirror.events) == 61
    await mirror.stop()


@pytest.mark.own_client
async def test_all_watches_share_one_stream_and_each_hears_its_own(
    server: EtcdServer, opened: Opener
) -> None:
    store = await opened(server.url)
    mirrors = [Mirror(store, f"{number}/") for number in range(50)]
    for number, mirror in enumerate(mirrors):
        await mirror.until(lambda mirror=mirror: bool(mirror.events))  # type: ignore[misc]
        await store.txn([], [Write(f"{number}/x", b"1")])
    for mirror in mirrors:
        await mirror.until(lambda mirror=mirror: len(mirror.values) == 1)  # type: ignore[misc]
    metrics = await asyncio.to_thread(
        subprocess.run, ["curl", "-s", f"{server.endpoint}/metrics"], capture_output=True, text=True
    )
    counts = dict(line.split() for line in metrics.stdout.splitlines() if line[0] != "#")
    assert counts["etcd_debugging_mvcc_watcher_total"] == "50"
    assert counts["etcd_debugging_mvcc_watch_stream_total"] == "1"
    for mirror in mirrors:
        await mirror.stop()


@pytest.mark.own_client
async def test_pause_of_the_process_itself_breaks_no_watch(
    server: EtcdServer,
    opened: Opener,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from pyvxlan.daemon.kv.etcd import watch  # noqa: PLC0415 - needs a protobuf of today

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(watch, "PROBE_S", 0.5)
    monkeypatch.setattr(watch, "SILENT_S", 1.5)
    store = await opened(server.url)
    mirror = Mirror(store, "k/")
    await mirror.until(lambda: bool(mirror.events))
    time.sleep(3)  # The loop shall be late: its own silence is not the server's
    await store.txn([], [Write("k/a", b"1")])
    await mirror.until(lambda: len(mirror.values) == 1)
    await asyncio.sleep(2 * watch.TICK_S)
    assert not [one for one in caplog.messages if "watch stream broken" in one]
    await mirror.stop()


# Outcomes


async def test_lost_answer_is_uncertain_and_the_change_is_made_once(
    server: EtcdServer, relay: Relay, opened: Opener
) -> None:
    store = await opened(through(relay))
    await store.txn([], [Write("a", b"0")])
    relay.mute = True
    with pytest.raises(StoreUncertainError, match="maybe it was applied"):
        await store.txn([], [Write("a", b"1")])
    relay.mute = False
    async with asyncio.timeout(HEALED_S):
        while True:
            try:
                item = await store.get("a")
            except StoreUnavailableError:
                continue
            break
    assert item is not None
    assert item.value == b"1"
    found = json.loads(server.ctl("get", "test/v1/a", "--write-out=json").stdout)
    assert found["kvs"][0]["version"] == 2


async def test_change_that_is_too_large_is_refused_with_the_remedy(
    server: EtcdServer, opened: Opener
) -> None:
    store = await opened(server.url)
    with pytest.raises(StoreUnavailableError, match="--max-request-bytes"):
        await store.txn([], [Write(f"big/{n}", b"x" * 65536) for n in range(30)])
    assert await store.list("") == {}


async def test_full_store_is_told_with_the_remedy(tmp_path: Path, opened: Opener) -> None:
    with EtcdServer(tmp_path / "server", flags=["--quota-backend-bytes=2000000"]) as server:
        store = await opened(server.url)

        async def fill() -> None:
            for number in range(200):
                await store.txn([], [Write(f"big/{number}", b"x" * 65536)])

        with pytest.raises(StoreUnavailableError, match=r"NOSPACE.*etcdctl alarm disarm"):
            await fill()
        assert await store.get("big/0") is not None
        found = findings(await store.health(), "space")
        assert [finding.level for finding in found if "NOSPACE" in finding.text] == ["error"]


# A cluster of three


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


async def test_watch_and_session_survive_the_member_in_use(
    cluster: EtcdCluster, opened: Opener
) -> None:
    store = await opened(cluster.url)
    session = await store.session(10)
    await store.txn([], [Write("f/alive", b"1", bound=True)], session=session)
    mirror, empty = Mirror(store, "f/"), Mirror(store, "e/")
    await mirror.until(lambda: bool(mirror.events and empty.events))
    member = await member_in_use(store)
    cluster.members[member].kill()
    written = 0
    async with asyncio.timeout(NOTICED_S):
        while written < 20:
            try:
                await store.txn([], [Write(f"f/{written}", b"1")])
            except StoreError:
                await asyncio.sleep(0.05)
                continue
            written += 1
    await mirror.until(lambda: len(mirror.values) == 21, within_s=NOTICED_S)
    assert await member_in_use(store) != member
    renewed_until = session.valid_until
    await eventually(lambda: session.valid_until > renewed_until, within_s=NOTICED_S)
    assert len(mirror.seen(Snapshot)) == 1 or KIND == "etcd+python-etcd3"
    await asyncio.to_thread(cluster.members[member].start)
    await mirror.stop()
    await empty.stop()


async def test_frozen_member_is_left_for_another(cluster: EtcdCluster, opened: Opener) -> None:
    store = await opened(cluster.url)
    await store.txn([], [Write("z/a", b"1")])
    mirror = Mirror(store, "z/")
    await mirror.until(lambda: bool(mirror.events))
    member = await member_in_use(store)
    await asyncio.to_thread(cluster.lead_elsewhere, member)
    cluster.members[member].freeze()
    try:
        assert await store.get("z/a") is not None
        await eventually_written(store, Write("z/a", b"2"))
        await mirror.until(lambda: mirror.values["z/a"] == b"2", within_s=NOTICED_S)
        assert await member_in_use(store) != member
    finally:
        cluster.members[member].thaw()
    await mirror.stop()


async def test_member_without_a_majority_is_not_believed(
    cluster: EtcdCluster, opened: Opener
) -> None:
    store = await opened(cluster.url)
    session = await store.session(30)
    await store.txn([], [Write("m/a", b"1"), Write("m/alive", b"1", bound=True)], session=session)
    mirror = Mirror(store, "m/")
    await mirror.until(lambda: bool(mirror.events))
    member = await member_in_use(store)
    others = [server for name, server in cluster.members.items() if name != member]
    for server in others:
        server.freeze()
    try:
        with pytest.raises(StoreUnavailableError):
            await store.get("m/a")
        with pytest.raises((StoreUnavailableError, StoreUncertainError)):
            await store.txn([], [Write("m/a", b"2")])
        await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=NOTICED_S)
    finally:
        for server in others:
            server.thaw()
    await mirror.until(lambda: isinstance(mirror.events[-1], Live), within_s=NOTICED_S)
    await eventually_written(store, Write("m/a", b"3"))
    await mirror.until(lambda: mirror.values["m/a"] == b"3")
    assert mirror.values["m/alive"] == b"1"
    await mirror.stop()


async def test_hosts_share_out_over_the_members(cluster: EtcdCluster, opened: Opener) -> None:
    first = {first_choice(await opened(cluster.url)) for _ in range(60)}
    assert first == set(cluster.members)


async def test_members_of_different_clusters_are_told(
    server: EtcdServer, tmp_path: Path, opened: Opener
) -> None:
    with EtcdServer(tmp_path / "other") as other:
        store = await opened(f"{KIND}://{server.member},{other.member}/test/v1")
        (finding,) = findings(await store.health(), "cluster")
        assert finding.level == "error"
        assert server.member in finding.text
        assert other.member in finding.text


async def eventually_written(store: Store, write: Write) -> None:
    """Writes as soon as the store takes it; the value may be written twice."""
    async with asyncio.timeout(NOTICED_S):
        while True:
            try:
                await store.txn([], [write])
            except StoreError:
                await asyncio.sleep(0.05)
                continue
            return


# Backups


async def test_restored_backup_is_told_as_a_new_store(
    server: EtcdServer, tmp_path: Path, opened: Opener
) -> None:
    store = await opened(server.url)
    session = await store.session(60)
    await store.txn([], [Write("a", b"old"), Write("alive", b"1", bound=True)], session=session)
    server.back_up(tmp_path / "backup")
    await store.txn([], [Write("a", b"new"), Write("b", b"new")])
    mirror = Mirror(store, "")
    await mirror.until(lambda: set(mirror.values) == {"a", "alive", "b"})
    server.kill()
    server.restore(tmp_path / "backup")
    await asyncio.to_thread(server.start)
    await mirror.until(lambda: mirror.values.get("a") == b"old", within_s=NOTICED_S)
    assert len(mirror.seen(Snapshot)) == 2
    async with asyncio.timeout(HEALED_S):
        await session.lost()
    await mirror.stop()


async def put_back(server: EtcdServer, backup: Path, opened: Opener, *, key: str) -> None:
    """Puts a backup back; then another client writes a key until the revision is a higher one."""
    server.kill()
    server.restore(backup)
    await asyncio.to_thread(server.start)
    other = await opened(server.url)
    for number in range(10):
        await other.txn([], [Write(key, str(number).encode())])


@pytest.mark.own_client
async def test_restored_store_that_went_on_is_not_mistaken_for_the_old_one(
    server: EtcdServer, relay: Relay, tmp_path: Path, opened: Opener
) -> None:
    store = await opened(through(relay))
    session = await store.session(60)
    await store.txn([], [Write("a", b"1")])
    server.back_up(tmp_path / "backup")
    await store.txn([], [Write("a", b"2"), Write("lost", b"1")])
    mirror = Mirror(store, "")
    await mirror.until(lambda: "lost" in mirror.values)
    await broken_off(relay, mirror)
    await put_back(server, tmp_path / "backup", opened, key="b")
    await relay.start()
    await mirror.until(lambda: isinstance(mirror.events[-1], Live), within_s=NOTICED_S)
    assert mirror.values == {"a": b"1", "b": b"9"}
    async with asyncio.timeout(HEALED_S):
        await session.lost()
    await mirror.stop()


@pytest.mark.own_client
async def test_restored_store_that_is_silent_of_what_it_lost_is_listed_soon(
    server: EtcdServer, relay: Relay, tmp_path: Path, opened: Opener
) -> None:
    """Its revision is higher than the one that was seen, and nothing happens below the prefix."""
    store = await opened(through(relay))
    await store.txn([], [Write("quiet/a", b"1")])
    server.back_up(tmp_path / "backup")
    await store.txn([], [Write("quiet/b", b"1")])
    mirror = Mirror(store, "quiet/")
    await mirror.until(lambda: "quiet/b" in mirror.values)
    await broken_off(relay, mirror)
    await put_back(server, tmp_path / "backup", opened, key="elsewhere")
    await relay.start()
    await mirror.until(lambda: isinstance(mirror.events[-1], Live), within_s=HEALED_S)
    assert mirror.values == {"quiet/a": b"1"}
    await mirror.stop()


# Users


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """A server that lets in `host` below test/v1/ and `guest` elsewhere; tokens live for 2 s."""
    directory = tmp_path_factory.mktemp("guarded")
    with EtcdServer(directory, flags=["--auth-token-ttl=2"]) as server:
        server.guard({"host": ("secret", "test/v1/"), "guest": ("secret", "elsewhere/")})
        yield server


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    path.write_text("secret\n")
    return path


async def test_user_may_do_everything_below_its_prefix(
    guarded: EtcdServer, password: Path, opened: Opener
) -> None:
    store = await opened(f"{guarded.url}?user=host&password-file={password}")
    session = await store.session(10)
    mirror = Mirror(store, "u/")
    await mirror.until(lambda: bool(mirror.events))
    await store.txn([], [Write("u/a", b"1", bound=True)], session=session)
    await mirror.until(lambda: set(mirror.values) == {"u/a"})
    (finding,) = findings(await store.health(), "permissions")
    assert finding.level == "ok", finding
    (finding,) = findings(await store.health(), "password")
    assert "unencrypted" in finding.text
    await session.close()
    await mirror.until(lambda: not mirror.values)
    await mirror.stop()


async def test_expired_token_is_renewed_and_nobody_notices(
    guarded: EtcdServer, password: Path, opened: Opener
) -> None:
    store = await opened(f"{guarded.url}?user=host&password-file={password}")
    mirror = Mirror(store, "x/")
    await mirror.until(lambda: bool(mirror.events))
    token = await token_in_use(store)
    await asyncio.sleep(4.5)
    await store.txn([Check("x/a", ABSENT)], [Write("x/a", b"1")])
    assert await token_in_use(store) != token
    await mirror.until(lambda: set(mirror.values) == {"x/a"})
    await asyncio.sleep(4.5)
    later = Mirror(store, "x/")
    await later.until(lambda: set(later.values) == {"x/a"})
    await store.txn([], [Write("x/b", b"1")])
    for each in (mirror, later):
        await each.until(lambda each=each: set(each.values) == {"x/a", "x/b"})  # type: ignore[misc]
        assert each.seen(Stale) == []
        await each.stop()


async def test_refused_password_is_told_without_it(
    guarded: EtcdServer, password: Path, opened: Opener
) -> None:
    password.write_text("wrong one")
    store = await opened(f"{guarded.url}?user=host&password-file={password}")
    with pytest.raises(StoreUnavailableError) as refusal:
        await store.get("a")
    told = str(refusal.value)
    assert f"refuses user host with the password in {password}" in told
    assert "wrong one" not in told
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.seen(Stale)))
    password.write_text("secret")
    await mirror.until(lambda: isinstance(mirror.events[-1], Live), within_s=HEALED_S)
    await mirror.stop()


async def test_missing_user_is_told(guarded: EtcdServer, opened: Opener) -> None:
    store = await opened(guarded.url)
    with pytest.raises(StoreUnavailableError, match=r"wants a user.*user=NAME&password-file"):
        await store.txn([], [Write("a", b"1")])


async def test_missing_permission_is_told(
    guarded: EtcdServer, password: Path, opened: Opener
) -> None:
    store = await opened(f"{guarded.url}?user=guest&password-file={password}")
    remedy = "does not let user guest use test/v1/: run etcdctl role grant-permission"
    with pytest.raises(StoreUnavailableError, match=remedy):
        await store.txn([], [Write("a", b"1")])
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events))
    (stale,) = mirror.events
    assert isinstance(stale, Stale)
    assert remedy in stale.reason
    (finding,) = findings(await store.health(), "permissions")
    assert finding.level == "error"
    assert remedy in finding.text
    await mirror.stop()


async def test_restarted_server_knows_no_token_and_nobody_notices(
    tmp_path: Path, password: Path, opened: Opener
) -> None:
    with EtcdServer(tmp_path / "server") as server:
        url = f"{server.url}?user=host&password-file={password}"
        store = await opened(url)
        await store.txn([], [Write("a", b"1")])  # authentication is not enabled yet
        server.guard({"host": ("secret", "test/v1/")})
        await store.txn([], [Write("a", b"2")])
        mirror = Mirror(store, "")
        await mirror.until(lambda: bool(mirror.events))
        server.kill()
        await asyncio.to_thread(server.start)
        await eventually_written(store, Write("a", b"3"))
        await mirror.until(lambda: mirror.values == {"a": b"3"}, within_s=HEALED_S)
        await mirror.stop()


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours")


@pytest.fixture(scope="module")
def strict(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """A server that wants a certificate of each client."""
    directory = tmp_path_factory.mktemp("strict")
    with EtcdServer(directory, authority=authority, client_certificates=True) as server:
        yield server


@pytest.fixture
def options(authority: Authority, tmp_path: Path) -> Mapping[str, str]:
    """What a URL may say, by what the cases below call it."""
    ours, foreign = authority.issue("host"), Authority(tmp_path / "foreign")
    theirs = foreign.issue("stranger")
    return {
        "all": f"?ca={authority.ca}&cert={ours.cert}&key={ours.key}",
        "no certificate": f"?ca={authority.ca}",
        "foreign certificate": f"?ca={authority.ca}&cert={theirs.cert}&key={theirs.key}",
        "foreign authority": f"?ca={foreign.ca}&cert={ours.cert}&key={ours.key}",
        "system's authorities": "?tls=true",
        "no TLS": "",
    }


async def test_client_certificate_opens_everything(
    strict: EtcdServer, options: Mapping[str, str], opened: Opener
) -> None:
    store = await opened(strict.url + options["all"])
    session = await store.session(10)
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events))
    await store.txn([], [Write("a", b"1", bound=True)], session=session)
    await mirror.until(lambda: mirror.values == {"a": b"1"})
    assert [member.error for member in (await store.health()).members] == [""]
    await session.close()
    await mirror.stop()


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("no certificate", "wants a client certificate: name one with cert=PATH&key=PATH"),
        ("foreign certificate", "refuses the client certificate"),
        ("foreign authority", "not trusted .*ca= must name the authority"),
        ("system's authorities", "not trusted .*ca= must name the authority"),
        ("no TLS", "speaks TLS: name its authority with ca=PATH"),
    ],
)
async def test_what_is_wrong_with_tls_is_told(
    case: str, told: str, strict: EtcdServer, options: Mapping[str, str], opened: Opener
) -> None:
    store = await opened(strict.url + options[case])
    with pytest.raises(StoreUnavailableError, match=f"{strict.member} .*{told}"):
        await store.get("a")
    (member,) = (await store.health()).members
    assert member.address == strict.member
    assert member.error


async def test_certificate_for_another_host_is_not_trusted(
    authority: Authority, tmp_path: Path, opened: Opener
) -> None:
    with EtcdServer(tmp_path / "server", authority=authority) as server:
        (tmp_path / "server" / "x").touch()
        port = server.port
        store = await opened(f"{KIND}://[::ffff:127.0.0.1]:{port}/test?ca={authority.ca}")
        with pytest.raises(StoreUnavailableError, match="must hold this host name or address"):
            await store.get("a")


async def test_server_without_tls_is_told(
    server: EtcdServer, authority: Authority, opened: Opener
) -> None:
    store = await opened(f"{server.url}?ca={authority.ca}")
    with pytest.raises(StoreUnavailableError, match="leave out tls, ca, cert and key"):
        await store.get("a")


async def test_file_that_is_no_certificate_is_refused_at_once(
    authority: Authority, tmp_path: Path, opened: Opener
) -> None:
    ours, other = authority.issue("one"), authority.issue("other")
    junk = tmp_path / "junk"
    junk.write_text("no certificate")
    for options, told in (
        (f"ca={junk}", f"ca {junk} holds no certificate"),
        (f"ca={tmp_path}/absent", "absent can't be read: No such file"),
        (f"cert={ours.cert}&key={other.key}", "are not a certificate and its private key"),
    ):
        with pytest.raises(ConfigError, match=told):
            await opened(f"{KIND}://127.0.0.1/test?{options}")


# Health


def findings(found: Health, what: str) -> list[Finding]:
    return [finding for finding in found.findings if finding.what == what]


async def test_health_names_members_and_what_can_be_known(
    server: EtcdServer, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(f"{KIND}://{server.member},127.0.0.1:1/test/v1")
    for _ in range(20):
        await store.txn([], [Write("a", b"1")])
    found = await store.health()
    up, down = found.members
    assert (up.address, up.error, up.version[:2]) == (server.member, "", "3.")
    assert up.latency_s is not None
    assert down.error == "can't be reached: Connection refused"
    assert found.cluster
    assert {finding.level for finding in found.findings} == {"ok"}
    (young,) = findings(found, "compaction")
    assert "too young to judge" in young.text
    monkeypatch.setattr(judged, "YOUNG_REVISIONS", 10)
    (warning,) = findings(await store.health(), "compaction")
    assert warning.level == "warning"
    assert "--auto-compaction-retention" in warning.text
    server.ctl("compact", "15")
    (ok,) = findings(await store.health(), "compaction")
    assert (ok.level, ok.text) == ("ok", f"history begins at revision 15 of {server.revision()}")


async def test_health_of_a_store_that_is_down_is_told_in_time(
    server: EtcdServer, opened: Opener
) -> None:
    store = await opened(server.url)
    await store.get("a")
    server.freeze()
    async with asyncio.timeout(NOTICED_S):
        (member,) = (await store.health()).members
    server.thaw()
    assert member.error


@pytest.mark.parametrize(
    ("version", "loses"),
    [
        ("3.4.21", True),
        ("3.4.22", False),
        ("3.4.23", False),
        ("3.5.0", True),
        ("3.5.1", True),
        ("3.5.5", True),
        ("3.5.6", False),
        ("3.6.0", False),
        ("3.3.27", True),
        ("", False),
    ],
)
def test_versions_that_lose_data_are_known(version: str, loses: bool) -> None:
    assert judged._loses_data(version) is loses


# Parts


@pytest.mark.own_client
async def test_large_prefix_is_read_whole_whatever_its_keys_begin_with(
    server: EtcdServer, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(server.url)
    names = [chr(code) for code in range(0x21, 0x7F) if chr(code) not in "/."]
    wanted = sorted(["p", *(f"p{name}{tail}" for name in names for tail in ("", "x"))])
    for start in range(0, len(wanted), 32):
        await store.txn([], [Write(key, b"1") for key in wanted[start : start + 32]])
    monkeypatch.setattr("pyvxlan.daemon.kv.etcd.store.PAGE", 3)
    assert sorted(await store.list("p")) == wanted
    assert sorted(await store.list("")) == wanted


def test_parts_of_a_prefix_are_all_of_it() -> None:
    for prefix in ("", "ep/", "net/0f"):
        made = keys.Keys("a/b")
        parts = made.parts(prefix)
        assert len(parts) == 16
        assert (parts[0][0], parts[-1][1]) == made.below(prefix)
        assert all(end == start for (_, end), (start, _) in pairwise(parts))


def test_grpc_is_told_not_to_handle_forks() -> None:
    script = "import os, pyvxlan.daemon.kv.etcd; print(os.environ['GRPC_ENABLE_FORK_SUPPORT'])"
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"


@pytest.mark.own_client
def test_messages_stay_out_of_the_pool_that_all_libraries_share() -> None:
    script = (
        "import pyvxlan.daemon.kv.etcd\n"
        "from google.protobuf import descriptor_pool, descriptor_pb2\n"
        "for name in ('rpc.proto', 'kv.proto', 'pyvxlan/etcd.proto'):\n"
        "    made = descriptor_pb2.FileDescriptorProto(name=name, package='etcdserverpb')\n"
        "    descriptor_pool.Default().Add(made)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


async def test_session_that_the_server_forgot_fails_every_transaction(
    server: EtcdServer, opened: Opener
) -> None:
    store = await opened(server.url)
    session = await store.session(10)
    server.ctl("lease", "revoke", session.id)
    with pytest.raises(StoreConflictError, match=session.id):
        await store.txn([], [Write("a", b"1")], session=session)
    assert await store.get("a") is None
