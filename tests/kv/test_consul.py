"""What only Consul can do wrong, over real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from yarl import URL

from pyvxlan.daemon.errors import (
    ConfigError,
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import (
    ABSENT,
    PRESENT,
    Check,
    Delete,
    Live,
    Put,
    Snapshot,
    Stale,
    Store,
    Write,
)
from pyvxlan.daemon.kv.consul import ConsulStore
from pyvxlan.daemon.kv.consul import store as consul_store
from pyvxlan.daemon.kv.url import parse_url
from tests.kv.labs.consul import ConsulLab
from tests.kv.mirror import Mirror
from tests.servers.consul import ConsulServer
from tests.servers.pki import Authority

ROOT_TOKEN = "5f4dcc3b-0000-4000-8000-000000000001"


@pytest.fixture
async def lab(consul_server: ConsulServer) -> AsyncIterator[ConsulLab]:
    made = ConsulLab(consul_server)
    yield made
    await made.close()


@pytest.fixture
async def store(lab: ConsulLab) -> ConsulStore:
    return await lab.open()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ConsulServer]:
    """A server that a test may kill, wipe or restore."""
    with ConsulServer(tmp_path / "own") as made:
        yield made


@pytest.fixture
async def own(server: ConsulServer) -> AsyncIterator[ConsulStore]:
    made = await ConsulStore.open(parse_url(server.url))
    yield made
    await made.close()


async def opened(url: str) -> ConsulStore:
    return await ConsulStore.open(parse_url(url))


@contextlib.asynccontextmanager
async def answering(answer: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """Serves HTTP for one request after another; an empty answer breaks the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                said = answer(head)
                if not said:
                    break
                writer.write(said)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"consul://{host}:{port}"
    server.close()
    await server.wait_closed()


# --- transactions -------------------------------------------------------------------------------


async def test_same_value_again_is_a_change(store: Store) -> None:
    await store.txn([], [Write("a", b"x")])
    first = await store.get("a")
    await store.txn([], [Write("a", b"x")])
    second = await store.get("a")
    assert first is not None
    assert second is not None
    assert second.revision > first.revision


async def test_conflict_says_what_is_not_as_expected(store: Store) -> None:
    await store.txn([], [Write("a", b"x")])
    item = await store.get("a")
    assert item is not None
    for check, said in (
        (Check("a", ABSENT), "^a exists$"),
        (Check("b", PRESENT), "^b does not exist$"),
        (Check("a", item.revision + 1), rf"^a is not at revision {item.revision + 1} any more$"),
    ):
        with pytest.raises(StoreConflictError, match=said):
            await store.txn([check], [Write("c", b"x")])
        with pytest.raises(StoreConflictError, match=said):
            await store.txn([check], [])


async def test_dead_session_fences_what_binds_nothing(lab: ConsulLab) -> None:
    store = await lab.open()
    session = await store.session(10)
    await store.txn([], [Write("a", b"1")], session=session)
    await store.txn([], [Write("a", b"2")], session=session)
    assert set(await store.list("")) == {"a"}
    await lab.expire(store)
    with pytest.raises(StoreConflictError, match=f"session {session.id} has expired"):
        await store.txn([], [Write("a", b"3")], session=session)
    with pytest.raises(StoreConflictError, match="has expired"):
        await store.txn([], [Write("a", b"3", bound=True)], session=session)
    item = await store.get("a")
    assert item is not None
    assert item.value == b"2"


async def test_bound_key_is_taken_over_from_a_session_that_still_lives(lab: ConsulLab) -> None:
    before, after = await lab.open(), await lab.open()
    old = await before.session(10)
    await before.txn([], [Write("alive", b"old", bound=True)], session=old)
    new = await after.session(10)
    await after.txn([], [Write("alive", b"new", bound=True)], session=new)
    await old.close()
    item = await after.get("alive")
    assert item is not None
    assert item.value == b"new"
    await new.close()
    assert await after.get("alive") is None


async def test_bound_key_of_a_lost_session_is_bound_again_at_once(lab: ConsulLab) -> None:
    store = await lab.open()
    for number in range(5):
        session = await store.session(10)
        await store.txn(
            [Check("alive", ABSENT)], [Write("alive", b"%d" % number, bound=True)], session=session
        )
        await lab.expire(store)
        assert await store.get("alive") is None


