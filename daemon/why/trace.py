"""Sends marked frames from a container, and sees where they pass on this host: `trace`.

The frames are echo requests that the container's own kernel sends, so its routes, its rules and its
neighbour entries are on the way, and the other container's kernel answers. Each host watches the
stops of its own endpoint; whoever asks puts the two together.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import Any

from pyvxlan.daemon.dataplane import Dataplane
from pyvxlan.daemon.errors import DaemonError, InvalidError, NotFoundError
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.model import LocalEndpoint, Network, Sandbox, format_mac, host_ifname
from pyvxlan.daemon.net import PORT, watching
from pyvxlan.daemon.state import State
from pyvxlan.daemon.why import facts
from pyvxlan.daemon.why.explain import Kernel, Pair, heard
from pyvxlan.daemon.why.facts import Seen, Traced

PAUSE_S = 0.2
"""Between two requests."""
REQUESTS = 3
"""Of each size, unless one is answered before."""
PATIENCE_S = 1.0
"""How long the last of them may take there and back, if nothing is known to be wrong."""
HASTE_S = 0.3
"""The same if something is."""
MEMORY_S = 1.0
"""How long the forwarder may take to tell what it dropped."""
LONGEST_S = 30.0
"""A trace that nobody ends, ends by itself."""


class Tracer:
    """Answers `trace` on this host.

    Args:
        state: For the networks.
        local: What is attached here.
        net: The kernel.
        dataplane: Remembers what it has dropped.
    """

    def __init__(
        self, *, state: State, local: LocalRecords, net: Kernel, dataplane: Dataplane
    ) -> None:
        self._state = state
        self._local = local
        self._net = net
        self._dataplane = dataplane

    async def answer(
        self, arguments: Mapping[str, Any], stop: asyncio.Event
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Says that it watches; then, once it has sent or `stop` is set, what it has seen."""
        pair = Pair.parse(arguments)
        mark, send = _mark(arguments), arguments.get("send") is True
        here, network, netns = self._place(pair)
        name = await self._inner_name(pair, here, netns) or here.ifname
        since_ns = time.time_ns()
        with _Watch(mark) as watch:
            await self._watch(watch, here, netns, name)
            yield {"ready": True}
            problem, refused = "", False
            async with asyncio.timeout(LONGEST_S):
                if send:
                    patience_s = HASTE_S if arguments.get("haste") is True else PATIENCE_S
                    problem, refused = await self._send(
                        pair, here.sandbox, network, watch, patience_s
                    )
                else:
                    await stop.wait()
            watch.read()
            yield facts.emit(
                Traced(
                    seen=tuple(sorted(watch.seen, key=str)),
                    watched=tuple(watch.sockets),
                    drops=await self._drops(pair, since_ns),
                    problem=problem,
                    neighbour=await self._neighbour(pair, here, netns),
                    path_mtu=await self._path_mtu(pair, here.sandbox) if send else 0,
                    refused=refused,
                )
            )

    def _place(self, pair: Pair) -> tuple[LocalEndpoint, Network, str]:
        here = self._local.endpoints.get(pair.own.id)
        network_id = pair.own.network_id
        network = self._state.networks.get(network_id) or self._local.networks.get(network_id)
        netns = self._local.netns_names.get(network_id)
        if here is None or network is None or netns is None:
            raise NotFoundError(f"endpoint {pair.own.id[:12]} is not attached here")
        if not any(pair.toward in subnet.cidr for subnet in network.subnets):
            raise InvalidError(f"{pair.toward} is no address of network {network.name}")
        return here, network, netns

    async def _watch(self, watch: _Watch, here: LocalEndpoint, netns: str, name: str) -> None:
        """Opens watchers wherever there is something to watch."""
        link = watching.watch_link
        places: tuple[tuple[str, Sandbox | str, Callable[[], socket.socket]], ...] = (
            (facts.ETH, here.sandbox, partial(link, name, watch.mark)),
            (facts.VETH, netns, partial(link, host_ifname(here.id), watch.mark)),
            (facts.PORT, netns, partial(link, PORT, watch.mark)),
            (facts.UNDERLAY, "", partial(watching.watch_tunnels, watch.mark)),
        )
        for stop, place, job in places:
            with contextlib.suppress(DaemonError):  # What is missing there, the facts tell.
                watch.add(stop, await self._net.within(place, job))

    async def _send(
        self, pair: Pair, sandbox: Sandbox, network: Network, watch: _Watch, patience_s: float
    ) -> tuple[str, bool]:
        """Sends small requests, and full ones once one was answered.

        Returns:
            Why it could not, and whether the kernel kept the answer for itself.
        """
        refused = False
        try:
            echo = await self._net.within(sandbox, partial(watching.open_echo, pair.toward))
        except DaemonError as error:
            return str(error), False
        version, full = pair.toward.version, watching.FIRST_FULL
        with echo:
            for size, first, size_bytes in (
                (facts.SMALL, 1, 0),
                (facts.FULL, full, network.mtu_bytes),
            ):
                problem = await self._request(
                    echo,
                    [
                        watching.request(version, watch.mark, first + number, size_bytes)
                        for number in range(REQUESTS)
                    ],
                    watch.reply(size),
                    patience_s,
                )
                if problem or not watch.reply(size).is_set():
                    return problem if size == facts.SMALL else "", refused
                if size == facts.SMALL:
                    refused = not await self._taken(echo, watch.mark)
        return "", refused

    async def _taken(self, echo: socket.socket, mark: bytes) -> bool:
        """Whether an answer that came to the interface passes the rules behind it."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await heard(echo, mark)
        except TimeoutError:
            return False
        except OSError:
            pass  # An ICMP error of B's: it has come through.
        return True

    async def _request(
        self,
        echo: socket.socket,
        requests: list[bytes],
        answered: asyncio.Event,
        patience_s: float,
    ) -> str:
        """Sends until it is answered, and waits for that; says why the kernel refused to send."""
        problem = ""
        for request in requests:
            try:
                echo.send(request)
                problem = ""
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    return ""  # What the kernel takes for the path's MTU, is told.
                problem = os.strerror(error.errno or 0)
            last = request is requests[-1]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s if last and not problem else PAUSE_S):
                    await answered.wait()
                    return ""
        return problem

    async def _drops(self, pair: Pair, since_ns: int) -> tuple[str, ...]:
        """Why the forwarder has dropped frames between the two since; nothing if it is silent."""
        macs = (pair.own.mac + pair.peer.mac, pair.peer.mac + pair.own.mac)
        try:
            async with asyncio.timeout(MEMORY_S):
                dropped = await self._dataplane.recent_drops()
        except (DaemonError, TimeoutError):
            return ()
        reasons = (
            one.reason
            for one in dropped
            if one.time_ns >= since_ns and one.headers.startswith(macs)
        )
        return tuple(dict.fromkeys(reasons))

    async def _inner_name(self, pair: Pair, here: LocalEndpoint, netns: str) -> str:
        survey = await self._net.survey(netns, host_ifname(here.id), here.sandbox, pair.toward)
        return survey.inside.name if survey.inside else ""

    async def _neighbour(self, pair: Pair, here: LocalEndpoint, netns: str) -> str:
        survey = await self._net.survey(netns, host_ifname(here.id), here.sandbox, pair.toward)
        found = survey.inside.neighbour if survey.inside else None
        if found is None:
            return ""
        return format_mac(found) if found else facts.UNANSWERED

    async def _path_mtu(self, pair: Pair, sandbox: Sandbox) -> int:
        with contextlib.suppress(DaemonError):
            return await self._net.within(sandbox, partial(watching.path_mtu, pair.toward))
        return 0


class _Watch:
    """Watchers at the stops of one endpoint, until the end of a `with`."""

    def __init__(self, mark: bytes) -> None:
        self.mark = mark
        self.seen: set[Seen] = set()
        self.sockets: dict[str, socket.socket] = {}
        self._replies: dict[str, asyncio.Event] = {}
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for watcher in self.sockets.values():
            self._loop.remove_reader(watcher)
            watcher.close()

    def add(self, stop: str, watcher: socket.socket) -> None:
        """Watches a stop from now on."""
        self.sockets[stop] = watcher
        self._loop.add_reader(watcher, self._read, stop)

    def reply(self, size: str) -> asyncio.Event:
        """Set once a reply of that size is back in the container."""
        return self._replies.setdefault(size, asyncio.Event())

    def read(self) -> None:
        """Takes what has come in so far."""
        for stop in self.sockets:
            self._read(stop)

    def _read(self, stop: str) -> None:
        for echo in watching.read_echoes(self.sockets[stop], self.mark):
            size = facts.FULL if echo.full else facts.SMALL
            self.seen.add(Seen(stop, echo.kind, size))
            if stop == facts.ETH and echo.kind == facts.REPLY:
                self.reply(size).set()


def _mark(arguments: Mapping[str, Any]) -> bytes:
    try:
        mark = bytes.fromhex(arguments["mark"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidError("the question has no mark") from error
    if len(mark) != watching.MARK_BYTES:
        raise InvalidError(f"a mark has {watching.MARK_BYTES} bytes, not {len(mark)}")
    return mark
