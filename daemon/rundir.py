"""The run directory: made, and held by one daemon at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pyvxlan.daemon.errors import ConfigError, ConflictError


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Makes the directory if need be and keeps other daemons out while inside.

    The lock goes with the process, however that ends.

    Raises:
        ConflictError: A daemon has it; the message names its process.
        ConfigError: The directory can't be used.
    """
    lock = path / "lock"
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"run directory {path} can't be used: {error.strerror}; make it writable or choose "
            "another with --run-dir"
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConflictError(
                f"a daemon runs on {path} already (pid {owner}): stop it first, with 'systemctl "
                f"stop pyvxlan-daemon' or 'kill {owner}', or choose another --run-dir and "
                "--state-dir"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
