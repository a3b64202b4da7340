"""A netlink socket for many small requests: pyroute2's messages out, plain attributes back.

pyroute2's own sockets start an event loop per call, and its decoder takes 0.4 ms for one link of
which we need eight fields. Here a request is one `send` and one `recv` on a blocking socket, and
an answer is cut into attributes without a schema: 15 µs a link. A socket belongs to the network
namespace of the thread that opens it, and may be used by any thread afterwards.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Self, TypeAlias

from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    nlmsg,
)

Attributes: TypeAlias = dict[int, memoryview]
"""Payloads by attribute type, without the flags NESTED and NET_BYTEORDER; the last one wins."""

NLM_F_DUMP_INTR = 0x10
TIMEOUT_S = 10
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
"""Without it the kernel ignores what a dump is limited to (Linux 4.20)."""
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_RECEIVE_BYTES = 1 << 18
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF


class Netlink:
    """One socket of a netlink protocol, in the calling thread's network namespace.

    Every refused request raises OSError with the kernel's errno and, where it gives one, its own
    explanation.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._socket.settimeout(TIMEOUT_S)
        self._socket.bind((0, 0))
        self._sequence = 0
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the socket. May be repeated."""
        self._socket.close()

    def run(self, message: nlmsg, kind: int, flags: int = 0) -> None:
        """Sends one request and waits until the kernel has carried it out."""
        self.batch([(message, kind, flags | NLM_F_ACK)])

    def batch(self, requests: Sequence[tuple[nlmsg | bytes, int, int]]) -> None:
        """Sends requests in one go (message, type, flags); waits for those that ask for an ack.

        A message may be given as the bytes that follow its netlink header.

        Raises:
            OSError: Of the first that was refused; the others' outcome depends on the protocol.
        """
        data = b""
        awaited = set()
        for message, kind, flags in requests:
            request = message if isinstance(message, bytes) else body(message)
            data += self._frame(request, kind, flags)
            if flags & NLM_F_ACK:
                awaited.add(self._sequence)
        self._socket.send(data)
        first = self._sequence - len(requests)
        failure: OSError | None = None
        while awaited:
            for kind, flags, sequence, answer in _messages(self._receive()):
                if kind != NLMSG_ERROR or sequence <= first:
                    continue
                refusal = _refusal(flags, answer)
                if refusal and sequence not in awaited:
                    raise refusal
                failure = failure or refusal
                awaited.discard(sequence)
        if failure:
            raise failure

    def ask(self, message: nlmsg, request: int) -> memoryview:
        """Sends a request with one answer; returns what follows the answer's netlink header."""
        self._socket.send(self._frame(body(message), request, 0))
        while True:
            for kind, flags, sequence, answer in _messages(self._receive()):
                if sequence != self._sequence:
                    continue
                if kind == NLMSG_ERROR:
                    raise _refusal(flags, answer) or OSError(errno.EPROTO, "no answer")
                return answer

    def dump(self, request: bytes, kind: int) -> list[memoryview]:
        """Asks for all objects, with the `body` of a message; returns the bodies of the answers.

        A dump during which something changed is repeated.
        """
        while True:
            self._socket.send(self._frame(request, kind, NLM_F_DUMP))
            found: list[memoryview] = []
            if self._collect(found):
                return found

    def _collect(self, found: list[memoryview]) -> bool:
        whole = True
        while True:
            for kind, flags, sequence, answer in _messages(self._receive()):
                if sequence != self._sequence:
                    continue
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind == NLMSG_DONE:
                    return whole
                if kind == NLMSG_ERROR:
                    raise _refusal(flags, answer) or OSError(errno.EPROTO, "no answer")
                found.append(answer)

    def _frame(self, request: bytes, kind: int, flags: int) -> bytes:
        self._sequence += 1
        length = _HEADER.size + len(request)
        return _HEADER.pack(length, kind, flags | NLM_F_REQUEST, self._sequence, 0) + request

    def _receive(self) -> memoryview:
        return memoryview(self._socket.recv(_RECEIVE_BYTES))


def body(message: nlmsg, **fields: object) -> bytes:
    """Encodes what follows a message's netlink header; takes 0.1 ms, so keep what is constant."""
    for name, value in fields.items():
        message[name] = value
    message.encode()
    return bytes(message.data[_HEADER.size :])


def attributes(data: memoryview, offset: int = 0) -> Attributes:
    """Cuts attributes (include/uapi/linux/netlink.h, `struct nlattr`) from `offset` on."""
    found: Attributes = {}
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def text(value: memoryview) -> str:
    """Reads a zero-terminated string."""
    return bytes(value).rstrip(b"\0").decode(errors="replace")


def number(value: memoryview) -> int:
    """Reads an unsigned integer of host byte order, of whatever length."""
    return int.from_bytes(value, sys.byteorder)


def _messages(data: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """Cuts a datagram into messages: type, flags, sequence number, body."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _refusal(flags: int, answer: memoryview) -> OSError | None:
    """Makes an exception of an acknowledgement, or None if it is a good one."""
    code = -int(struct.unpack_from("=i", answer)[0])
    if code == 0:
        return None
    said = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS:
        # struct nlmsgerr: the error, then the refused message's header (capped by CAP_ACK).
        explained = attributes(answer, 4 + _HEADER.size).get(_NLMSGERR_ATTR_MSG)
        if explained is not None:
            said = f"{said} ({text(explained)})"
    return OSError(code, said)
