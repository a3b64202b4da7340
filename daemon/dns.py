"""Answers the name queries of this host's sandboxes, at 127.0.0.11 port 53 inside each of them.

One `NameServer` per sandbox holds a UDP and a TCP socket that were opened inside its namespace;
it knows from that which networks the asker is on, and serves names of no other. What the overlay
does not know goes to the host's resolvers (`upstream.py`). `NameServers` keeps the servers in step
with the local endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset
from dns.rdatatype import RdataType

from pyvxlan.daemon.errors import DaemonError
from pyvxlan.daemon.model import LocalEndpoint, Sandbox
from pyvxlan.daemon.names import ZONE, Names
from pyvxlan.daemon.upstream import HEADER_BYTES, Upstream, question

log = logging.getLogger(__name__)

TTL_S: Final = 5
"""Short, since containers come and go; long enough that a busy client asks seldom."""
EDNS_PAYLOAD_BYTES: Final = 4096
"""Longest UDP answer, if the client takes that much: it crosses nothing but a loopback device."""
CLASSIC_PAYLOAD_BYTES: Final = 512
MAX_RECORDS: Final = 1000
"""Holders named in one answer; more would not fit into a message of 65535 bytes."""
MAX_FORWARDED: Final = 256
"""Queries of one sandbox that may wait for upstream servers at once."""
MAX_CONNECTIONS: Final = 64
CONNECTION_IDLE_S: Final = 10.0
OUTCOMES: Final = (
    "answered",
    "nodata",
    "nxdomain",
    "forwarded",
    "servfail",
    "formerr",
    "refused",
    "overload",
    "ignored",
)
"""What can become of a query; each has a counter."""

NO_LINKS: Final[Mapping[str, str]] = MappingProxyType({})
OpenSockets = Callable[[Sandbox], Awaitable[tuple[socket.socket, socket.socket]]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a query: send `response`, or nothing if it is None and not `forward`."""

    outcome: str
    response: dns.message.Message | None = None
    forward: bool = False


class Resolver:
    """Decides what the answer to a query is, given the networks of who asks. Does no I/O.

    Args:
        names: What the overlay knows.
        has_upstream: Whether there is anybody to ask for the rest.
    """

    def __init__(self, names: Names, has_upstream: Callable[[], bool]) -> None:
        self._names = names
        self._has_upstream = has_upstream

    def decide(
        self, wire: bytes, network_ids: Sequence[str], links: Mapping[str, str] = NO_LINKS
    ) -> Verdict:
        """Decides about one message as it came in.

        `links` are names by aliases that the asker alone has for them, in lower case.
        """
        if len(wire) < HEADER_BYTES or wire[2] & 0x80:
            return Verdict("ignored")
        opcode = (wire[2] >> 3) & 0x0F
        if opcode != dns.opcode.QUERY:
            return Verdict("refused", _bare(wire, dns.rcode.NOTIMP))
        try:
            query = dns.message.from_wire(wire, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError, struct.error):
            return Verdict("formerr", _bare(wire, dns.rcode.FORMERR))
        if len(query.question) != 1 or len(query.question[0]) > 1:
            return Verdict("formerr", _bare(wire, dns.rcode.FORMERR))
        if query.edns > 0 or query.question[0].rdclass != dns.rdataclass.IN:
            rcode = dns.rcode.BADVERS if query.edns > 0 else dns.rcode.REFUSED
            return Verdict("refused", _response(query, rcode))  # RFC 6891, section 6.1.3
        return self._decide(query, network_ids, links)

    def _decide(
        self, query: dns.message.Message, network_ids: Sequence[str], links: Mapping[str, str]
    ) -> Verdict:
        name, kind = query.question[0].name, query.question[0].rdtype
        if kind == RdataType.PTR and (verdict := self._reverse(query, network_ids)):
            return verdict
        asked = name.to_text(omit_final_dot=True)
        addresses = self._names.addresses(network_ids, _linked(asked, links))
        if addresses is None:
            ours = asked.lower().endswith(ZONE)
            if self._has_upstream() and not ours:
                return Verdict("forwarded", forward=True)
            if ours or len(name.labels) <= 2:  # the empty label at the end is one of them
                return Verdict("nxdomain", _response(query, dns.rcode.NXDOMAIN, ours=ours))
            return Verdict("servfail", _response(query, dns.rcode.SERVFAIL))
        versions = {RdataType.A: (4,), RdataType.AAAA: (6,), RdataType.ANY: (4, 6)}.get(kind, ())
        for version in versions:
            texts = [str(address) for address in addresses if address.version == version]
            if texts:
                random.shuffle(texts)
                kind = RdataType.A if version == 4 else RdataType.AAAA
                records = (kind, texts[:MAX_RECORDS])
                return Verdict("answered", _response(query, records=records, ours=True))
        return Verdict("nodata", _response(query, ours=True))

    def _reverse(self, query: dns.message.Message, network_ids: Sequence[str]) -> Verdict | None:
        """Answers for addresses of the sandbox's own networks; no one else knows them."""
        try:
            address = ip_address(dns.reversename.to_address(query.question[0].name))
        except (dns.exception.DNSException, ValueError):
            return None
        name = self._names.name_of(network_ids, address)
        if name is not None:
            with contextlib.suppress(dns.exception.DNSException):
                records = (RdataType.PTR, [f"{name}."])
                return Verdict("answered", _response(query, records=records, ours=True))
        if self._names.covers(network_ids, address):
            return Verdict("nxdomain", _response(query, dns.rcode.NXDOMAIN, ours=True))
        return None