async def test_session_depends_on_nothing_but_its_owner(lab: ConsulLab) -> None:
    session = await (await lab.open()).session(12.5)
    (found,) = json.loads(lab.server.call("GET", f"/v1/session/info/{session.id}"))
    assert found["TTL"] == "12.5s"
    assert found["Behavior"] == "delete"
    assert found["LockDelay"] == 0
    assert not found.get("NodeChecks")
    assert not found.get("Checks")
    assert not found.get("ServiceChecks")


async def test_session_longer_than_a_day_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="at most 86400 s in Consul"):
        await store.session(86401)


async def test_transaction_over_the_size_limit_is_refused_with_the_setting(store: Store) -> None:
    ops = [Write(f"big/{number}", bytes(64 * 1024)) for number in range(8)]
    with pytest.raises(StoreError, match="txn_max_req_len") as caught:
        await store.txn([], ops)
    assert type(caught.value) is StoreError
    assert await store.list("") == {}


async def test_keys_that_a_path_would_take_apart_come_back(store: Store) -> None:
    keys = {"a?b#c", "a%2Fb", "a/%2e%2e/b", "a+b&c=d", "...", 'a"b\\c', "a;b,c:d@e", "~"}
    await store.txn([], [Write(key, key.encode()) for key in keys])
    assert {key: item.value for key, item in (await store.list("")).items()} == {
        key: key.encode() for key in keys
    }
    for key in keys:
        item = await store.get(key)
        assert item is not None
        assert item.value == key.encode()
        assert set(await store.list(key)) == {key}


async def test_no_transaction_is_sent_twice() -> None:
    """A connection that was kept breaks under a transaction: aiohttp would send it again."""
    served: list[bytes] = []

    def answer(head: bytes) -> bytes:
        served.append(head.split()[0])
        if head.startswith(b"GET"):
            return b"HTTP/1.1 404 Not Found\r\nX-Consul-Index: 7\r\nContent-Length: 0\r\n\r\n"
        return b""

    async with answering(answer) as url:
        store = await opened(f"{url},{url.removeprefix('consul://')}")
        assert await store.get("a") is None
        with pytest.raises(StoreUncertainError, match="broke the connection"):
            await store.txn([], [Write("a", b"x")])
        await store.close()
    assert served == [b"GET", b"PUT"]


async def test_what_is_not_consul_is_told() -> None:
    def answer(_: bytes) -> bytes:
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found"

    async with answering(answer) as url:
        store = await opened(url)
        with pytest.raises(StoreError, match="not Consul"):
            await store.get("a")
        with pytest.raises(StoreError, match="not Consul"):
            await store.list("")
        with pytest.raises(StoreError, match="not Consul"):
            await store.txn([], [Write("a", b"x")])
        health = await store.health()
        assert "not Consul" in health.members[0].error
        await store.close()


# --- watches ------------------------------------------------------------------------------------


async def test_more_prefixes_than_connections_are_watched(
    lab: ConsulLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_store, "FEEDS_MAX", 5)
    store = await lab.open()
    mirrors = [Mirror(store, f"ep/{number}/") for number in range(20)]
    await store.txn([], [Write(f"ep/{number}/x", b"1") for number in range(20)])
    for number, mirror in enumerate(mirrors):
        await mirror.until(lambda m=mirror, n=number: m.values == {f"ep/{n}/x": b"1"})  # type: ignore[misc]
    assert len(store._feeds) == 6
    for mirror in mirrors:
        await mirror.stop()
    assert store._feeds == {}


async def test_watcher_of_a_feed_that_is_known_begins_at_once(store: Store) -> None:
    await store.txn([], [Write("a/1", b"1")])
    first = Mirror(store, "a/")
    await first.until(lambda: first.values == {"a/1": b"1"})
    second = Mirror(store, "a/")
    await second.until(lambda: second.values == {"a/1": b"1"})
    await store.txn([], [Write("a/2", b"2"), Delete("a/1")])
    for mirror in (first, second):
        await mirror.until(lambda m=mirror: m.values == {"a/2": b"2"})  # type: ignore[misc]
        await mirror.stop()


