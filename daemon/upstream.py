"""Asks the host's own resolvers what the overlay does not know.

Queries go out as they came in but for their id, so that EDNS and DNSSEC pass through. They are
sent from the daemon's network namespace, each from a socket of its own: random port (the kernel
chooses), random id, and an answer counts only if it comes from the server that was asked, with
that id and that question (RFC 5452, section 9).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
OWN_ADDRESS = "127.0.0.11"
"""Where containers ask us; as a resolver of the host it would be a circle."""
MAX_SERVERS = 3
HEADER_BYTES = 12
_FAILED_RCODES = frozenset({2, 4, 5})
"""SERVFAIL, NOTIMP, REFUSED: another server may know better."""


class Upstream:
    """The servers that everything else is asked of.

    Args:
        servers: Addresses from the configuration; none for those of `resolv_conf`, which is read
            again whenever it changed.
        timeout_s: How long one server is waited for, a second try by TCP included.
        total_s: How long one query may take over all servers. Clients give up after 5 s.
    """

    def __init__(
        self,
        servers: Sequence[str] = (),
        *,
        resolv_conf: Path = RESOLV_CONF,
        port: int = 53,
        timeout_s: float = 2.0,
        total_s: float = 4.0,
    ) -> None:
        self._configured = tuple(servers)
        self._resolv_conf = resolv_conf
        self._port = port
        self._timeout_s = timeout_s
        self._total_s = total_s
        self._signature: tuple[int, int, int] | None = None
        self._found: tuple[str, ...] = ()
        self._failed_at: dict[str, float] = {}

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers in the order in which they are listed; empty if there are none."""
        if self._configured:
            return self._configured
        try:
            stat = self._resolv_conf.stat()
            signature = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if signature != self._signature:
                text = self._resolv_conf.read_text(encoding="utf-8", errors="replace")
                self._found, self._signature = parse_resolv_conf(text), signature
        except OSError:
            self._found, self._signature = (), None
        return self._found

    async def ask(self, query: bytes) -> bytes | None:
        """Gives the first useful answer to a query with one question, under the query's id.

        Servers that failed lately are asked last. If all that answer refuse, their last refusal
        is the answer; None if nobody answers at all.
        """
        asked = question(query)
        if asked is None:
            return None
        refusal: bytes | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._total_s):
                for server in sorted(self.servers, key=self._failure):
                    answer = await self._ask_server(server, query, asked)
                    if answer is None:
                        self._failed_at[server] = time.monotonic()
                        continue
                    self._failed_at.pop(server, None)
                    if answer[3] & 0x0F not in _FAILED_RCODES:
                        return query[:2] + answer[2:]
                    refusal = query[:2] + answer[2:]
        return refusal

    def _failure(self, server: str) -> float:
        return self._failed_at.get(server, 0.0)

    async def _ask_server(self, server: str, query: bytes, asked: bytes) -> bytes | None:
        number = secrets.token_bytes(2)
        sent = number + query[2:]
        answer: bytes | None = None
        with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(self._timeout_s):
                answer = await self._by_udp(server, sent, asked)
                if answer[2] & 0x02:  # truncated: the whole answer is to be had by TCP
                    whole = await self._by_tcp(server, sent)
                    if _answers(whole, number, asked):
                        answer = whole
        return answer

    async def _by_udp(self, server: str, query: bytes, asked: bytes) -> bytes:
        exchange = _Exchange(query[:2], asked)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: exchange, remote_addr=(server, self._port)
        )
        try:
            transport.sendto(query)
            return await exchange.answer
        finally:
            transport.close()

    async def _by_tcp(self, server: str, query: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(server, self._port)
        try:
            writer.write(len(query).to_bytes(2, "big") + query)
            size = int.from_bytes(await reader.readexactly(2), "big")
            return await reader.readexactly(size)
        finally:
            writer.close()


class _Exchange(asyncio.DatagramProtocol):
    """Waits for the one datagram that answers a query; others are passed over."""

    def __init__(self, number: bytes, asked: bytes) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._number = number
        self._asked = asked

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.answer.done() and _answers(data, self._number, self._asked):
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


def parse_resolv_conf(text: str) -> tuple[str, ...]:
    """Gives the first three name servers of a resolv.conf(5), without 127.0.0.11."""
    servers: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ip_address(words[1])
        except ValueError:
            continue
        if str(address) != OWN_ADDRESS and str(address) not in servers:
            servers.append(str(address))
    return tuple(servers[:MAX_SERVERS])


def question(message: bytes) -> bytes | None:
    """Gives the first question of a message, name lowered, or None if it is not whole."""
    end = HEADER_BYTES
    while end < len(message) and (length := message[end]):
        if length > 63:
            return None
        end += 1 + length
    name_end, end = end + 1, end + 5
    if end > len(message):
        return None
    return message[HEADER_BYTES:name_end].lower() + message[name_end:end]


def _answers(message: bytes, number: bytes, asked: bytes) -> bool:
    return (
        len(message) > HEADER_BYTES
        and message[:2] == number
        and bool(message[2] & 0x80)
        and question(message) == asked
    )
