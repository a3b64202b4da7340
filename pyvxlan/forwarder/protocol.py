"""What is on the forwarder's socket: messages, and the values in them. Pure; see docs/forwarder.md.

A message is a u32 big-endian length, then that many bytes of msgpack: a list of four.

    request   [id >= 1, method, [argument, ...], descriptors]     daemon -> forwarder
    answer    [id, null | [kind, text, errno | null], result, descriptors]         <-
    event     [0, "event", [kind, subject], 0]                                     <-

The last element counts the open descriptors that travel with the message, by SCM_RIGHTS with its
first byte. They are queued in order of arrival, and each complete message takes its own.
"""

from __future__ import annotations

import reprlib
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgpack

from pyvxlan.errors import PyvxlanError

PROTOCOL_VERSION: Final = 6
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""Bound of one message; some two million FDB entries."""
MAX_DESCRIPTORS: Final = 253
"""What the kernel lets one message carry (SCM_MAX_FD, include/net/scm.h)."""

_LENGTH = struct.Struct(">I")
_K = TypeVar("_K")
_T = TypeVar("_T")


class ProtocolError(PyvxlanError, ValueError):
    """The other side does not speak this protocol; its connection is closed."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `descriptors` belong to who holds the message, who closes them."""

    id: int
    head: object
    """The method of a request, the error of an answer, "event"."""
    body: object
    """The arguments of a request, the result of an answer, the content of an event."""
    descriptors: tuple[int, ...] = ()


def emit(message: Message) -> bytes:
    """Gives the bytes of a message; its descriptors travel beside them.

    Raises:
        ValueError: It is longer than MAX_MESSAGE_BYTES or carries over MAX_DESCRIPTORS.
    """
    count = len(message.descriptors)
    if count > MAX_DESCRIPTORS:
        raise ValueError(f"{count} descriptors in one message: at most {MAX_DESCRIPTORS} can be")
    body: bytes = msgpack.packb([message.id, message.head, message.body, count])
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(
            f"message of {len(body)} bytes: at most {MAX_MESSAGE_BYTES} can be, split the request"
        )
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Turns received bytes and descriptors into messages, however they were cut in between."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    def feed(self, data: bytes, descriptors: Sequence[int]) -> None:
        """Takes what one read gave; the descriptors now belong to the decoder.

        Raises:
            ProtocolError: More descriptors wait than one message can carry.
        """
        self._buffer += data
        self._descriptors += descriptors
        if len(self._descriptors) > MAX_DESCRIPTORS:
            raise ProtocolError(f"{len(self._descriptors)} descriptors without their message")

    def next_message(self) -> Message | None:
        """Gives the next complete message, or None if more bytes are needed.

        Raises:
            ProtocolError: What came is no message. The decoder is of no more use but for
                `discard`.
        """
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            if not buffer and self._descriptors:
                raise ProtocolError(f"{len(self._descriptors)} descriptors that no message took")
            return None
        (length,) = _LENGTH.unpack_from(buffer)
        if length > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"message of {length} bytes: at most {MAX_MESSAGE_BYTES} can be")
        end = _LENGTH.size + length
        if len(buffer) < end:
            return None
        body = bytes(memoryview(buffer)[_LENGTH.size : end])
        del buffer[:end]
        return self._message(body)

    def discard(self) -> tuple[int, ...]:
        """Forgets all, and gives the descriptors that no message took, for the caller to close."""
        left = tuple(self._descriptors)
        self._descriptors.clear()
        self._buffer.clear()
        return left

    def _message(self, body: bytes) -> Message:
        try:
            value = msgpack.unpackb(body)
        except (ValueError, TypeError) as error:  # msgpack's own are leaves of ValueError
            raise ProtocolError(f"message is no msgpack: {error}") from error
        if not isinstance(value, list) or len(value) != 4:
            raise ProtocolError(f"message {reprlib.repr(value)} is no list of four")
        number, head, content, count = value
        number = expect(number, int, "id")
        count = expect(count, int, "number of descriptors")
        if not 0 <= count <= len(self._descriptors):
            raise ProtocolError(f"{count} descriptors named, {len(self._descriptors)} received")
        taken = tuple(self._descriptors.popleft() for _ in range(count))
        return Message(number, head, content, taken)