async def test_idle_prefix_is_asked_for_once(lab: ConsulLab) -> None:
    """A change elsewhere, and an answer that waits, cost no request."""
    store = await lab.open()
    await store.txn([], [Write("a/1", b"1")])
    asked: list[int] = []
    listed = store._list

    async def counted(prefix: str, index: int) -> consul_store.Listing:
        asked.append(index)
        return await listed(prefix, index)

    store._list = counted  # type: ignore[method-assign]
    mirror = Mirror(store, "a/")
    await mirror.until(lambda: mirror.values == {"a/1": b"1"})
    for number in range(10):
        await store.txn([], [Write(f"b/{number}", b"1")])
    await asyncio.sleep(0.3)
    assert len(asked) == 2
    assert asked[0] == 0
    assert asked[1] > 0
    await mirror.stop()


# --- outages ------------------------------------------------------------------------------------


async def test_killed_server_comes_back_with_what_was_missed(
    server: ConsulServer, own: ConsulStore
) -> None:
    await own.txn([], [Write("a/1", b"1"), Write("a/2", b"1")])
    session = await own.session(10)
    await own.txn([], [Write("alive/1", b"1", bound=True)], session=session)
    mirror = Mirror(own, "a/")
    await mirror.until(lambda: len(mirror.values) == 2)
    await asyncio.to_thread(server.kill)
    await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=10)
    assert mirror.values == {"a/1": b"1", "a/2": b"1"}
    with pytest.raises(StoreUnavailableError, match="can't be reached: Connection refused"):
        await own.txn([], [Write("a/3", b"1")])
    await asyncio.to_thread(server.start)
    server.call("PUT", f"/v1/kv/{own._root}a/3", b"3")
    server.call("DELETE", f"/v1/kv/{own._root}a/1")
    await mirror.until(lambda: bool(mirror.seen(Live)), within_s=15)
    await mirror.until(lambda: mirror.values == {"a/2": b"1", "a/3": b"3"})
    assert len(mirror.seen(Snapshot)) == 1
    assert await own.get("alive/1") is not None
    await mirror.stop()
    await session.close()


async def test_frozen_server_is_noticed(server: ConsulServer, own: ConsulStore) -> None:
    await own.txn([], [Write("a/1", b"1")])
    mirror = Mirror(own, "a/")
    await mirror.until(lambda: len(mirror.values) == 1)
    server.freeze()
    await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=15)
    assert "no answer" in str(mirror.seen(Stale)[0])
    server.thaw()
    await mirror.until(lambda: bool(mirror.seen(Live)), within_s=15)
    await own.txn([], [Write("a/2", b"1")])
    await mirror.until(lambda: len(mirror.values) == 2)
    assert len(mirror.seen(Snapshot)) == 1
    await mirror.stop()


async def test_emptied_server_begins_anew(server: ConsulServer, own: ConsulStore) -> None:
    await own.txn([], [Write("a/1", b"1")])
    session = await own.session(10)
    mirror = Mirror(own, "a/")
    await mirror.until(lambda: len(mirror.values) == 1)
    await asyncio.to_thread(server.kill)
    server.wipe()
    await asyncio.to_thread(server.start)
    await mirror.until(lambda: len(mirror.seen(Snapshot)) == 2, within_s=15)
    assert mirror.values == {}
    async with asyncio.timeout(15):
        await session.lost()
    await own.txn([], [Write("a/2", b"1")])
    await mirror.until(lambda: mirror.values == {"a/2": b"1"})
    await mirror.stop()


async def test_emptied_server_that_others_filled_again_begins_anew(
    server: ConsulServer, own: ConsulStore
) -> None:
    await own.txn([], [Write("a/1", b"1")])
    mirror = Mirror(own, "a/")
    await mirror.until(lambda: len(mirror.values) == 1)
    await asyncio.to_thread(server.kill)
    await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=10)
    server.wipe()
    server.port, port = 0, server.port
    server.port = port + 1 if port < 65535 else port - 1
    await asyncio.to_thread(server.start)
    other = await opened(server.url)
    following = Mirror(other, "a/")
    for number in range(50):
        await other.txn([], [Write("a/1", b"%d" % number)])
    await following.until(lambda: following.values == {"a/1": b"49"})
    await following.stop()
    await other.close()
    await asyncio.to_thread(server.stop)
    server.port = port
    await asyncio.to_thread(server.start)
    await mirror.until(lambda: mirror.values == {"a/1": b"49"}, within_s=15)
    assert len(mirror.seen(Snapshot)) == 2
    assert not mirror.seen(Put)
    await mirror.stop()


