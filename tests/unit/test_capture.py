"""Captures from the data plane's messages to what people and files get."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvxlan import DROP_REASONS, DroppedFrame, MalformedError, parse_capture
from pyvxlan.daemon import framewords, pcapng, reasons
from pyvxlan.daemon.apiclient import ApiClient, RefusedError
from pyvxlan.daemon.captureview import HOLD_S, Merger
from pyvxlan.daemon.cli import run as run_cli
from pyvxlan.daemon.errors import InvalidError
from pyvxlan.daemon.requests import AttachSpec, EndpointSpec, NetworkSpec
from tests.unit.captured import message, record
from tests.unit.doorway import Doorway, doorway
from tests.unit.library.frames import UDP4 as FRAME


@pytest.fixture(scope="module")
def door() -> Iterator[Doorway]:
    """Two hosts, a network `blue` with an endpoint on the first, and `red` with none."""
    with doorway() as made:
        service = made.node.service
        made.node.net.add("box")
        made.do(service.create_network(NetworkSpec("blue")))
        made.do(service.create_network(NetworkSpec("red")))
        made.do(service.attach(AttachSpec("blue", "box", EndpointSpec(name="here"))))
        yield made


@pytest.fixture(autouse=True)
def forget(door: Doorway) -> Iterator[None]:
    yield
    for _, end in door.dataplane.captures:
        end.close()
    door.dataplane.captures.clear()


def until(condition: Callable[[], object]) -> None:
    """Returns when something is true."""
    done = threading.Event()
    for _ in range(1000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("not within ten seconds")


# What comes from the forwarder


def test_message_is_read_as_it_was_made() -> None:
    read = parse_capture(
        message(
            record(FRAME, "dropped", reason="flood_rate", ingress=True, vtep="198.18.0.2"),
            record(FRAME[:20], "flooded", copies=3, frames=9, frame_bytes=9000),
            worker=2,
            lost=7,
        )
    )
    assert (read.worker, read.lost) == (2, 7)
    first, second = read.frames
    assert (first.direction, first.verdict, first.reason) == ("ingress", "dropped", "flood_rate")
    assert (str(first.vtep), first.data) == ("198.18.0.2", FRAME)
    assert (second.copies, second.frames, second.vtep) == (3, 9, None)
    assert (second.frame_bytes, len(second.data)) == (9000, 20)


@pytest.mark.parametrize("bad", [b"", message(record(FRAME))[:-1], message() + b"x"])
def test_bytes_that_are_no_message_are_refused(bad: bytes) -> None:
    with pytest.raises(MalformedError, match="capture"):
        parse_capture(bad)


# In words


def test_every_reason_has_words() -> None:
    assert set(reasons.DROPS) == set(DROP_REASONS)
    assert reasons.in_words("of_tomorrow") == "of_tomorrow"


def test_frame_that_was_cut_is_still_described() -> None:
    assert framewords.summary(FRAME[:42], len(FRAME)) == framewords.summary(FRAME, len(FRAME))
    assert framewords.summary(b"\0" * 9, 9) == "no Ethernet frame, malformed, 9 bytes"


def test_verdicts_name_hosts_where_they_are_known() -> None:
    def said(hosts: dict[str, str], *args: object, **fields: object) -> str:
        (frame,) = parse_capture(message(record(FRAME, *args, **fields))).frames  # type: ignore[arg-type]
        return framewords.verdict(frame, hosts)

    known = {"198.18.0.2": "h2"}
    assert said(known, vtep="198.18.0.2") == "to h2 (198.18.0.2)"
    assert said({}, vtep="198.18.0.2", frames=4) == "to 198.18.0.2; 4 frames on the wire"
    assert said({}, "flooded", copies=1) == "flooded to 1 host"
    assert said(known, "delivered", vtep="198.18.0.2") == "delivered, from h2 (198.18.0.2)"
    dropped = said(known, "dropped", reason="source_mac_elsewhere", vtep="198.18.0.2", ingress=True)
    assert dropped == (
        "dropped: its source MAC is that of an endpoint on another host (source_mac_elsewhere), "
        "from h2 (198.18.0.2)"
    )


def test_frames_of_several_hosts_are_ordered_by_time() -> None:
    merger = Merger()

    def frames_at(*times: int) -> tuple[object, ...]:
        return parse_capture(message(*(record(FRAME, time_ns=t) for t in times))).frames

    merger.add(0.0, 0, frames_at(10, 30))  # type: ignore[arg-type]
    merger.add(0.01, 1, frames_at(20, 40))  # type: ignore[arg-type]
    assert merger.take(0.0) == []
    taken = merger.take(HOLD_S)
    assert [(host, frame.time_ns) for host, frame in taken] == [(0, 10), (1, 20), (0, 30)]
    assert [frame.time_ns for _, frame in merger.rest()] == [40]


def test_blocks_of_a_file_have_their_length_at_both_ends() -> None:
    blocks = [
        pcapng.section("x", "a comment"),
        pcapng.interface("vxlan0@h1", "", 65),
        pcapng.packet(0, 1 << 40, b"12345", 9, inbound=True, comment="é" * 40_000),
        pcapng.statistics(0, 1 << 40, received=3, lost=1),
    ]
    for block in blocks:
        assert struct.unpack_from("<I", block, 4)[0] == len(block)
        assert struct.unpack("<I", block[-4:])[0] == len(block)
        assert len(block) % 4 == 0


# Through the daemon


def test_subject_is_a_network_or_an_endpoint(door: Doorway) -> None:
    client = ApiClient(door.run_dir)
    blue, here = client.get("captures", "blue"), client.get("captures", "here")
    assert (blue["network"]["name"], blue["endpoint"], blue["hosts"]) == ("blue", None, ["host1"])
    assert (here["network"]["name"], here["endpoint"]["name"]) == ("blue", "here")
    with pytest.raises(RefusedError, match="green is no network and no endpoint"):
        client.get("captures", "green")


@pytest.mark.parametrize(
    ("target", "query", "said"),
    [
        ("red", {}, "network red has no endpoint on host1"),
        ("blue", {"host": "host9"}, "host9 is no host"),
        ("blue", {"snap_bytes": "9"}, "snap_bytes of 14 to 65600"),
        ("blue", {"drops_only": "x"}, "must be true or false"),
        ("blue", {"host": "host2"}, "peer_port = 0"),
    ],
)
def test_stream_that_can_not_be_is_refused(
    door: Doorway, target: str, query: dict[str, str], said: str
) -> None:
    client = ApiClient(door.run_dir)
    with (
        pytest.raises(RefusedError, match=said),
        client.stream("captures", target, "stream", **query),
    ):
        pass


def test_refusal_of_the_data_plane_is_passed_on(
    door: Doorway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(call: str, _: int) -> None:
        raise InvalidError(f"no {call} of this one")

    monkeypatch.setattr(door.dataplane, "refuse", refuse)
    client = ApiClient(door.run_dir)
    with (
        pytest.raises(RefusedError, match="no capture of this one"),
        client.stream("captures", "blue", "stream"),
    ):
        pass


def test_stream_says_who_captures_and_passes_messages_on_until_it_is_left(door: Doorway) -> None:
    client = ApiClient(door.run_dir)
    sent = message(record(FRAME))
    with client.stream("captures", "here", "stream", snap_bytes="99") as stream:
        blocks = stream.blocks(receive=False)
        while not blocks:
            blocks = stream.blocks()
        about = json.loads(blocks[0][1])
        assert (about["host"], about["hosts"][about["vtep"]]) == ("host1", "host1")
        request, end = door.dataplane.captures[0]
        assert (request.snap_bytes, request.drops_only) == (99, False)
        assert request.mac == door.do(door.node.service.find_endpoint("here")).mac
        end.send(sent)
        assert stream.blocks() == [("D", sent)]
    # Nothing is captured any more, and still the daemon sees that nobody reads.
    assert end.recv(1) == b""


def test_stream_tells_why_it_ended(door: Doorway) -> None:
    client = ApiClient(door.run_dir)
    with client.stream("captures", "blue", "stream") as stream:
        until(lambda: door.dataplane.captures)
        door.dataplane.captures[0][1].close()
        blocks = stream.blocks(receive=False)
        while not stream.ended:
            blocks += stream.blocks()
    kind, body = blocks[-1]
    assert (kind, json.loads(body)["error"]) == (
        "E",
        "the forwarder was replaced, and the capture has ended with it",
    )


def test_ending_all_captures_ends_a_stream(door: Doorway) -> None:
    client = ApiClient(door.run_dir)
    with client.stream("captures", "blue", "stream") as stream:
        until(lambda: door.dataplane.captures)

        async def end() -> None:
            door.capturing.end_all()
            await asyncio.sleep(0)

        door.do(end())
        blocks = stream.blocks(receive=False)
        while not stream.ended:
            blocks += stream.blocks()
    assert [kind for kind, _ in blocks] == ["J"]


# The command line


def feed(door: Doorway, *messages: bytes) -> threading.Thread:
    """Captures these once somebody asks."""

    def send() -> None:
        until(lambda: door.dataplane.captures)
        for content in messages:
            door.dataplane.captures[0][1].send(content)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_capture_prints_a_line_a_frame_in_order(
    door: Doorway, capsys: pytest.CaptureFixture[str]
) -> None:
    later = message(record(FRAME, time_ns=2_000_000_000, vtep="198.18.0.1"), worker=1, lost=5)
    earlier = message(record(FRAME, "dropped", reason="port_full", time_ns=1_000_001_000))
    feeding = feed(door, later, earlier)
    assert run_cli(["--run-dir", str(door.run_dir), "capture", "blue", "-c", "2"]) == 0
    feeding.join()
    printed, said = capsys.readouterr()
    first, second = printed.splitlines()
    assert re.search(r":01\.000001 host1 out [0-9a-f:]+ > .*: dropped: .* \(port_full\)$", first)
    assert re.search(r":02\.000000 host1 out .*: to host1 \(198\.18\.0\.1\)$", second)
    assert said.splitlines() == [
        "pyvxlan: capturing network blue on host1; Ctrl-C ends it",
        "pyvxlan: 2 frames, 5 lost: keep less of each (--snaplen)",
    ]


def test_capture_as_json_and_of_one_endpoint(
    door: Doorway, capsys: pytest.CaptureFixture[str]
) -> None:
    feeding = feed(door, message(record(FRAME, "delivered", ingress=True, vtep="198.18.0.2")))
    words = ["--run-dir", str(door.run_dir), "capture", "here", "-c", "1", "--format", "json"]
    assert run_cli(words) == 0
    feeding.join()
    printed, said = capsys.readouterr()
    seen = json.loads(printed)
    assert (seen["verdict"], seen["host"], seen["on"]) == ("delivered", "host2", "host1")
    assert "capturing endpoint here on network blue" in said


def test_interrupt_leaves_a_whole_file(door: Doorway, tmp_path: Path) -> None:
    path = tmp_path / "blue.pcapng"

    def interrupt() -> None:
        until(lambda: path.exists() and len(path.read_bytes()) > 400)
        os.kill(os.getpid(), signal.SIGINT)

    feeding = feed(door, message(record(FRAME), record(FRAME)))
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    assert run_cli(["--run-dir", str(door.run_dir), "capture", "blue", "-w", str(path)]) == 0
    feeding.join()
    interrupting.join()
    content = path.read_bytes()
    kinds = []
    while content:
        kind, length = struct.unpack_from("<II", content)
        kinds.append(kind)
        content = content[length:]
    assert kinds == [0x0A0D0D0A, 1, 6, 6, 5]


def test_drops_are_a_table_with_reasons_in_words(
    door: Doorway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vni = door.do(door.node.service.find_network("blue")).vni
    dropped = DroppedFrame(10**18, 3, "egress", "flood_empty", vni, None, 99, FRAME[:42])
    stray = DroppedFrame(10**18, 1, "ingress", "vxlan_flags", None, None, 40, b"")
    monkeypatch.setattr(door.dataplane, "drops", [dropped, stray])
    words = ["--run-dir", str(door.run_dir), "drops"]
    assert run_cli(words) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert re.search(r" 3 +blue +out +- +.*, 99 bytes +broadcast .* \(flood_empty\)$", first)
    assert re.search(r" 1 +- +in +- +40 bytes +no VXLAN", second)
    assert run_cli([*words, "blue", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert bytes.fromhex(found["headers"]) == FRAME[:42]
