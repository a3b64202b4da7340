"""Daemons on real stores that are killed, frozen, cut off, wiped or put back from an old copy.

The packets never notice, what was known goes on, what is new is refused in one clear line, and all
is well soon after the store answers again, with no restart of anything.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyvxlan.daemon.apiclient import ApiClient
from tests.netns.flows import pinging
from tests.netns.world import BIN, Container, Host, World, eventually, world
from tests.servers.etcd import EtcdServer
from tests.servers.process import Server

log = logging.getLogger(__name__)
pytestmark = pytest.mark.root

HEIRLOOM = "10.0.0.99"
TTL_S = 10
GRACE_S = 12
NOTICED_S = 15
HEALED_S = 10
"""By when all is well after the store's first answer. It takes 5 s at most on a machine that has
nothing else to do (docs/outages.md)."""
READ_S = 2
"""By when a list has come, though the store is silent. It takes 0.5 s at most on such a machine."""
REFUSED_S = 12
"""By when a verb has its answer: two calls of the store with 3 s each, and the command itself."""


class Overlay:
    """A network with a container on each host, and what must hold of it."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.network_id = made[1].cli("network", "create", "n1").strip()
        self.containers: list[Container] = []
        self.addresses: list[str] = []
        self.restarting: list[Container] = []
        for host in made.hosts:
            container = host.container()
            endpoint = container.attach("n1", "--name", f"c{host.number}")
            self.containers.append(container)
            self.addresses.append(endpoint["addresses"][0].partition("/")[0])
            self.restarting.append(host.container())
            self.restarting[-1].attach("n1", "--name", f"r{host.number}")
        self.late = 0
        self.reaches(self.containers[0], self.addresses[-1])

    @property
    def server(self) -> Server:
        (server,) = self.world.servers
        return server

    def reaches(self, container: Container, address: str) -> None:
        eventually(
            lambda: container.ping(address, count=1),
            within_s=HEALED_S,
            what=f"{address} answers",
        )

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """No frame is lost while inside, from the first host to the last and back."""
        first, last = self.containers[0], self.containers[-1]
        with pinging(first, self.addresses[-1]) as there, pinging(last, self.addresses[0]) as back:
            yield
        assert min(there.sent, back.sent) > 0
        assert (there.lost, back.lost) == ([], [])

    def noticed(self, *hosts: Host) -> None:
        for host in hosts or self.world.hosts:
            eventually(
                lambda host=host: host.status()["store"]["state"] != "synced",  # type: ignore[misc]
                within_s=NOTICED_S,
                what=f"{host.netns} notices",
            )

    def goes_on(self, host: Host) -> None:
        """What works without the store works, and the rest is refused."""
        container = self.containers[host.number - 1]
        other = self.addresses[host.number % 2]
        assert "n1" in host.cli("network", "ls")
        assert f"c{host.number}" in host.cli("endpoint", "ls")
        assert other in container.run(
            "busybox", "nslookup", f"c{host.number % 2 + 1}", "127.0.0.11"
        )
        self.refuses(host, "attach", "--network", "n1", "--name", "new", host.container().netns)
        self.restarts(host)

    def answers_at_once(self, host: Host) -> None:
        """What a host knows it tells before it has found that the store is away."""
        for words in ("networks",), ("networks", "n1"), ("endpoints",):
            asked_at = time.monotonic()
            ApiClient(host.run_dir).get(*words)
            took_s = time.monotonic() - asked_at
            log.info("read path=%s after_s=%.1f", "/".join(words), took_s)
            assert took_s < READ_S

    def refuses(self, host: Host, *words: str) -> None:
        """What needs the store gets its answer soon, in one line."""
        asked_at = time.monotonic()
        line = host.refused(*words).splitlines()[-1]
        took_s = time.monotonic() - asked_at
        log.info("refused store=%s after_s=%.1f", self.world.store, took_s)
        assert took_s < REFUSED_S
        assert self.world.store in line
        assert "start it or repair the way to it, then try again" in line

    def restarts(self, host: Host) -> None:
        """A container that restarts has its address again."""
        container = self.restarting[host.number - 1]
        before = container.addresses()
        container.detach()
        container.attach("n1", "--name", f"r{host.number}")
        assert container.addresses() == before
        self.reaches(container, self.addresses[host.number % 2])

    def heals(self, since: float) -> None:
        """Returns when all is as it should be, soon after the store answered first.

        Every host is in step and registered, and what is new on one is there on the others.
        """
        deadline = since + HEALED_S
        for host in self.world.hosts:
            comes_in_step(host, deadline)
        self.late += 1
        name, last = f"late{self.late}", self.world.hosts[-1]
        made = last.container()
        words = ("attach", "--network", "n1", "--name", name, made.netns)
        while (done := last.cli_try(*words)).returncode:
            assert time.monotonic() < deadline, done.stderr
        address = made.addresses()[0].partition("/")[0]
        for container in self.containers[:-1]:
            assert container.ping(address, count=1) or container.ping(address, count=1)
            assert address in container.run("busybox", "nslookup", name, "127.0.0.11")
        took_s = time.monotonic() - since
        log.info("healed store=%s after_s=%.1f", self.world.store, took_s)
        assert took_s < HEALED_S
        last.cli("detach", made.netns)