async def test_restored_backup_begins_anew(server: ConsulServer, own: ConsulStore) -> None:
    await own.txn([], [Write("a/1", b"old"), Write("a/2", b"x"), Write("b/1", b"x")])
    mirror, idle = Mirror(own, "a/"), Mirror(own, "b/")
    await mirror.until(lambda: len(mirror.values) == 2)
    await idle.until(lambda: len(idle.values) == 1)
    backup = server.call("GET", "/v1/snapshot")
    session = await own.session(10)
    await own.txn([], [Write("a/1", b"new"), Delete("a/2"), Write("a/3", b"x")])
    await own.txn([], [Write("alive", b"x", bound=True)], session=session)
    await mirror.until(lambda: set(mirror.values) == {"a/1", "a/3"})
    await asyncio.to_thread(server.call, "PUT", "/v1/snapshot", backup)
    await mirror.until(lambda: mirror.values == {"a/1": b"old", "a/2": b"x"}, within_s=15)
    assert len(mirror.seen(Snapshot)) == 2
    async with asyncio.timeout(15):
        await session.lost()
    await own.txn([], [Write("a/4", b"x"), Write("b/2", b"x")])
    await mirror.until(lambda: "a/4" in mirror.values)
    await idle.until(lambda: "b/2" in idle.values)
    await mirror.stop()
    await idle.stop()


# --- several servers ----------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[ConsulServer]]:
    """Three servers, each on an address of its own."""
    made = [
        ConsulServer(tmp_path / f"server{n}", address=f"127.0.0.{n}", servers=3) for n in (1, 2, 3)
    ]
    for one in made:
        one.join = [other.serf for other in made if other is not one]
    try:
        for one in made:
            one.start(wait=False)
        for one in made:
            one.wait()
        yield made
    finally:
        for one in made:
            one.kill()


def through(servers: list[ConsulServer]) -> str:
    return f"consul://{','.join(f'{one.address}:{one.port}' for one in servers)}"


async def test_next_agent_is_asked_when_one_fails(cluster: list[ConsulServer]) -> None:
    store = await opened(through(cluster))
    await store.txn([], [Write("a/1", b"1")])
    session = await store.session(10)
    await store.txn([], [Write("alive", b"1", bound=True)], session=session)
    mirror = Mirror(store, "a/")
    await mirror.until(lambda: len(mirror.values) == 1)
    await asyncio.to_thread(cluster[0].kill)

    async def put(value: bytes) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    await store.txn([], [Write("a/1", value)])
                except (StoreUnavailableError, StoreUncertainError):
                    await asyncio.sleep(0.2)
                else:
                    return

    await put(b"2")
    await mirror.until(lambda: mirror.values == {"a/1": b"2"}, within_s=15)
    cluster[1].freeze()
    await asyncio.to_thread(cluster[0].start, wait=False)
    await put(b"3")
    await mirror.until(lambda: mirror.values == {"a/1": b"3"}, within_s=90)
    before = session.valid_until
    async with asyncio.timeout(15):
        while session.valid_until == before:
            await asyncio.sleep(0.1)
    assert await store.get("alive") is not None
    assert len(mirror.seen(Snapshot)) == 1
    await mirror.stop()
    await store.close()


class Agent:
    """An agent in front of a server: a leader that is frozen answers no watch that it was given."""

    def __init__(self, server: ConsulServer) -> None:
        self.leader = "one"
        self.frozen = ""
        self.leader_asked = asyncio.Event()
        self.watched = asyncio.Event()
        """A watch has been passed on to the leader."""
        self._onward = f"http://{server.address}:{server.port}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/status/leader":
            self.leader_asked.set()
            return web.json_response(self.leader)
        leader, watches = self.leader, "index" in request.query
        if watches:
            self.watched.set()
        url = URL(self._onward + request.raw_path, encoded=True)
        async with (
            ClientSession() as client,
            client.request(request.method, url, data=await request.read()) as reply,
        ):
            body = await reply.read()
        if watches and leader == self.frozen:
            await asyncio.Event().wait()
        shown = {name: text for name, text in reply.headers.items() if name.startswith("X-")}
        return web.Response(status=reply.status, body=body, headers=shown)


