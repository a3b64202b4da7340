"""How a daemon speaks with the forwarder: one connection, typed calls, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

from pyvxlan.capture import DroppedFrame, dropped_frame
from pyvxlan.errors import ForwarderLostError, ForwarderRefusedError
from pyvxlan.forwarder.channel import Channel, close_descriptors
from pyvxlan.forwarder.protocol import (
    Attachment,
    CaptureRequest,
    Event,
    Hello,
    Message,
    NetworkState,
    ProtocolError,
    TableUpdate,
    expect,
    expect_items,
    expect_list,
    expect_map,
)

_EVENTS_KEPT = 1024

Counters: TypeAlias = Mapping[str, int | Mapping[str, int]]
"""Counters by name; drops are a map by reason."""


@dataclass(frozen=True, slots=True)
class PortDescriptors:
    """Descriptors of one port; who holds this closes them."""

    queues: tuple[int, ...]
    netns: int

    def close(self) -> None:
        """Closes all."""
        close_descriptors((*self.queues, self.netns))


@dataclass(frozen=True, slots=True)
class Handover:
    """All that a successor needs: give `underlay` to `configure`, each port to `attach`.

    Who holds this closes the descriptors, with `close`.
    """

    hello: Hello
    underlay: tuple[int, ...]
    networks: Mapping[int, NetworkState]
    ports: Mapping[int, PortDescriptors]

    def close(self) -> None:
        """Closes all descriptors."""
        close_descriptors(self.underlay)
        for port in self.ports.values():
            port.close()


@dataclass(frozen=True, slots=True)
class ForwarderStats:
    """Counters under the engine's names; `vteps` and `tunnels` by address, as text.

    `networks` are by VNI, `idle_s` and `segmentation` by worker. See `pyvxlan.Stats` for each.
    """

    workers: int
    idle_s: tuple[float, ...]
    segmentation: tuple[bool, ...]
    underlay: Counters
    networks: Mapping[int, Counters]
    vteps: Mapping[str, Counters]
    tunnels: Mapping[str, Counters]


class ForwarderClient:
    """One connection to a forwarder. Calls may overlap; answers find their caller.

    Every call raises ForwarderLostError if the connection is gone or no answer comes within
    `timeout_s`, ForwarderRefusedError if the forwarder says no, and ProtocolError if its answer
    makes no sense. Descriptors passed in stay the caller's; those that come back are the caller's
    to close.
    """

    def __init__(self, sock: socket.socket, *, timeout_s: float = 10.0) -> None:
        """Takes ownership of a connected Unix stream socket. Needs a running loop."""
        self._channel = Channel(sock)
        self._timeout_s = timeout_s
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._events: deque[Event] = deque(maxlen=_EVENTS_KEPT)
        self._changed = asyncio.Event()
        self._lost: ForwarderLostError | None = None
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, path: str | Path, *, timeout_s: float = 10.0) -> Self:
        """Connects to a forwarder's socket.

        Raises:
            ForwarderLostError: Nobody listens there, or not within `timeout_s`.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(0)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, str(path))
        except OSError as error:  # TimeoutError is one
            sock.close()
            raise ForwarderLostError(f"no forwarder listens on {path}: {error}") from error
        except BaseException:
            sock.close()
            raise
        return cls(sock, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._lost is None

    async def close(self) -> None:
        """Closes the connection. The forwarder goes on. May be repeated."""
        self._end("closed here")
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def wait_lost(self) -> None:
        """Returns when the connection is gone."""
        await asyncio.wait([self._reader])

    async def next_event(self) -> Event:
        """Waits for the next event. Of those that nobody takes, the last 1024 stay.

        An event says that something happened, not all that did: after a reconnect, `dump` tells.

        Raises:
            ForwarderLostError: The connection is gone.
        """
        while not self._events:
            if self._lost is not None:
                raise ForwarderLostError(str(self._lost))
            self._changed.clear()
            await self._changed.wait()
        return self._events.popleft()

    async def hello(self) -> Hello:
        """Asks who the forwarder is."""
        return Hello.from_wire(await self._ask("hello"))

    async def configure(
        self, underlay: Sequence[int], workers: int, address: str, port: int
    ) -> None:
        """Starts the engine on the descriptors of `open_underlay`; `address` is the VTEP's.

        It forwards nothing before `resume`. Refused (`state`) if there is an engine already.
        """
        await self._ask("configure", address, port, workers, descriptors=underlay)

    async def resume(self) -> None:
        """Lets the engine begin; to be called when ports and tables are as they should be.

        What the kernel has queued for it until then is not lost. May be repeated.
        """
        await self._ask("resume")

    async def switch_segmentation(self, *, on: bool) -> None:
        """Lets the kernel cut datagrams for the engine (UDP_SEGMENT), or not; at first it does."""
        await self._ask("segmentation", on)

    async def attach(self, settings: Attachment, queues: Sequence[int], netns: int) -> None:
        """Forwards for a VNI. One that is attached gets the new port and keeps its tables.

        If somebody else carries its frames there are no queues, and it is only kept.

        `netns` is a descriptor of the port's namespace, kept for `netns` to give back.
        """
        await self._ask("attach", *settings.to_wire(), descriptors=(*queues, netns))

    async def detach(self, vni: int) -> None:
        """Stops forwarding for a VNI. One that is not attached is no error."""
        await self._ask("detach", vni)

    async def update(self, updates: Iterable[TableUpdate]) -> None:
        """Changes tables; each update wholly or not at all.

        Raises:
            ForwarderRefusedError: Some updates are invalid; the text names their VNIs and
                causes. The others are applied.
        """
        result = await self._ask("update", [update.to_wire() for update in updates])
        refused = []
        for item in expect(result, list, "result of update"):
            vni, text = expect_list(item, 2, "refused update")
            refused.append(f"vni {expect(vni, int, 'vni')}: {expect(text, str, 'cause')}")
        if refused:
            raise ForwarderRefusedError("invalid", "; ".join(refused))

    async def probe(self, interval_ms: int, tunnels: Mapping[str, int]) -> None:
        """Replaces the VTEPs that are probed, each with the largest MTU of the shared networks.

        With an interval of 0 they are answered only.
        """
        await self._ask("probe", interval_ms, dict(tunnels))

    async def dump(self) -> dict[int, NetworkState]:
        """Reads back, by VNI, all that is attached."""
        networks: dict[int, NetworkState] = {}
        after, more = -1, True
        while more:
            page, left = expect_list(await self._ask("dump", after), 2, "page")
            more = expect(left, bool, "more")
            for item in expect(page, list, "networks"):
                state = NetworkState.from_wire(item)
                if state.port.vni <= after:
                    raise ProtocolError(f"networks are not in order of VNI after {after}")
                after = state.port.vni
                networks[after] = state
            if more and not page:
                raise ProtocolError("a page is empty, and yet not the last")
        return networks

    async def stats(self) -> ForwarderStats:
        """Reads all counters. Refused (`state`) before `configure`."""
        answer = expect_map(await self._ask("stats"), str, object, "stats")
        networks = {}
        for item in expect(answer.get("networks"), list, "networks"):
            vni, counters = expect_list(item, 2, "network")
            networks[expect(vni, int, "vni")] = _counters(counters)
        return ForwarderStats(
            workers=expect(answer.get("workers"), int, "workers"),
            idle_s=tuple(expect_items(answer.get("idle_s", []), float, "idle_s")),
            segmentation=tuple(expect_items(answer.get("segmentation"), bool, "segmentation")),
            underlay=_counters(answer.get("underlay")),
            networks=networks,
            # A forwarder of a version before this one lacks what is optional, until it is replaced.
            vteps=_by_vtep(answer.get("vteps", [])),
            tunnels=_by_vtep(answer.get("tunnels", [])),
        )

    async def capture(self, request: CaptureRequest, sock: int) -> None:
        """Begins a capture, whose messages go to the peer of `sock` (`capture_sockets`).

        It ends when that peer is closed, by whatever: there is no other way, and none is needed.
        """
        await self._ask("capture", *request.to_wire(), descriptors=(sock,))

    async def recent_drops(self) -> list[DroppedFrame]:
        """Gives the last dropped frames, the oldest first. Refused (`state`) before `configure`."""
        answer = expect(await self._ask("drops"), list, "drops")
        return [_dropped(item) for item in answer]

    async def netns(self, vni: int) -> int:
        """Gives a new descriptor of the namespace that came with `attach`."""
        netns, *others = await self._ask_descriptors("netns", vni, at_least=1)
        close_descriptors(others)
        return netns

    async def underlay(self) -> tuple[int, ...]:
        """Gives new descriptors of the underlay sockets; none before `configure`."""
        return await self._ask_descriptors("descriptors", None, at_least=0)

    async def port(self, vni: int) -> PortDescriptors:
        """Gives new descriptors of a port; no queues if it is only kept."""
        *queues, netns = await self._ask_descriptors("descriptors", vni, at_least=1)
        return PortDescriptors(tuple(queues), netns)

    async def handover(self) -> Handover:
        """Gives all state with all descriptors, while the forwarder goes on with them."""
        with contextlib.ExitStack() as undo:
            hello = await self.hello()
            underlay = await self.underlay()
            undo.callback(close_descriptors, underlay)
            networks = await self.dump()
            ports = {}
            for vni in networks:
                ports[vni] = await self.port(vni)
                undo.callback(ports[vni].close)
            undo.pop_all()
        return Handover(hello, underlay, networks, ports)

    async def shutdown(self) -> None:
        """Ends the forwarder, and with it all forwarding; returns once it has let go."""
        await self._ask("shutdown")
        async with asyncio.timeout(self._timeout_s):
            await self.wait_lost()

    async def _ask(
        self, method: str, *arguments: object, descriptors: Sequence[int] = ()
    ) -> object:
        answer = await self._request(method, arguments, descriptors)
        close_descriptors(answer.descriptors)
        return answer.body

    async def _ask_descriptors(
        self, method: str, argument: object, *, at_least: int
    ) -> tuple[int, ...]:
        answer = await self._request(method, (argument,), ())
        if len(answer.descriptors) < at_least:
            close_descriptors(answer.descriptors)
            raise ForwarderLostError(f"answer to {method} came without its descriptors")
        return answer.descriptors

    async def _request(
        self, method: str, arguments: Sequence[object], descriptors: Sequence[int]
    ) -> Message:
        if self._lost is not None:
            raise ForwarderLostError(str(self._lost))
        request = Message(next(self._ids), method, list(arguments), tuple(descriptors))
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._exchange(request)
        except TimeoutError as error:
            self._end(f"no answer to {method} within {self._timeout_s:g} s")
            raise ForwarderLostError(str(self._lost)) from error
        except OSError as error:
            self._end(f"{method} could not be sent: {error}")
            raise ForwarderLostError(str(self._lost)) from error
        if answer.head is not None:
            close_descriptors(answer.descriptors)
            kind, text, errno = expect_list(answer.head, 3, "error")
            raise ForwarderRefusedError(
                expect(kind, str, "kind"),
                expect(text, str, "text"),
                None if errno is None else expect(errno, int, "errno"),
            )
        return answer

    async def _exchange(self, request: Message) -> Message:
        waiting: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = waiting
        try:
            await self._channel.send(request)
            return await waiting
        except BaseException:
            # Cancelled in the instant of the answer: nobody else will close what it brought.
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                close_descriptors(waiting.result().descriptors)
            raise
        finally:
            self._waiting.pop(request.id, None)

    async def _read(self) -> None:
        """Takes answers and events until the connection is gone."""
        try:
            while (message := await self._channel.receive()) is not None:
                if message.id == 0:
                    close_descriptors(message.descriptors)
                    self._events.append(Event.from_wire(message.body))
                    self._changed.set()
                    continue
                waiting = self._waiting.pop(message.id, None)
                if waiting is None or waiting.done():  # its caller gave up
                    close_descriptors(message.descriptors)
                else:
                    waiting.set_result(message)
            self._end("the forwarder closed it")
        except (ProtocolError, OSError) as error:
            self._end(str(error))

    def _end(self, cause: str) -> None:
        if self._lost is not None:
            return
        self._lost = ForwarderLostError(f"connection to the forwarder is gone: {cause}")
        self._channel.close()
        self._changed.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ForwarderLostError(str(self._lost)))


