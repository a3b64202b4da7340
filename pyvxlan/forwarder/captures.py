"""The captures that run, each for as long as the other end of its socket is open.

So one ends with its reader, whoever that is and however it goes: there is nothing to call.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import Protocol

from pyvxlan.forwarder.protocol import CaptureRequest

log = logging.getLogger(__name__)


class Capturing(Protocol):
    """What is asked of `pyvxlan._dataplane.Engine` for captures; see there for each method."""

    def begin_capture(
        self, vni: int, socket: int, *, mac: bytes | None, snap_bytes: int, drops_only: bool
    ) -> int:
        """Sends records to the peer of a socket, which it owns; gives a number."""

    def end_capture(self, number: int, /) -> None:
        """Ends a capture."""


@dataclass(frozen=True, slots=True)
class _Capture:
    engine: Capturing
    number: int


class Captures:
    """Watches our ends of the sockets: they become readable when the readers have gone."""

    def __init__(self) -> None:
        self._running: dict[int, _Capture] = {}

    def begin(self, engine: Capturing, request: CaptureRequest, end: int) -> None:
        """Begins a capture that sends to the peer of `end`, and takes ownership of that.

        Raises:
            ValueError: A value is out of range, or too many run; `end` stays the caller's.
        """
        number = engine.begin_capture(
            request.vni,
            os.dup(end),
            mac=request.mac,
            snap_bytes=request.snap_bytes,
            drops_only=request.drops_only,
        )
        self._running[end] = _Capture(engine, number)
        asyncio.get_running_loop().add_reader(end, self._end, end)
        log.info("capture begun number=%d vni=%d", number, request.vni)

    def close(self) -> None:
        """Ends all."""
        for end in tuple(self._running):
            self._end(end)

    def _end(self, end: int) -> None:
        asyncio.get_running_loop().remove_reader(end)
        capture = self._running.pop(end)
        os.close(end)
        capture.engine.end_capture(capture.number)
        log.info("capture ended number=%d", capture.number)