def expect(value: object, kind: type[_T], name: str) -> _T:
    """Gives `value` back if it is of that type; a bool is no int here.

    Raises:
        ProtocolError: It is not.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ProtocolError(f"{name} {reprlib.repr(value)} is not of type {kind.__name__}")
    return value


def expect_list(value: object, length: int, name: str) -> list[object]:
    """Gives `value` back if it is a list of that length.

    Raises:
        ProtocolError: It is not.
    """
    items = expect(value, list, name)
    if len(items) != length:
        raise ProtocolError(f"{name} has {len(items)} elements: it should have {length}")
    return items


def expect_items(value: object, kind: type[_T], name: str) -> list[_T]:
    """Gives `value` back if it is a list of that type's values only.

    Raises:
        ProtocolError: It is not.
    """
    return [expect(item, kind, name) for item in expect(value, list, name)]


def expect_map(value: object, keys: type[_K], values: type[_T], name: str) -> dict[_K, _T]:
    """Gives `value` back if it is a map of those types only.

    Raises:
        ProtocolError: It is not.
    """
    items = expect(value, dict, name)
    return {expect(k, keys, name): expect(v, values, name) for k, v in items.items()}


@dataclass(frozen=True, slots=True)
class Hello:
    """Who the forwarder is. `workers`, `address` and `port` are 0 and empty until `configure`.

    `since` is when it started, in seconds of Unix time; with `pid` it tells one forwarder from
    the next.
    """

    pid: int
    version: str
    protocol: int
    since: float
    workers: int = 0
    address: str = ""
    port: int = 0

    def to_wire(self) -> list[object]:
        """Gives the fields in order."""
        return [
            self.pid,
            self.version,
            self.protocol,
            self.since,
            self.workers,
            self.address,
            self.port,
        ]

    @classmethod
    def from_wire(cls, value: object) -> Hello:
        """Reads what `to_wire` gave, or raises ProtocolError."""
        pid, version, protocol, since, workers, address, port = expect_list(value, 7, "hello")
        return cls(
            pid=expect(pid, int, "pid"),
            version=expect(version, str, "version"),
            protocol=expect(protocol, int, "protocol"),
            since=expect(since, float, "since"),
            workers=expect(workers, int, "workers"),
            address=expect(address, str, "address"),
            port=expect(port, int, "port"),
        )


@dataclass(frozen=True, slots=True)
class Attachment:
    """How a network's port is attached; `flood_rate` is in frames a second.

    With any other `datapath` than "forwarder" somebody else carries its frames: the attachment and
    its namespace are only kept.
    """

    vni: int
    mtu_bytes: int
    multicast: bool = True
    flood_rate: int = 10_000
    datapath: str = "forwarder"

    @property
    def only_kept(self) -> bool:
        """Whether somebody else carries the frames."""
        return self.datapath != "forwarder"

    def to_wire(self) -> list[object]:
        """Gives the fields in order."""
        return [self.vni, self.mtu_bytes, self.multicast, self.flood_rate, self.datapath]

    @classmethod
    def from_wire(cls, value: object) -> Attachment:
        """Reads what `to_wire` gave, or raises ProtocolError."""
        vni, mtu_bytes, multicast, flood_rate, datapath = expect_list(value, 5, "attachment")
        return cls(
            vni=expect(vni, int, "vni"),
            mtu_bytes=expect(mtu_bytes, int, "mtu_bytes"),
            multicast=expect(multicast, bool, "multicast"),
            flood_rate=expect(flood_rate, int, "flood_rate"),
            datapath=expect(datapath, str, "datapath"),
        )


@dataclass(frozen=True, slots=True)
class TableUpdate:
    """A change to one network's tables; `neighbours` and `flood`, if given, replace the old.

    MACs are six bytes, addresses text. Removals come before additions.
    """

    vni: int
    add: Mapping[bytes, str] = field(default_factory=dict)
    remove: Sequence[bytes] = ()
    neighbours: Mapping[str, bytes] | None = None
    flood: Sequence[str] | None = None

    def to_wire(self) -> list[object]:
        """Gives the fields in order."""
        return [
            self.vni,
            dict(self.add),
            list(self.remove),
            None if self.neighbours is None else dict(self.neighbours),
            None if self.flood is None else list(self.flood),
        ]

    @classmethod
    def from_wire(cls, value: object) -> TableUpdate:
        """Reads what `to_wire` gave, or raises ProtocolError. Values are the engine's to check."""
        vni, add, remove, neighbours, flood = expect_list(value, 5, "update")
        return cls(
            vni=expect(vni, int, "vni"),
            add=expect_map(add, bytes, str, "add"),
            remove=expect_items(remove, bytes, "remove"),
            neighbours=(
                None if neighbours is None else expect_map(neighbours, str, bytes, "neighbours")
            ),
            flood=None if flood is None else expect_items(flood, str, "flood"),
        )