def in_step(host: Host, *, held: int = 0) -> bool:
    """Whether a host sees what the store says now, holding nothing back, or `held` or more."""
    store = host.status()["store"]
    return bool(
        store["state"] == "synced"
        and (store["held"] >= held if held else not store["held"])
        and not store["problem"]
        and store["session_valid_s"]
    )


def comes_in_step(host: Host, deadline: float) -> None:
    while not in_step(host):
        assert time.monotonic() < deadline, f"{host.netns}: {host.status()['store']}"
        time.sleep(0.02)


def comes_back(server: Server) -> float:
    """Starts a server; gives when it answered first."""
    server.start()
    return time.monotonic()


@pytest.fixture(scope="module")
def etcd() -> Iterator[Overlay]:
    with world("psa", 3, store="etcd", start=False) as made:
        (server,) = made.servers
        assert isinstance(server, EtcdServer)
        server.ctl(
            "put", "test/v1/cfg", f'{{"v":1,"session_ttl_s":{TTL_S},"gc_grace_s":{GRACE_S}}}'
        )
        made.start()
        yield Overlay(made)


def test_killed(etcd: Overlay) -> None:
    """Meanwhile a daemon dies, and starts again without its store."""
    made, server = etcd.world, etcd.server
    with etcd.unharmed():
        server.kill()
        etcd.noticed()
        etcd.goes_on(made[2])
        etcd.refuses(made[2], "network", "create", "new")
        etcd.refuses(made[2], "network", "rm", "n1")
        made[1].stop(signal.SIGKILL)
        made[1].start()
        assert made[1].status()["store"]["state"] == "stale"
        etcd.goes_on(made[1])
        etcd.heals(comes_back(server))


def test_frozen(etcd: Overlay) -> None:
    server = etcd.server
    with etcd.unharmed():
        server.freeze()
        etcd.answers_at_once(etcd.world[1])
        etcd.noticed()
        etcd.goes_on(etcd.world[1])
        server.thaw()
        etcd.heals(time.monotonic())


def test_one_host_cut_off(etcd: Overlay) -> None:
    """The others go on, and what they do meanwhile is there when it is back."""
    made = etcd.world
    with etcd.unharmed():
        made.cut(made[1])
        etcd.noticed(made[1])
        etcd.goes_on(made[1])
        made[2].cli("network", "create", "meanwhile")
        late = made[2].container()
        late.attach("n1", "--name", "meanwhile")
        made.heal()
        etcd.heals(time.monotonic())
        assert "meanwhile" in made[1].cli("network", "ls")
        address = late.addresses()[0].partition("/")[0]
        assert etcd.containers[0].ping(address) == 3
        late.detach()
    made[1].cli("network", "rm", "meanwhile")


def test_all_hosts_cut_off(etcd: Overlay) -> None:
    """For longer than their sessions live."""
    made = etcd.world
    with etcd.unharmed():
        made.cut(*made.hosts)
        etcd.noticed()
        eventually(lambda: not made[3].status()["store"]["session_valid_s"], within_s=30)
        etcd.goes_on(made[3])
        made.heal()
        etcd.heals(time.monotonic())


