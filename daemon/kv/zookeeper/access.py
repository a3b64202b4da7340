"""How ZooKeeper is reached, and what is said when it refuses."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from kazoo.exceptions import KazooException, NoAuthError
from kazoo.protocol.connection import ConnectionDropped
from kazoo.security import ACL

from pyvxlan.daemon.errors import StoreDeniedError, StoreUnavailableError
from pyvxlan.daemon.kv.tls import refused_handshake
from pyvxlan.daemon.kv.url import Member, member_name

Reply: TypeAlias = Any
"""What kazoo makes of a reply, or the error that ZooKeeper answered."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the servers, and as whom."""

    members: tuple[Member, ...]
    tls: ssl.SSLContext | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    acl: tuple[ACL, ...] = ()
    """Of the nodes that are made."""
    certificate: bool = False
    """Whether `tls` shows one of this host."""

    def __str__(self) -> str:
        return ",".join(map(member_name, self.members))


def readable(reply: Reply, access: Access, path: str) -> Reply:
    """Passes a reply on unless it is an error.

    Raises:
        StoreUnavailableError: It is one.
    """
    if isinstance(reply, KazooException):
        raise refused(reply, access, path) from reply
    return reply


def refused(error: KazooException, access: Access, path: str) -> StoreUnavailableError:
    """Says why ZooKeeper refused to read or write a node, and the remedy."""
    if not isinstance(error, NoAuthError):
        return StoreUnavailableError(
            f"ZooKeeper at {access} refuses {path}: {type(error).__name__}"
        )
    who = f"user {access.user}" if access.user else "a client without a user"
    return StoreDeniedError(
        f"ZooKeeper at {access}: {who} has no permission for {path}: "
        "name the user that made it with ?user= and &password-file=, or change its ACL"
    )


def cause(error: Exception, access: Access) -> str:
    """Says why a server could not be used."""
    first = error.__context__ if isinstance(error.__context__, OSError) else error
    if isinstance(first, ssl.SSLError):
        return refused_handshake(first, certificate=access.certificate)
    if isinstance(first, OSError) and first.strerror:
        return first.strerror
    if isinstance(first, ConnectionDropped):
        return "ends the connection: it has no majority, or speaks TLS (then write tls=true or ca=)"
    return str(first) or type(first).__name__
