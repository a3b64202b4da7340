"""Answers to queries: decided, sent, forwarded, cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvxlan.daemon import dns as server
from pyvxlan.daemon.dns import NameServer, NameServers, Resolver, fitted, payload_limit
from pyvxlan.daemon.errors import ConflictError
from pyvxlan.daemon.model import LocalEndpoint, Sandbox
from pyvxlan.daemon.names import Names
from pyvxlan.daemon.upstream import Upstream, parse_resolv_conf, question
from tests.unit.test_names import BLUE, RED, FakeDirectory, endpoint

NETWORKS = (BLUE,)


@pytest.fixture
def directory() -> FakeDirectory:
    made = FakeDirectory()
    made.add(endpoint(1, BLUE, "10.0.0.2/24", "fd00::2/64", name="both"))
    made.add(endpoint(2, BLUE, "10.0.0.3/24", name="four"))
    made.add(endpoint(3, RED, "10.0.1.2/24", name="other"))
    return made


def ask(
    directory: FakeDirectory,
    name: str,
    kind: str = "A",
    *,
    upstream: bool = False,
    rdclass: str = "IN",
) -> server.Verdict:
    query = dns.message.make_query(name, kind, rdclass)
    return Resolver(Names(directory), lambda: upstream).decide(query.to_wire(), NETWORKS)


def answers(verdict: server.Verdict) -> list[str]:
    assert verdict.response is not None
    return sorted(str(record) for rrset in verdict.response.answer for record in rrset)


@pytest.mark.parametrize(
    ("name", "kind", "outcome", "rcode", "expected"),
    [
        ("both", "A", "answered", "NOERROR", ["10.0.0.2"]),
        ("both", "AAAA", "answered", "NOERROR", ["fd00::2"]),
        ("BOTH.Blue", "A", "answered", "NOERROR", ["10.0.0.2"]),
        ("both", "ANY", "answered", "NOERROR", ["10.0.0.2"]),
        ("four", "AAAA", "nodata", "NOERROR", []),
        ("four", "MX", "nodata", "NOERROR", []),
        ("four", "TYPE65", "nodata", "NOERROR", []),
        ("other", "A", "nxdomain", "NXDOMAIN", []),
        ("Both.PYvxlan", "A", "answered", "NOERROR", ["10.0.0.2"]),
        ("other.red.net", "A", "servfail", "SERVFAIL", []),
        ("example.org", "A", "servfail", "SERVFAIL", []),
        (".", "NS", "nxdomain", "NXDOMAIN", []),
        ("2.0.0.10.in-addr.arpa", "PTR", "answered", "NOERROR", ["both.blue."]),
        (
            "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
            "PTR", "answered", "NOERROR", ["both.blue."],
        ),
        ("77.0.0.10.in-addr.arpa", "PTR", "nxdomain", "NXDOMAIN", []),
        ("2.1.0.10.in-addr.arpa", "PTR", "servfail", "SERVFAIL", []),
        ("x.0.0.10.in-addr.arpa", "PTR", "servfail", "SERVFAIL", []),
    ],
)  # fmt: skip
def test_answer_is_what_the_overlay_knows(
    directory: FakeDirectory, name: str, kind: str, outcome: str, rcode: str, expected: list[str]
) -> None:
    verdict = ask(directory, name, kind)
    assert verdict.outcome == outcome
    assert verdict.response is not None
    assert dns.rcode.to_text(verdict.response.rcode()) == rcode
    assert answers(verdict) == expected
    assert verdict.response.flags & dns.flags.QR
    assert verdict.response.flags & dns.flags.RA


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [
        ("Mine", "answered"),
        ("mine.blue", "answered"),
        ("mine.pyvxlan", "answered"),
        ("mine.example.org", "servfail"),
        ("both", "answered"),
        ("gone", "nxdomain"),
    ],
)
def test_alias_of_the_askers_own_stands_for_a_name(
    directory: FakeDirectory, asked: str, outcome: str
) -> None:
    query = dns.message.make_query(f"{asked}.", "A")
    resolver = Resolver(Names(directory), lambda: False)
    verdict = resolver.decide(query.to_wire(), NETWORKS, {"mine": "both", "gone": "nobody"})
    assert verdict.outcome == outcome
    assert answers(verdict) == (["10.0.0.2"] if outcome == "answered" else [])


def test_name_of_our_own_zone_is_asked_of_nobody_else(directory: FakeDirectory) -> None:
    assert ask(directory, "other.pyvxlan", upstream=True).outcome == "nxdomain"


@pytest.mark.parametrize(
    ("name", "kind", "authoritative"),
    [
        ("both", "A", True),
        ("four", "AAAA", True),
        ("other.pyvxlan", "A", True),
        ("2.0.0.10.in-addr.arpa", "PTR", True),
        ("77.0.0.10.in-addr.arpa", "PTR", True),
        ("other", "A", False),
        ("example.org", "A", False),
    ],
)
def test_answer_about_a_name_of_ours_alone_is_authoritative(
    directory: FakeDirectory, name: str, kind: str, authoritative: bool
) -> None:
    # Docker's name server goes on to its next server after an NXDOMAIN that is not.
    response = ask(directory, name, kind).response
    assert response is not None
    assert bool(response.flags & dns.flags.AA) == authoritative


def test_answer_repeats_the_name_as_it_was_asked_and_lives_shortly(
    directory: FakeDirectory,
) -> None:
    response = ask(directory, "BoTh").response
    assert response is not None
    assert str(response.answer[0].name) == "BoTh."
    assert 0 < response.answer[0].ttl <= 30


@pytest.mark.parametrize(
    ("name", "kind"), [("other", "A"), ("example.org", "A"), ("2.1.0.10.in-addr.arpa", "PTR")]
)
def test_what_the_overlay_does_not_know_is_forwarded(
    directory: FakeDirectory, name: str, kind: str
) -> None:
    assert ask(directory, name, kind, upstream=True) == server.Verdict("forwarded", forward=True)


@pytest.mark.parametrize(("name", "kind"), [("four", "AAAA"), ("77.0.0.10.in-addr.arpa", "PTR")])
def test_what_the_overlay_knows_is_not_forwarded(
    directory: FakeDirectory, name: str, kind: str
) -> None:
    assert not ask(directory, name, kind, upstream=True).forward


def test_holders_of_an_alias_come_in_changing_order(directory: FakeDirectory) -> None:
    for number in range(20):
        directory.add(endpoint(10 + number, BLUE, f"10.0.0.{10 + number}/24", aliases=("web",)))
    orders = set()
    for _ in range(5):
        response = ask(directory, "web").response
        assert response is not None
        orders.add(tuple(map(str, response.answer[0])))
    assert len(orders) > 1
    assert all(len(order) == 20 for order in orders)


def test_other_version_of_edns_is_told_ours(directory: FakeDirectory) -> None:
    query = dns.message.make_query("both", "A", use_edns=1)
    verdict = Resolver(Names(directory), lambda: True).decide(query.to_wire(), NETWORKS)
    assert verdict.response is not None
    assert (verdict.response.rcode(), verdict.response.edns) == (dns.rcode.BADVERS, 0)
    assert not verdict.response.answer


def test_other_classes_are_refused(directory: FakeDirectory) -> None:
    verdict = ask(directory, "version.bind", "TXT", rdclass="CH")
    assert verdict.outcome == "refused"
    assert verdict.response is not None
    assert verdict.response.rcode() == dns.rcode.REFUSED


def broken(kind: str) -> bytes:
    query = dns.message.make_query("both", "A")
    wire = bytearray(query.to_wire())
    match kind:
        case "short":
            return bytes(wire[:11])
        case "response":
            wire[2] |= 0x80
        case "update":
            wire[2] |= 0x28
        case "cut":
            return bytes(wire[:-3])
        case "no question":
            return bytes(wire[:4]) + bytes(8)
        case "two questions":
            wire[5] = 2
            wire += wire[12:]
    return bytes(wire)


@pytest.mark.parametrize(
    ("kind", "outcome", "rcode"),
    [
        ("short", "ignored", None),
        ("response", "ignored", None),
        ("update", "refused", dns.rcode.NOTIMP),
        ("cut", "formerr", dns.rcode.FORMERR),
        ("no question", "formerr", dns.rcode.FORMERR),
        ("two questions", "formerr", dns.rcode.FORMERR),
    ],
)
def test_broken_query_is_refused_or_ignored(
    directory: FakeDirectory, kind: str, outcome: str, rcode: dns.rcode.Rcode | None
) -> None:
    wire = broken(kind)
    verdict = Resolver(Names(directory), lambda: True).decide(wire, NETWORKS)
    assert verdict.outcome == outcome
    if rcode is None:
        assert verdict.response is None
    else:
        assert verdict.response is not None
        emitted = dns.message.from_wire(verdict.response.to_wire())
        assert emitted.rcode() == rcode
        assert emitted.id == int.from_bytes(wire[:2], "big")


@given(st.binary(max_size=80), st.booleans())
def test_no_message_breaks_the_resolver(noise: bytes, headed: bool) -> None:
    wire = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + noise if headed else noise
    verdict = Resolver(Names(FakeDirectory()), lambda: False).decide(wire, NETWORKS)
    assert verdict.outcome in server.OUTCOMES
    if verdict.response:
        assert len(fitted(verdict.response, 512)) <= 512


def test_long_answer_keeps_what_fits_and_says_so(directory: FakeDirectory) -> None:
    for number in range(200):
        directory.add(endpoint(10 + number, BLUE, f"10.0.0.{10 + number}/24", aliases=("web",)))
    resolver = Resolver(Names(directory), lambda: False)
    query = dns.message.make_query("web", "A")
    response = resolver.decide(query.to_wire(), NETWORKS).response
    assert response is not None
    assert payload_limit(response) == 512
    wire = fitted(response, 512)
    assert 400 < len(wire) <= 512
    short = dns.message.from_wire(wire)
    assert short.flags & dns.flags.TC
    assert 20 < len(short.answer[0]) < 40
    query.use_edns(0, 0, 4096)
    response = resolver.decide(query.to_wire(), NETWORKS).response
    assert response is not None
    assert payload_limit(response) == 4096
    whole = dns.message.from_wire(fitted(response, 4096))
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 200


class Server(asyncio.DatagramProtocol):
    """An upstream server: `answer` makes the reply to a query, or None."""

    def __init__(self, answer: Callable[[bytes, bool], bytes | None]) -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self.port = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append(data)
        reply = self.answer(data, False)
        if reply:
            self.transport.sendto(reply, addr)  # type: ignore[attr-defined]

    async def serve_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        reply = self.answer(query, True)
        if reply:
            writer.write(len(reply).to_bytes(2, "big") + reply)
        writer.close()


@contextlib.asynccontextmanager
async def upstream_server(
    answer: Callable[[bytes, bool], bytes | None], host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Server]:
    made = Server(answer)
    udp, tcp = sockets_on_one_port(host, port)
    made.port = udp.getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: made, sock=udp)
    stream = await asyncio.start_server(made.serve_stream, sock=tcp)
    try:
        yield made
    finally:
        transport.close()
        stream.close()


def reply(query: bytes, *addresses: str, rcode: int = 0) -> bytes:
    asked = dns.message.from_wire(query)
    response = dns.message.make_response(asked, recursion_available=True)
    response.set_rcode(dns.rcode.Rcode(rcode))
    if addresses:
        name = asked.question[0].name
        response.answer = [dns.rrset.from_text(name, 60, "IN", "A", *addresses)]
    return response.to_wire(max_size=65535)


def sockets_on_one_port(
    host: str = "127.0.0.1", port: int = 0
) -> tuple[socket.socket, socket.socket]:
    """UDP and listening TCP on one port of a local address; if it may be any, one free for both."""
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            udp.bind((host, port))
            tcp.bind(udp.getsockname())
        except OSError:
            udp.close()
            tcp.close()
            if port:
                raise
        else:
            tcp.listen()
            return udp, tcp


@contextlib.asynccontextmanager
async def name_server(
    directory: FakeDirectory, upstream: Upstream
) -> AsyncIterator[tuple[int, Counter[str]]]:
    """Serves on a free port of 127.0.0.1; gives the port and the counters."""
    outcomes: Counter[str] = Counter()
    resolver = Resolver(Names(directory), lambda: bool(upstream.servers))
    made = NameServer(resolver, upstream, outcomes)
    made.network_ids = NETWORKS
    udp, tcp = sockets_on_one_port()
    await made.start(udp, tcp)
    try:
        yield udp.getsockname()[1], outcomes
    finally:
        await made.close()


async def by_udp(
    port: int, query: dns.message.Message, timeout_s: float = 5
) -> dns.message.Message:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", port))
        await loop.sock_sendall(sock, query.to_wire())
        async with asyncio.timeout(timeout_s):
            response = dns.message.from_wire(await loop.sock_recv(sock, 65535))
    assert query.is_response(response)
    return response


async def by_tcp(port: int, *queries: dns.message.Message) -> list[dns.message.Message]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    responses = []
    for query in queries:
        wire = query.to_wire()
        writer.write(len(wire).to_bytes(2, "big") + wire)
    for _ in queries:
        size = int.from_bytes(await reader.readexactly(2), "big")
        responses.append(dns.message.from_wire(await reader.readexactly(size)))
    writer.close()
    return responses


def nobody() -> Upstream:
    return Upstream((), resolv_conf=Path("/no/such/file"))


async def test_known_names_are_served_over_udp_and_tcp(directory: FakeDirectory) -> None:
    async with name_server(directory, nobody()) as (port, outcomes):
        response = await by_udp(port, dns.message.make_query("both", "A"))
        assert str(response.answer[0][0]) == "10.0.0.2"
        one, two = await by_tcp(
            port, dns.message.make_query("both", "AAAA"), dns.message.make_query("four", "AAAA")
        )
        assert str(one.answer[0][0]) == "fd00::2"
        assert two.rcode() == dns.rcode.NOERROR
        assert not two.answer
    assert outcomes == {"answered": 2, "nodata": 1}


async def test_truncated_udp_answer_is_whole_over_tcp(directory: FakeDirectory) -> None:
    for number in range(100):
        directory.add(endpoint(10 + number, BLUE, f"10.0.0.{10 + number}/24", aliases=("web",)))
    async with name_server(directory, nobody()) as (port, _):
        query = dns.message.make_query("web", "A")
        assert (await by_udp(port, query)).flags & dns.flags.TC
        (whole,) = await by_tcp(port, query)
        assert len(whole.answer[0]) == 100


async def test_other_names_are_asked_upstream_with_an_id_of_their_own(
    directory: FakeDirectory,
) -> None:
    async with upstream_server(lambda query, _: reply(query, "192.0.2.1")) as there:
        upstream = Upstream(["127.0.0.1"], port=there.port)
        async with name_server(directory, upstream) as (port, outcomes):
            query = dns.message.make_query(
                "example.org", "A", use_edns=0, payload=1400, want_dnssec=True
            )
            response = await by_udp(port, query)
            assert str(response.answer[0][0]) == "192.0.2.1"
            sent = dns.message.from_wire(there.asked[0])
            assert (sent.edns, sent.payload, sent.ednsflags) == (0, 1400, query.ednsflags)
            numbers = {there.asked[0][:2]}
            for _ in range(3):
                await by_udp(port, query)
                numbers.add(there.asked[-1][:2])
            assert len(numbers) > 1, "ids are chosen anew"
    assert outcomes == {"forwarded": 4}


async def test_truncated_upstream_answer_is_fetched_by_tcp(directory: FakeDirectory) -> None:
    many = [f"192.0.2.{number}" for number in range(1, 101)]

    def answer(query: bytes, stream: bool) -> bytes:
        if stream:
            return reply(query, *many)
        cut = bytearray(reply(query))
        cut[2] |= 0x02
        return bytes(cut)

    async with upstream_server(answer) as there:
        upstream = Upstream(["127.0.0.1"], port=there.port)
        async with name_server(directory, upstream) as (port, _):
            query = dns.message.make_query("example.org", "A")
            (whole,) = await by_tcp(port, query)
            assert len(whole.answer[0]) == 100
            cut = await by_udp(port, query)
            assert cut.flags & dns.flags.TC
            assert not cut.answer
            query.use_edns(0, 0, 4096)
            assert len((await by_udp(port, query)).answer[0]) == 100


async def test_server_that_is_silent_or_refuses_is_passed_over(directory: FakeDirectory) -> None:
    async with (
        upstream_server(lambda _query, _: None) as silent,
        upstream_server(
            lambda query, _: reply(query, rcode=5), "127.0.0.2", silent.port
        ) as refusing,
        upstream_server(
            lambda query, _: reply(query, "192.0.2.3"), "127.0.0.3", silent.port
        ) as good,
    ):
        servers = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        upstream = Upstream(servers, port=silent.port, timeout_s=1.0)
        query = dns.message.make_query("example.org", "A").to_wire()
        for _ in range(2):
            answer = await upstream.ask(query)
            assert answer is not None
            assert str(dns.message.from_wire(answer).answer[0][0]) == "192.0.2.3"
        assert len(refusing.asked) == len(good.asked) == 2
        assert len(silent.asked) == 1, "a silent server is asked last the next time"


async def test_refusal_of_all_is_passed_on() -> None:
    async with upstream_server(lambda query, _: reply(query, rcode=5)) as there:
        answer = await Upstream(["127.0.0.1"], port=there.port).ask(
            dns.message.make_query("example.org", "A").to_wire()
        )
        assert answer is not None
        assert dns.message.from_wire(answer).rcode() == dns.rcode.REFUSED


async def test_nobody_answering_is_servfail_within_the_time(directory: FakeDirectory) -> None:
    async with upstream_server(lambda _query, _: None) as there:
        upstream = Upstream(["127.0.0.1"], port=there.port, timeout_s=0.3)
        async with name_server(directory, upstream) as (port, outcomes):
            began = time.monotonic()
            response = await by_udp(port, dns.message.make_query("example.org", "A"))
            assert response.rcode() == dns.rcode.SERVFAIL
            assert time.monotonic() - began < 1.5
    assert outcomes == {"servfail": 1}


async def test_closed_upstream_port_fails_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    query = dns.message.make_query("example.org", "A").to_wire()
    assert await Upstream(["127.0.0.1"], port=port).ask(query) is None
    assert time.monotonic() - began < 1


async def test_answers_with_a_wrong_id_or_question_are_not_believed() -> None:
    def answer(query: bytes, _: bool) -> bytes:
        good = reply(query, "192.0.2.1")
        wrong_id = bytes([query[0] ^ 1]) + good[1:]
        other = dns.message.make_query("evil.org", "A")
        other.id = int.from_bytes(query[:2], "big")
        for forged in (wrong_id, reply(other.to_wire(), "192.0.2.66"), query, b"", b"x"):
            there.transport.sendto(forged, there.last)  # type: ignore[attr-defined]
        return good

    async with upstream_server(answer) as there:
        original = there.datagram_received

        def remember(data: bytes, addr: tuple[str, int]) -> None:
            there.last = addr  # type: ignore[attr-defined]
            original(data, addr)

        there.datagram_received = remember  # type: ignore[method-assign]
        got = await Upstream(["127.0.0.1"], port=there.port).ask(
            dns.message.make_query("example.org", "A").to_wire()
        )
        assert got is not None
        assert str(dns.message.from_wire(got).answer[0][0]) == "192.0.2.1"


async def test_waiting_queries_are_bounded(
    directory: FakeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_FORWARDED", 2)
    async with upstream_server(lambda _query, _: None) as there:
        upstream = Upstream(["127.0.0.1"], port=there.port, timeout_s=0.5)
        async with name_server(directory, upstream) as (port, outcomes):
            queries = [dns.message.make_query(f"n{number}.org", "A") for number in range(5)]
            responses = await asyncio.gather(*(by_udp(port, query) for query in queries))
            assert {response.rcode() for response in responses} == {dns.rcode.SERVFAIL}
    assert outcomes == {"overload": 3, "servfail": 2}


async def test_resolv_conf_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    upstream = Upstream(resolv_conf=path)
    assert upstream.servers == ()
    path.write_text("nameserver 192.0.2.1\n")
    assert upstream.servers == ("192.0.2.1",)
    beside = tmp_path / "new"
    beside.write_text("nameserver 192.0.2.2\n")
    os.replace(beside, path)
    assert upstream.servers == ("192.0.2.2",)
    assert Upstream(["192.0.2.9"], resolv_conf=path).servers == ("192.0.2.9",)


def test_resolv_conf_gives_three_servers_and_never_ourselves() -> None:
    text = (
        "# a comment\nsearch example.org\nnameserver 127.0.0.11\nnameserver\nnameserver nonsense\n"
        "nameserver 192.0.2.1\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n"
        "nameserver fe80::1%eth0\nnameserver 192.0.2.4\n"
    )
    assert parse_resolv_conf(text) == ("192.0.2.1", "2001:db8::1", "fe80::1%eth0")


@given(st.binary(max_size=64))
def test_question_is_a_part_of_the_message_or_nothing(message: bytes) -> None:
    found = question(message)
    assert found is None or found == message[12 : 12 + len(found)] or found.lower() == found


def sandboxed(number: int, inode: int, network_id: str = BLUE) -> LocalEndpoint:
    return LocalEndpoint(f"{number:032x}", network_id, Sandbox(f"/run/netns/{inode}", inode))


async def test_every_sandbox_has_one_server_as_long_as_it_has_endpoints(
    directory: FakeDirectory,
) -> None:
    opened: list[tuple[socket.socket, socket.socket]] = []

    async def open_sockets(sandbox: Sandbox) -> tuple[socket.socket, socket.socket]:
        if sandbox.inode == 9:
            raise ConflictError("127.0.0.11:53 is taken in sandbox /run/netns/9")
        udp, tcp = sockets_on_one_port()
        opened.append((udp, tcp))
        return udp, tcp

    endpoints = [sandboxed(1, 1), sandboxed(2, 2), sandboxed(3, 9)]
    servers = NameServers(lambda: endpoints, Names(directory), nobody(), open_sockets)
    await servers.sync()
    await servers.sync()
    assert servers.serving == len(opened) == 2
    port = opened[0][0].getsockname()[1]
    query = dns.message.make_query("other", "A")
    assert (await by_udp(port, query)).rcode() == dns.rcode.NXDOMAIN
    endpoints.append(sandboxed(4, 1, RED))
    await servers.sync()
    assert (await by_udp(port, query)).rcode() == dns.rcode.NOERROR
    del endpoints[1]
    await servers.sync()
    assert servers.serving == 1
    assert servers.outcomes["nxdomain"] == 1
    await servers.close()
    assert servers.serving == 0
