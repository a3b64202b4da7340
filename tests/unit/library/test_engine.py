"""`Engine` as far as it goes without root: real workers on loopback sockets, a pipe as port."""

from __future__ import annotations

import asyncio
import os
import socket
import time
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
from tests.unit.library.frames import DESTINATION


@pytest.fixture
def engine():
    with Engine(open_underlay("127.0.0.1", 47891, workers=2, send_sockets=2), workers=2) as engine:
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
    with Engine(open_underlay("127.0.0.1", 47891, send_sockets=1)) as again:
        assert again.workers == 1


def test_a_closed_engine_says_so(engine):
    engine.close()
    with pytest.raises(RuntimeError, match="engine is closed"):
        engine.stats()


def test_a_port_that_is_taken_is_named_with_the_remedy(engine):
    with pytest.raises(OSError, match="47891"):
        open_underlay("127.0.0.1", 47891)


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
            with pytest.raises(ValueError, match=r"13|five|5 bytes"):
                engine.begin_capture(7, theirs.fileno() if "mac" in bad else theirs.detach(), **bad)
            theirs.close()
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
        sender.sendto(bytes(20), ("127.0.0.1", 47891))
    deadline = time.monotonic() + 10
    while not (drops := engine.recent_drops()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (drop,) = drops
    assert (drop.reason, drop.vni, drop.headers) == ("vxlan_flags", None, b"")
    assert (str(drop.vtep), drop.count) == ("127.0.0.1", 1)
    assert abs(drop.time_ns / 1e9 - time.time()) < 60
