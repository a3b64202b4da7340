"""`pyvxlan capture` and `pyvxlan drops` with real hosts; tshark reads every file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.netns.captures import tshark
from tests.netns.world import Container, Host, World, command, eventually

pytestmark = pytest.mark.root

NETWORK = "ov_seen"
NOBODY = "02:42:ac:99:99:99"


@dataclass
class Stage:
    """Two containers on two hosts, which reach each other."""

    world: World
    one: Container
    two: Container
    there: str
    """Address of the second container."""

    @property
    def host(self) -> Host:
        return self.world[1]

    def ping(self, count: int = 3) -> None:
        assert self.one.ping(self.there, count=count, interval_s=0.02) == count

    def send_to_nobody(self, count: int = 3) -> None:
        """Sends frames to a MAC that no endpoint has."""
        self.one.run("ip", "neigh", "replace", "10.9.9.9", "lladdr", NOBODY, "dev", "eth0")
        self.one.run("ip", "route", "replace", "10.9.9.9/32", "dev", "eth0")
        with self.one.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(count):
                sock.sendto(b"a secret that nobody shall keep", ("10.9.9.9", 4242))


@pytest.fixture(scope="module")
def stage(two_hosts: World) -> Iterator[Stage]:
    two_hosts[1].cli("network", "create", NETWORK)
    one, two = two_hosts[1].container("seen1"), two_hosts[2].container("seen2")
    one.attach(NETWORK, "--name", "seen1")
    two.attach(NETWORK, "--name", "seen2")
    there = two.addresses()[0].split("/")[0]
    eventually(lambda: one.ping(there, count=1), what="the containers reach each other")
    yield Stage(two_hosts, one, two, there)
    one.detach()
    two.detach()
    two_hosts[1].cli("network", "rm", NETWORK)


@contextlib.contextmanager
def capturing(host: Host, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A capture that has begun; it is killed if the test has not ended it."""
    process = subprocess.Popen(
        [str(host.programs / "pyvxlan"), "--run-dir", host.run_dir, "capture", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "Ctrl-C ends it" in said, said + process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], within_s: float = 20) -> tuple[str, str]:
    """What a capture printed, after Ctrl-C unless it ended by itself."""
    printed, said = process.communicate(timeout=within_s)
    assert process.returncode == 0, said
    return printed, said


def printed_until(process: subprocess.Popen[str], *patterns: str) -> str:
    """What a capture has printed by the time that all patterns are in it; then it is ended."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    os.set_blocking(descriptor, False)
    printed = ""

    def found() -> bool:
        nonlocal printed
        with contextlib.suppress(BlockingIOError):
            printed += os.read(descriptor, 1 << 16).decode()
        return all(re.search(pattern, printed) for pattern in patterns)

    eventually(found, within_s=20, what=f"{patterns} printed")
    process.send_signal(signal.SIGINT)
    return printed + ended(process)[0]


def captures(host: Host) -> int:
    """How many captures run in a host's forwarder, which logs both ends of each."""
    log = (host.run_dir / "forwarder.log").read_text()
    return log.count("capture begun") - log.count("capture ended")