def _dropped(value: object) -> DroppedFrame:
    """Reads a dropped frame from the wire, or raises ProtocolError."""
    time_ns, count, direction, reason, vni, vtep, frame_bytes, headers = expect_list(
        value, 8, "dropped frame"
    )
    fields = (
        expect(time_ns, int, "time_ns"),
        expect(count, int, "count"),
        expect(direction, str, "direction"),
        expect(reason, str, "reason"),
        None if vni is None else expect(vni, int, "vni"),
        expect(vtep, str, "vtep"),
        expect(frame_bytes, int, "frame_bytes"),
        expect(headers, bytes, "headers"),
    )
    try:
        return dropped_frame(fields)
    except ValueError as error:
        raise ProtocolError(f"dropped frame: {error}") from error


def _by_vtep(value: object) -> Mapping[str, Counters]:
    vteps = {}
    for item in expect(value, list, "vteps"):
        vtep, counters = expect_list(item, 2, "VTEP")
        vteps[expect(vtep, str, "VTEP")] = _counters(counters)
    return vteps


def _counters(value: object) -> Counters:
    """Reads counters from the wire, or raises ProtocolError."""
    return {
        name: expect_map(counter, str, int, name)
        if isinstance(counter, dict)
        else expect(counter, int, name)
        for name, counter in expect_map(value, str, object, "counters").items()
    }
