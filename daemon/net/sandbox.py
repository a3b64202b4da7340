"""Sandboxes: network namespaces of containers, found by name, path or process id."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from pyvxlan.daemon.errors import ConflictError, InvalidError, NotFoundError
from pyvxlan.daemon.model import Sandbox
from pyvxlan.daemon.net import links, namespaces
from pyvxlan.daemon.net.mounts import Mounts

NAMED = (Path("/run/netns"), Path("/var/run/netns"))
"""Where `ip netns add` keeps its namespaces."""
DNS_ADDRESS = ("127.0.0.11", 53)

_NAME = re.compile(r"[^/\0]{1,255}")
_PATH = re.compile(r"[^\0]{1,4095}")


class SandboxFiles:
    """Finds and opens sandboxes. Every call may come from any thread."""

    def __init__(self) -> None:
        self._mounts = Mounts()

    def close(self) -> None:
        """Releases what is kept open."""
        self._mounts.close()

    def resolve(self, text: str) -> Sandbox:
        """Finds the namespace that a user means: a number is a process, a slash makes a path.

        Raises:
            InvalidError: The text can't name one, or names something else, or this host's own
                namespace, whose routes a container's would replace.
            NotFoundError: There is none of that name.
        """
        found = self._find(text)
        if found.inode == os.stat("/proc/self/ns/net").st_ino:
            raise InvalidError(
                f"sandbox {text} is this host's own network namespace: give that of a container, "
                "or make one with 'ip netns add NAME'"
            )
        return found

    def alive(self, sandbox: Sandbox) -> bool:
        """Whether the sandbox's process runs, and its file still is that namespace."""
        if sandbox.pid is not None and _start_ticks(sandbox.pid) != sandbox.start_ticks:
            return False
        try:
            fd = self._open(sandbox)
        except NotFoundError:
            return False
        os.close(fd)
        return True

    @contextlib.contextmanager
    def opened(self, sandbox: Sandbox) -> Iterator[int]:
        """Opens the sandbox's namespace for a while.

        Raises:
            NotFoundError: It is gone, or another namespace has its place.
        """
        with namespaces.closing(self._open(sandbox)) as fd:
            yield fd

    def link_names(self, sandbox: Sandbox) -> tuple[str, ...]:
        """Names of the interfaces in a sandbox."""
        with self.opened(sandbox) as fd, namespaces.entered(fd) as netlink:
            return tuple(links.read_links(netlink))

    def dns_sockets(self, sandbox: Sandbox) -> tuple[socket.socket, socket.socket]:
        """Opens a UDP and a listening TCP socket on 127.0.0.11:53 in a sandbox, loopback up.

        Both are non-blocking and the caller's. While they are open, the namespace lives.

        Raises:
            ConflictError: Somebody in the sandbox has the port.
        """
        with self.opened(sandbox) as fd, namespaces.entered(fd) as netlink:
            if loopback := links.find(netlink, "lo"):
                links.set_up(netlink, loopback.index)
            try:
                return open_dns_sockets(DNS_ADDRESS)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                raise ConflictError(
                    "{}:{} is taken in sandbox {}: stop the name server that runs there".format(
                        *DNS_ADDRESS, sandbox.path
                    )
                ) from error

    def _find(self, text: str) -> Sandbox:
        is_number = text.isascii() and text.isdigit()
        if is_number and Path(f"/proc/{text}").exists():
            return self._of_pid(int(text))
        if "/" in text:
            return self._of_path(text)
        if not _NAME.fullmatch(text) or text in (".", ".."):
            raise InvalidError(f"sandbox {text!r} is no name, path or process id of a namespace")
        for directory in NAMED:
            with contextlib.suppress(FileNotFoundError):
                return self._of_file(directory / text)
        kind = "process" if is_number else "network namespace"
        raise NotFoundError(
            f"{kind} {text} does not exist: make one with 'ip netns add {text}', or give the path "
            "of a namespace or the id of a process in it"
        )

    def _of_pid(self, pid: int) -> Sandbox:
        """The namespace of a process; the sandbox lives as long as the process."""
        ticks = _start_ticks(pid)
        path = f"/proc/{pid}/ns/net"
        try:
            fd = namespaces.open_namespace(path)
        except OSError as error:
            raise NotFoundError(
                f"process {pid} has no namespace to give ({error.strerror}): "
                "give the id of one that runs"
            ) from error
        with namespaces.closing(fd):
            if ticks is None:
                raise NotFoundError(f"process {pid} has ended: give the id of one that runs")
            return Sandbox(path, namespaces.inode(fd), pid, ticks)

    def _of_path(self, text: str) -> Sandbox:
        if not text.startswith("/"):
            raise InvalidError(f"sandbox {text} is a relative path: give an absolute one")
        if text.startswith(("/proc/self/", "/proc/thread-self/")):
            raise InvalidError(f"sandbox {text} is the daemon's own namespace: give a process id")
        if not _PATH.fullmatch(text):
            raise InvalidError(f"sandbox {text!r} is no path")
        try:
            return self._of_file(Path(text))
        except FileNotFoundError:
            raise NotFoundError(f"{text} does not exist: give the path of a namespace") from None

    def _of_file(self, file: Path) -> Sandbox:
        try:
            fd = self._mounts.open_namespace(file)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InvalidError(
                f"{file} is no network namespace; if it was made by 'ip netns add', give the id "
                "of a process in it"
            ) from error
        with namespaces.closing(fd):
            return Sandbox(str(file), namespaces.inode(fd))

    def _open(self, sandbox: Sandbox) -> int:
        try:
            fd = self._mounts.open_namespace(sandbox.path)
        except OSError as error:
            raise NotFoundError(f"sandbox {sandbox.path} is gone: {error.strerror}") from error
        if sandbox.inode and namespaces.inode(fd) != sandbox.inode:
            os.close(fd)
            raise NotFoundError(f"sandbox {sandbox.path} is gone: another has its place")
        return fd


def _start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command name, in parentheses, may hold anything; state is field 3, the start field 22.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def open_dns_sockets(address: tuple[str, int]) -> tuple[socket.socket, socket.socket]:
    """Opens a UDP and a listening TCP socket in the calling thread's namespace, non-blocking."""
    with contextlib.ExitStack() as undo:
        datagrams = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        stream = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for one in (datagrams, stream):
            one.bind(address)
            one.settimeout(0)
        stream.listen(16)
        undo.pop_all()
    return datagrams, stream