@contextlib.asynccontextmanager
async def agent_before(server: ConsulServer) -> AsyncIterator[tuple[Agent, str]]:
    """Serves an `Agent`; gives it with the URL of a store."""
    agent = Agent(server)
    runner = web.ServerRunner(web.Server(agent.answer, handler_cancellation=True))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    try:
        yield agent, f"consul://{host}:{port}/{secrets.token_hex(8)}"
    finally:
        await runner.cleanup()


async def test_watch_of_a_frozen_leader_is_begun_anew_with_the_next_one(
    consul_server: ConsulServer,
) -> None:
    async with agent_before(consul_server) as (agent, url):
        store = await opened(url)
        mirror = Mirror(store, "a/")
        async with asyncio.timeout(10):
            await agent.watched.wait()
            await agent.leader_asked.wait()
        agent.frozen = "one"
        await store.txn([], [Write("a/1", b"1")])
        await asyncio.sleep(2 * consul_store.BEAT_S)
        assert mirror.values == {}, "the leader answers, though it is frozen"
        agent.leader = "two"
        await mirror.until(lambda: mirror.values == {"a/1": b"1"}, within_s=3 * consul_store.BEAT_S)
        assert len(mirror.seen(Snapshot)) == 1
        await mirror.stop()
        await store.close()


async def test_agent_without_a_leader_is_told_and_never_believed(
    cluster: list[ConsulServer],
) -> None:
    store = await opened(through(cluster[:1]))
    await store.txn([], [Write("a/1", b"1")])
    mirror = Mirror(store, "a/")
    await mirror.until(lambda: len(mirror.values) == 1)
    for one in cluster[1:]:
        one.freeze()
    await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=20)
    await asyncio.sleep(3)
    with pytest.raises(StoreUnavailableError, match="knows no leader"):
        await store.get("a/1")
    with pytest.raises((StoreUnavailableError, StoreUncertainError), match="knows no leader"):
        await store.txn([], [Write("a/1", b"2")])
    health = await store.health()
    assert "knows no leader" in health.members[0].error
    for one in cluster[1:]:
        one.thaw()
    await mirror.until(lambda: bool(mirror.seen(Live)), within_s=20)
    await store.txn([], [Write("a/2", b"2")])
    await mirror.until(lambda: "a/2" in mirror.values)
    await mirror.stop()
    health = await store.health()
    assert health.members[0].error == ""
    assert [finding.text[:16] for finding in health.findings if finding.what == "servers"] == [
        "3 in the cluster"
    ]
    await store.close()


@pytest.fixture
def client_agent(server: ConsulServer, tmp_path: Path) -> Iterator[ConsulServer]:
    """An agent that is no server and hands all on to one, as a host has it."""
    with ConsulServer(tmp_path / "client", servers=0, join=[server.serf]) as made:
        yield made


async def test_client_agent_hides_the_restart_of_a_server_but_not_its_backup(
    server: ConsulServer, client_agent: ConsulServer
) -> None:
    store = await opened(client_agent.url)
    await store.txn([], [Write("a/1", b"old")])
    mirror = Mirror(store, "a/")
    await mirror.until(lambda: mirror.values == {"a/1": b"old"})
    session = await store.session(10)
    await asyncio.to_thread(server.stop)
    backup = {path: path.read_bytes() for path in server.data.rglob("*") if path.is_file()}
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(20):
        while True:
            try:
                await store.txn([], [Write("a/1", b"new")])
            except (StoreUnavailableError, StoreUncertainError):
                await asyncio.sleep(0.2)
            else:
                break
    await mirror.until(lambda: mirror.values == {"a/1": b"new"}, within_s=20)
    for _ in range(20):
        await store.txn([], [Write("b/1", b"x")])
    assert len(mirror.seen(Snapshot)) == 1
    await asyncio.to_thread(server.kill)
    server.wipe()
    for path, content in backup.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    await asyncio.to_thread(server.start)
    await mirror.until(lambda: mirror.values == {"a/1": b"old"}, within_s=20)
    assert len(mirror.seen(Snapshot)) == 2
    async with asyncio.timeout(20):
        await session.lost()
    await mirror.stop()
    await store.close()


