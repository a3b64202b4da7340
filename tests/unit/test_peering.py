"""Daemons ask each other over TLS; both sides believe exactly what the store says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from pyvxlan.daemon import peering
from pyvxlan.daemon.errors import (
    ConfigError,
    InvalidError,
    PeerError,
    PeerRefusedError,
)
from pyvxlan.daemon.identity import Identity, ensure_identity
from pyvxlan.daemon.model import Host, Peer
from pyvxlan.daemon.peering import Answer, Arguments, Peering


class Side:
    """A host of a cluster that is a dictionary: its `store` may differ from the others'."""

    def __init__(self, number: int, directory: Path) -> None:
        directory.mkdir()
        id_ = f"{number:032x}"
        self.identity: Identity | None = ensure_identity(directory, id_)
        vtep = ip_address(f"127.0.98.{number}")
        self.host = Host(id_, f"h{number}", vtep, 4789, "0.1.0")
        self.bound = peering.bind(self.host, 0)
        peer = Peer(self.bound.getsockname()[1], self.identity.certificate)
        self.host = replace(self.host, peer=peer)
        self.store: dict[str, Host] = {}
        self.peering = Peering(lambda: self.store, self.host, self.identity)
        self.peering.answer("echo", self.echo)
        self.peering.answer("fail", self.fail)
        self.peering.answer_stream("count", self.count)
        self.ended = asyncio.Event()

    async def echo(self, arguments: Arguments) -> Answer:
        return {"host": self.host.name, "heard": dict(arguments)}

    async def fail(self, arguments: Arguments) -> Answer:
        raise InvalidError(f"no such thing as {arguments['what']}")

    async def count(
        self, arguments: Arguments, stop: asyncio.Event
    ) -> AsyncGenerator[Answer, None]:
        try:
            yield b"ready"
            yield list(range(arguments["to"]))
            await stop.wait()
            yield {"stopped": True}
        finally:
            self.ended.set()


@pytest.fixture
async def sides(tmp_path: Path) -> AsyncIterator[tuple[Side, Side]]:
    one, two = Side(1, tmp_path / "1"), Side(2, tmp_path / "2")
    async with contextlib.AsyncExitStack() as stack:
        for side in (one, two):
            side.store.update({one.host.id: one.host, two.host.id: two.host})
            await stack.enter_async_context(side.peering.serving(side.bound))
        yield one, two


async def ask(asker: Side, asked: Side, name: str = "echo", **arguments: Any) -> Any:
    return await asker.peering.ask(asked.host.id, name, arguments)


async def test_hosts_answer_each_other_and_themselves(sides: tuple[Side, Side]) -> None:
    one, two = sides
    assert await ask(one, two, text="ä") == {"host": "h2", "heard": {"text": "ä"}}
    assert await ask(two, one) == {"host": "h1", "heard": {}}
    assert await ask(two, two) == {"host": "h2", "heard": {}}


async def test_a_refusal_names_the_host(sides: tuple[Side, Side]) -> None:
    with pytest.raises(PeerRefusedError, match="h2: no such thing as tea"):
        await ask(*sides, "fail", what="tea")


async def test_an_unknown_question_asks_for_an_upgrade(sides: tuple[Side, Side]) -> None:
    with pytest.raises(PeerRefusedError, match="does not know the question wherefore: upgrade"):
        await ask(*sides, "wherefore")


async def test_a_stream_goes_on_until_it_is_told_to_stop(sides: tuple[Side, Side]) -> None:
    one, two = sides
    for asked in (two, one):
        stop, heard = asyncio.Event(), []
        async with one.peering.stream(asked.host.id, "count", {"to": 3}, stop) as answers:
            async for answer in answers:
                heard.append(answer)
                if len(heard) == 2:
                    stop.set()
        assert heard == [b"ready", [0, 1, 2], {"stopped": True}]


async def test_a_stream_whose_asker_leaves_ends(sides: tuple[Side, Side]) -> None:
    one, two = sides
    async with one.peering.stream(two.host.id, "count", {"to": 1}) as answers:
        assert await anext(answers) == b"ready"
        assert not two.ended.is_set()
    async with asyncio.timeout(10):
        await two.ended.wait()