class NameServer(asyncio.DatagramProtocol):
    """Serves one sandbox. `network_ids` may be changed while it runs.

    Args:
        resolver: Decides.
        upstream: Is asked where the resolver says so.
        outcomes: Counts what became of each query; shared by all servers.
        networks_of: Gives an asker's networks by its address, where several containers ask.
        links_of: Gives an asker's own aliases for others by its address.
    """

    def __init__(
        self,
        resolver: Resolver,
        upstream: Upstream,
        outcomes: Counter[str],
        networks_of: Callable[[str], Sequence[str]] | None = None,
        links_of: Callable[[str], Mapping[str, str]] = lambda _asker: NO_LINKS,
    ) -> None:
        self._links_of = links_of
        self.network_ids: tuple[str, ...] = ()
        self._networks_of = networks_of or (lambda _asker: self.network_ids)
        self._resolver = resolver
        self._upstream = upstream
        self._outcomes = outcomes
        self._transport: asyncio.DatagramTransport | None = None
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._forwarded = 0
        self._connections = 0

    async def start(self, udp: socket.socket, tcp: socket.socket) -> None:
        """Serves on two sockets, which it now owns: bound, and the second one listening."""
        for sock in (udp, tcp):
            sock.settimeout(0)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=udp)
        self._listener = await asyncio.start_server(self._serve_connection, sock=tcp)

    async def close(self) -> None:
        """Closes the sockets and lets go of all queries. May be called twice."""
        if self._transport:
            self._transport.close()
        if self._listener:
            self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers at once what is known here; the rest in a task of its own."""
        verdict = self._decide(data, addr[0])
        if verdict.forward:
            self._spawn(self._forward_datagram(data, addr))
            return
        self._outcomes[verdict.outcome] += 1
        if verdict.response:
            self._send(fitted(verdict.response, payload_limit(verdict.response)), addr)

    async def _forward_datagram(self, query: bytes, addr: tuple[str, int]) -> None:
        answer = await self._forward(query)
        limit = payload_limit(dns.message.from_wire(query, ignore_trailing=True))
        if len(answer) > limit:
            answer = _head(query, int.from_bytes(answer[2:4], "big") | dns.flags.TC)
        self._send(answer, addr)

    async def _forward(self, query: bytes) -> bytes:
        if self._forwarded >= MAX_FORWARDED:
            self._outcomes["overload"] += 1
            return _failed(query)
        self._forwarded += 1
        try:
            answer = await self._upstream.ask(query)
        finally:
            self._forwarded -= 1
        self._outcomes["forwarded" if answer else "servfail"] += 1
        return answer or _failed(query)

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answers queries of one connection in turn (RFC 7766) until it is idle or ends."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        try:
            if self._connections > MAX_CONNECTIONS:
                self._outcomes["overload"] += 1
                return
            with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, OSError):
                while True:
                    async with asyncio.timeout(CONNECTION_IDLE_S):
                        size = int.from_bytes(await reader.readexactly(2), "big")
                        query = await reader.readexactly(size)
                    answer = await self._answer_stream(query, writer)
                    if answer is None:
                        return
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    async with asyncio.timeout(CONNECTION_IDLE_S):
                        await writer.drain()
        finally:
            self._connections -= 1
            self._tasks.discard(task)
            writer.close()

    async def _answer_stream(self, query: bytes, writer: asyncio.StreamWriter) -> bytes | None:
        asker = writer.get_extra_info("peername") or ("",)
        verdict = self._decide(query, asker[0])
        if verdict.forward:
            return await self._forward(query)
        self._outcomes[verdict.outcome] += 1
        return fitted(verdict.response, 65535) if verdict.response else None

    def _decide(self, query: bytes, asker: str) -> Verdict:
        return self._resolver.decide(query, self._networks_of(asker), self._links_of(asker))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, answer: bytes, addr: tuple[str, int]) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.sendto(answer, addr)


class NameServers:
    """The servers of all sandboxes of this host.

    Args:
        endpoints: The local endpoints as they are now.
        names: What the overlay knows.
        upstream: Where the rest is asked for.
        open_sockets: Opens the UDP and the listening TCP socket inside a sandbox.
    """

    def __init__(
        self,
        endpoints: Callable[[], Iterable[LocalEndpoint]],
        names: Names,
        upstream: Upstream,
        open_sockets: OpenSockets,
    ) -> None:
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._endpoints = endpoints
        self._upstream = upstream
        self._open_sockets = open_sockets
        self._resolver = Resolver(names, lambda: bool(upstream.servers))
        self._servers: dict[int, NameServer] = {}
        self._failures: dict[int, str] = {}
        self._lock = asyncio.Lock()

    @property
    def serving(self) -> int:
        """Number of sandboxes that are served."""
        return len(self._servers)

    def server(
        self,
        networks_of: Callable[[str], Sequence[str]],
        links_of: Callable[[str], Mapping[str, str]],
    ) -> NameServer:
        """Makes a server, for whoever starts and closes it, that knows askers by address."""
        return NameServer(self._resolver, self._upstream, self.outcomes, networks_of, links_of)

    async def sync(self) -> None:
        """Opens, changes and closes servers so that each sandbox with an endpoint has one.

        A sandbox where that fails is reported once and tried again at the next call.
        """
        async with self._lock:
            wanted: dict[int, tuple[Sandbox, list[str]]] = {}
            for endpoint in self._endpoints():
                sandbox = endpoint.sandbox
                _, networks = wanted.setdefault(sandbox.inode, (sandbox, []))
                networks.append(endpoint.network_id)
            for inode in self._servers.keys() - wanted.keys():
                await self._servers.pop(inode).close()
            self._failures = {
                inode: why for inode, why in self._failures.items() if inode in wanted
            }
            for inode, (sandbox, networks) in wanted.items():
                server = self._servers.get(inode) or await self._open(sandbox)
                if server:
                    server.network_ids = tuple(dict.fromkeys(networks))

    async def close(self) -> None:
        """Closes all servers; sandboxes are without names until the next daemon serves them."""
        async with self._lock:
            while self._servers:
                _, server = self._servers.popitem()
                await server.close()

    async def _open(self, sandbox: Sandbox) -> NameServer | None:
        server = NameServer(self._resolver, self._upstream, self.outcomes)
        try:
            udp, tcp = await self._open_sockets(sandbox)
            await server.start(udp, tcp)
        except (DaemonError, OSError) as error:
            if self._failures.get(sandbox.inode) != str(error):
                log.warning("names not served sandbox=%s cause=%s", sandbox.path, error)
            self._failures[sandbox.inode] = str(error)
            return None
        self._failures.pop(sandbox.inode, None)
        self._servers[sandbox.inode] = server
        return server


def _linked(asked: str, links: Mapping[str, str]) -> str:
    """Puts the name in place of an asker's own alias, which a network's may follow."""
    if whole := links.get(asked.lower()):
        return whole
    alias, dot, network = asked.partition(".")
    name = links.get(alias.lower())
    return f"{name}{dot}{network}" if name else asked


def payload_limit(message: dns.message.Message) -> int:
    """Longest UDP answer that the sender of a query, or of the query answered, can take."""
    if message.edns < 0:
        return CLASSIC_PAYLOAD_BYTES
    asked = message.request_payload or message.payload
    return min(max(asked, CLASSIC_PAYLOAD_BYTES), EDNS_PAYLOAD_BYTES)


def fitted(response: dns.message.Message, limit: int) -> bytes:
    """Emits a response; one that is too long keeps the records that fit and says so (TC)."""
    wire = response.to_wire(max_size=65535)
    if len(wire) <= limit:
        return wire
    (whole,) = response.answer
    response.answer = []
    empty = len(response.to_wire(max_size=65535))
    each = (len(wire) - empty) // len(whole) + 1
    part = list(whole)[: (limit - empty) // each]
    response.answer = [dns.rrset.from_rdata_list(whole.name, whole.ttl, part)]
    response.flags |= dns.flags.TC
    return response.to_wire(max_size=65535)


def _response(
    query: dns.message.Message,
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR,
    records: tuple[RdataType, Sequence[str]] | None = None,
    *,
    ours: bool = False,
) -> dns.message.Message:
    """Makes a response; one about a name that is `ours` says so.

    Docker's name server passes a query on to its other servers after an NXDOMAIN that does not.
    """
    response = dns.message.make_response(
        query, recursion_available=True, our_payload=EDNS_PAYLOAD_BYTES
    )
    response.set_rcode(rcode)
    if records:
        kind, texts = records
        name = query.question[0].name
        response.answer = [dns.rrset.from_text(name, TTL_S, dns.rdataclass.IN, kind, *texts)]
    if ours:
        response.flags |= dns.flags.AA
    return response


def _bare(wire: bytes, rcode: dns.rcode.Rcode) -> dns.message.Message:
    """A response without question or records, for a query that can't be read or forwarded."""
    response = dns.message.Message(id=int.from_bytes(wire[:2], "big"))
    response.flags = dns.flags.QR | dns.flags.RA | (wire[2] & 0x01) << 8
    response.set_opcode(dns.opcode.Opcode((wire[2] >> 3) & 0x0F))
    response.set_rcode(rcode)
    return response


def _head(query: bytes, flags: int) -> bytes:
    """The header and question of a forwarded query's answer, with nothing after them."""
    asked = query[HEADER_BYTES : HEADER_BYTES + len(question(query) or b"")]
    return struct.pack("!2s5H", query[:2], flags, bool(asked), 0, 0, 0) + asked


def _failed(query: bytes) -> bytes:
    recursion_desired = (query[2] & 0x01) << 8
    return _head(query, dns.flags.QR | dns.flags.RA | recursion_desired | dns.rcode.SERVFAIL)
