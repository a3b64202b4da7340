"""What the daemons ask each other: questions that change nothing, over TLS on the underlay.

A host record in the store names a port and a certificate. Both sides of a connection prove
themselves: each accepts exactly the certificate that the store, or what was last known of it, has
for the other. The one that asks says who it is in the handshake (as server name, RFC 6066, section
3), so that the other has one certificate to check and not the cluster's.

A connection carries one question. A message is a big-endian u32 length, a letter, and so many
bytes: `Q` the question, `J` JSON, `D` bytes, `E` an error, `Z` the end; `S` from the one that asks
says that it has heard enough. docs/why.md has the limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import secrets
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeAlias

from pyvxlan.daemon.errors import (
    ConfigError,
    DaemonError,
    InvalidError,
    NotFoundError,
    PeerError,
    PeerRefusedError,
)
from pyvxlan.daemon.identity import Identity
from pyvxlan.daemon.model import Host, Peer

log = logging.getLogger(__name__)

CONNECT_S = 3.0
HANDSHAKE_S = 5.0
QUESTION_S = 5.0
"""How long a question may take to arrive, or a message to leave."""
CLOSE_S = 1.0
ANSWER_S = 10.0
STREAM_S = 3600.0
QUESTION_BYTES = 64 * 1024
MESSAGE_BYTES = 8 * 1024 * 1024
CONNECTIONS = 64
CONNECTIONS_OF_ONE = 16
"""Of all connections, as many may be one host's."""

Arguments: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = "dict[str, Any] | list[Any] | bytes"
"""What one message of an answer holds: a JSON document, or bytes."""
Question: TypeAlias = Callable[[Arguments, asyncio.Event], AsyncGenerator[Answer, None]]
"""Answers a question, message by message; the event is set when the asker has heard enough.

Arguments come from another host: whoever gets them checks them."""

_HEADER = struct.Struct("!Ic")


