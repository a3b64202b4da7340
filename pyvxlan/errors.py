"""Exceptions of the library: one leaf per distinct reaction of a caller.

A value that the caller should not have passed (a VNI of 25 bits, a MAC of five bytes) raises the
built-in `ValueError`, a system call that the kernel refused `OSError` with its errno.
"""

from __future__ import annotations


class PyvxlanError(Exception):
    """Root of what the library raises on purpose, beside ValueError and OSError."""


class MalformedError(PyvxlanError, ValueError):
    """Bytes from outside are not what they should be: drop them and go on.

    The message names the header that could not be read, and why.
    """


class ForwarderLostError(PyvxlanError):
    """The connection to the forwarder is gone, or never came: find it again or start another.

    Whether a request in flight was carried out is unknown.
    """


class ForwarderRefusedError(PyvxlanError):
    """The forwarder is well but refused the request; it changed nothing, unless the text says so.

    Attributes:
        kind: `invalid` (a value was wrong), `state` (not possible now), `system` (the kernel
            refused), `unknown` (no such method) or `internal` (a defect; see the forwarder's log).
        errno: Error number, if `kind` is `system`; else None.
    """

    def __init__(self, kind: str, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.errno = errno
