"""Network namespaces as files: entering them, making them, keeping them by a bind mount."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from pyvxlan.daemon.net.netlink import Netlink

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703
"""ioctl that tells a namespace's kind (include/uapi/linux/nsfs.h)."""
MS_BIND = 0x1000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
)


def open_namespace(path: str | Path, root: int | None = None) -> int:
    """Opens a network namespace's file, below `root` if given; the caller closes it.

    Raises:
        OSError: ENOENT if there is no such file, EINVAL if it is no network namespace.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    try:
        if fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET:
            return fd
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            os.close(fd)
            raise
    os.close(fd)
    raise OSError(errno.EINVAL, "it is no network namespace", str(path))


def open_apart(file: Path) -> int:
    """Opens a namespace so that its file can still be unmounted; the caller closes it."""
    with closing(open_namespace(file)) as fd, inside(fd):
        return os.open(_own(), os.O_RDONLY | os.O_CLOEXEC)


def inode(fd: int) -> int:
    """The number that tells a namespace from every other that lives now."""
    return os.fstat(fd).st_ino


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """Closes a descriptor at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def inside(fd: int) -> Iterator[None]:
    """Moves the calling thread into a namespace, and back to where it was at the end.

    Raises:
        OSError: The kernel refused; the thread has not moved.
    """
    with closing(os.open(_own(), os.O_RDONLY | os.O_CLOEXEC)) as home:
        _enter(fd)
        try:
            yield
        finally:
            _enter(home)


@contextlib.contextmanager
def entered(fd: int) -> Iterator[Netlink]:
    """Moves the calling thread into a namespace, with a route netlink socket of it."""
    with inside(fd), Netlink() as netlink:
        yield netlink


def create(file: Path, adopt: int | None = None) -> None:
    """Puts a network namespace on `file`: the one behind `adopt`, or else a new one.

    What was on `file` before is taken away.
    """
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    remove(file)
    file.touch(mode=0o444)
    try:
        if adopt is not None:
            _bind(f"/proc/self/fd/{adopt}", file)
        else:
            _bind_new(file)
    except OSError:
        file.unlink(missing_ok=True)
        raise


def remove(file: Path) -> None:
    """Takes a namespace's file away; the namespace ends when nobody else holds it.

    A file that is not there is no error.
    """
    while _libc.umount2(os.fsencode(file), MNT_DETACH) == 0:
        pass
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        raise _last_error(f"umount {file}")
    file.unlink(missing_ok=True)


def _bind_new(file: Path) -> None:
    with closing(os.open(_own(), os.O_RDONLY | os.O_CLOEXEC)) as home:
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise _last_error("unshare")
        try:
            _bind(_own(), file)
        finally:
            _enter(home)


def _bind(source: str, file: Path) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(file), None, MS_BIND, None) != 0:
        raise _last_error(f"mount {source} on {file}")


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        raise _last_error("setns")


def _own() -> str:
    """The calling thread's own namespace; /proc/self would give the main thread's."""
    return f"/proc/self/task/{threading.get_native_id()}/ns/net"


def _last_error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")