async def test_client_agent_that_leaves_ends_its_sessions(
    server: ConsulServer, client_agent: ConsulServer
) -> None:
    """Consul forgets a node that leaves; one that dies only after 72 hours."""
    url = through([client_agent, server])
    store = await opened(url)
    session = await store.session(10)
    await store.txn([], [Write("alive", b"1", bound=True)], session=session)
    await asyncio.to_thread(client_agent.stop)
    async with asyncio.timeout(20):
        await session.lost()
    assert await store.get("alive") is None
    session = await store.session(10)
    await store.txn([], [Write("alive", b"1", bound=True)], session=session)
    await store.close()


async def test_health_tells_of_each_agent(server: ConsulServer, client_agent: ConsulServer) -> None:
    store = await opened(through([client_agent, server]))
    mirror = Mirror(store, "")
    await mirror.until(lambda: bool(mirror.events))
    health = await store.health()
    assert [member.address for member in health.members] == [
        f"127.0.0.1:{client_agent.port}",
        f"127.0.0.1:{server.port}",
    ]
    assert {(member.error, member.version) for member in health.members} == {("", "1.14.11")}
    assert all(member.latency_s is not None for member in health.members)
    assert {(finding.what, finding.level) for finding in health.findings} == {
        ("servers", "warning"),
        ("permissions", "ok"),
        ("sessions", "ok"),
        ("version", "ok"),
        ("access", "warning"),
    }
    assert health.cluster == server.call("GET", "/v1/kv/pyvxlan/v1/%20cluster?raw").decode()
    await asyncio.to_thread(client_agent.kill)
    health = await store.health()
    assert "Connection refused" in health.members[0].error
    assert health.members[1].error == ""
    await asyncio.to_thread(server.kill)
    health = await store.health()
    assert all("Connection refused" in member.error for member in health.members)
    assert health.findings == ()
    await mirror.stop()
    await store.close()


# --- rights -------------------------------------------------------------------------------------


class Guarded:
    """A server where nobody may do anything without a token, and a file with one."""

    def __init__(self, server: ConsulServer, file: Path) -> None:
        self.server = server
        self.file = file

    def give(self, rules: str) -> str:
        """Puts a new token with these rights into the file; returns its accessor."""
        policy = {"Name": f"p{secrets.token_hex(8)}", "Rules": rules}
        self._call("PUT", "/v1/acl/policy", policy)
        token = self._call("PUT", "/v1/acl/token", {"Policies": [{"Name": policy["Name"]}]})
        self.file.touch(mode=0o600)
        self.file.write_text(token["SecretID"] + "\n")
        accessor: str = token["AccessorID"]
        return accessor

    def take(self, accessor: str) -> None:
        """Makes a token unknown."""
        self._call("DELETE", f"/v1/acl/token/{accessor}")

    def narrow(self, accessor: str, rules: str) -> None:
        """Gives a token other rights than it had."""
        policy = {"Name": f"p{secrets.token_hex(8)}", "Rules": rules}
        self._call("PUT", "/v1/acl/policy", policy)
        self._call("PUT", f"/v1/acl/token/{accessor}", {"Policies": [{"Name": policy["Name"]}]})

    def _call(self, method: str, path: str, body: object = None) -> dict[str, str]:
        answer = json.loads(self.server.call(method, path, json.dumps(body).encode()))
        return answer if isinstance(answer, dict) else {}


RULES = 'key_prefix "test/v1/" { policy = "write" } session_prefix "" { policy = "write" }'


@pytest.fixture(scope="module")
def acl_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    settings = {
        "acl": {
            "enabled": True,
            "default_policy": "deny",
            "token_ttl": "0s",
            "policy_ttl": "0s",
            "tokens": {"initial_management": ROOT_TOKEN, "agent": ROOT_TOKEN},
        }
    }
    made = ConsulServer(tmp_path_factory.mktemp("guarded"), settings=settings)
    made.token = ROOT_TOKEN
    with made:
        yield made