def content(made: World) -> dict[str, Any]:
    """What the store holds, but for when it was begun and when networks were removed."""
    printed = made[1].run(BIN / "pyvxlan", "store", "dump", made.store).stdout
    lines = [json.loads(line) for line in printed.splitlines()[1:-1]]
    return {
        line["key"]: line["value"] if not line["key"].startswith("gone/") else ...
        for line in lines
        if line["key"] != "meta"
    }


def holds(made: World, wanted: dict[str, Any]) -> None:
    """Returns when the store holds just that."""
    found: dict[str, Any] = {}
    deadline = time.monotonic() + HEALED_S
    while (found := content(made)) != wanted:
        differing = {
            key: (wanted.get(key), found.get(key))
            for key in wanted.keys() | found.keys()
            if wanted.get(key) != found.get(key)
        }
        assert time.monotonic() < deadline, f"wanted and found: {differing}"


def test_back_empty(etcd: Overlay) -> None:
    made, server = etcd.world, etcd.server
    made[1].cli("network", "create", "nobody-in-it", "--subnet", "10.77.0.0/24")
    made[1].cli("network", "create", "gone")
    made[2].cli("network", "rm", "gone")
    before = content(made)
    with etcd.unharmed():
        server.kill()
        server.wipe()
        etcd.noticed()
        etcd.heals(comes_back(server))
        assert content(made).keys() >= before.keys()
    assert "store was lost and begun anew" in made[1].log.read_text()
    assert "gone" not in made[1].cli("network", "ls").split()


def test_host_that_is_down_while_the_store_is_lost_is_held(etcd: Overlay) -> None:
    """Its containers run on, though nobody publishes its records; others keep them for a minute."""
    made, server = etcd.world, etcd.server
    down = made[3]
    containers = [down.container() for _ in range(6)]
    for container in containers:
        container.attach("n1")
    eventually(lambda: made[1].status()["networks"][0]["remote_endpoints"] == 10)
    with etcd.unharmed():
        down.stop(signal.SIGKILL)
        server.kill()
        server.wipe()
        server.start()
        eventually(
            lambda: "removal held back prefix=ep/" in made[1].log.read_text(), within_s=HEALED_S
        )
        eventually(lambda: in_step(made[1], held=8), within_s=HEALED_S, what="8 endpoints are held")
        metrics = made[1].run("curl", "-s", "http://127.0.0.1:9472/metrics").stdout
        assert float(metrics.split("\npyvxlan_store_held_records ")[1].split()[0]) >= 8
        assert "held back" in made[1].cli("status")
        down.start()
        etcd.heals(time.monotonic())
    for container in containers:
        container.detach()


def grow_older(overlay: Overlay, save: Callable[[], None]) -> dict[str, Any]:
    """Saves a copy of the store, then changes what is in it; gives what it holds in the end.

    A network and an endpoint go, and others get their name and address.
    """
    made, last = overlay.world, overlay.world.hosts[-1]
    made[1].cli("network", "create", "reused", "--subnet", "10.78.0.0/24")
    old = made[2].container()
    old.attach("n1", "--name", "heirloom", "--ip", HEIRLOOM)
    save()
    made[1].cli("network", "rm", "reused")
    made[2].cli("network", "create", "reused", "--subnet", "10.78.0.0/24")
    old.detach()
    last.container().attach("n1", "--name", "heirloom", "--ip", HEIRLOOM)
    overlay.reaches(overlay.containers[0], HEIRLOOM)
    return content(made)


def test_back_from_an_old_copy(etcd: Overlay, tmp_path: Path) -> None:
    made, server = etcd.world, etcd.server
    assert isinstance(server, EtcdServer)
    before = grow_older(etcd, lambda: server.back_up(tmp_path / "backup"))
    with etcd.unharmed(), pinging(etcd.containers[0], HEIRLOOM) as to_heir:
        server.kill()
        server.restore(tmp_path / "backup")
        etcd.noticed()
        etcd.heals(comes_back(server))
        holds(made, before)
    assert to_heir.lost == []


