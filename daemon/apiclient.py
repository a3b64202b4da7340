"""Speaks to the daemon's API: one HTTP request over a unix socket, by hand.

The command line starts in a fraction of the time that an HTTP library takes to import.
"""

from __future__ import annotations

import json
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

NOTICE_AFTER_S = 1.0
CONNECT_TIMEOUT_S = 5.0
BLOCK = struct.Struct("!Ic")
STALE = re.compile(rb"\r\npyvxlan-stale-seconds: ([0-9.]+)", re.IGNORECASE)


class ClientError(Exception):
    """Why a command failed, in one line; `exit_code` is what the process ends with."""

    exit_code = 1


class RefusedError(ClientError):
    """The daemon refused. `status` is the HTTP status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class UnreachableError(ClientError):
    """There is no daemon to talk to, or it went away before it answered."""

    exit_code = 3


class Stream:
    """An answer that goes on: blocks of a kind, `J` for JSON, `D` for data or `E` for an error."""

    def __init__(self, sock: socket.socket, received: bytes) -> None:
        self._socket = sock
        self._buffer = bytearray(received)
        self.ended = False

    def fileno(self) -> int:
        """The descriptor, which is readable when `blocks` has more."""
        return self._socket.fileno()

    def blocks(self, *, receive: bool = True) -> list[tuple[str, bytes]]:
        """Gives the blocks that are there, after waiting for bytes unless told not to."""
        if receive:
            content = self._socket.recv(1 << 20)
            self.ended = not content
            self._buffer += content
        found = []
        start = 0
        with memoryview(self._buffer) as view:
            while len(view) - start >= BLOCK.size:
                length, kind = BLOCK.unpack_from(view, start)
                end = start + BLOCK.size + length
                if end > len(view):
                    break
                found.append(
                    (kind.decode("ascii", "replace"), bytes(view[start + BLOCK.size : end]))
                )
                start = end
        del self._buffer[:start]
        return found


class ApiClient:
    """A client of the daemon whose run directory is `run_dir`."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "api.sock"

    def get(self, *path: str, **query: str) -> Any:
        """Reads a document. Query parameters that are empty are left out."""
        return self._request("GET", path, query, None, "")

    @contextmanager
    def stream(self, *path: str, **query: str) -> Iterator[Stream]:
        """Reads an answer that goes on until it is left; the first part of it is there."""
        # Of this version an answer without a length is what comes until the end, and no chunks.
        head = f"GET {_target(path, query)} HTTP/1.0\r\nHost: pyvxlan\r\n\r\n"
        with self._connection() as sock:
            sock.sendall(head.encode("ascii"))
            answer = b""
            while b"\r\n\r\n" not in answer and (more := sock.recv(1 << 16)):
                answer += more
            if not re.match(rb"HTTP/\S+ 2", answer):
                answer += b"".join(iter(lambda: sock.recv(1 << 16), b""))
                self._parse(answer)
            yield Stream(sock, answer.partition(b"\r\n\r\n")[2])

    def post(self, *path: str, body: Mapping[str, object], doing: str) -> Any:
        """Creates something; `doing` is said if it takes longer than a second."""
        return self._request("POST", path, {}, body, doing)

    def delete(self, *path: str, doing: str, **query: str) -> Any:
        """Removes something; `doing` is said if it takes longer than a second."""
        return self._request("DELETE", path, query, None, doing)

    def _request(
        self,
        method: str,
        path: tuple[str, ...],
        query: Mapping[str, str],
        body: Mapping[str, object] | None,
        doing: str,
    ) -> Any:
        target = _target(path, query)
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: pyvxlan\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        with self._connection() as sock:
            try:
                sock.sendall(head.encode("ascii") + content)
                _wait(sock, doing)
                answer = b"".join(iter(lambda: sock.recv(1 << 16), b""))
            except OSError as error:
                raise UnreachableError(
                    f"the daemon on {self._path} went away before it answered ({error.strerror})"
                ) from error
        return self._parse(answer)

    @contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(CONNECT_TIMEOUT_S)
            try:
                sock.connect(str(self._path))
            except PermissionError as error:
                raise UnreachableError(
                    f"no permission for {self._path}: only root may use it, try sudo"
                ) from error
            except OSError as error:
                raise UnreachableError(
                    f"no daemon answers on {self._path}: start it with 'systemctl start "
                    "pyvxlan-daemon' or 'pyvxlan-daemon', or name its directory with --run-dir"
                ) from error
            sock.settimeout(None)
            yield sock

    def _parse(self, answer: bytes) -> Any:
        head, _, content = answer.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        try:
            status = int(words[1])
            document = json.loads(content)
        except (IndexError, ValueError) as error:
            raise UnreachableError(
                f"the daemon on {self._path} did not answer to the end: see its log"
            ) from error
        if status >= 400:
            raise RefusedError(str(document.get("error", document)), status)
        if stale := STALE.search(head):
            print(
                f"pyvxlan: the store has not answered for {float(stale[1]):.0f} s; what was known "
                "then still holds here (see pyvxlan status)",
                file=sys.stderr,
            )
        return document


def _target(path: tuple[str, ...], query: Mapping[str, str]) -> str:
    target = "/v1/" + "/".join(quote(part, safe="") for part in path)
    if given := {name: value for name, value in query.items() if value}:
        target += f"?{urlencode(given)}"
    return target


def _wait(sock: socket.socket, doing: str) -> None:
    """Returns when the answer comes in; says after a second what is being waited for.

    On a terminal the line counts the seconds and goes away at the end.
    """
    if not doing:
        return
    started = time.monotonic()
    terminal = sys.stderr.isatty()
    said = False
    while not select.select([sock], [], [], NOTICE_AFTER_S)[0]:
        if terminal:
            elapsed_s = time.monotonic() - started
            print(f"\r{doing} ... {elapsed_s:.0f} s", end="", file=sys.stderr, flush=True)
        elif not said:
            print(f"pyvxlan: {doing} ...", file=sys.stderr, flush=True)
        said = True
    if said and terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