@pytest.fixture
def guarded(acl_server: ConsulServer, tmp_path: Path) -> Guarded:
    return Guarded(acl_server, tmp_path / "token")


async def test_documented_policy_suffices(guarded: Guarded) -> None:
    guarded.give(RULES)
    store = await opened(f"{guarded.server.url}?token-file={guarded.file}")
    session = await store.session(10)
    await store.txn([], [Write("a/1", b"1", bound=True)], session=session)
    await store.txn([Check("a/1", PRESENT)], [Write("a/2", b"1")], session=session)
    mirror = Mirror(store, "a/")
    await mirror.until(lambda: set(mirror.values) == {"a/1", "a/2"})
    health = await store.health()
    assert {finding.level for finding in health.findings if finding.what != "servers"} == {"ok"}
    assert len(health.cluster) == 32
    await session.close()
    await mirror.until(lambda: set(mirror.values) == {"a/2"})
    await mirror.stop()
    await store.close()


async def test_no_token_is_told(guarded: Guarded) -> None:
    store = await opened(guarded.server.url)
    said = "nobody without a token .* token-file=PATH"
    with pytest.raises(StoreUnavailableError, match=said):
        await store.get("a")
    with pytest.raises(StoreUnavailableError, match=said):
        await store.txn([], [Write("a", b"x")])
    with pytest.raises(StoreUnavailableError, match=said):
        await store.txn([Check("a", ABSENT)], [])
    with pytest.raises(StoreUnavailableError, match=said):
        await store.session(10)
    mirror = Mirror(store, "a/")
    await mirror.until(lambda: bool(mirror.events))
    assert isinstance(mirror.events[0], Stale)
    await mirror.stop()
    await store.close()


async def test_token_that_does_not_suffice_is_told(guarded: Guarded) -> None:
    guarded.give('key_prefix "test/v1/" { policy = "read" }')
    store = await opened(f"{guarded.server.url}?token-file={guarded.file}")
    said = f'{guarded.file} does not suffice: its policy must hold key_prefix "test/v1/"'
    with pytest.raises(StoreUnavailableError, match=said):
        await store.txn([], [Write("a", b"x")])
    with pytest.raises(StoreUnavailableError, match=said):
        await store.session(10)
    health = await store.health()
    assert [finding.what for finding in health.findings if finding.level == "error"] == [
        "permissions",
        "sessions",
    ]
    await store.close()


async def test_token_that_is_replaced_is_read_anew(guarded: Guarded) -> None:
    accessor = guarded.give(RULES)
    store = await opened(f"{guarded.server.url}?token-file={guarded.file}")
    await store.txn([], [Write("a/1", b"1")])
    mirror = Mirror(store, "a/")
    await mirror.until(lambda: "a/1" in mirror.values)
    guarded.take(accessor)
    with pytest.raises(StoreUnavailableError, match="does not suffice"):
        await store.txn([], [Write("a/2", b"1")])
    await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=10)
    assert "a/1" in mirror.values
    guarded.give(RULES)
    await store.txn([], [Write("a/2", b"1")])
    await mirror.until(lambda: "a/2" in mirror.values, within_s=10)
    assert len(mirror.seen(Snapshot)) == 1
    await mirror.stop()
    await store.close()


async def test_keys_that_the_token_may_not_see_any_more_are_not_deleted(guarded: Guarded) -> None:
    accessor = guarded.give(RULES)
    store = await opened(f"{guarded.server.url}?token-file={guarded.file}")
    await store.txn([], [Write(f"b/{number}", b"1") for number in range(4)])
    mirror = Mirror(store, "b/")
    await mirror.until(lambda: len(mirror.values) == 4)
    guarded.narrow(accessor, RULES + ' key "test/v1/b/1" { policy = "deny" }')
    guarded.server.call("PUT", "/v1/kv/test/v1/b/2", b"2")
    # A query that waits already is answered by the rights of its beginning.
    await mirror.until(lambda: mirror.values["b/2"] == b"2")
    guarded.server.call("PUT", "/v1/kv/test/v1/b/2", b"3")
    await mirror.until(lambda: bool(mirror.seen(Stale)), within_s=10)
    assert len(mirror.values) == 4
    with pytest.raises(StoreUnavailableError, match="does not suffice"):
        await store.list("b/")
    guarded.narrow(accessor, RULES)
    await mirror.until(lambda: mirror.values["b/2"] == b"3", within_s=10)
    assert len(mirror.values) == 4
    await mirror.stop()
    await store.close()