async def test_who_is_not_in_the_store_gets_no_answer(sides: tuple[Side, Side]) -> None:
    one, two = sides
    del two.store[one.host.id]
    with pytest.raises(
        PeerError, match=r"h2's daemon does not answer at 127\.0\.98\.2:\d+: it end"
    ):
        await ask(one, two)


async def test_a_host_can_not_pass_for_another(sides: tuple[Side, Side], tmp_path: Path) -> None:
    one, two = sides
    three = Side(3, tmp_path / "3")
    three.bound.close()
    assert three.identity
    impostor = Peering(lambda: two.store, one.host, three.identity)
    with pytest.raises(PeerError, match="it ended the connection"):
        await impostor.ask(two.host.id, "echo", {})


async def test_an_answer_from_another_is_not_believed(sides: tuple[Side, Side]) -> None:
    one, two = sides
    assert one.host.peer
    assert two.host.peer
    peer = Peer(two.host.peer.port, one.host.peer.certificate)
    one.store[two.host.id] = replace(two.host, peer=peer)
    with pytest.raises(PeerError, match="another certificate than the store says"):
        await ask(one, two)


async def test_a_certificate_counts_as_the_store_has_it_now(sides: tuple[Side, Side]) -> None:
    one, two = sides
    assert await ask(one, two)
    del two.store[one.host.id]
    with pytest.raises(PeerError):
        await ask(one, two)
    two.store[one.host.id] = one.host
    assert await ask(one, two)


async def test_a_host_without_the_channel_is_named(sides: tuple[Side, Side]) -> None:
    one, two = sides
    one.store[two.host.id] = replace(two.host, peer=None)
    with pytest.raises(PeerError, match="h2 can't be asked: its daemon"):
        await ask(one, two)
    off = Peering(lambda: one.store, one.host, None)
    with pytest.raises(PeerError, match="peer_port = 0"):
        await off.ask(two.host.id, "echo", {})


async def test_a_port_where_nobody_listens_is_named(sides: tuple[Side, Side]) -> None:
    one, two = sides
    assert two.host.peer
    with socket.socket() as free:
        free.bind((str(two.host.vtep), 0))
        port = free.getsockname()[1]
        one.store[two.host.id] = replace(two.host, peer=replace(two.host.peer, port=port))
        with pytest.raises(PeerError, match=rf"at 127\.0\.98\.2:{port}: Connection refused"):
            await ask(one, two)


async def test_one_host_can_not_take_all_connections(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peering, "CONNECTIONS_OF_ONE", 1)
    one, two = sides
    async with one.peering.stream(two.host.id, "count", {"to": 1}) as answers:
        await anext(answers)
        with pytest.raises(PeerRefusedError, match="too many questions"):
            await ask(one, two)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"Q" + b"[" * 30_000, "not valid JSON"),
        (b"Q{}", "a name and arguments"),
        (b'J{"question":"echo","arguments":{}}', "a name and arguments"),
        (b"Q" + b"x" * (peering.QUESTION_BYTES + 1), ""),
    ],
)
async def test_a_bad_question_is_refused(
    sides: tuple[Side, Side], message: bytes, said: str
) -> None:
    one, two = sides
    assert one.identity
    assert two.host.peer
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(one.identity.path)
    context.load_verify_locations(cadata=two.host.peer.certificate)
    reader, writer = await asyncio.open_connection(
        str(two.host.vtep), two.host.peer.port, ssl=context, server_hostname=one.host.id
    )
    writer.write(struct.pack("!I", len(message) - 1) + message)
    answer = b""
    with contextlib.suppress(OSError):
        answer = await reader.read()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    assert (said in json.loads(answer[5:])["error"]) if said else not answer
    assert await ask(one, two)


async def test_who_speaks_no_tls_is_cut_off(sides: tuple[Side, Side]) -> None:
    one, two = sides
    assert two.host.peer
    reader, writer = await asyncio.open_connection(str(two.host.vtep), two.host.peer.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()
    assert await ask(one, two)


def test_a_port_that_is_taken_stops_the_start() -> None:
    host = Host("a" * 32, "h1", ip_address("127.0.98.9"), 4789, "")
    with socket.socket() as other:
        other.bind((str(host.vtep), 0))
        other.listen()
        with pytest.raises(ConfigError, match=r"is taken by another program; .*--peer-port"):
            peering.bind(host, other.getsockname()[1])
