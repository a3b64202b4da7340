"""`pyvxlan capture` and `pyvxlan drops`: what becomes of single frames."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from pyvxlan.daemon import cli_format
from pyvxlan.daemon.apiclient import ClientError, Stream
from pyvxlan.daemon.cli_options import client_of, examples, format_option, given, names_from
from pyvxlan.daemon.reasons import in_words

if TYPE_CHECKING:
    from pyvxlan import CapturedFrame
    from pyvxlan.daemon.captureview import Origin, Seen, View

STDOUT = 1
TICK_MS = 100
END_S = 0.2
SNAP_BYTES = 65_600
ALL = "all"


@click.command(
    epilog=examples("""
pyvxlan capture bbox1
pyvxlan capture ov_net1 --drops
pyvxlan capture ov_net1 -w ov_net1.pcapng --duration 10
pyvxlan capture ov_net1 --host all -w - | wireshark -k -i -
""")
)
@click.argument("target", callback=given, metavar="NETWORK|ENDPOINT",
                shell_complete=names_from("networks"))  # fmt: skip
@click.option("-w", "--write", "path", metavar="FILE", help="Write pcapng; - for stdout.")
@click.option("--host", "host_ref", default="", metavar="NAME", shell_complete=names_from("hosts"),
              help="On another host; all for every host that carries it.")  # fmt: skip
@click.option("--drops", is_flag=True, help="Only frames that are dropped.")
@click.option("-s", "--snaplen", type=click.IntRange(14, SNAP_BYTES), default=SNAP_BYTES,
              metavar="BYTES", help="Keep so much of each frame, else all.")  # fmt: skip
@click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="End after N frames.")
@click.option("--duration", "duration_s", type=click.FloatRange(0, min_open=True),
              metavar="SECONDS", help="End after so long.")  # fmt: skip
@format_option("text", "json")
@click.pass_context
def capture(
    ctx: click.Context,
    /,
    target: str,
    *,
    path: str | None,
    host_ref: str,
    drops: bool,
    snaplen: int,
    count: int | None,
    duration_s: float | None,
    kind: str,
) -> None:
    """Show frames as they pass the forwarder, and what becomes of each.

    Until Ctrl-C. Frames between two endpoints of one host do not pass it.
    """
    client = client_of(ctx)
    subject = client.get("captures", target)
    hosts = subject["hosts"] if host_ref == ALL else [host_ref]
    if not hosts:
        raise ClientError(f"no host carries {target}: it has no endpoint")
    query = {"snap_bytes": str(snaplen), "drops_only": "true" if drops else ""}
    with contextlib.ExitStack() as stack:
        view = stack.enter_context(_view(path, kind, snaplen))
        sources = []
        for host in hosts:
            asked_ns = time.time_ns()
            stream = client.stream("captures", target, "stream", host=host, **query)
            try:
                sources.append(_Source(stack.enter_context(stream), asked_ns))
            except ClientError as error:
                if host == hosts[-1] and not sources:
                    raise
                _say(f"without {host}: {error}")
        session = _Session(sources, view, stack.enter_context(_signals()), count)
        if path in {None, "-"}:
            session.output = STDOUT
        session.run(_what(subject), duration_s)


@click.command(epilog=examples("pyvxlan drops\npyvxlan drops ov_net1 --host host2"))
@click.argument("network", required=False, default="", metavar="[NETWORK]",
                shell_complete=names_from("networks"))  # fmt: skip
@click.option("--host", "host_ref", default="", metavar="NAME", shell_complete=names_from("hosts"),
              help="Of another host.")  # fmt: skip
@format_option("table", "json")
@click.pass_context
def drops(ctx: click.Context, /, network: str, host_ref: str, kind: str) -> None:
    """Show the last frames that were dropped, and why.

    Always remembered: up to 16 of each reason and forwarder thread, headers only. COUNT tells how
    many in a row were alike.
    """
    found = client_of(ctx).get("drops", network=network, host=host_ref)
    click.echo(cli_format.as_json(found) if kind == "json" else drops_table(found))


def drops_table(found: Sequence[Any]) -> str:
    """The table of `pyvxlan drops`."""
    from pyvxlan.daemon import framewords  # noqa: PLC0415 - not every command needs it

    def frame(one: Any) -> str:
        headers = bytes.fromhex(one["headers"])
        if not headers:
            return f"{one['frame_bytes']} bytes"
        return framewords.summary(headers, one["frame_bytes"], macs=True)

    return cli_format.table(
        ("LAST", "COUNT", "NETWORK", "WAY", "HOST", "FRAME", "WHY"),
        (
            (
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["time"])),
                str(one["count"]),
                one["network"] or ("" if one["vni"] is None else f"vni {one['vni']}"),
                "out" if one["direction"] == "egress" else "in",
                one["host"] or one["vtep"],
                frame(one),
                in_words(one["reason"]),
            )
            for one in found
        ),
    )


def _what(subject: Any) -> str:
    network, endpoint = subject["network"]["name"], subject["endpoint"]
    if endpoint is None:
        return f"network {network}"
    return f"endpoint {endpoint['name'] or cli_format.short(endpoint['id'])} on network {network}"


@contextlib.contextmanager
def _view(path: str | None, kind: str, snap_bytes: int) -> Iterator[View]:
    from pyvxlan.daemon.captureview import File, Json, Lines  # noqa: PLC0415 - see above

    if path is None:
        yield (Json if kind == "json" else Lines)(sys.stdout)
        return
    with contextlib.ExitStack() as stack:
        if path == "-":
            if sys.stdout.isatty():
                raise click.UsageError(
                    "a capture file is nothing for a terminal: pipe it, as to wireshark -k -i -"
                )
            file: BinaryIO = sys.stdout.buffer
        else:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            except OSError as error:
                raise ClientError(f"{path} can't be written: {error.strerror}") from error
            file = stack.enter_context(os.fdopen(descriptor, "wb"))
        yield File(file, snap_bytes)


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """Gives a socket that becomes readable with SIGINT or SIGTERM; a second one is as ever.

    So no block of a file is left half-written.
    """
    heard, told = socket.socketpair()
    with heard, told:
        told.setblocking(False)  # noqa: FBT003 - has no other form
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in numbers}

        def note(number: int, _: object) -> None:
            signal.signal(number, before[signal.Signals(number)])

        wakeup = signal.set_wakeup_fd(told.fileno())
        try:
            for number in numbers:
                signal.signal(number, note)
            yield heard
        finally:
            signal.set_wakeup_fd(wakeup)
            for number in numbers:
                signal.signal(number, before[number])


class _Source:
    """The stream of one host, which has told who it is."""

    def __init__(self, stream: Stream, asked_ns: int) -> None:
        from pyvxlan.daemon.captureview import Origin  # noqa: PLC0415 - see above

        self.stream = stream
        self.error = ""
        self._lost: dict[int, int] = {}
        self._blocks = stream.blocks(receive=False)
        while not self._blocks and not stream.ended:
            self._blocks = stream.blocks()
        if not self._blocks or self._blocks[0][0] != "J":
            raise ClientError("the daemon did not say what it captures: see its log")
        about = json.loads(self._blocks.pop(0)[1])
        answered_ns = time.time_ns()
        self.origin: Origin = Origin(
            about["host"],
            about["vtep"],
            about["hosts"],
            ahead_ns=about["time_ns"] - (asked_ns + answered_ns) // 2,
            ahead_within_ns=(answered_ns - asked_ns) // 2,
        )

    @property
    def lost(self) -> int:
        """Frames that were not captured, since the reader was too slow."""
        return sum(self._lost.values())

    def frames(self, *, receive: bool) -> list[CapturedFrame]:
        """Gives the frames that are there; at the end of the stream, notes why it ended."""
        from pyvxlan import parse_capture  # noqa: PLC0415 - see above

        frames: list[CapturedFrame] = []
        try:
            self._blocks += self.stream.blocks(receive=receive)
        except ConnectionResetError:
            self.stream.ended = True
        for kind, body in self._blocks:
            if kind == "E":
                self.error = json.loads(body)["error"]
                continue
            message = parse_capture(body)
            self._lost[message.worker] = message.lost
            frames += message.frames
        self._blocks.clear()
        if self.stream.ended and not self.error:
            self.error = f"the daemon that captured on {self.origin.name} has stopped"
        return frames


class _Session:
    """Reads from all sources until the end, whatever that is, and shows what comes.

    Attributes:
        output: A descriptor; if nobody reads from it any more, that is the end as well.
    """

    def __init__(
        self, sources: Sequence[_Source], view: View, stopping: socket.socket, count: int | None
    ) -> None:
        from pyvxlan.daemon.captureview import Merger  # noqa: PLC0415 - see above

        self._sources = sources
        self._view = view
        self._stopping = stopping
        self._left = count
        self._merger = Merger()
        self._shown = 0
        self._until_s = math.inf
        self.output = -1

    def run(self, what: str, duration_s: float | None) -> None:
        """Shows frames until a signal, the count, the time, or the end of all sources.

        Raises:
            ClientError: A source has ended by itself.
            BrokenPipeError: Whoever read our output has gone.
        """
        origins = [source.origin for source in self._sources]
        self._view.begin(what, origins)
        where = ", ".join(origin.name for origin in origins)
        _say(f"capturing {what} on {where}; Ctrl-C ends it")
        self._until_s = math.inf if duration_s is None else time.monotonic() + duration_s
        for number, source in enumerate(self._sources):
            self._merger.add(time.monotonic(), number, source.frames(receive=False))
        looked_s = 0.0
        while self._left != 0 and self._read():
            # Not after each of many messages: what waits is looked through.
            if (now_s := time.monotonic()) >= looked_s + TICK_MS / 1000:
                looked_s = now_s
                self._show(self._merger.take(now_s))
        self._show(self._merger.rest())
        lost = [source.lost for source in self._sources]
        self._view.end(lost)
        missed = f", {sum(lost)} lost: keep less of each (--snaplen)" if sum(lost) else ""
        _say(f"{self._shown} frames{missed}")
        if errors := [source.error for source in self._sources if source.error]:
            raise ClientError("; ".join(errors))

    def _read(self) -> bool:
        """Waits a moment for frames and takes them; False at the end."""
        poll = select.poll()
        poll.register(self._stopping, select.POLLIN)
        if self.output >= 0:
            poll.register(self.output, 0)
        numbers = {}
        for number, source in enumerate(self._sources):
            if not source.stream.ended:
                poll.register(source.stream, select.POLLIN)
                numbers[source.stream.fileno()] = number
        for descriptor, event in poll.poll(TICK_MS):
            if descriptor == self._stopping.fileno():
                self._stopping.recv(1)
                # What is on its way here still counts.
                self._until_s = min(self._until_s, time.monotonic() + END_S)
                continue
            if descriptor == self.output:
                if event & select.POLLERR:
                    raise BrokenPipeError
                continue
            number = numbers[descriptor]
            frames = self._sources[number].frames(receive=True)
            self._merger.add(time.monotonic(), number, frames)
        going = any(not source.stream.ended for source in self._sources)
        return going and time.monotonic() < self._until_s

    def _show(self, frames: list[Seen]) -> None:
        if self._left is not None:
            frames = frames[: self._left]
            self._left -= len(frames)
        self._view.show(frames)
        self._shown += len(frames)


def _say(text: str) -> None:
    print(f"pyvxlan: {text}", file=sys.stderr, flush=True)