@dataclass(frozen=True, slots=True)
class NetworkState:
    """What the forwarder holds for one VNI. `port_alive` is False once its TAP was deleted."""

    port: Attachment
    queues: int
    fdb: Mapping[bytes, str]
    neighbours: Mapping[str, bytes]
    flood: Sequence[str]
    port_alive: bool

    def to_wire(self) -> list[object]:
        """Gives the fields in order."""
        return [
            self.port.to_wire(),
            self.queues,
            dict(self.fdb),
            dict(self.neighbours),
            list(self.flood),
            self.port_alive,
        ]

    @classmethod
    def from_wire(cls, value: object) -> NetworkState:
        """Reads what `to_wire` gave, or raises ProtocolError."""
        port, queues, fdb, neighbours, flood, port_alive = expect_list(value, 6, "network")
        return cls(
            port=Attachment.from_wire(port),
            queues=expect(queues, int, "queues"),
            fdb=expect_map(fdb, bytes, str, "fdb"),
            neighbours=expect_map(neighbours, str, bytes, "neighbours"),
            flood=tuple(expect_items(flood, str, "flood")),
            port_alive=expect(port_alive, bool, "port_alive"),
        )


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """Which frames a capture is of; see `pyvxlan.Engine.begin_capture`."""

    vni: int
    mac: bytes | None = None
    snap_bytes: int = 65_600
    drops_only: bool = False

    def to_wire(self) -> list[object]:
        """Gives the fields in order."""
        return [self.vni, self.mac, self.snap_bytes, self.drops_only]

    @classmethod
    def from_wire(cls, value: object) -> CaptureRequest:
        """Reads what `to_wire` gave, or raises ProtocolError."""
        vni, mac, snap_bytes, drops_only = expect_list(value, 4, "capture")
        return cls(
            vni=expect(vni, int, "vni"),
            mac=None if mac is None else expect(mac, bytes, "mac"),
            snap_bytes=expect(snap_bytes, int, "snap_bytes"),
            drops_only=expect(drops_only, bool, "drops_only"),
        )


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: `port_lost` with a VNI, or `worker_lost` with a number, as text."""

    kind: str
    subject: str

    def to_wire(self) -> list[object]:
        """Gives the fields in order."""
        return [self.kind, self.subject]

    @classmethod
    def from_wire(cls, value: object) -> Event:
        """Reads what `to_wire` gave, or raises ProtocolError."""
        kind, subject = expect_list(value, 2, "event")
        return cls(expect(kind, str, "kind"), expect(subject, str, "subject"))