def test_file_holds_each_frame_with_its_verdict(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "seen.pcapng"
    with capturing(stage.host, NETWORK, "-w", path) as process:
        stage.ping()
        stage.send_to_nobody()
        eventually(
            lambda: len(tshark(path, "frame.number", display="udp.dstport == 4242")) == 3,
            within_s=20,
        )
        process.send_signal(signal.SIGINT)
        _, said = ended(process)
    assert re.fullmatch(r"pyvxlan: \d+ frames\n", said)
    assert path.stat().st_mode & 0o777 == 0o600
    fields = ("frame.comment", "frame.packet_flags_direction", "frame.interface_name")
    requests = tshark(path, *fields, display="icmp.type == 8")
    assert requests == [["to h2 (198.18.0.2)", "0x00000002", "vxlan0@h1"]] * 3
    replies = tshark(path, *fields, display="icmp.type == 0")
    assert replies == [["delivered, from h2 (198.18.0.2)", "0x00000001", "vxlan0@h1"]] * 3
    lost = tshark(path, "frame.comment", display="udp.dstport == 4242")
    assert (
        lost
        == [["dropped: no endpoint of another host has its destination MAC (destination_unknown)"]]
        * 3
    )
    times = [float(time) for (time,) in tshark(path, "frame.time_epoch")]
    assert times == sorted(times)
    assert captures(stage.host) == 0


def test_arp_is_answered_here_and_says_so(stage: Stage) -> None:
    stage.one.run("ip", "neigh", "flush", "dev", "eth0")
    with capturing(stage.host, "seen1") as process:
        stage.ping(1)
        printed_until(
            process,
            r" h1 out ARP who has .*: answered on this host\n",
            r" h1 in  ARP .* is at .*: answer made on this host\n",
        )


def test_super_frame_is_one_line_that_says_what_it_stands_for(stage: Stage) -> None:
    with (
        capturing(stage.host, NETWORK, "--format", "json", "-s", 64) as process,
        stage.two.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
        stage.one.socket(socket.AF_INET, socket.SOCK_STREAM) as sender,
    ):
        listener.bind((stage.there, 5001))
        listener.listen()
        sender.connect((stage.there, 5001))
        taken, _ = listener.accept()
        with taken:
            sender.sendall(bytes(200_000))
            left = 200_000
            while left:
                left -= len(taken.recv(left))
        printed = printed_until(process, r'"forwarded".*"frames": ([2-9]|\d\d)')
    seen = [json.loads(line) for line in printed.splitlines()]
    sent = [one for one in seen if one["verdict"] == "forwarded"]
    assert max(one["frame_bytes"] for one in sent) > 1500


def test_capture_ends_by_count_and_by_time(stage: Stage) -> None:
    with capturing(stage.host, NETWORK, "-c", 2) as process:
        stage.ping(5)
        printed, said = ended(process)
    assert len(printed.splitlines()) == 2
    assert "2 frames" in said
    with capturing(stage.host, NETWORK, "--duration", 0.3, "--drops") as process:
        stage.ping(1)
        printed, _ = ended(process)
    assert printed == ""


def test_pipe_gets_a_capture_and_its_end_ends_it(stage: Stage) -> None:
    with capturing(stage.host, NETWORK, "-w", "-") as process:
        assert process.stdout is not None
        stage.ping(1)
        assert os.read(process.stdout.fileno(), 4) == b"\x0a\x0d\x0d\x0a"
        process.stdout.close()
        # Nothing is captured any more, and still it sees that nobody reads.
        assert process.wait(20) == 141
    eventually(lambda: captures(stage.host) == 0)


def test_command_line_that_is_killed_leaves_no_capture_behind(stage: Stage) -> None:
    with capturing(stage.host, NETWORK), capturing(stage.host, "seen1") as second:
        assert captures(stage.host) == 2
        second.kill()
        eventually(lambda: captures(stage.host) == 1)
    eventually(lambda: captures(stage.host) == 0)


def test_hosts_are_merged_by_time_and_their_clocks_compared(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "both.pcapng"
    with capturing(stage.host, NETWORK, "--host", "all", "-w", path) as process:
        stage.ping(2)
        # A frame of each host that comes after all pings have.
        eventually(lambda: len(tshark(path, "frame.number", display="icmp")) == 8, within_s=20)
        process.send_signal(signal.SIGINT)
        ended(process)
    shown = tshark(path, "frame.interface_name", "frame.comment", display="icmp")
    assert (
        shown
        == [
            ["vxlan0@h1", "to h2 (198.18.0.2)"],
            ["vxlan0@h2", "delivered, from h1 (198.18.0.1)"],
            ["vxlan0@h2", "to h1 (198.18.0.1)"],
            ["vxlan0@h1", "delivered, from h2 (198.18.0.2)"],
        ]
        * 2
    )
    about = command("capinfos", path).stdout
    assert re.search(r"the clock of h2 is [\d.]+ ms (ahead of|behind) that of h1, within", about)


def test_capture_on_another_host_is_of_that_host(stage: Stage) -> None:
    with capturing(stage.host, "seen2", "--host", "h2") as process:
        stage.ping(1)
        printed_until(process, r" h2 in  .* ICMP echo request, .*: delivered, from h1 ")


def test_daemon_that_is_killed_leaves_no_capture_in_the_forwarder(stage: Stage) -> None:
    with capturing(stage.host, NETWORK) as process:
        stage.host.stop(signal.SIGKILL)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "has stopped" in said
    eventually(lambda: captures(stage.host) == 0)
    stage.host.start()
    stage.ping()


def test_dropped_frames_are_remembered_without_payload(stage: Stage) -> None:
    stage.send_to_nobody(5)
    seen = eventually(
        lambda: [
            drop
            for drop in json.loads(stage.host.cli("drops", NETWORK, "--format", "json"))
            if drop["reason"] == "destination_unknown"
        ]
    )
    assert sum(drop["count"] for drop in seen) >= 5
    frame = bytes.fromhex(seen[-1]["headers"])
    assert frame[:6].hex(":") == NOBODY
    assert len(frame) == 42
    assert seen[-1]["frame_bytes"] == 42 + len(b"a secret that nobody shall keep")
    printed = stage.host.cli("drops")
    assert re.search(rf"{NETWORK} +out .* > {NOBODY} .*:4242 UDP, .*no endpoint", printed)


def test_what_can_not_be_captured_is_refused_in_words(stage: Stage, tmp_path: Path) -> None:
    host = stage.host
    assert "is no network and no endpoint" in host.refused("capture", "nothing")
    host.cli("network", "create", "ov_unused")
    assert "no endpoint on h1" in host.refused("capture", "ov_unused")
    assert "no host carries" in host.refused("capture", "ov_unused", "--host", "all")
    assert "is no host" in host.refused("capture", NETWORK, "--host", "h9")
    host.cli("network", "rm", "ov_unused")
    file = tmp_path / "nowhere" / "x.pcapng"
    assert "can't be written" in host.refused("capture", NETWORK, "-w", file)
    host.cli("network", "create", "-o", "datapath=kernel", "ov_kernel")
    one = host.container()
    one.attach("ov_kernel")
    assert "datapath=kernel" in host.refused("capture", "ov_kernel")
    one.detach()
    host.cli("network", "rm", "ov_kernel")
