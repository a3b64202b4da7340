"""A cluster moves through every kind of store while its containers talk."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise

import pytest

from tests.netns.flows import pinging
from tests.netns.world import BIN, World, world
from tests.servers.kinds import SERVERS

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def stores() -> Iterator[tuple[World, Mapping[str, str]]]:
    """Two hosts, and a server of each kind on their underlay."""
    with world("pm", 2, start=False) as made:
        urls = {"sqlite": made.store} | {kind: made.serve(kind).url for kind in SERVERS}
        made.start()
        yield made, urls


def store_command(made: World, *args: object, check: bool = True) -> str:
    """Runs `pyvxlan store` on the first host."""
    done = made[1].run(BIN / "pyvxlan", "store", *args, check=check, timeout_s=120)
    return done.stdout + done.stderr


def url_of(made: World, number: int) -> str:
    url: str = json.loads(made[number].cli("status", "--format", "json"))["store"]["url"]
    return url


def test_no_frame_is_lost_on_the_way_through_every_store(
    stores: tuple[World, Mapping[str, str]],
) -> None:
    made, urls = stores
    made[1].cli("network", "create", "n1")
    client, server = made[1].container(), made[2].container()
    client.attach("n1", "--name", "client")
    address = server.attach("n1", "--name", "server")["addresses"][0].partition("/")[0]
    assert client.ping(address) == 3
    places = ["sqlite", "zk", "etcd", "consul", "zk", "sqlite"]
    used = {"sqlite"}
    with pinging(client, address) as pings:
        for source, target in pairwise(places):
            options = ["--replace"] if target in used else []
            printed = store_command(made, "migrate", *options, urls[source], urls[target])
            used.add(target)
            assert f"moved to {urls[target]}: 1 network, 2 hosts" in printed
            assert [url_of(made, 1), url_of(made, 2)] == [urls[target]] * 2
            late = made[2].container()
            late_address = late.attach("n1")["addresses"][0].partition("/")[0]
            assert client.ping(late_address) == 3
            looked_up = client.run("busybox", "nslookup", "server", "127.0.0.11")
            assert address in looked_up
            report = json.loads(store_command(made, "check", urls[target], "--format", "json"))
            errors = [found for found in report["findings"] if found["level"] == "error"]
            assert (report["good"], errors) == (True, [])
            late.detach()
    assert pings.sent > 250
    assert pings.lost == []


def test_killed_command_is_finished_by_the_next(
    stores: tuple[World, Mapping[str, str]],
) -> None:
    made, urls = stores
    made[1].cli("network", "create", "n2")
    client, server = made[1].container(), made[2].container()
    client.attach("n2")
    address = server.attach("n2")["addresses"][0].partition("/")[0]
    place, other = url_of(made, 1), urls["zk"]
    with pinging(client, address) as pings:
        for tenths in (4, 6, 8, 10, 12):
            words = [BIN / "pyvxlan", "store", "migrate", "--replace", place, other]
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{made[1].netns}", "--", *words],
                stderr=subprocess.DEVNULL,
            )
            time.sleep(tenths / 10)
            process.kill()
            process.wait(10)
            store_command(made, "migrate", "--replace", place, other)
            assert [url_of(made, 1), url_of(made, 2)] == [other, other]
            made[2].cli("network", "create", f"after{tenths}")
            place, other = other, place
    assert pings.lost == []


def test_daemon_with_the_old_setting_uses_the_new_store(
    stores: tuple[World, Mapping[str, str]],
) -> None:
    made, urls = stores
    place = url_of(made, 1)
    target = urls["etcd"] if place != urls["etcd"] else urls["consul"]
    store_command(made, "migrate", "--replace", place, target)
    made[2].stop()
    made[2].start()
    assert url_of(made, 2) == target
    assert "change the setting" in made[2].log.read_text()
    assert f"the cluster has left {made.store}: change the setting" in made[2].cli("status")
