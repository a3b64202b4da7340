"""What a capture becomes for who asked for it: a pcapng file, lines of text, or JSON.

Frames of several workers and hosts come in turns; `Merger` brings them into the order of time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TextIO, TypeAlias

from pyvxlan import CapturedFrame, __version__, format_mac
from pyvxlan.daemon import framewords, pcapng

HOLD_S = 0.2
"""How long a frame waits for earlier ones of other workers and hosts."""

Seen: TypeAlias = tuple[int, CapturedFrame]
"""The number of the host that saw it, and the frame."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A host that captures: its name, the names of all by VTEP, and how far its clock is ahead."""

    name: str
    vtep: str
    hosts: Mapping[str, str]
    ahead_ns: int
    ahead_within_ns: int


class Merger:
    """Orders frames by time, as far as they come within `HOLD_S` of each other."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, Seen]] = []

    def add(self, now_s: float, host: int, frames: Sequence[CapturedFrame]) -> None:
        """Takes frames that came now."""
        self._waiting += [(now_s, (host, frame)) for frame in frames]

    def take(self, now_s: float) -> list[Seen]:
        """Gives those that have waited long enough, and what is earlier than they are."""
        due = [seen[1].time_ns for came_s, seen in self._waiting if came_s <= now_s - HOLD_S]
        if not due:
            return []
        latest_ns = max(due)
        found = [seen for _, seen in self._waiting if seen[1].time_ns <= latest_ns]
        self._waiting = [entry for entry in self._waiting if entry[1][1].time_ns > latest_ns]
        return sorted(found, key=_time)

    def rest(self) -> list[Seen]:
        """Gives all that wait."""
        found = [seen for _, seen in self._waiting]
        self._waiting.clear()
        return sorted(found, key=_time)


def _time(seen: Seen) -> int:
    return seen[1].time_ns


class View(Protocol):
    """Shows frames. `lost` is by host, since the capture began."""

    def begin(self, what: str, origins: Sequence[Origin]) -> None:
        """Begins; `what` says what is captured."""

    def show(self, frames: Sequence[Seen]) -> None:
        """Shows frames at once."""

    def end(self, lost: Sequence[int]) -> None:
        """Ends."""


class File:
    """Writes pcapng: an interface per host, a verdict as each frame's comment."""

    def __init__(self, file: BinaryIO, snap_bytes: int) -> None:
        self._file = file
        self._snap_bytes = snap_bytes
        self._origins: Sequence[Origin] = ()
        self._received: list[int] = []

    def begin(self, what: str, origins: Sequence[Origin]) -> None:
        """Writes section and interfaces; a comment tells the clocks' offsets."""
        self._origins = origins
        self._received = [0] * len(origins)
        clocks = [_clock(origin, origins[0]) for origin in origins[1:]]
        comment = "\n".join((f"pyvxlan capture of {what}", *clocks))
        blocks = [pcapng.section(f"pyvxlan {__version__}", comment)]
        for origin in origins:
            about = f"{what}, as the forwarder of {origin.name} (VTEP {origin.vtep}) sees it"
            blocks.append(pcapng.interface(f"vxlan0@{origin.name}", about, self._snap_bytes))
        self._write(blocks)

    def show(self, frames: Sequence[Seen]) -> None:
        """Writes frames."""
        blocks = []
        for host, frame in frames:
            self._received[host] += 1
            blocks.append(
                pcapng.packet(
                    host,
                    frame.time_ns,
                    frame.data,
                    frame.frame_bytes,
                    inbound=frame.direction == "ingress",
                    comment=framewords.verdict(frame, self._origins[host].hosts),
                )
            )
        self._write(blocks)

    def end(self, lost: Sequence[int]) -> None:
        """Writes how many frames each host saw and lost."""
        now_ns = time.time_ns()
        self._write(
            [
                pcapng.statistics(host, now_ns, received=self._received[host] + count, lost=count)
                for host, count in enumerate(lost)
            ]
        )

    def _write(self, blocks: Sequence[bytes]) -> None:
        self._file.write(b"".join(blocks))
        self._file.flush()


class Lines:
    """Prints a line a frame."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._origins: Sequence[Origin] = ()

    def begin(self, what: str, origins: Sequence[Origin]) -> None:
        """Nothing: lines speak for themselves."""
        self._origins = origins

    def show(self, frames: Sequence[Seen]) -> None:
        """Prints frames."""
        for host, frame in frames:
            print(self._line(self._origins[host], frame), file=self._out)
        self._out.flush()

    def end(self, lost: Sequence[int]) -> None:
        """Nothing: the command line tells of losses."""

    def _line(self, origin: Origin, frame: CapturedFrame) -> str:
        seconds, rest_ns = divmod(frame.time_ns, 1_000_000_000)
        clock = time.strftime("%H:%M:%S", time.localtime(seconds))
        way = "out" if frame.direction == "egress" else "in "
        # It is often about a MAC.
        macs = frame.verdict == "dropped"
        what = framewords.summary(frame.data, frame.frame_bytes, macs=macs)
        fate = framewords.verdict(frame, origin.hosts)
        return f"{clock}.{rest_ns // 1000:06} {origin.name} {way} {what}: {fate}"


class Json(Lines):
    """Prints an object a frame, without its bytes."""

    def _line(self, origin: Origin, frame: CapturedFrame) -> str:
        document: dict[str, Any] = {
            "time": frame.time_ns / 1e9,
            "on": origin.name,
            "direction": frame.direction,
            "verdict": frame.verdict,
            "reason": frame.reason,
            "copies": frame.copies,
            "vtep": "" if frame.vtep is None else str(frame.vtep),
            "host": origin.hosts.get(str(frame.vtep), ""),
            "frames": frame.frames,
            "frame_bytes": frame.frame_bytes,
            "source": format_mac(frame.data[6:12]),
            "destination": format_mac(frame.data[:6]),
            "summary": framewords.summary(frame.data, frame.frame_bytes),
        }
        return json.dumps(document)


def _clock(origin: Origin, first: Origin) -> str:
    ahead_ms = (origin.ahead_ns - first.ahead_ns) / 1e6
    within_ms = (origin.ahead_within_ns + first.ahead_within_ns) / 1e6
    way = "ahead of" if ahead_ms >= 0 else "behind"
    return (
        f"the clock of {origin.name} is {abs(ahead_ms):.1f} ms {way} that of {first.name}, within "
        f"{within_ms:.1f} ms; times are not corrected"
    )