@pytest.mark.parametrize(
    ("mode", "content", "said"),
    [
        (0o644, "x", "may be read by others: chmod 600"),
        (0o600, "", "is empty: it must hold the token"),
    ],
)
async def test_token_file_is_looked_at_before_anything_is_asked(
    tmp_path: Path, mode: int, content: str, said: str
) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(ConfigError, match=said):
        await opened(f"consul://127.0.0.1:1?token-file={file}")


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours")


@pytest.fixture(scope="module")
def tls_server(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[ConsulServer]:
    served, client = authority.issue("server"), authority.issue("operator")
    https = {
        "ca_file": str(authority.ca),
        "cert_file": str(served.cert),
        "key_file": str(served.key),
        "verify_incoming": True,
    }
    made = ConsulServer(tmp_path_factory.mktemp("tls"), settings={"tls": {"https": https}})
    made.context = ssl.create_default_context(cafile=str(authority.ca))
    made.context.load_cert_chain(client.cert, client.key)
    with made:
        yield made


async def test_client_certificate_is_shown(tls_server: ConsulServer, authority: Authority) -> None:
    mine = authority.issue("host1")
    store = await opened(f"{tls_server.url}?ca={authority.ca}&cert={mine.cert}&key={mine.key}")
    session = await store.session(10)
    await store.txn([], [Write("a/1", b"1", bound=True)], session=session)
    mirror = Mirror(store, "a/")
    await mirror.until(lambda: "a/1" in mirror.values)
    await session.close()
    await mirror.until(lambda: mirror.values == {})
    await mirror.stop()
    await store.close()


async def test_what_keeps_tls_from_working_is_told(
    tls_server: ConsulServer, consul_server: ConsulServer, authority: Authority, tmp_path: Path
) -> None:
    others = Authority(tmp_path / "others")
    mine, theirs = authority.issue("host1"), others.issue("host1")
    for options, said in (
        ("", "speaks TLS: name its authority with ca=PATH, or write tls=true"),
        (f"?ca={authority.ca}", "wants a client certificate: name one with cert=PATH&key=PATH"),
        (f"?ca={others.ca}", "certificate that is not trusted .*: ca= must name the authority"),
        (
            f"?ca={authority.ca}&cert={theirs.cert}&key={theirs.key}",
            "refuses the client certificate of cert=",
        ),
    ):
        store = await opened(tls_server.url + options)
        with pytest.raises(StoreUnavailableError, match=said):
            await store.get("a")
        with pytest.raises((StoreUnavailableError, StoreUncertainError), match=said):
            await store.txn([], [Write("a", b"x")])
        await store.close()
    store = await opened(f"{consul_server.url}?ca={authority.ca}&cert={mine.cert}&key={mine.key}")
    with pytest.raises(StoreUnavailableError, match="does not speak TLS: leave out tls, ca"):
        await store.get("a")
    await store.close()


async def test_certificate_for_another_host_is_refused(
    authority: Authority, tls_server: ConsulServer
) -> None:
    mine = authority.issue("host1")
    url = tls_server.url.replace("127.0.0.1", "127.0.0.2")
    store = await opened(f"{url}?ca={authority.ca}&cert={mine.cert}&key={mine.key}")
    with pytest.raises(StoreUnavailableError, match="refused"):
        await store.get("a")
    await store.close()


async def test_certificate_that_is_replaced_is_read_anew(
    tls_server: ConsulServer, authority: Authority, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    theirs = Authority(tmp_path / "others").issue("host1")
    cert.write_bytes(theirs.cert.read_bytes())
    key.write_bytes(theirs.key.read_bytes())
    store = await opened(f"{tls_server.url}?ca={authority.ca}&cert={cert}&key={key}")
    with pytest.raises(StoreUnavailableError, match="refuses the client certificate"):
        await store.get("a")
    mine = authority.issue("host1")
    cert.write_bytes(mine.cert.read_bytes())
    key.write_bytes(mine.key.read_bytes())
    assert await store.get("a") is None
    await store.close()
