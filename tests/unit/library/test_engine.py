"""`Engine` as far as it goes without root: real workers on loopback sockets, a pipe as port."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import signal
import socket
import time
import warnings
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from pyvxlan import (
    Engine,
    TableDump,
    capture_sockets,
    open_underlay,
    parse_mac,
    receive_offload,
)
from tests.servers.process import free_port
from tests.unit.library.frames import DESTINATION

PORT = free_port()


@pytest.fixture
def engine():
    with Engine(open_underlay("127.0.0.1", PORT, workers=2, send_sockets=2), workers=2) as engine:
        yield engine


def test_a_new_engine_has_workers_and_nothing_attached(engine):
    assert (engine.workers, engine.vnis()) == (2, [])
    stats = engine.stats()
    assert (stats.workers, stats.networks) == (2, {})
    assert stats.underlay.sent_datagrams == 0


def test_idle_time_of_a_worker_grows_while_it_waits(engine):
    before = engine.stats().idle_s
    deadline = time.monotonic() + 10
    while (now := engine.stats().idle_s) == before or min(now) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(before) == len(now) == 2
    assert all(later >= earlier for earlier, later in zip(before, now, strict=True))


def test_closing_an_engine_frees_its_port_and_can_be_repeated(engine):
    engine.close()
    engine.close()
    with Engine(open_underlay("127.0.0.1", PORT, send_sockets=1)) as again:
        assert again.workers == 1


def test_a_closed_engine_says_so(engine):
    engine.close()
    with pytest.raises(RuntimeError, match="engine is closed"):
        engine.stats()


def test_a_port_that_is_taken_is_named_with_the_remedy(engine):
    with pytest.raises(OSError, match=str(PORT)):
        open_underlay("127.0.0.1", PORT)


@pytest.mark.parametrize(
    ("address", "port"), [("nowhere", 4789), ("239.0.0.1", 4789), ("127.0.0.1", 0)]
)
def test_an_underlay_that_cannot_be_is_refused(address, port):
    with pytest.raises(ValueError, match=r"nowhere|239\.0\.0\.1|0"):
        open_underlay(address, port)


def test_changes_to_a_vni_that_is_not_attached_are_refused(engine):
    for call in (
        lambda: engine.apply(7, {DESTINATION: "198.18.0.2"}),
        lambda: engine.set_flood(7, []),
        lambda: engine.set_neighbours(7, {}),
        lambda: engine.dump(7),
    ):
        with pytest.raises(ValueError, match="7"):
            call()
    engine.detach(7)


def test_tables_are_read_back_typed(engine):
    read, write = os.pipe()
    os.set_blocking(read, False)
    engine.attach(7, [read], mtu_bytes=1450)
    engine.apply(7, {DESTINATION: "198.18.0.2"})
    engine.set_neighbours(7, {"10.0.0.3": DESTINATION})
    engine.set_flood(7, ["198.18.0.2"])
    dump = engine.dump(7)
    vtep, mac = ip_address("198.18.0.2"), parse_mac(DESTINATION)
    assert (dump.fdb, dump.neighbours) == ({mac: vtep}, {ip_address("10.0.0.3"): mac})
    assert isinstance(dump, TableDump)
    assert dump.flood == (vtep,)
    assert list(engine.stats().networks) == [7]
    engine.detach(7)
    assert engine.vnis() == []
    os.close(write)


def test_segmentation_is_on_until_it_is_switched_off(engine):
    assert engine.stats().segmentation == (True, True)
    engine.switch_segmentation(on=False)
    assert engine.stats().segmentation == (False, False)
    engine.switch_segmentation(on=True)
    assert engine.stats().segmentation == (True, True)


def test_receive_offload_is_of_sockets_only():
    with open(os.devnull, "rb") as null, pytest.raises(OSError, match="socket"):
        receive_offload(null.fileno(), on=True)


async def test_waiting_for_events_can_be_given_up(engine):
    assert engine.events() == []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await engine.wait_events()


@pytest.mark.parametrize("waits", [True, False])
async def test_waiting_for_events_ends_with_the_engine(engine, waits):
    waiting = asyncio.create_task(engine.wait_events())
    if waits:
        await asyncio.sleep(0.01)
        assert not waiting.done()
    await asyncio.to_thread(engine.close)
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="engine is closed"):
            await waiting
    assert engine.events() == []


def in_a_fork(action: Callable[[], str]) -> str:
    """Runs `action` in a child that was forked; gives what it returned."""
    read, write = os.pipe()
    with warnings.catch_warnings():  # Python 3.12 warns of threads, which are what this is about
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.alarm(10)  # whatever hangs ends
        try:
            os.write(write, action().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        given = answer.read().decode()
    os.waitpid(pid, 0)
    return given


def test_a_fork_has_no_engine_and_does_no_harm_to_it(engine):
    def misuse() -> str:
        refused = []
        for call in (
            engine.stats,
            engine.recent_drops,
            lambda: engine.detach(7),
            lambda: engine.set_tunnels({}),
            lambda: engine.apply(7),
        ):
            try:
                call()
            except RuntimeError as error:
                refused.append(str(error))
        assert engine.events() == []
        engine.close()
        return f"{len(refused)} {refused[0]}"

    number, _, said = in_a_fork(misuse).partition(" ")
    assert number == "5"
    assert f"that of process {os.getpid()}" in said
    assert "start another engine here" in said
    assert engine.stats().workers == 2
    engine.detach(7)


def test_an_engine_is_forgotten_in_a_fork_without_harm(engine):
    def forget() -> str:
        del engine._engine  # the last reference: what the end of an interpreter does
        return "gone"

    assert in_a_fork(forget) == "gone"
    assert engine.stats().workers == 2


def test_an_engine_that_runs_out_of_descriptors_leaves_none_and_no_thread():
    def held() -> tuple[int, int]:
        descriptors, threads = (len(os.listdir(f"/proc/self/{of}")) for of in ("fd", "task"))
        return descriptors, threads

    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before, refused = held(), []
    for spare in range(30):
        sockets = open_underlay("127.0.0.1", PORT, workers=2, send_sockets=2)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(sockets) + 1 + spare, hard))
        try:
            Engine(sockets, workers=2).close()
        except OSError as error:
            refused.append(error.errno)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert held() == before
    assert 0 < len(refused) < 30
    assert set(refused) == {errno.EMFILE}


def test_a_thousand_engines_leave_nothing_behind():
    def one() -> None:
        with Engine(open_underlay("127.0.0.1", PORT, send_sockets=1)) as engine:
            engine.attach(7, [os.open(os.devnull, os.O_RDONLY)], mtu_bytes=1450)
            engine.apply(7, {DESTINATION: "198.18.0.2"})
            with pytest.raises(OSError, match="descriptor 999999"):
                engine.attach(8, [999999], mtu_bytes=1450)

    def held() -> tuple[int, int, int]:
        descriptors, threads = (len(os.listdir(f"/proc/self/{of}")) for of in ("fd", "task"))
        with open("/proc/self/statm") as statm:
            return descriptors, threads, int(statm.read().split()[1]) * resource.getpagesize()

    for _ in range(50):
        one()
    gc.collect()  # what tests before this one have left
    before = held()
    for _ in range(1000):
        one()
    after = held()
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 2_000_000


def test_capture_goes_to_its_reader_and_ends_with_its_number(engine):
    ours, theirs = capture_sockets()
    with ours:
        number = engine.begin_capture(7, theirs.detach(), mac=DESTINATION, snap_bytes=64)
        engine.end_capture(number)
        engine.end_capture(number)
        assert ours.recv(1) == b""


def test_capture_that_cannot_be_is_refused_and_its_socket_closed(engine):
    for bad in ({"snap_bytes": 13}, {"mac": b"12345"}):
        ours, theirs = capture_sockets()
        with ours:
            with pytest.raises(ValueError, match=r"13|5 bytes"):
                engine.begin_capture(7, theirs.detach(), **bad)
            assert ours.recv(1) == b""


def test_captures_have_a_limit(engine):
    pairs = [capture_sockets() for _ in range(17)]
    numbers = [engine.begin_capture(7, theirs.detach()) for _, theirs in pairs[:16]]
    with pytest.raises(ValueError, match="16 captures run"):
        engine.begin_capture(7, os.dup(pairs[16][1].fileno()))
    engine.end_capture(numbers[3])
    engine.begin_capture(7, pairs[16][1].detach())
    for ours, _ in pairs:
        ours.close()


def test_datagram_of_no_network_is_among_the_last_drops(engine):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(bytes(20), ("127.0.0.1", PORT))
    deadline = time.monotonic() + 10
    while not (drops := engine.recent_drops()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (drop,) = drops
    assert (drop.reason, drop.vni, drop.headers) == ("vxlan_flags", None, b"")
    assert (str(drop.vtep), drop.count) == ("127.0.0.1", 1)
    assert abs(drop.time_ns / 1e9 - time.time()) < 60
