"""Bad input at the command line: one clear line that names the value and the remedy, no trace."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
from pathlib import Path

import pytest

from pyvxlan.daemon.kv import Delete, Write
from pyvxlan.daemon.kv.embedded import EmbeddedStore
from tests.netns.world import World, command, inside, socket_in, world

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--subnet", "10.50.0.0/24", "bad"), "10.50.0.0/24"),
        (("--subnet", "10.50.0.0/16", "bad"), "10.50.0.0/16"),
        (("--subnet", "10.51.0.0/24", "--gateway", "10.52.0.1", "bad"), "10.52.0.1"),
        (("--subnet", "10.51.0.0/24", "--ip-range", "10.53.0.0/28", "bad"), "10.53.0.0/28"),
        (("--subnet", "10.51.0.1/24", "bad"), "10.51.0.1/24"),
        (("--subnet", "10.51.0.0/31", "bad"), "10.51.0.0/31"),
        (("--subnet", "banana", "bad"), "banana"),
        (("--subnet", "198.18.0.0/24", "bad"), "198.18.0.0/24"),
        (("--mtu", "575", "bad"), "575"),
        (("--mtu", "1451", "bad"), "1451"),
        (("--vni", "16777216", "bad"), "16777216"),
        (("--vni", "-1", "bad"), "-1"),
        (("--vni", "7777", "bad"), "7777"),
        (("--opt", "multicats=off", "bad"), "multicast"),
        (("--opt", "multicast=perhaps", "bad"), "perhaps"),
        (("bad/name",), "bad/name"),
        (("-x",), "-x"),
        (("two\nlines",), r"two\nlines"),
        (("a" * 300,), "aaa"),
        (("ov_taken",), "ov_taken"),
    ],
)
def test_network_that_can_not_be_is_refused(
    two_hosts: World, options: tuple[str, ...], named: str
) -> None:
    host = two_hosts[1]
    if "ov_taken" not in host.cli("network", "ls"):
        host.cli("network", "create", "ov_taken", "--subnet", "10.50.0.0/24", "--vni", "7777")
    before = host.cli("network", "ls", "--format", "json")
    line = host.refused("network", "create", *options)
    assert named in line
    assert len(line.splitlines()) <= 4
    assert host.cli("network", "ls", "--format", "json") == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--ip", "10.61.0.5"), "10.61.0.5"),
        (("--ip", "10.60.0.0"), "10.60.0.0"),
        (("--ip", "10.60.0.7"), "10.60.0.7"),
        (("--ip", "10.60.0.1"), "10.60.0.1"),
        (("--ip", "10.60.0.x"), "10.60.0.x"),
        (("--ip6", "fd00::5"), "fd00::5"),
        (("--mac", "01:00:5e:00:00:01"), "01:00:5e:00:00:01"),
        (("--mac", "02:42"), "02:42"),
        (("--name", "odd name"), "odd name"),
        (("--alias", "under score!"), "under score!"),
    ],
)
def test_endpoint_that_can_not_be_is_refused(
    two_hosts: World, options: tuple[str, ...], named: str
) -> None:
    host = two_hosts[1]
    if "ov_small" not in host.cli("network", "ls"):
        host.cli("network", "create", "ov_small", "--subnet", "10.60.0.0/29")
    container = host.container()
    line = host.refused("attach", "--network", "ov_small", *options, container.netns)
    assert named in line
    assert host.cli("endpoint", "ls", "-q") == ""
    assert len(container.run("ip", "-brief", "link").splitlines()) == 1


@pytest.mark.parametrize(
    "sandbox", ["no-such-namespace", "/run/netns/none", "/etc/hostname", "4194303", ""]
)
def test_namespace_that_does_not_exist_is_named(two_hosts: World, sandbox: str) -> None:
    host = two_hosts[1]
    if "ov_small" not in host.cli("network", "ls"):
        host.cli("network", "create", "ov_small", "--subnet", "10.60.0.0/29")
    line = host.refused("attach", "--network", "ov_small", sandbox)
    assert sandbox in line
    assert host.cli("endpoint", "ls", "-q") == ""


def test_exhausted_subnet_is_named_and_frees_again(two_hosts: World) -> None:
    host = two_hosts[1]
    host.cli("network", "create", "ov_tiny", "--subnet", "10.62.0.0/30")
    one, two = host.container(), host.container()
    one.attach("ov_tiny")
    line = host.refused("attach", "--network", "ov_tiny", two.netns)
    assert "10.62.0.0/30" in line
    one.detach()
    two.attach("ov_tiny")
    two.detach()
    host.cli("network", "rm", "ov_tiny")


def test_same_container_twice_on_one_network_is_refused(two_hosts: World) -> None:
    host = two_hosts[1]
    host.cli("network", "create", "ov_twice")
    container = host.container()
    container.attach("ov_twice", "--name", "once")
    assert "once" in host.refused("attach", "--network", "ov_twice", container.netns)
    assert container.addresses()
    container.detach()
    host.cli("network", "rm", "ov_twice")


def test_unknown_things_are_named(two_hosts: World) -> None:
    host = two_hosts[1]
    assert "no_such" in host.refused("network", "rm", "no_such")
    assert "no_such" in host.refused("network", "inspect", "no_such")
    assert "no_such" in host.refused("endpoint", "inspect", "no_such")
    assert "no_such" in host.refused("detach", "no_such")


def test_daemon_that_is_not_there_is_said_so(two_hosts: World) -> None:
    host = two_hosts[1]
    done = command("pyvxlan", "--run-dir", "/run/no-such-pyvxlan", "status", check=False)
    assert done.returncode == 3
    assert "/run/no-such-pyvxlan" in done.stderr
    assert host.cli("status")


def test_taken_udp_port_is_named() -> None:
    with world("pg", 1, start=False) as made:
        host = made[1]
        with socket_in(host.netns, socket.AF_INET, socket.SOCK_DGRAM) as taken:
            inside(host.netns, lambda: taken.bind((host.address, 4789)))
            host.start(wait=False)
            assert host.process is not None
            assert host.process.wait(20) != 0
            text = host.log.read_text()
            assert "4789" in text
            assert host.address in text
            assert "Traceback" not in text
            host.process = None
        host.start("--port", "4790")


def test_two_hosts_with_one_vtep_address_are_refused() -> None:
    with world("ph", 2, start=False) as made:
        made.start()
        made[1].stop()
        made[2].stop()
        command("ip", "-n", made[2].netns, "addr", "add", "198.18.0.1/24", "dev", "under0")
        made[1].start()
        made[2].start("--advertise", "198.18.0.1", wait=False)
        assert made[2].process is not None
        assert made[2].process.wait(20) != 0
        assert "198.18.0.1" in made[2].log.read_text()
        made[2].process = None


def test_store_record_that_is_not_valid_is_left_alone(two_hosts: World) -> None:
    host = two_hosts[1]
    host.cli("network", "create", "ov_valid")
    container = host.container()
    container.attach("ov_valid")
    path = host.world.store.removeprefix("sqlite://")
    with sqlite3.connect(path) as database:
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
        assert "kv" in tables
    for key, value in (
        ("net/junk", b"not json"),
        ("net/" + "a" * 32, b'{"v":1}'),
        ("host/x", b"[]"),
    ):
        _raw_put(path, key, value)
    status = json.loads(host.cli("status", "--format", "json"))
    assert status
    assert container.ping("10.0.0.1", count=1) in (0, 1)
    assert "ov_valid" in host.cli("network", "ls")
    container.detach()
    host.cli("network", "rm", "ov_valid")
    for key in ("net/junk", "net/" + "a" * 32, "host/x"):
        _raw_put(path, key, None)


def _raw_put(path: str, key: str, value: bytes | None) -> None:
    async def put() -> None:
        store = EmbeddedStore(Path(path))
        try:
            await store.txn([], [Delete(key) if value is None else Write(key, value)])
        finally:
            await store.close()

    asyncio.run(put())