class Peering:
    """Asks other hosts' daemons, and answers them once `serving`.

    Args:
        hosts: Gives the hosts of the cluster by id, as they are known now.
        host: This host.
        identity: What proves this host; None if it neither asks nor answers.
    """

    def __init__(
        self, hosts: Callable[[], Mapping[str, Host]], host: Host, identity: Identity | None
    ) -> None:
        self._hosts = hosts
        self._host = host
        self._identity = identity
        self._questions: dict[str, Question] = {}
        self._open: Counter[str] = Counter()

    def answer(self, name: str, how: Callable[[Arguments], Awaitable[Answer]]) -> None:
        """Answers a question by one message from now on."""

        async def once(arguments: Arguments, _: asyncio.Event) -> AsyncGenerator[Answer, None]:
            yield await how(arguments)

        self._questions[name] = once

    def answer_stream(self, name: str, how: Question) -> None:
        """Answers a question by a stream of messages from now on."""
        self._questions[name] = how

    async def ask(
        self, host_id: str, name: str, arguments: Arguments, *, timeout_s: float = ANSWER_S
    ) -> Any:
        """Asks a host, which may be this one, and gives its answer's first message.

        Raises:
            PeerError: It does not answer; the message says why, and names host and address.
            PeerRefusedError: It answered with a refusal.
        """
        try:
            async with asyncio.timeout(timeout_s), self.stream(host_id, name, arguments) as answer:
                async for message in answer:
                    return message
        except TimeoutError as error:
            raise PeerError(
                f"{self._name(host_id)}'s daemon does not answer within {timeout_s:g} s"
            ) from error
        raise PeerRefusedError(f"{self._name(host_id)}'s daemon gave no answer to {name}")

    @contextlib.asynccontextmanager
    async def stream(
        self, host_id: str, name: str, arguments: Arguments, stop: asyncio.Event | None = None
    ) -> AsyncIterator[AsyncIterator[Answer]]:
        """Asks a host, which may be this one; gives the messages of its answer as they come.

        Once `stop` is set, the host is told to come to an end. Leaving ends the question.

        Raises:
            PeerError: As `ask` does, also while the answer is read.
        """
        stop = stop or asyncio.Event()
        if host_id == self._host.id:
            answers = self._answers(name, arguments, stop)
            async with contextlib.aclosing(answers):
                yield answers
            return
        host = self._hosts().get(host_id)
        if host is None:
            raise NotFoundError(f"host {host_id} is not known: see pyvxlan node ls")
        async with self._connection(host) as (reader, writer):
            question = {"question": name, "arguments": dict(arguments)}
            with _explained(host):
                await _send(writer, b"Q", json.dumps(question).encode())
            stopping = asyncio.create_task(_tell_stop(writer, stop))
            try:
                async with contextlib.aclosing(_messages(host, reader)) as answers:
                    yield answers
            finally:
                stopping.cancel()
                await asyncio.gather(stopping, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def serving(self, bound: socket.socket) -> AsyncIterator[None]:
        """Answers on an address that `bind` took while inside, and closes it."""
        task = asyncio.create_task(self._accept(bound), name="peering")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            bound.close()

    # The side that asks

    @contextlib.asynccontextmanager
    async def _connection(
        self, host: Host
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        if self._identity is None:
            raise PeerError(
                f"{host.name} can't be asked, since this host has peer_port = 0: set another"
            )
        if host.peer is None:
            raise PeerError(
                f"{host.name} can't be asked: its daemon (version {host.version}) has peer_port = "
                "0 or is older than this question"
            )
        with _explained(host):
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(
                    str(host.vtep),
                    host.peer.port,
                    ssl=_asking(self._identity, host.peer),
                    server_hostname=self._host.id,
                )
        try:
            if _certificate(writer) != host.peer.certificate:
                raise PeerError(f"what answers for {host.name} has another certificate")
            yield reader, writer
        finally:
            await _close(writer)

    # The side that answers

    async def _accept(self, bound: socket.socket) -> None:
        assert self._identity is not None
        context = _answering(self._identity, None)
        context.sni_callback = self._choose
        bound.setblocking(False)  # noqa: FBT003 - has no other form
        bound.listen()
        slots = asyncio.Semaphore(CONNECTIONS)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                await slots.acquire()
                try:
                    taken, _ = await loop.sock_accept(bound)
                except OSError as error:  # Out of descriptors, or a client that is gone already.
                    log.warning("peer not accepted cause=%s", error)
                    slots.release()
                    await asyncio.sleep(1)
                    continue
                task = group.create_task(self._serve(taken, context))
                task.add_done_callback(lambda _: slots.release())

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        """Lets a handshake go on with the certificate of the host that the asker says it is."""
        host = self._hosts().get(name or "")
        if host is None or host.peer is None or self._identity is None:
            return ssl.ALERT_DESCRIPTION_ACCESS_DENIED
        connection.context = _answering(self._identity, host.peer)
        return None

    async def _serve(self, taken: socket.socket, context: ssl.SSLContext) -> None:
        """Answers one connection; nothing that comes from it can end the task with an error."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=QUESTION_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, taken, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except OSError as error:
            log.debug("peer refused cause=%s", error)
            taken.close()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        asker = self._asker(writer)
        try:
            if asker is None:
                return
            if self._open[asker.id] >= CONNECTIONS_OF_ONE:
                await _refuse(writer, PeerError("too many questions at once: try again shortly"))
                return
            self._open[asker.id] += 1
            try:
                async with asyncio.timeout(STREAM_S):
                    await self._converse(asker, reader, writer)
            finally:
                self._open[asker.id] -= 1
        except (OSError, asyncio.IncompleteReadError) as error:
            log.debug("peer left cause=%r", error)
        except Exception:
            log.exception("peer not answered")
        finally:
            await _close(writer)

    def _asker(self, writer: asyncio.StreamWriter) -> Host | None:
        """The host whose certificate a connection has shown, as the store is now."""
        shown = _certificate(writer)
        for host in self._hosts().values():
            if host.peer and host.peer.certificate == shown:
                return host
        return None

    async def _converse(
        self, asker: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async with asyncio.timeout(QUESTION_S):
            kind, body = await _receive(reader, QUESTION_BYTES)
        stop = asyncio.Event()
        answering = asyncio.create_task(self._reply(asker, kind, body, stop, writer))
        hearing = asyncio.create_task(_hear_stop(reader, stop))
        try:
            await asyncio.wait((answering, hearing), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and stop.is_set():
                await asyncio.wait((answering,))
        finally:
            for task in (answering, hearing):
                task.cancel()
            await asyncio.gather(answering, hearing, return_exceptions=True)

    async def _reply(
        self,
        asker: Host,
        kind: bytes,
        body: bytes,
        stop: asyncio.Event,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            name, arguments = _question(kind, body)
            log.debug("asked by=%s question=%s", asker.name, name)
            async with contextlib.aclosing(self._answers(name, arguments, stop)) as answers:
                async for answer in answers:
                    if isinstance(answer, bytes):
                        await _send(writer, b"D", answer)
                    else:
                        await _send(writer, b"J", json.dumps(answer).encode())
            await _send(writer, b"Z")
        except DaemonError as error:
            await _refuse(writer, error)
        except OSError:
            raise
        except Exception:
            number = secrets.token_hex(4)
            log.exception("question failed id=%s by=%s", number, asker.name)
            await _refuse(
                writer, DaemonError(f"internal error {number}: see that daemon's log for it")
            )

    async def _answers(
        self, name: str, arguments: Arguments, stop: asyncio.Event
    ) -> AsyncGenerator[Answer, None]:
        how = self._questions.get(name)
        if how is None:
            raise NotFoundError(
                f"version {self._host.version} does not know the question {name}: upgrade it"
            )
        async with contextlib.aclosing(how(arguments, stop)) as answers:
            async for answer in answers:
                yield answer

    def _name(self, host_id: str) -> str:
        host = self._hosts().get(host_id)
        return host.name if host else host_id


def bind(host: Host, port: int) -> socket.socket:
    """Takes the TCP port on a host's underlay address; connections are refused until served.

    Raises:
        ConfigError: It can't be had.
    """
    family = socket.AF_INET6 if host.vtep.version == 6 else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((str(host.vtep), port))
    except OSError as error:
        bound.close()
        taken = error.errno == errno.EADDRINUSE
        why = "is taken by another program" if taken else f"can't be used: {error.strerror}"
        raise ConfigError(
            f"peer port {host.vtep}:{port} {why}; choose another with --peer-port, or --peer-port "
            "0 if other hosts shall not ask this one"
        ) from error
    return bound


def _asking(identity: Identity, peer: Peer) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # The certificate itself is known.
    _trust(context, identity, peer)
    return context


def _answering(identity: Identity, peer: Peer | None) -> ssl.SSLContext:
    """A context that trusts one peer, or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # Each connection is judged by what the store says then.
    _trust(context, identity, peer)
    return context


def _trust(context: ssl.SSLContext, identity: Identity, peer: Peer | None) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity.path)
    if peer:
        context.load_verify_locations(cadata=peer.certificate)


def _certificate(writer: asyncio.StreamWriter) -> bytes | None:
    shown: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return shown


def _question(kind: bytes, body: bytes) -> tuple[str, Arguments]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"the question is not valid JSON: {error}") from error
    match kind, document:
        case b"Q", {"question": str(name), "arguments": dict(arguments)}:
            return name, arguments
    raise InvalidError("a question has a name and arguments")


