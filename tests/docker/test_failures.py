"""What ends, is killed, is away or is lost: running containers go on, and nothing stays behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docker.hosts import (
    DOCKER,
    IMAGE,
    DockerHost,
    DockerWorld,
    UnderlayEtcd,
    create,
    docker_world,
    gone,
    pings,
    resolves,
    run,
    shown,
)
from tests.netns.world import eventually

pytestmark = pytest.mark.docker

SOON_S = 30
"""By when what was left is settled; most of it is after a second."""


class Failing(DockerWorld):
    """Two hosts with Engines, and an etcd beside them that can fail alone."""

    etcd: UnderlayEtcd


@pytest.fixture(scope="module")
def world() -> Iterator[Failing]:
    with docker_world("df", 2, "--log-level", "debug", start=False, kind=Failing) as made:
        made.etcd = UnderlayEtcd(made)
        with made.etcd:
            made.store = made.etcd.url
            made.start()
            yield made


@pytest.fixture(autouse=True)
def clean(world: Failing) -> Iterator[None]:
    """Two hosts with one network; afterwards nothing of any container may be left anywhere."""
    create(world[1], "net1", "--subnet", "10.70.0.0/24")
    shown(world[2], "net1", within_s=SOON_S)
    yield
    if world.etcd.process is None:
        world.etcd.start()
    world.etcd.thaw()
    for host in world.hosts:
        if every := host.docker("ps", "-aq").split():
            host.docker("rm", "-f", *every)
    nothing_left(world)
    world[1].docker("network", "rm", "net1")
    for host in world.hosts:
        gone(host, "net1", within_s=SOON_S)
    assert keys(world, "net/") == keys(world, "ip/") == []


def keys(world: Failing, prefix: str) -> list[str]:
    """What the store holds below a prefix."""
    printed = world.etcd.ctl("get", "--prefix", "--keys-only", "test/v1/").stdout
    every = [line.removeprefix("test/v1/") for line in printed.split()]
    assert "meta" in every, "else this looks at the wrong place"
    return [key for key in every if key.startswith(prefix)]


def nothing_left(world: Failing) -> None:
    """Returns when no container has left an endpoint, an address, a name or an interface."""

    def left() -> list[str]:
        found = [*keys(world, "ep/"), *keys(world, "own/"), *keys(world, "name/")]
        found += [key for key in keys(world, "ip/") if not key.endswith("/10.70.0.1")]
        for host in world.hosts:
            found += host.cli("endpoint", "ls", "-q", "--local").split()
            links = json.loads(host.run("ip", "-json", "link").stdout)
            known = ("lo", "under0", "docker0", "docker_gwbridge", "pyvxlan_dns")
            found += [
                f"{host.netns}:{link['ifname']}" for link in links if link["ifname"] not in known
            ]
        return found

    try:
        eventually(lambda: not left(), within_s=SOON_S)
    except AssertionError:
        raise AssertionError(f"left behind: {left()}") from None


class Stream:
    """Ten pings a second out of a container, by address."""

    def __init__(self, host: DockerHost, container: str, target: str) -> None:
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            ["nsenter", f"--net=/proc/{host.pid_of(container)}/ns/net", "--",
             "ping", "-n", "-i", "0.1", target],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def lost(self) -> int:
        """Ends it; gives how many were lost of the pings that were sent."""
        # A store is back and filled within less than a second.
        time.sleep(max(0.5, self._began + 2 - time.monotonic()))
        self._process.send_signal(signal.SIGINT)
        printed, _ = self._process.communicate(timeout=10)
        summary = next(line for line in printed.splitlines() if "packets transmitted" in line)
        sent, received = (int(part.split()[0]) for part in summary.split(", ")[:2])
        assert sent >= 10, printed
        # What was sent last may still be on its way when the signal comes.
        last = f"icmp_seq={sent} " in printed
        return sent - received - (0 if last else 1)


def pair(world: Failing, *options: str) -> tuple[DockerHost, DockerHost]:
    """c1 on host 1 and c2 on host 2, which reach each other."""
    host1, host2 = world.hosts
    run(host1, "c1", "--network", "net1", "--ip", "10.70.0.11", *options)
    run(host2, "c2", "--network", "net1", "--ip", "10.70.0.12", *options)
    reaches(host1, "c1", "10.70.0.12")
    return host1, host2


def reaches(host: DockerHost, container: str, target: str) -> None:
    """Returns when a ping is answered; after Docker's start a name may take some seconds."""
    eventually(
        lambda: pings(host, container, target),
        within_s=SOON_S,
        what=f"{container} reaches {target}",
    )


def configured(host: DockerHost, **config: object) -> None:
    """Restarts an idle Engine with other settings."""
    host.stop_engine()
    for key, value in config.items():
        host.config[key.replace("_", "-")] = value
    host.start_engine()


