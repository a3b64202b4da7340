"""The methods that a client can call: the forwarder's state, and what a request does to it.

It keeps the descriptors that came with `configure` and `attach` and gives the engine duplicates,
so that it can hand them to a successor or to a daemon that has lost its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address
from typing import Any, Protocol

from pyvxlan.forwarder.captures import Captures, Capturing
from pyvxlan.forwarder.channel import close_descriptors
from pyvxlan.forwarder.protocol import (
    PROTOCOL_VERSION,
    Attachment,
    CaptureRequest,
    Event,
    Hello,
    Message,
    NetworkState,
    TableUpdate,
    expect,
    expect_items,
    expect_list,
    expect_map,
)

log = logging.getLogger(__name__)

_PAGE_ENTRIES = 100_000
"""Table entries after which an answer of `dump` ends, so that it stays well under the bound."""


class Counters(Protocol):
    """What the server reads of `pyvxlan._dataplane.Stats`."""

    @property
    def workers(self) -> int:
        """Number of worker threads."""

    @property
    def idle_s(self) -> Sequence[float]:
        """How long each has had nothing to do."""

    @property
    def segmentation(self) -> Sequence[bool]:
        """Whether the kernel cuts datagrams for each."""

    def networks(self) -> Sequence[tuple[int, Mapping[str, Any]]]:
        """Counters of each VNI."""

    def underlay(self) -> Mapping[str, Any]:
        """Counters of the sockets."""

    def vteps(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Counters of each VTEP, by address."""

    def tunnels(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """What probes have told of each VTEP, by address."""


class Engine(Capturing, Protocol):
    """What the server asks of `pyvxlan._dataplane.Engine`; see there for each method."""

    @property
    def event_fd(self) -> int:
        """Readable while `events` has something."""

    def resume(self) -> None:
        """Lets the workers begin."""

    def switch_segmentation(self, *, on: bool) -> None:
        """Lets the kernel cut datagrams, or not."""

    def attach(
        self, vni: int, queues: Sequence[int], mtu: int, *, multicast: bool, flood_rate: int
    ) -> None:
        """Forwards for a VNI; owns the queues."""

    def detach(self, vni: int) -> None:
        """Stops forwarding for a VNI."""

    def apply(self, vni: int, add: Sequence[tuple[bytes, str]], remove: Sequence[bytes]) -> None:
        """Changes the FDB, all or nothing."""

    def set_flood(self, vni: int, vteps: Sequence[str]) -> None:
        """Replaces the flood list."""

    def set_neighbours(self, vni: int, entries: Sequence[tuple[str, bytes]]) -> None:
        """Replaces the neighbours."""

    def set_tunnels(self, interval_ms: int, tunnels: Sequence[tuple[str, int]]) -> None:
        """Replaces the VTEPs that are probed, each with an MTU."""

    def dump(
        self, vni: int
    ) -> tuple[list[tuple[bytes, str]], list[tuple[str, bytes]], list[str], bool]:
        """FDB, neighbours, flood list, and whether the port is alive."""

    def stats(self) -> Counters:
        """Reads all counters."""

    def recent_drops(self) -> Sequence[tuple[Any, ...]]:
        """The last dropped frames."""

    def events(self) -> Sequence[tuple[str, ...]]:
        """Takes what happened since the last call."""

    def close(self) -> None:
        """Ends the workers."""


class RefusedError(Exception):
    """A request cannot be met in the present state. `kind` goes into the answer."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class _Port:
    """One attachment with the descriptors that the server keeps for it."""

    settings: Attachment
    queues: tuple[int, ...]
    netns: int

    def close(self) -> None:
        close_descriptors((*self.queues, self.netns))


_Method = Callable[[list[object], list[int]], tuple[object, Sequence[int]]]
"""Takes arguments and descriptors, gives a result and the descriptors to send duplicates of.

A method removes from the list those descriptors that it keeps; the others are closed after it.
"""


class Methods:
    """Runs requests, one at a time, on one engine.

    `start_engine` takes ownership of underlay descriptors and starts so many workers, paused.
    `check` raises ValueError for an update with an invalid entry, before any of it is applied.
    `on_event` is called with what the engine tells.

    Attributes:
        ended: True once `shutdown` was called: serve nobody any more and call `close`.
    """

    def __init__(
        self,
        start_engine: Callable[[Sequence[int], int], Engine],
        check: Callable[[TableUpdate], None],
        on_event: Callable[[Event], None],
        *,
        version: str,
    ) -> None:
        self.ended = False
        self._start_engine = start_engine
        self._check = check
        self._on_event = on_event
        self._self = Hello(os.getpid(), version, PROTOCOL_VERSION, time.time())
        self._engine: Engine | None = None
        self._underlay: tuple[int, ...] = ()
        self._ports: dict[int, _Port] = {}
        self._captures = Captures()
        self._methods: dict[str, _Method] = {
            "hello": self._hello,
            "configure": self._configure,
            "resume": self._resume,
            "segmentation": self._segmentation,
            "attach": self._attach,
            "detach": self._detach,
            "update": self._update,
            "probe": self._probe,
            "dump": self._dump,
            "stats": self._stats,
            "netns": self._netns,
            "descriptors": self._descriptors,
            "capture": self._capture,
            "drops": self._drops,
            "shutdown": self._shutdown,
        }

    def answer(self, request: Message) -> Message:
        """Runs one request and closes its descriptors, unless the method keeps them.

        Whatever goes wrong becomes the answer. Its descriptors are duplicates, since what they
        are made of may be gone by the time that they can be sent; the caller closes them.
        """
        descriptors = list(request.descriptors)
        failure: list[object]
        try:
            method = self._methods.get(expect(request.head, str, "method"))
            if method is None:
                raise RefusedError("unknown", f"method {request.head} does not exist here")
            result, sent = method(expect(request.body, list, "arguments"), descriptors)
            return Message(request.id, None, result, tuple(_duplicate(sent)))
        except RefusedError as error:
            failure = [error.kind, str(error), None]
        except (ValueError, TypeError, OverflowError) as error:
            failure = ["invalid", str(error), None]
        except OSError as error:
            failure = ["system", str(error), error.errno]
        except Exception as error:
            log.exception("request failed method=%s", request.head)
            failure = ["internal", f"{type(error).__name__}: {error}", None]
        finally:
            close_descriptors(descriptors)
        return Message(request.id, failure, None)

    def close(self) -> None:
        """Ends the engine and closes every descriptor kept."""
        if self._engine is not None:
            asyncio.get_running_loop().remove_reader(self._engine.event_fd)
            self._captures.close()
            self._engine.close()
            self._engine = None
        for port in self._ports.values():
            port.close()
        self._ports.clear()
        close_descriptors(self._underlay)
        self._underlay = ()

    # The methods, in the order of docs/forwarder.md.

    def _hello(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        expect_list(arguments, 0, "arguments of hello")
        return self._self.to_wire(), ()

    def _configure(
        self, arguments: list[object], descriptors: list[int]
    ) -> tuple[object, Sequence[int]]:
        items = expect_list(arguments, 3, "arguments of configure")
        address = expect(items[0], str, "address")
        port = expect(items[1], int, "port")
        workers = expect(items[2], int, "workers")
        if self._engine is not None:
            raise RefusedError(
                "state",
                f"already configured for {self._self.address} port {self._self.port}:"
                " start another forwarder and hand over to it",
            )
        engine = self._start_engine(_duplicate(descriptors), workers)
        self._engine = engine
        self._self = replace(self._self, address=address, port=port, workers=workers)
        self._underlay = tuple(descriptors)
        descriptors.clear()
        asyncio.get_running_loop().add_reader(engine.event_fd, self._forward_events, engine)
        log.info("engine started address=%s port=%d workers=%d", address, port, workers)
        return None, ()

    def _resume(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        expect_list(arguments, 0, "arguments of resume")
        self._running().resume()
        return None, ()

    def _segmentation(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        (on,) = expect_items(expect_list(arguments, 1, "arguments of segmentation"), bool, "on")
        self._running().switch_segmentation(on=on)
        return None, ()

    def _attach(
        self, arguments: list[object], descriptors: list[int]
    ) -> tuple[object, Sequence[int]]:
        settings = Attachment.from_wire(arguments)
        engine = self._running()
        if settings.only_kept:
            if len(descriptors) != 1:
                raise ValueError(
                    f"{len(descriptors)} descriptors for vni {settings.vni} on datapath"
                    f" {settings.datapath}: its namespace alone is needed"
                )
            engine.detach(settings.vni)
        else:
            if len(descriptors) < 2:
                raise ValueError(
                    f"{len(descriptors)} descriptors for vni {settings.vni}: at least one queue"
                    " and the namespace are needed"
                )
            engine.attach(
                settings.vni,
                _duplicate(descriptors[:-1]),
                settings.mtu_bytes,
                multicast=settings.multicast,
                flood_rate=settings.flood_rate,
            )
        if (old := self._ports.get(settings.vni)) is not None:
            old.close()
        self._ports[settings.vni] = _Port(settings, tuple(descriptors[:-1]), descriptors[-1])
        descriptors.clear()
        log.info("port attached vni=%d mtu_bytes=%d", settings.vni, settings.mtu_bytes)
        return None, ()

    def _detach(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        (vni,) = expect_items(expect_list(arguments, 1, "arguments of detach"), int, "vni")
        self._running().detach(vni)
        if (port := self._ports.pop(vni, None)) is not None:
            port.close()
            log.info("port detached vni=%d", vni)
        return None, ()

    def _update(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        """Applies each update by itself; gives [vni, text] of those that were refused."""
        (batch,) = expect_list(arguments, 1, "arguments of update")
        updates = [TableUpdate.from_wire(item) for item in expect(batch, list, "updates")]
        engine = self._running()
        refused: list[object] = []
        for update in updates:
            try:
                if self._attached(update.vni).settings.only_kept:
                    raise ValueError("the tables of this vni are not the forwarder's")
                self._check(update)
                self._check_families(update)
            except (ValueError, TypeError) as error:
                refused.append([update.vni, str(error)])
                continue
            # Neighbours and FDB first: who is flooded to can then be answered at once.
            if update.neighbours is not None:
                engine.set_neighbours(update.vni, list(update.neighbours.items()))
            if update.add or update.remove:
                engine.apply(update.vni, list(update.add.items()), update.remove)
            if update.flood is not None:
                engine.set_flood(update.vni, update.flood)
        return refused, ()

    def _probe(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        interval_ms, tunnels = expect_list(arguments, 2, "arguments of probe")
        wanted = expect_map(tunnels, str, int, "tunnels")
        self._running().set_tunnels(expect(interval_ms, int, "interval_ms"), list(wanted.items()))
        return None, ()

    def _dump(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        """Gives networks above a VNI, in order, and whether there are more."""
        (after,) = expect_items(expect_list(arguments, 1, "arguments of dump"), int, "after")
        vnis = sorted(vni for vni in self._ports if vni > after)
        page: list[object] = []
        entries = 0
        for vni in vnis:
            if entries >= _PAGE_ENTRIES:
                break
            state = self._state(vni)
            entries += len(state.fdb) + len(state.neighbours) + len(state.flood) + 1
            page.append(state.to_wire())
        return [page, len(page) < len(vnis)], ()

    def _stats(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        expect_list(arguments, 0, "arguments of stats")
        stats = self._running().stats()
        networks = [[vni, counters] for vni, counters in stats.networks()]
        return {
            "workers": stats.workers,
            "idle_s": list(stats.idle_s),
            "segmentation": list(stats.segmentation),
            "underlay": stats.underlay(),
            "networks": networks,
            "vteps": [[vtep, counters] for vtep, counters in stats.vteps()],
            "tunnels": [[vtep, counters] for vtep, counters in stats.tunnels()],
        }, ()

    def _netns(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        (vni,) = expect_items(expect_list(arguments, 1, "arguments of netns"), int, "vni")
        return None, (self._attached(vni).netns,)

    def _descriptors(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        """Gives those of the underlay for None, or a port's queues and then its namespace."""
        (vni,) = expect_list(arguments, 1, "arguments of descriptors")
        if vni is None:
            return None, self._underlay
        port = self._attached(expect(vni, int, "vni"))
        return None, (*port.queues, port.netns)

    def _capture(
        self, arguments: list[object], descriptors: list[int]
    ) -> tuple[object, Sequence[int]]:
        """Begins a capture. It lives as long as the other end of the socket that came with it."""
        request = CaptureRequest.from_wire(arguments)
        engine = self._running()
        if len(descriptors) != 1:
            raise ValueError(f"{len(descriptors)} descriptors for a capture: one socket is needed")
        self._captures.begin(engine, request, descriptors[0])
        descriptors.clear()
        return None, ()

    def _drops(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        expect_list(arguments, 0, "arguments of drops")
        return [list(drop) for drop in self._running().recent_drops()], ()

    def _shutdown(self, arguments: list[object], _: list[int]) -> tuple[object, Sequence[int]]:
        expect_list(arguments, 0, "arguments of shutdown")
        self.ended = True
        return None, ()

    def _running(self) -> Engine:
        if self._engine is None:
            raise RefusedError("state", "no engine yet: send configure first")
        return self._engine

    def _attached(self, vni: int) -> _Port:
        port = self._ports.get(vni)
        if port is None:
            raise ValueError(f"vni {vni} is not attached: send attach first")
        return port

    def _check_families(self, update: TableUpdate) -> None:
        """Raises ValueError for a VTEP that the underlay cannot reach; nothing is applied yet."""
        local = self._self.address
        for vtep in (*update.add.values(), *(update.flood or ())):
            # The text tells, but for IPv4-mapped addresses; there may be a million of them.
            if (":" in vtep) != (":" in local) and _is_ipv6(vtep) != _is_ipv6(local):
                raise ValueError(
                    f"VTEP {vtep} is not of the address family of {local}, the underlay's"
                )

    def _state(self, vni: int) -> NetworkState:
        port = self._ports[vni]
        if port.settings.only_kept:
            return NetworkState(port.settings, 0, {}, {}, (), port_alive=True)
        fdb, neighbours, flood, port_alive = self._running().dump(vni)
        return NetworkState(
            port.settings, len(port.queues), dict(fdb), dict(neighbours), flood, port_alive
        )

    def _forward_events(self, engine: Engine) -> None:
        for kind, subject in engine.events():
            log.warning("engine event kind=%s subject=%s", kind, subject)
            self._on_event(Event(kind, subject))


def _is_ipv6(text: str) -> bool:
    address = ip_address(text)
    return isinstance(address, IPv6Address) and address.ipv4_mapped is None


def _duplicate(descriptors: Sequence[int]) -> list[int]:
    """Gives a duplicate of each, close-on-exec; none stays open if one cannot be made."""
    with contextlib.ExitStack() as undo:
        copies = []
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))
            undo.callback(os.close, copies[-1])
        undo.pop_all()
    return copies
