"""What crosses an interface: captures, and what tshark says of them."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from tests.netns.world import command


def capture(netns: str, ifname: str, path: Path, *options: object) -> subprocess.Popen[bytes]:
    """Starts tcpdump in a namespace, writing every frame to `path`; returns when it captures."""
    process = subprocess.Popen(
        [
            "nsenter",
            f"--net=/run/netns/{netns}",
            "tcpdump",
            "-Z",
            "root",
            "-i",
            ifname,
            "-U",
            "--immediate-mode",
            "-s",
            "0",
            "-w",
            str(path),
            *[str(word) for word in options],
        ],
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert b"listening" in line or b"tcpdump" in line, line
    return process


def end_capture(process: subprocess.Popen[bytes]) -> None:
    """Ends tcpdump after what is in flight was written."""
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    process.stderr.read()
    process.stderr.close()
    process.wait(10)


def tshark(path: Path, *fields: str, display: str = "", decode_port: int = 4789) -> list[list[str]]:
    """Dissects a capture: one list per packet with the values of `fields`, checksums checked."""
    words: list[str] = [
        "tshark",
        "-r",
        str(path),
        "-T",
        "fields",
        "-E",
        "separator=/t",
        "-E",
        "occurrence=a",
        "-o",
        "ip.check_checksum:TRUE",
        "-o",
        "tcp.check_checksum:TRUE",
        "-o",
        "udp.check_checksum:TRUE",
        "-d",
        f"udp.port=={decode_port},vxlan",
    ]
    for name in fields:
        words += ["-e", name]
    if display:
        words += ["-Y", display]
    printed = command(*words, timeout_s=120).stdout
    return [line.split("\t") for line in printed.splitlines()]


def offloads_off(*places: tuple[str, str]) -> None:
    """Turns an interface's offloads off, so that every frame on the wire is a real one."""
    for netns, ifname in places:
        command(
            "nsenter",
            f"--net=/run/netns/{netns}",
            "ethtool",
            "-K",
            ifname,
            "tso",
            "off",
            "gso",
            "off",
            "gro",
            "off",
            "tx",
            "off",
            "tx-udp_tnl-segmentation",
            "off",
            "tx-udp_tnl-csum-segmentation",
            "off",
            check=False,
        )