def test_hosts_that_are_away_for_longer_than_the_grace_time(etcd: Overlay) -> None:
    """One is dead, and returns to claims that are free or another's by then; one is only cut off.

    The latter is heard, and so nothing of it is lost.
    """
    made = etcd.world
    cut, alive, dead = made.hosts

    def listed() -> set[str]:
        return {endpoint["name"] for endpoint in ApiClient(alive.run_dir).get("endpoints")}

    with (
        pinging(etcd.containers[0], etcd.addresses[1]) as there,
        pinging(etcd.containers[1], etcd.addresses[0]) as back,
    ):
        left_at = time.monotonic()
        made.cut(cut)
        forwarder = dead.forwarder_pid()
        dead.stop(signal.SIGKILL)
        os.kill(forwarder, signal.SIGKILL)
        while {"c3", "r3"} & listed():
            assert time.monotonic() < left_at + 90, alive.log.read_text()
            time.sleep(0.1)
        # A session that was to be renewed just then had a third of its time behind it.
        assert time.monotonic() - left_at > TTL_S * 2 / 3 + GRACE_S
        # A session that had just been renewed ends a third of its time later than the other.
        time.sleep(TTL_S / 3 + GRACE_S / 4)
        assert {"c1", "r1"} <= listed()
        assert (
            f"host is heard, but has no session: cut off from the store? host={host_id(cut)}"
            in (alive.log.read_text())
        )
        alive.container().attach("n1", "--name", "c3", "--ip", etcd.addresses[2])
        made.heal()
        dead.start()
        eventually(
            lambda: "endpoint fenced" in dead.log.read_text(), within_s=30, what="c3 is fenced"
        )
        etcd.reaches(etcd.containers[0], etcd.restarting[2].addresses()[0].partition("/")[0])
        etcd.reaches(etcd.containers[0], etcd.addresses[2])
        # It may hold something back for a minute, since an old copy was put back lately.
        eventually(
            lambda: cut.status()["store"]["state"] == "synced", within_s=HEALED_S, what="in step"
        )
    assert (there.lost, back.lost) == ([], [])
    eventually(
        lambda: "eth0" not in etcd.containers[2].run("ip", "-brief", "link"),
        within_s=HEALED_S,
        what="c3 is disconnected",
    )
    assert "c3" in listed()


def host_id(host: Host) -> str:
    found: str = host.status()["host"]["id"]
    return found


@pytest.fixture(params=["consul", "zk"])
def other(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    with world("psb", 2, store=request.param) as made:
        yield Overlay(made)


def test_other_stores(other: Overlay) -> None:
    """Frozen for a moment, killed, cut off from one host, and back empty."""
    made, server = other.world, other.server
    with other.unharmed():
        server.freeze()
        other.answers_at_once(made[1])
        server.thaw()
        other.heals(time.monotonic())
        server.kill()
        other.noticed()
        other.goes_on(made[2])
        other.heals(comes_back(server))
        made.cut(made[1])
        other.noticed(made[1])
        other.goes_on(made[1])
        made.heal()
        other.heals(time.monotonic())
        before = content(made)
        server.kill()
        server.wipe()
        other.noticed()
        other.heals(comes_back(server))
        assert content(made).keys() >= before.keys()


def test_file_that_is_deleted_or_put_back(tmp_path: Path) -> None:
    """The store of one machine is a file: it can be lost, or be an old copy, and that is all."""
    with world("psc", 2) as made:
        overlay = Overlay(made)
        file, copy = Path(made.store.removeprefix("sqlite://")), tmp_path / "copy"

        def save() -> None:
            with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)

        def remove() -> None:
            for suffix in ("", "-wal", "-shm"):
                file.with_name(file.name + suffix).unlink()

        before = content(made)
        with overlay.unharmed():
            remove()
            overlay.heals(time.monotonic())
            assert content(made).keys() >= before.keys()
        before = grow_older(overlay, save)
        with overlay.unharmed(), pinging(overlay.containers[0], HEIRLOOM) as to_heir:
            remove()
            shutil.copy(copy, file)
            overlay.heals(time.monotonic())
            holds(made, before)
        assert to_heir.lost == []
