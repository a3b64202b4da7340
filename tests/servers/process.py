"""A real store server as a test runs it: started on a free port, always stopped."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody has at the moment.

    It is none that the kernel gives to clients: one that calls a server again and again while that
    is away would at some time get the server's own port, and be connected to itself. Nor is it one
    that another run of tests took and has not bound yet.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        if not _claim(port):
            continue
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port


_claims: list[socket.socket] = []


def _claim(port: int) -> bool:
    """Takes a name that says so to all runs of tests, until this process ends; False if taken."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0pyvxlan-tests-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True


def _state(thread: Path) -> str:
    """The letter of proc(5) that says what a thread does; T if it is gone."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "T"


class Server(ABC):
    """One server process with a directory of its own; what kind it is, a subclass says.

    Args:
        directory: Made for this server alone; data and log lie in it.
        address: Where it listens, inside `netns` if one is given.
        netns: Name of the network namespace that it runs in.
    """

    start_s = 30.0
    """How long it may take until it serves."""

    def __init__(
        self, directory: Path, *, address: str = "127.0.0.1", netns: str | None = None
    ) -> None:
        self.directory = directory
        self.address = address
        self.netns = netns
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def data(self) -> Path:
        """What `wipe` removes."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    @property
    @abstractmethod
    def url(self) -> str:
        """What a store that uses this server is opened with."""

    @abstractmethod
    def words(self) -> Sequence[str]:
        """The command that runs the server in the foreground."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it serves; called again and again after the start."""

    def enter(self) -> list[str]:
        """What stands before a command that shall run where the server runs."""
        return ["nsenter", f"--net=/run/netns/{self.netns}", "--"] if self.netns else []

    def start(self, *, wait: bool = True) -> None:
        """Starts it on the data that is there; returns when it serves.

        One that does not serve is ended, since whoever starts it in a `with` can't.
        """
        assert self.process is None, "already started"
        self.data.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.enter(), *self.words()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )
        if wait:
            try:
                self.wait()
            except BaseException:
                self.kill()
                raise

    def wait(self) -> None:
        """Returns when it serves."""
        deadline = time.monotonic() + self.start_s
        while not self.ready():
            assert self.process is not None
            ended = self.process.poll()
            if ended is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-3000:]
                raise AssertionError(f"{type(self).__name__} does not serve (exit {ended}): {tail}")
            time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it and waits for that; does nothing if it does not run."""
        process, self.process = self.process, None
        if process is None:
            return
        self._signal(process, signal.SIGCONT)
        self._signal(process, number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            self._signal(process, signal.SIGKILL)
            process.wait(10)

    def kill(self) -> None:
        """Ends it as a crash does."""
        self.stop(signal.SIGKILL)

    def freeze(self) -> None:
        """Stops it from running; its connections stay open and silent."""
        assert self.process is not None
        self._signal(self.process, signal.SIGSTOP)
        # One thread takes the signal and tells the others; until then they may answer.
        threads = Path(f"/proc/{self.process.pid}/task")
        deadline = time.monotonic() + self.start_s
        while any(_state(thread) != "T" for thread in threads.iterdir()):
            assert time.monotonic() < deadline, "it goes on after SIGSTOP"
            time.sleep(0.001)

    def thaw(self) -> None:
        assert self.process is not None
        self._signal(self.process, signal.SIGCONT)

    def wipe(self) -> None:
        """Removes its data; it must not run."""
        assert self.process is None, "still running"
        shutil.rmtree(self.data, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Signals the whole group that was started here (a wrapper may stand before the server)."""
        if process.poll() is None:
            os.killpg(process.pid, number)
