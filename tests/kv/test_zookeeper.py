"""ZooKeeper's traps: late writes, versions that begin anew, servers that come back as others."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kazoo.client import KazooClient
from kazoo.protocol.states import ZnodeStat
from kazoo.security import make_digest_acl

from pyvxlan.daemon.clusterstore import probe
from pyvxlan.daemon.errors import (
    ConfigError,
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import ABSENT, PRESENT, Check, Delete, Live, Snapshot, Stale, Write
from pyvxlan.daemon.kv.open import open_store
from pyvxlan.daemon.kv.zookeeper import ZookeeperStore
from pyvxlan.daemon.kv.zookeeper.layout import Layout, joined, parted
from pyvxlan.daemon.kv.zookeeper.link import Link
from pyvxlan.daemon.kv.zookeeper.transaction import Writer, nodes_to_read, plan
from tests.kv.conftest import eventually
from tests.kv.labs.zookeeper import ZookeeperLab, end_session
from tests.kv.mirror import Mirror
from tests.servers.pki import Authority
from tests.servers.process import free_port
from tests.servers.zookeeper import Ensemble, ZookeeperServer

PARTS = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/"),
    min_size=1,
    max_size=3,
).filter(lambda part: part not in {".", ".."}) | st.sampled_from(["=", "=a", "%", "%=", "%=a", "a"])
KEYS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


@pytest.fixture
async def lab(zookeeper_server: ZookeeperServer) -> AsyncIterator[ZookeeperLab]:
    made = ZookeeperLab(zookeeper_server.member)
    yield made
    await made.close()


@pytest.fixture(scope="module")
def fragile_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZookeeperServer]:
    """A server that tests may stop, freeze and wipe."""
    with ZookeeperServer(tmp_path_factory.mktemp("fragile")) as server:
        yield server


@pytest.fixture
async def fragile(fragile_server: ZookeeperServer) -> AsyncIterator[ZookeeperLab]:
    if fragile_server.process is None:
        fragile_server.start()
    made = ZookeeperLab(fragile_server.member)
    yield made
    if fragile_server.process is not None:
        fragile_server.thaw()
    await made.close()


def nodes(members: str, root: str) -> set[str]:
    """Every node below `root`, as the server has it."""
    client = KazooClient(members)
    client.start()
    found, todo = set(), [root]
    while todo:
        path = todo.pop()
        below = {f"{path}/{child}" for child in client.get_children(path)}
        found |= below
        todo += below
    client.stop()
    client.close()
    return {path.removeprefix(f"{root}/") for path in found}


def children(members: str, path: str) -> list[str]:
    client = KazooClient(members)
    client.start()
    found: list[str] = client.get_children(path)
    client.stop()
    client.close()
    return found


class Intruder:
    """Lets something happen between what a transaction reads and what it sends."""

    def __init__(self, store: ZookeeperStore) -> None:
        self.store = store
        self.read = store._stats
        self.times = 0

    async def act(self) -> None:
        """Overridden by each test."""

    async def stats(self, link: Link, paths: Sequence[str]) -> Mapping[str, ZnodeStat | None]:
        found = await self.read(link, paths)
        self.times += 1
        if self.times == 1:
            await self.act()
        return found

    def __enter__(self) -> Intruder:
        self.store._stats = self.stats  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self.store._stats = self.read  # type: ignore[method-assign]


@given(st.lists(KEYS, unique=True, max_size=8))
def test_each_key_has_a_node_of_its_own_that_is_no_directory(keys: list[str]) -> None:
    layout = Layout("/root")
    values = {layout.value(key) for key in keys}
    directories = {
        layout.directory("/".join(key.split("/")[:count]))
        for key in keys
        for count in range(key.count("/") + 1)
    }
    assert len(values) == len(keys)
    assert not values & directories
    for key in keys:
        *names, leaf = layout.value(key).removeprefix("/root/").split("/")
        assert all([*names, leaf])
        found = ""
        for name in [*names, leaf]:
            found = joined(found, parted(name)[1])
        assert found == key
        assert [parted(name)[0] for name in names] == [False] * len(names)


async def test_keys_that_zookeeper_would_not_take_as_paths_are_kept(lab: ZookeeperLab) -> None:
    store = await lab.open()
    keys = ["net", "net/a", "a/=b", "=", "=/=", "%/%", "%=/%=", "zookeeper/x"]
    for key in keys:
        await store.txn([Check(key, ABSENT)], [Write(key, key.encode())])
    assert {key: item.value for key, item in (await store.list("")).items()} == {
        key: key.encode() for key in keys
    }
    mirror = Mirror(store, "net")
    await mirror.until(lambda: set(mirror.values) == {"net", "net/a"})
    await mirror.stop()


async def test_empty_directories_go_and_counting_ones_stay(lab: ZookeeperLab) -> None:
    store = await lab.open()
    root = store._layout.root
    await store.txn([], [Write("ep/n/1", b"x"), Write("ep/n/m/2", b"x"), Write("net/n", b"x")])
    await store.txn([Check("ip/n/1", ABSENT)], [Delete("ep/n/1"), Delete("net/n")])
    await eventually(lambda: not store._chores)
    assert await asyncio.to_thread(nodes, lab.members, root) == {
        *("ep", "ep/n", "ep/n/m", "ep/n/m/=2"),
        *("ip", "net"),
    }
    await store.txn([], [Delete("ep/n/m/2")])
    await eventually(lambda: not store._chores)
    assert await asyncio.to_thread(nodes, lab.members, root) == {"ep", "ip", "net"}


async def test_directory_that_vanishes_and_returns_is_still_watched(lab: ZookeeperLab) -> None:
    store, other = await lab.open(), await lab.open()
    mirror = Mirror(store, "ep/n/")
    await mirror.until(lambda: bool(mirror.events))
    for number in range(10):
        await other.txn([], [Write("ep/n/1", str(number).encode())])
        await mirror.until(
            lambda number=number: mirror.values == {"ep/n/1": str(number).encode()}  # type: ignore[misc]
        )
        await other.txn([], [Delete("ep/n/1")])
        await eventually(lambda: not other._chores)
        await mirror.until(lambda: mirror.values == {})
    assert len(mirror.seen(Snapshot)) == 1
    await mirror.stop()


async def test_token_is_refused_even_if_the_key_returns_at_the_last_moment(
    lab: ZookeeperLab,
) -> None:
    store, other = await lab.open(), await lab.open()
    await store.txn([], [Write("net/a", b"1")])
    item = await store.get("net/a")
    assert item is not None

    class Replacer(Intruder):
        async def act(self) -> None:
            await other.txn([], [Delete("net/a")])
            await other.txn([], [Write("net/a", b"2")])

    with Replacer(store) as intruder, pytest.raises(StoreConflictError):
        await store.txn([Check("net/a", item.revision)], [Delete("net/a")])
    assert intruder.times == 2
    replaced = await store.get("net/a")
    assert replaced is not None
    assert replaced.value == b"2"


async def test_token_of_a_bound_key_is_refused_if_its_session_is_replaced_at_the_last_moment(
    lab: ZookeeperLab,
) -> None:
    store, owner = await lab.open(), await lab.open()
    first = await owner.session(10)
    await owner.txn([], [Write("alive/h", b"1", bound=True)], session=first)
    item = await store.get("alive/h")
    assert item is not None

    class Successor(Intruder):
        async def act(self) -> None:
            await lab.expire(owner)
            second = await owner.session(10)
            await owner.txn([], [Write("alive/h", b"1", bound=True)], session=second)

    with Successor(store) as intruder, pytest.raises(StoreConflictError):
        await store.txn([Check("alive/h", item.revision)], [Write("ep/n/1", b"x")])
    assert intruder.times == 2
    assert await store.get("ep/n/1") is None


@pytest.mark.parametrize("present", [False, True])
async def test_transaction_is_planned_anew_if_its_keys_come_or_go_at_the_last_moment(
    lab: ZookeeperLab, present: bool
) -> None:
    store, other = await lab.open(), await lab.open()
    keys = [f"k/{name}" for name in ("written", "deleted")]
    if present:
        await store.txn([], [Write(key, b"0") for key in keys])

    class Changer(Intruder):
        async def act(self) -> None:
            await other.txn([], [Delete(key) if present else Write(key, b"1") for key in keys])

    with Changer(store) as intruder:
        await store.txn([], [Write("k/written", b"2"), Delete("k/deleted")])
    assert intruder.times >= 2
    assert {key: item.value for key, item in (await store.list("")).items()} == {"k/written": b"2"}


async def test_absent_and_present_are_checked_when_the_transaction_is_applied(
    lab: ZookeeperLab,
) -> None:
    store, other = await lab.open(), await lab.open()
    await store.txn([], [Write("k/there", b"0")])

    class Swapper(Intruder):
        async def act(self) -> None:
            await other.txn([], [Delete("k/there"), Write("k/free", b"1")])

    with Swapper(store), pytest.raises(StoreConflictError):
        await store.txn([Check("k/free", ABSENT)], [Write("k/new", b"x")])
    await other.txn([], [Delete("k/free"), Write("k/there", b"0")])
    with Swapper(store), pytest.raises(StoreConflictError):
        await store.txn([Check("k/there", PRESENT)], [Write("k/new", b"x")])
    assert await store.get("k/new") is None


async def test_key_changes_hands_between_sessions(lab: ZookeeperLab) -> None:
    store = await lab.open()
    first, second = await store.session(10), await store.session(10)
    for session in (first, second):
        await store.txn([], [Write("a", session.id.encode(), bound=True)], session=session)
    await first.close()
    item = await store.get("a")
    assert item is not None
    assert item.value == second.id.encode()
    await second.close()
    assert await store.get("a") is None


async def test_transaction_that_the_server_would_hang_up_on_is_refused(lab: ZookeeperLab) -> None:
    store = await lab.open()
    big = bytes(64 * 1024)
    await store.txn([], [Write(f"k/{number}", big) for number in range(15)])
    with pytest.raises(StoreError, match="ZooKeeper takes 1000000"):
        await store.txn([], [Write(f"k/{number}", big) for number in range(16)])


async def test_write_while_the_server_is_down_is_refused_and_never_applied(
    fragile: ZookeeperLab, fragile_server: ZookeeperServer
) -> None:
    store = await fragile.open()
    mirror = Mirror(store, "")
    await store.txn([], [Write("before", b"1")])
    await mirror.until(lambda: set(mirror.values) == {"before"})
    fragile_server.kill()
    await mirror.until(lambda: bool(mirror.seen(Stale)))
    for number in range(5):
        with pytest.raises(StoreUnavailableError, match=fragile_server.member):
            await store.txn([], [Write(f"late/{number}", b"x")])
    with pytest.raises(StoreUnavailableError):
        await store.get("before")
    fragile_server.start()
    await mirror.until(lambda: bool(mirror.seen(Live)), within_s=10)
    await asyncio.sleep(0.5)
    assert set(await store.list("")) == set(mirror.values) == {"before"}
    # All hosts read at this moment: each is told before, so that it may wait for its turn.
    told, *read = mirror.events[-3:]
    assert isinstance(told, Stale)
    assert told.anew
    assert [type(event) for event in read] == [Snapshot, Live]
    await mirror.stop()


async def test_write_that_lost_the_race_with_the_connection_is_never_applied(
    fragile: ZookeeperLab, fragile_server: ZookeeperServer
) -> None:
    store = await fragile.open()
    await store.txn([], [Write("a", b"1")])
    link = store._link
    ops = [Write("a", b"2")]
    stats = await store._stats(link, sorted(nodes_to_read(store._layout, [], ops)))
    operations = plan([], ops, stats, Writer(store._layout, store._access.acl))
    require = link._require

    def pass_and_lose_the_connection() -> None:
        require()
        fragile_server.kill()
        while link.connected:
            time.sleep(0.01)
        fragile_server.start(wait=False)

    link._require = pass_and_lose_the_connection  # type: ignore[method-assign]
    late = asyncio.create_task(link.commit(operations))
    await asyncio.sleep(0)
    link._require = require  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError):
        await late
    await eventually(lambda: link.connected, within_s=15)
    item = await store.get("a")
    assert item is not None
    assert item.value == b"1"


async def test_frozen_server_is_noticed_and_a_write_to_it_is_called_uncertain(
    fragile: ZookeeperLab, fragile_server: ZookeeperServer
) -> None:
    store = await fragile.open()
    session = await store.session(10)
    await store.txn([], [Write("alive/1", b"1", bound=True)], session=session)
    mirror = Mirror(store, "")
    await mirror.until(lambda: "alive/1" in mirror.values)
    link = store._link
    ops = [Write("a", b"1")]
    stats = await store._stats(link, sorted(nodes_to_read(store._layout, [], ops)))
    operations = plan([], ops, stats, Writer(store._layout, store._access.acl))
    frozen_at = time.monotonic()
    fragile_server.freeze()
    with pytest.raises(StoreUncertainError):
        await link.commit(operations)
    await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=10)
    assert time.monotonic() - frozen_at < 8
    with pytest.raises(StoreUnavailableError):
        await store.txn([], [Write("b", b"1")])
    fragile_server.thaw()
    await mirror.until(lambda: bool(mirror.seen(Live)), within_s=15)
    assert set(await store.list("")) == set(mirror.values)
    assert "alive/1" in mirror.values
    assert "b" not in mirror.values
    await mirror.stop()


async def test_wiped_server_begins_a_new_snapshot_and_ends_sessions(
    fragile: ZookeeperLab, fragile_server: ZookeeperServer
) -> None:
    store = await fragile.open()
    session = await store.session(10)
    await store.txn([], [Write("a", b"1"), Write("b", b"1", bound=True)], session=session)
    mirror = Mirror(store, "")
    await mirror.until(lambda: set(mirror.values) == {"a", "b"})
    fragile_server.kill()
    fragile_server.wipe()
    fragile_server.start()
    async with asyncio.timeout(15):
        await session.lost()
    await mirror.until(lambda: mirror.values == {}, within_s=15)
    assert len(mirror.seen(Snapshot)) == 2
    await store.txn([Check("a", ABSENT)], [Write("a", b"2")])
    await mirror.until(lambda: mirror.values == {"a": b"2"})
    await mirror.stop()


async def test_server_restored_from_a_backup_is_believed(
    fragile: ZookeeperLab, fragile_server: ZookeeperServer, tmp_path: Path
) -> None:
    store = await fragile.open()
    await store.txn([], [Write("old", b"1")])
    fragile_server.kill()
    shutil.copytree(fragile_server.data, tmp_path / "backup")
    fragile_server.start()
    mirror = Mirror(store, "")
    await mirror.until(lambda: "old" in mirror.values, within_s=10)
    await store.txn([], [Write("new", b"1"), Write("old", b"2")])
    await mirror.until(lambda: mirror.values == {"old": b"2", "new": b"1"})
    fragile_server.kill()
    fragile_server.wipe()
    shutil.copytree(tmp_path / "backup", fragile_server.data)
    fragile_server.start()
    await mirror.until(lambda: mirror.values == {"old": b"1"}, within_s=15)
    await mirror.stop()


async def test_store_opens_without_a_server_and_works_once_there_is_one(tmp_path: Path) -> None:
    server = ZookeeperServer(tmp_path / "late")
    lab = ZookeeperLab(server.member)
    store = await lab.open()
    with pytest.raises(StoreUnavailableError, match=rf"{server.member}: Connection refused"):
        await store.get("a")
    with pytest.raises(StoreUnavailableError, match="Connection refused"):
        await store.session(10)
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.seen(Stale)))
    with server:
        await mirror.until(lambda: bool(mirror.seen(Live)), within_s=10)
        await store.txn([], [Write("a", b"1")])
        await mirror.until(lambda: mirror.values == {"a": b"1"})
        await mirror.stop()
        await lab.close()


async def test_name_that_is_not_known_is_said(tmp_path: Path) -> None:
    lab = ZookeeperLab("no-such-host.invalid:2181")
    store = await lab.open()
    with pytest.raises(StoreUnavailableError, match=r"no-such-host.invalid:2181: its name is not"):
        await store.get("a")
    await lab.close()


async def test_prefix_that_zookeeper_keeps_for_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="prefix zookeeper/x begins with zookeeper"):
        await open_store(f"zk://127.0.0.1:{free_port()}/zookeeper/x")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_kazoo_that_gave_up_is_started_again(lab: ZookeeperLab) -> None:
    store = await lab.open()
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events))

    def fail(*_: object) -> None:
        raise RuntimeError("kazoo met something that it does not know")

    store._link._kazoo._connection._read_socket = fail
    with pytest.raises(StoreError):
        await store.get("a")
    await mirror.until(lambda: bool(mirror.seen(Live)), within_s=10)
    await store.txn([], [Write("a", b"1")])
    await mirror.until(lambda: mirror.values == {"a": b"1"})
    await mirror.stop()


async def test_session_that_no_server_grants_is_refused(tmp_path: Path) -> None:
    with ZookeeperServer(tmp_path / "s", settings={"maxSessionTimeout": "11000"}) as server:
        lab = ZookeeperLab(server.member)
        store = await lab.open()
        with pytest.raises(StoreError, match=r"grants 11 s instead of the 12 s .* maxSessionTime"):
            await store.session(10)
        texts = {finding.what: finding for finding in (await store.health()).findings}
        assert texts["sessions"].level == "warning"
        assert "up to 11 s: set maxSessionTimeout" in texts["sessions"].text
        await lab.close()


async def test_losses_of_the_connection_do_not_end_a_session(lab: ZookeeperLab) -> None:
    store = await lab.open()
    session = await store.session(10)
    await store.txn([], [Write("alive/1", b"1", bound=True)], session=session)
    for _ in range(3):
        before = session.valid_until
        for held in store._held.values():
            held.link._handler._socket.shutdown(2)  # type: ignore[union-attr]
        await eventually(lambda before=before: session.valid_until > before, within_s=10)  # type: ignore[misc]
    await store.txn([Check("alive/1", PRESENT)], [Write("a", b"1")], session=session)


async def test_transaction_with_a_session_that_was_taken_over_is_refused(
    lab: ZookeeperLab,
) -> None:
    store = await lab.open()
    session = await store.session(10)
    (held,) = store._held.values()
    identity = held.link._kazoo.client_id
    held.keeper.cancel()
    await asyncio.to_thread(end_session, lab.members, identity)
    with pytest.raises((StoreConflictError, StoreUnavailableError)):
        await store.txn([], [Write("a", b"1", bound=True)], session=session)
    await eventually(lambda: held.link.lost, within_s=10)
    with pytest.raises(StoreConflictError, match="has expired"):
        await store.txn([], [Write("a", b"1", bound=True)], session=session)
    assert await store.list("") == {}


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "password"
    path.write_text("a secret\n")
    path.chmod(0o600)
    return path


async def test_nodes_of_a_user_are_the_users_alone(lab: ZookeeperLab, secret: Path) -> None:
    other_secret = secret.with_name("other")
    other_secret.write_text("another")
    other_secret.chmod(0o600)
    owner, wrong, nobody = (
        ZookeeperLab(lab.members, lab.prefix, options)
        for options in (
            f"user=pyvxlan&password-file={secret}",
            f"user=pyvxlan&password-file={other_secret}",
            "",
        )
    )
    store = await owner.open()
    await store.txn([Check("a/free", ABSENT)], [Write("a/b", b"1")])
    session = await store.session(10)
    await store.txn([], [Write("alive/1", b"1", bound=True)], session=session)
    assert set(await store.list("")) == {"a/b", "alive/1"}
    for stranger, name in ((wrong, "user pyvxlan"), (nobody, "a client without a user")):
        refused = await stranger.open()
        said = f"{name} has no permission for /{lab.prefix}"
        with pytest.raises(StoreUnavailableError, match=said):
            await refused.get("a/b")
        with pytest.raises(StoreUnavailableError, match=said):
            await refused.list("")
        with pytest.raises(StoreUnavailableError, match=said):
            await refused.txn([], [Write("c/d", b"1")])
        mirror = Mirror(refused, "a/")
        await mirror.until(lambda mirror=mirror: bool(mirror.events))  # type: ignore[misc]
        assert isinstance(mirror.events[0], Stale)
        assert said in mirror.events[0].reason
        await mirror.stop()
        found = {finding.what: finding for finding in (await refused.health()).findings}
        assert found["permissions"].level == "error"
        assert said in found["permissions"].text
    found = {finding.what: finding for finding in (await store.health()).findings}
    assert found["permissions"].level == "ok"
    assert found["password"].level == "warning"
    for made in (owner, wrong, nobody):
        await made.close()


async def test_documented_rights_suffice(lab: ZookeeperLab, secret: Path) -> None:
    """On the prefix alone, and not that of giving rights; nothing above it may even be read."""
    administrator = make_digest_acl("administrator", "x", all=True)
    user = make_digest_acl("pyvxlan", "a secret", create=True, delete=True, read=True, write=True)
    admin = KazooClient(lab.members, auth_data=[("digest", "administrator:x")])
    await asyncio.to_thread(admin.start)
    await asyncio.to_thread(admin.create, f"/{lab.prefix}", acl=[administrator])
    await asyncio.to_thread(admin.create, f"/{lab.prefix}/v1", acl=[administrator, user])
    guarded = ZookeeperLab(lab.members, f"{lab.prefix}/v1", f"user=pyvxlan&password-file={secret}")
    store = await guarded.open()
    await probe(store)
    mirror = Mirror(store, "")
    await store.txn([Check("a/b", ABSENT)], [Write("a/b", b"1"), Write("c", b"2")])
    await mirror.until(lambda: mirror.values == {"a/b": b"1", "c": b"2"})
    await store.txn([Check("a/b", PRESENT)], [Delete("a/b"), Write("c", b"3")])
    await mirror.until(lambda: mirror.values == {"c": b"3"})
    await mirror.stop()
    found = {finding.what: finding.level for finding in (await store.health()).findings}
    assert found["permissions"] == "ok"
    await guarded.close()
    await asyncio.to_thread(admin.stop)
    await asyncio.to_thread(admin.close)


async def test_server_that_wants_a_login_tells_so(tmp_path: Path, secret: Path) -> None:
    properties = {
        "zookeeper.enforce.auth.enabled": "true",
        "zookeeper.enforce.auth.schemes": "digest",
    }
    with ZookeeperServer(tmp_path / "s", properties=properties) as server:
        lab = ZookeeperLab(server.member)
        store = await lab.open()
        with pytest.raises(StoreUnavailableError, match="wants clients to log in"):
            await store.get("a")
        await lab.close()
        lab = ZookeeperLab(server.member, options=f"user=pyvxlan&password-file={secret}")
        store = await lab.open()
        await store.txn([], [Write("a", b"1")])
        await lab.close()


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    made = Ensemble(tmp_path_factory.mktemp("ensemble"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


def server_of(ensemble: Ensemble, link: Link) -> ZookeeperServer:
    """The member that a link is connected to."""
    port = link._handler._socket.getpeername()[1]  # type: ignore[union-attr]
    (server,) = [server for server in ensemble.servers if server.port == port]
    return server


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_another_member_takes_over(ensemble: Ensemble, fault: str) -> None:
    lab = ZookeeperLab(ensemble.members)
    store = await lab.open()
    session = await store.session(10)
    await store.txn([], [Write("alive/1", b"1", bound=True)], session=session)
    mirror = Mirror(store, "")
    await mirror.until(lambda: "alive/1" in mirror.values)
    failed = server_of(ensemble, store._link)
    getattr(failed, fault)()
    try:
        await mirror.until(lambda: len(mirror.seen(Snapshot)) == 2, within_s=15)
        await eventually_written(store, "a")
        await mirror.until(lambda: set(mirror.values) == {"a", "alive/1"})
        before = session.valid_until
        await eventually(lambda: session.valid_until > before, within_s=10)
        await store.txn([Check("alive/1", PRESENT)], [Write("b", b"1")], session=session)
        health = await store.health()
        assert [bool(member.error) for member in health.members] == [
            server is failed for server in ensemble.servers
        ]
    finally:
        if fault == "kill":
            failed.start()
        else:
            failed.thaw()
        await mirror.stop()
        await lab.close()
    failed.wait()


async def test_minority_takes_no_write_and_all_is_well_when_the_others_are_back(
    ensemble: Ensemble,
) -> None:
    lab = ZookeeperLab(ensemble.members)
    store = await lab.open()
    await store.txn([], [Write("a", b"1")])
    mirror = Mirror(store, "")
    await mirror.until(lambda: mirror.values == {"a": b"1"})
    here = server_of(ensemble, store._link)
    others = [server for server in ensemble.servers if server is not here]
    for server in others:
        server.freeze()
    try:
        with pytest.raises((StoreUncertainError, StoreUnavailableError)):
            await store.txn([], [Write("a", b"2")])
        await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=30)
        with pytest.raises(StoreUnavailableError):
            await store.txn([], [Write("b", b"1")])
        assert mirror.values == {"a": b"1"}
    finally:
        for server in others:
            server.thaw()
    await mirror.until(lambda: isinstance(mirror.events[-1], Live), within_s=30)
    await eventually_written(store, "a")
    await mirror.until(lambda: mirror.values == {"a": b"a"})
    await mirror.stop()
    await lab.close()


async def eventually_written(store: ZookeeperStore, key: str) -> None:
    """Writes a key to an ensemble that may be choosing its leader still."""
    async with asyncio.timeout(15):
        while True:
            try:
                await store.txn([], [Write(key, key.encode())])
            except (StoreUnavailableError, StoreUncertainError):
                await asyncio.sleep(0.2)
            else:
                return


async def test_healthy_server_tells_its_version_and_what_it_allows(lab: ZookeeperLab) -> None:
    store = await lab.open()
    health = await store.health()
    assert health.kind == "zk"
    (member,) = health.members
    assert member.address == lab.members
    assert member.version.startswith("3.")
    found = {finding.what: finding for finding in health.findings}
    assert {what: finding.level for what, finding in found.items()} == {
        "version": "ok",
        "sessions": "ok",
        "permissions": "ok",
    }
    assert "standalone" in found["version"].text
    assert "up to 40 s" in found["sessions"].text
    root = store._layout.root
    assert root.strip("/") not in await asyncio.to_thread(children, lab.members, "/")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours")


@pytest.fixture(scope="module")
def strict(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ZookeeperServer]:
    """A server that wants a certificate of each client, as it does by default."""
    with ZookeeperServer(tmp_path_factory.mktemp("strict"), authority=authority) as server:
        yield server


async def test_everything_works_with_tls(strict: ZookeeperServer, authority: Authority) -> None:
    mine = authority.issue("host")
    store = await open_store(f"{strict.url}?ca={authority.ca}&cert={mine.cert}&key={mine.key}")
    session = await store.session(10)
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events))
    await store.txn([], [Write("a", b"1", bound=True)], session=session)
    await mirror.until(lambda: mirror.values == {"a": b"1"})
    assert [member.error for member in (await store.health()).members] == [""]
    await session.close()
    await mirror.until(lambda: not mirror.values)
    await mirror.stop()
    await store.close()


async def test_what_is_wrong_with_tls_is_told(
    strict: ZookeeperServer, authority: Authority, tmp_path: Path
) -> None:
    foreign = Authority(tmp_path / "foreign")
    mine, theirs = authority.issue("one"), foreign.issue("stranger")
    known = f"cert={mine.cert}&key={mine.key}"
    prefix = "test/v1"
    for url, why, checked in (
        (
            f"{strict.url}?ca={authority.ca}",
            "wants a client certificate: name one with cert=PATH&key=PATH",
            "",
        ),
        (
            f"{strict.url}?ca={authority.ca}&cert={theirs.cert}&key={theirs.key}",
            "refuses the client certificate of cert=",
            "",
        ),
        (f"{strict.url}?ca={foreign.ca}&{known}", "ca= must name the authority", ""),
        (f"{strict.url}?tls=true", "ca= must name the authority", ""),
        (
            f"zk://[::ffff:127.0.0.1]:{strict.secure_port}/{prefix}?ca={authority.ca}&{known}",
            "must hold this host name or address",
            "",
        ),
        (strict.url, "or speaks TLS", "speaks TLS: name its authority with ca=PATH"),
        (
            f"zk://127.0.0.1:{strict.port}/{prefix}?ca={authority.ca}&{known}",
            "leave out tls, ca, cert and key if it has no TLS",
            "",
        ),
    ):
        store = await open_store(url)
        with pytest.raises(StoreUnavailableError) as refused:
            await store.get("a")
        (member,) = (await store.health()).members
        await store.close()
        assert why in str(refused.value)
        assert (checked or why) in member.error