def test_restart_and_death_of_daemons_lose_no_ping(world: Failing) -> None:
    host1, host2 = pair(world)
    stream = Stream(host1, "c1", "10.70.0.12")
    host1.stop()
    host1.start()
    host2.stop(signal.SIGKILL)
    host2.start()
    assert stream.lost() == 0
    assert resolves(host1, "c1", "c2") == {"10.70.0.12"}
    assert resolves(host2, "c2", "c1") == {"10.70.0.11"}
    run(host2, "c3", "--network", "net1")
    reaches(host1, "c1", "c3")


def test_live_restore_loses_no_ping_and_no_endpoint(world: Failing) -> None:
    host1 = world[1]
    configured(host1, live_restore=True)
    try:
        host1, host2 = pair(world)
        stream = Stream(host1, "c1", "10.70.0.12")
        for how in (signal.SIGTERM, signal.SIGKILL):
            host1.stop_engine(how)
            host1.start_engine()
        assert stream.lost() == 0
        assert len(host1.cli("endpoint", "ls", "-q").split()) == 2
        run(host1, "c3", "--network", "net1")
        reaches(host2, "c2", "c3")
        assert resolves(host1, "c1", "c2") == {"10.70.0.12"}
        host1.docker("rm", "-f", "c1", "c3")
        nothing_of(world, "c1", "c3")
    finally:
        configured(host1, live_restore=False)


def test_engine_that_starts_before_the_daemon_works_once_that_is_there(world: Failing) -> None:
    host1 = world[1]
    configured(host1, live_restore=True)
    try:
        host1, host2 = pair(world)
        stream = Stream(host1, "c1", "10.70.0.12")
        host1.stop_engine()
        host1.stop()
        host1.start_engine()
        assert "net1" in host1.networks()
        assert host1.docker("ps", "--format", "{{.Names}}") == "c1"
        host1.start()
        assert stream.lost() == 0
        run(host1, "c3", "--network", "net1")
        reaches(host2, "c2", "c3")
        assert resolves(host1, "c1", "c2") == {"10.70.0.12"}
        create(host1, "later", "--subnet", "10.73.0.0/24")
        shown(host2, "later", within_s=SOON_S)
        host1.docker("network", "rm", "later")
        host1.docker("rm", "-f", "c1", "c3")
        nothing_of(world, "c1", "c3")
    finally:
        configured(host1, live_restore=False)