async def _messages(host: Host, reader: asyncio.StreamReader) -> AsyncGenerator[Answer, None]:
    """Reads the messages of an answer to its end."""
    while True:
        with _explained(host):
            kind, body = await _receive(reader, MESSAGE_BYTES)
            match kind:
                case b"J":
                    document = json.loads(body)
                case b"D":
                    document = body
                case b"E":
                    raise PeerRefusedError(f"{host.name}: {json.loads(body)['error']}")
                case b"Z":
                    return
                case _:
                    raise ValueError(f"a message of kind {kind!r}")
        yield document


async def _receive(reader: asyncio.StreamReader, limit: int) -> tuple[bytes, bytes]:
    length, kind = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    if length > limit:
        raise ConnectionError(f"a message of {length} bytes is longer than {limit}")
    return kind, await reader.readexactly(length)


async def _send(writer: asyncio.StreamWriter, kind: bytes, body: bytes = b"") -> None:
    writer.write(_HEADER.pack(len(body), kind) + body)
    async with asyncio.timeout(QUESTION_S):
        await writer.drain()


async def _refuse(writer: asyncio.StreamWriter, error: DaemonError) -> None:
    await _send(writer, b"E", json.dumps({"error": str(error)}).encode())


async def _tell_stop(writer: asyncio.StreamWriter, stop: asyncio.Event) -> None:
    await stop.wait()
    with contextlib.suppress(OSError, TimeoutError):  # Whoever reads the answer is told.
        await _send(writer, b"S")


async def _hear_stop(reader: asyncio.StreamReader, stop: asyncio.Event) -> None:
    """Returns when the asker has left; sets `stop` if it said that it has heard enough."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await _receive(reader, 0)
        stop.set()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Ends a connection; one whose other side does not answer that is cut off."""
    writer.close()
    with contextlib.suppress(OSError):
        try:
            async with asyncio.timeout(CLOSE_S):
                await writer.wait_closed()
        except TimeoutError:
            writer.transport.abort()


@contextlib.contextmanager
def _explained(host: Host) -> Iterator[None]:
    """Turns what goes wrong with a connection into one error that names host and address."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        why = "what answers there has another certificate than the store says"
        raise _no_answer(host, why) from error
    except (asyncio.IncompleteReadError, ssl.SSLError, ConnectionResetError) as error:
        why = "it ended the connection; if it goes on, its view of the store is out of date"
        raise _no_answer(host, why) from error
    except TimeoutError as error:
        raise _no_answer(host, "no answer in time") from error
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise _no_answer(host, why) from error
    except (ValueError, LookupError, RecursionError) as error:
        raise _no_answer(host, f"it speaks otherwise ({error})") from error


def _no_answer(host: Host, why: str) -> PeerError:
    port = host.peer.port if host.peer else 0
    address = f"[{host.vtep}]:{port}" if host.vtep.version == 6 else f"{host.vtep}:{port}"
    return PeerError(f"{host.name}'s daemon does not answer at {address}: {why}")
