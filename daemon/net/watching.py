"""Sockets that send a marked frame as a container would, and see where it passes.

A mark is 16 random bytes at the beginning of an ICMP echo's payload. A watcher is a packet socket
(packet(7)) with a filter in the kernel that lets nothing through but what has the mark's first four
bytes where they must be; so it costs others one comparison a frame, for as long as it is open.
Every function here works in the calling thread's network namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pyvxlan.daemon.model import Address

MARK_BYTES = 16
ECHO_BYTES = 8
"""Of an ICMP header before the payload (RFC 792, RFC 4443 section 4.1)."""
IP_BYTES = {4: 20, 6: 40}
FIRST_FULL = 100
"""Sequence numbers from here on mark echoes of full size."""
FRAME_BYTES = 2048

_ETHERNET, _UDP_VXLAN = 14, 16
_ECHO_TYPES = {8: "request", 0: "reply", 128: "request", 129: "reply"}
_REQUEST_TYPE = {4: 8, 6: 128}
_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_IP_MTU_DISCOVER, _IP_MTU, _IP_PMTUDISC_DO = 10, 14, 2
_IPV6_MTU_DISCOVER, _IPV6_MTU = 23, 24
# Instructions of the classic packet filter (linux/filter.h).
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")


@dataclass(frozen=True, slots=True)
class Echo:
    """What a watcher has seen: a request or a reply, of full size or small."""

    kind: str
    full: bool


def watch_link(name: str, mark: bytes) -> socket.socket:
    """Opens a watcher of the frames of one link; the caller closes it.

    Raises:
        OSError: ENODEV if there is no such link.
    """
    watcher = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        offsets = [_ETHERNET + size + ECHO_BYTES for size in IP_BYTES.values()]
        _let_through(watcher, mark, offsets)
        watcher.bind((name, _ETH_P_ALL))
    except BaseException:
        watcher.close()
        raise
    watcher.settimeout(0)
    return watcher


def watch_tunnels(mark: bytes) -> socket.socket:
    """Opens a watcher of the tunnels' datagrams on all links of the host; the caller closes it."""
    protocol = socket.htons(_ETH_P_ALL)
    watcher = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, protocol)
    inner = [_ETHERNET + size + ECHO_BYTES for size in IP_BYTES.values()]
    offsets = sorted({ip + _UDP_VXLAN + rest for ip in IP_BYTES.values() for rest in inner})
    try:
        _let_through(watcher, mark, offsets)
    except BaseException:
        watcher.close()
        raise
    watcher.settimeout(0)
    return watcher


def read_echoes(watcher: socket.socket, mark: bytes) -> list[Echo]:
    """Takes what a watcher has seen since; nothing more once its link is gone."""
    found: list[Echo] = []
    while True:
        try:
            frame = watcher.recv(FRAME_BYTES)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno == errno.ENETDOWN:  # Said once; frames come again when it is up.
                continue
            return found
        at = frame.find(mark)
        if at < ECHO_BYTES or frame[at - ECHO_BYTES] not in _ECHO_TYPES:
            continue
        full = int.from_bytes(frame[at - 2 : at], "big") >= FIRST_FULL
        found.append(Echo(_ECHO_TYPES[frame[at - ECHO_BYTES]], full))


def open_echo(address: Address) -> socket.socket:
    """Opens a socket that sends echo requests to an address, never in fragments.

    The caller closes it.

    Raises:
        OSError: ENETUNREACH if there is no way there.
    """
    if address.version == 4:
        echo = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        level, option = socket.IPPROTO_IP, _IP_MTU_DISCOVER
    else:
        echo = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        level, option = socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER
    try:
        echo.setsockopt(level, option, _IP_PMTUDISC_DO)
        echo.connect((str(address), 0))
    except BaseException:
        echo.close()
        raise
    echo.settimeout(0)
    return echo


def request(version: int, mark: bytes, number: int, size_bytes: int = 0) -> bytes:
    """Makes an echo request; with `size_bytes`, its IP packet has that size."""
    filler = max(0, size_bytes - IP_BYTES[version] - ECHO_BYTES - len(mark))
    body = mark + bytes(filler)
    head = struct.pack("!BBHHH", _REQUEST_TYPE[version], 0, 0, os.getpid() & 0xFFFF, number)
    if version == 6:
        return head + body  # The kernel computes this checksum (RFC 3542, section 3.1).
    return head[:2] + _checksum(head + body).to_bytes(2, "big") + head[4:] + body


def path_mtu(address: Address) -> int:
    """What the kernel takes for the largest packet that gets to an address; 0 without a way."""
    family, level, option = (
        (socket.AF_INET, socket.IPPROTO_IP, _IP_MTU)
        if address.version == 4
        else (socket.AF_INET6, socket.IPPROTO_IPV6, _IPV6_MTU)
    )
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
            known: int = probe.getsockopt(level, option)
        except OSError:
            return 0
    return known


def open_query(server: Address) -> socket.socket:
    """Opens a UDP socket to a name server; the caller closes it."""
    family = socket.AF_INET if server.version == 4 else socket.AF_INET6
    query = socket.socket(family, socket.SOCK_DGRAM)
    try:
        query.connect((str(server), 53))
    except BaseException:
        query.close()
        raise
    query.settimeout(0)
    return query


def _let_through(watcher: socket.socket, mark: bytes, offsets: Sequence[int]) -> None:
    """Lets only frames through that have the mark at one of the offsets, which ascend.

    A load from beyond the frame's end drops it, so that shorter ones have to be looked at first.
    """
    word = int.from_bytes(mark[:4], "big")
    program = b""
    for number, offset in enumerate(offsets):
        program += _INSTRUCTION.pack(_LOAD_WORD, 0, 0, offset)
        to_the_end = 2 * (len(offsets) - number) - 1
        program += _INSTRUCTION.pack(_JUMP_IF_EQUAL, to_the_end, 0, word)
    program += _INSTRUCTION.pack(_RETURN, 0, 0, 0) + _INSTRUCTION.pack(_RETURN, 0, 0, 0xFFFF)
    held = ctypes.create_string_buffer(program)
    count = len(program) // _INSTRUCTION.size
    # struct sock_fprog: how many instructions, and where they are.
    watcher.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", count, ctypes.addressof(held))
    )


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
