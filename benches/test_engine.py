"""Time of the calls of an engine that runs, from Python: what a daemon asks of it.

Input: two workers on loopback sockets, networks with a pipe as port; MACs 02:00:xx:xx:xx:xx over
100 VTEPs. Each benchmark checks its own result.
"""

from __future__ import annotations

import os
import socket

import pytest

from benches.test_table import entries, mac
from pyvxlan import Engine, open_underlay

NETWORKS = 1_000


@pytest.fixture(scope="module")
def engine():
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Engine(open_underlay("127.0.0.1", port, workers=2, send_sockets=2), workers=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def pipe():
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read
    os.close(read)
    os.close(write)


@pytest.fixture(scope="module")
def attached(engine, pipe):
    """An engine with 1,000 networks of one entry."""
    for vni in range(1, NETWORKS + 1):
        engine.attach(vni, [os.dup(pipe)], mtu_bytes=1450)
        engine.apply(vni, {mac(vni): "198.18.0.2"})
    return engine


@pytest.mark.benchmark(group="engine: attach and detach a network")
def test_attach(benchmark, attached, pipe):
    def attach() -> None:
        attached.attach(NETWORKS + 1, [os.dup(pipe)], mtu_bytes=1450)
        attached.detach(NETWORKS + 1)

    benchmark(attach)
    assert len(attached.vnis()) == NETWORKS


@pytest.mark.benchmark(group="engine: fill a table of 1,000")
def test_fill(benchmark, attached):
    add = entries(1_000)
    benchmark(attached.apply, 1, add)
    assert len(attached.dump(1).fdb) >= 1_000


@pytest.mark.benchmark(group="engine: change one entry")
def test_change_one(benchmark, attached):
    def change() -> None:
        attached.apply(2, {mac(777): "198.18.0.3"})
        attached.apply(2, remove=[mac(777)])

    benchmark(change)
    assert len(attached.dump(2).fdb) == 1


@pytest.mark.benchmark(group="engine: read the counters of 1,000 networks")
def test_stats(benchmark, attached):
    assert len(benchmark(attached.stats).networks) == NETWORKS