def nothing_of(world: Failing, *names: str) -> None:
    """Returns when no name of these is in the store."""
    eventually(
        lambda: not {key.rpartition("/")[2] for key in keys(world, "name/")} & set(names),
        within_s=SOON_S,
        what=f"{names} are free",
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_engine_without_live_restore_comes_back_clean(world: Failing, how: signal.Signals) -> None:
    host1, host2 = pair(world)
    run(host1, "again", "--network", "net1", "--restart", "always")
    host1.stop_engine(how)
    host1.start_engine()
    nothing_of(world, "c1")
    reaches(host2, "c2", "again")
    run(host2, "c1b", "--network", "net1", "--ip", "10.70.0.11")
    reaches(host1, "again", "10.70.0.11")


def test_death_of_engine_and_daemon_together_leaves_nothing(world: Failing) -> None:
    host1, host2 = pair(world)
    host1.stop(signal.SIGKILL)
    host1.stop_engine(signal.SIGKILL)
    host1.start()
    host1.start_engine()
    nothing_of(world, "c1")
    run(host1, "c1b", "--network", "net1", "--ip", "10.70.0.11")
    reaches(host2, "c2", "c1b")


def test_container_that_ends_while_the_daemon_restarts_leaves_nothing(world: Failing) -> None:
    host1, _ = pair(world)
    process = Path(f"/proc/{host1.pid_of('c1')}")
    host1.stop(signal.SIGKILL)
    removal = subprocess.Popen(
        [*host1.enter(), DOCKER, "rm", "-f", "c1"], stdout=subprocess.DEVNULL
    )
    eventually(
        lambda: not process.exists(), within_s=SOON_S, what="c1 has ended, and nobody hears of it"
    )
    host1.start()
    assert removal.wait(60) == 0
    nothing_of(world, "c1")


def test_container_that_starts_while_the_daemon_is_restarted_starts(world: Failing) -> None:
    host1, host2 = pair(world)
    # A start takes some 60 ms from its first call of the plug-in to the last.
    for number, delay_s in enumerate((0.01, 0.03, 0.05)):
        host1.docker("create", "--name", f"n{number}", "--network", "net1", IMAGE, "sleep", "999")
        with ThreadPoolExecutor() as pool:
            starting = pool.submit(host1.api, "POST", f"/containers/n{number}/start")
            time.sleep(delay_s)
            began_s = time.monotonic()
            host1.stop()
            assert time.monotonic() - began_s < 3, "a call that waits for what has ended already"
            host1.start()
            starting.result(SOON_S)
        reaches(host2, "c2", f"n{number}")


def test_engine_that_lost_its_data_root_gets_the_networks_back(world: Failing) -> None:
    host1, host2 = world.hosts
    run(host1, "c1", "--network", "net1")
    create(host1, "unused", "--subnet", "10.71.0.0/24")
    before = shown(host2, "unused", within_s=SOON_S)["Id"]
    host2.stop_engine()
    for part in ("network", "containers"):
        shutil.rmtree(host2.directory / "docker" / part)
    host2.start_engine()
    for name in ("net1", "unused"):
        assert shown(host2, name, within_s=SOON_S)
    assert shown(host2, "unused", within_s=SOON_S)["Id"] != before
    assert {"net1", "unused"} <= set(host1.networks())
    run(host2, "c2", "--network", "net1")
    reaches(host1, "c1", "c2")
    host2.docker("network", "rm", "unused")
    gone(host1, "unused", within_s=SOON_S)


def test_deleted_pair_comes_back(world: Failing) -> None:
    host1, host2 = pair(world)
    eventually(
        lambda: local_document(host1, "10.70.0.11")["ifname"] == "eth0",
        within_s=SOON_S,
        what="the name of the interface is noted",
    )
    host1.inside("c1", "ip", "link", "del", "eth0")
    reaches(host2, "c2", "10.70.0.11")


def local_document(host: DockerHost, address: str) -> dict[str, str]:
    """What the daemon keeps of an endpoint on its disk."""
    texts = [path.read_text() for path in (host.state_dir / "endpoints").glob("*.json")]
    found: dict[str, str] = json.loads(next(text for text in texts if address in text))
    return found


def test_store_that_is_away_stops_no_stop_and_says_why_nothing_starts(world: Failing) -> None:
    host1, host2 = pair(world)
    run(host1, "c3", "--network", "net1")
    create(host1, "spare", "--subnet", "10.72.0.0/24")
    shown(host2, "spare", within_s=SOON_S)
    stream = Stream(host1, "c1", "10.70.0.12")
    world.etcd.freeze()
    eventually(lambda: "not reachable" in host1.cli("status"), within_s=SOON_S)
    assert resolves(host1, "c1", "c2") == {"10.70.0.12"}
    began_s = time.monotonic()
    said = host1.docker_refused("run", "--network", "net1", "--name", "c4", "busybox", "true")
    assert world.etcd.member in said
    host1.docker("rm", "-f", "c3", "c4")
    host1.docker("network", "rm", "spare")
    assert time.monotonic() - began_s < 20
    world.etcd.thaw()
    assert stream.lost() == 0
    nothing_of(world, "c3", "c4")
    gone(host2, "spare", within_s=SOON_S)
    run(host1, "c3", "--network", "net1")
    reaches(host2, "c2", "c3")


def test_plugin_answers_at_once_while_the_store_is_away(world: Failing) -> None:
    host1, host2 = pair(world)
    stream = Stream(host2, "c2", "10.70.0.11")
    host1.stop(signal.SIGKILL)
    world.etcd.kill()
    socket = host1.root / "run/docker/plugins/pyvxlan.sock"
    socket.unlink(missing_ok=True)
    host1.start(wait=False)
    eventually(socket.exists, within_s=SOON_S)
    said, took_s = host1.run(
        *("curl", "-sS", "--unix-socket", "/run/docker/plugins/pyvxlan.sock"),
        *("-w", "\n%{time_total}", "-X", "POST", "http://plugin/Plugin.Activate"),
    ).stdout.splitlines()
    assert json.loads(said) == {"Implements": ["NetworkDriver", "IpamDriver"]}
    assert float(took_s) < 2
    host1.wait(within_s=60)
    assert stream.lost() == 0
    host1.docker("rm", "-f", "c1")
    world.etcd.start()
    nothing_of(world, "c1")


def test_store_that_was_wiped_is_filled_again(world: Failing) -> None:
    host1, host2 = pair(world)
    stream = Stream(host1, "c1", "10.70.0.12")
    world.etcd.kill()
    world.etcd.wipe()
    world.etcd.start()
    eventually(lambda: "test/v1/meta" in world.etcd.ctl("get", "--prefix", "test/").stdout)
    eventually(lambda: len(keys(world, "ep/")) == 2, within_s=60, what="endpoints are back")
    assert stream.lost() == 0
    assert resolves(host2, "c2", "c1") == {"10.70.0.11"}
    for host in world.hosts:
        assert "net1" in host.networks()
    run(host2, "c3", "--network", "net1")
    reaches(host1, "c1", "c3")


def test_doctor_finds_the_two_hosts_in_order(world: Failing) -> None:
    for host in world.hosts:
        printed = host.pyvxlan("doctor", "--format", "json").stdout
        levels = {one["what"]: one["level"] for one in json.loads(printed)}
        ours = ("daemon", "store", "port", "mtu", "versions", "docker", "plug-in", "dns")
        assert {what: levels[what] for what in ours} == dict.fromkeys(ours, "ok")
        assert "error" not in levels.values(), printed
