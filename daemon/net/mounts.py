"""Looks for namespace files where the daemon's own mounts do not show them.

A daemon may be started with mounts of its own (`unshare -m`). What `ip netns add` mounts after
that is seen by whoever started the daemon, but by the daemon only as a bare file. So the roots of
its ancestors are kept open from the start: they show what those see, also when they have ended.
Nobody else's mounts are looked at, since anybody can mount anything in a container of his own.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pyvxlan.daemon.net import namespaces


class Mounts:
    """Our own mounts, then those of the ancestors of this process that had others."""

    def __init__(self) -> None:
        self._roots: list[int] = []
        seen = {_mounts_of(os.getpid())}
        for pid in _ancestors():
            mounts = _mounts_of(pid)
            if mounts in seen:
                continue
            seen.add(mounts)
            with contextlib.suppress(OSError):
                root = f"/proc/{pid}/root"
                self._roots.append(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def close(self) -> None:
        """Closes the roots."""
        while self._roots:
            os.close(self._roots.pop())

    def open_namespace(self, path: str | Path) -> int:
        """Opens a network namespace by an absolute path; the caller closes it.

        Raises:
            OSError: Of our own mounts: ENOENT if nothing is there, EINVAL if it is something else.
        """
        try:
            return namespaces.open_namespace(path)
        except OSError as error:
            for root in self._roots:
                with contextlib.suppress(OSError):
                    return namespaces.open_namespace(str(path).lstrip("/"), root)
            raise error


def _ancestors() -> list[int]:
    """Our parent, its parent, and so on to process 1."""
    found = []
    pid = os.getppid()
    while pid > 0:
        found.append(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            break
        # The command name, in parentheses, may hold anything; the parent is field 4.
        pid = int(stat[stat.rindex(b")") + 2 :].split()[1])
    return found


def _mounts_of(pid: int) -> str:
    """Tells one mount namespace from another; empty if it can't be told."""
    try:
        return Path(f"/proc/{pid}/ns/mnt").readlink().name
    except OSError:
        return ""
