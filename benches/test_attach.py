"""Time to attach a namespace to a network and to detach it, beside what `ip` takes for the links.

Input: one host in a namespace, one network; the daemon is asked over its socket, without the start
of a command line. By hand: a veth pair, its end in the namespace, an address, both ends up, and its
removal. Needs root. Each benchmark checks what it made, and that nothing is left.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvxlan.daemon.apiclient import ApiClient
from tests.netns.world import Container, command, world

pytestmark = [pytest.mark.root, pytest.mark.benchmark(group="attach and detach a namespace")]


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    with world("ba", 1) as made:
        made[1].cli("network", "create", "blue")
        yield made[1].container()


def test_attach(benchmark, box):
    client = ApiClient(box.host.run_dir)

    def attach() -> None:
        made = client.post(
            "endpoints", body={"network": "blue", "sandbox": box.netns}, doing="attaching"
        )
        assert made["ifname"] == "eth0"
        client.delete("endpoints", made["id"], doing="detaching")

    benchmark(attach)
    assert client.get("endpoints") == []


def test_attach_by_hand(benchmark, box):
    host, inside = ("ip", "-n", box.host.netns), ("ip", "-n", box.netns)
    pair = ("type", "veth", "peer", "name", "eth0", "netns", box.netns)

    def attach() -> None:
        command(*host, "link", "add", "byhand", *pair)
        command(*inside, "addr", "add", "10.99.0.2/24", "dev", "eth0")
        command(*inside, "link", "set", "eth0", "up")
        command(*host, "link", "set", "byhand", "up")
        command(*host, "link", "del", "byhand")

    benchmark(attach)
    assert "eth0" not in box.run("ip", "link")
