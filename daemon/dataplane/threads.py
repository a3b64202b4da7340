"""What kernel and forwarder tell of its threads and sockets; costs them nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SO_MEMINFO = 55
"""asm-generic/socket.h; Linux 4.12 or later. Nine u32, in the order of linux/sock_diag.h."""
_MEMINFO = struct.Struct("9I")
UDP_GRO = 104
"""linux/udp.h; Linux 5.0 or later."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_THREAD = "vxlan-"
"""Worker N is the thread `vxlan-N`."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One thread of the forwarder: what it has spent, and what waits in its receiving socket.

    `cpu_s` holds what it spent on looking for work; `idle_s` is all time without work. Bytes are of
    kernel memory, which is more than what the datagrams hold. `segment` and `gro` tell which
    offloads are in use: whether the kernel cuts what it sends, and joins what it receives.
    """

    number: int
    cpu_s: float
    idle_s: float
    queue_bytes: int
    queue_limit_bytes: int
    segment: bool
    gro: bool


def read_workers(
    pid: int, sockets: Sequence[int], idle_s: Sequence[float], segmentation: Sequence[bool]
) -> tuple[Worker, ...]:
    """Reads the workers of a forwarder, in order; none of one that is gone.

    Args:
        pid: The forwarder's.
        sockets: Those that its workers receive from.
        idle_s: What it says of each worker; one of which it says nothing is left out.
        segmentation: As well, as long.
    """
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            name, _, fields = (task / "stat").read_text("utf-8").rpartition(")")
            number = name.partition(f"({_THREAD}")[2]
            if not number.isdecimal() or int(number) >= min(len(sockets), len(idle_s)):
                continue
            # proc_pid_stat(5): fields 14 and 15 are utime and stime; `fields` begin with the third.
            ticks = sum(map(int, fields.split()[11:13]))
            index = int(number)
            with socket.socket(fileno=os.dup(sockets[index])) as sock:
                queued, limit = _memory(sock)
                found.append(
                    Worker(
                        number=index,
                        cpu_s=ticks / _TICKS_PER_S,
                        idle_s=idle_s[index],
                        queue_bytes=queued,
                        queue_limit_bytes=limit,
                        segment=segmentation[index],
                        gro=_is_joined(sock),
                    )
                )
    return tuple(sorted(found, key=lambda worker: worker.number))


def _memory(sock: socket.socket) -> tuple[int, int]:
    """Bytes in a socket's receive queue, and how many there can be."""
    raw = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
    queued, limit, *_ = _MEMINFO.unpack(raw)
    return queued, limit


def _is_joined(sock: socket.socket) -> bool:
    """Whether the kernel joins datagrams for a socket; a kernel that can't says so by refusing."""
    with contextlib.suppress(OSError):
        return bool(sock.getsockopt(socket.IPPROTO_UDP, UDP_GRO))
    return False
