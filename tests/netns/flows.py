"""Traffic between containers: pings and TCP streams that tell what became of them."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.netns.world import Container, eventually


@dataclass
class Pings:
    """What became of pings that are numbered from 1: how many were sent, and which were lost."""

    sent: int = 0
    lost: list[int] = field(default_factory=list)


@contextlib.contextmanager
def pinging(client: Container, target: str, *, interval_s: float = 0.02) -> Iterator[Pings]:
    """Pings all the time while inside; tells afterwards what became of it.

    The last half a second does not count: its answers may be on their way when the pings end.
    """
    pings = Pings()
    process = subprocess.Popen(
        [
            *("nsenter", f"--net=/run/netns/{client.netns}", "--"),
            *("ping", "-n", "-i", str(interval_s), target),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    printed: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: printed.extend(process.stdout or ()))
    reader.start()
    try:
        yield pings
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        reader.join()
        process.stdout.close()
    text = "".join(printed)
    pings.sent = int(re.findall(r"(\d+) packets transmitted", text)[0]) - int(0.5 / interval_s)
    answered = set(map(int, re.findall(r"icmp_seq=(\d+) ttl", text)))
    pings.lost = sorted(set(range(1, pings.sent + 1)) - answered)


def receive_all(connection: socket.socket, size: int) -> bytes:
    """Reads exactly `size` bytes."""
    parts: list[bytes] = []
    left = size
    while left:
        part = connection.recv(min(left, 1 << 20))
        if not part:
            raise AssertionError(f"connection ended with {left} of {size} bytes missing")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def transfer(client: Container, server: Container, address: str, payload: bytes) -> bytes:
    """Sends `payload` over one TCP connection; returns what arrived."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    received: list[bytes] = []
    with server.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                received.append(receive_all(connection, len(payload)))
                connection.sendall(b"ok")

        thread = threading.Thread(target=serve)
        thread.start()
        with client.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(20)
            connection.connect((address, listener.getsockname()[1]))
            connection.sendall(payload)
            assert receive_all(connection, 2) == b"ok"
        thread.join()
    return received[0]


class Flow:
    """One TCP stream that goes on until it is told to end; both ends keep a hash of it."""

    BLOCK = random.Random(4789).randbytes(1 << 16)

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.received = 0
        self._sent = 0
        self._client, self._server = client, server
        self._ending = threading.Event()
        self._hashes = hashlib.sha256(), hashlib.sha256()
        self._threads = [threading.Thread(target=part) for part in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def goes_on(self, *, within_s: float = 20) -> None:
        """Returns once more has arrived than can have been on the way when it was called."""
        enough = self._sent + len(self.BLOCK)
        eventually(lambda: self.received > enough, within_s=within_s, what="the flow goes on")

    def end(self) -> None:
        """Ends the stream; fails if what arrived is not what was sent."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        sent, received = self._hashes
        assert (self.received, received.digest()) == (self._sent, sent.digest())

    def _send(self) -> None:
        with self._client as connection:
            while not self._ending.is_set():
                connection.sendall(self.BLOCK)
                self._hashes[0].update(self.BLOCK)
                self._sent += len(self.BLOCK)
                self._ending.wait(0.005)  # leaves others some of the processor

    def _receive(self) -> None:
        with self._server as connection:
            while part := connection.recv(1 << 20):
                self._hashes[1].update(part)
                self.received += len(part)


@contextlib.contextmanager
def flowing(client: Container, server: Container, address: str) -> Iterator[Flow]:
    """A TCP stream from one container to the other while inside; checks its content at the end."""
    with server.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen()
        sender = client.socket(socket.AF_INET, socket.SOCK_STREAM)
        sender.connect((address, listener.getsockname()[1]))
        receiver, _ = listener.accept()
    for end in (sender, receiver):
        end.settimeout(60)
    flow = Flow(sender, receiver)
    try:
        yield flow
    finally:
        flow.end()


def listening(container: Container, port: int, *, within_s: float = 5) -> None:
    """Returns when something listens on a TCP port inside."""
    eventually(
        lambda: f":{port} " in container.run("ss", "-ltn"),
        within_s=within_s,
        what=f"port {port} listens",
    )
