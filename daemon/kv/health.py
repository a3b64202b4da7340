"""What a store says of its own condition: shown by `store check`, `status` and at the start."""

from __future__ import annotations

from dataclasses import dataclass

from pyvxlan.daemon.findings import Finding, Level

__all__ = ["Finding", "Health", "Level", "MemberHealth"]


@dataclass(frozen=True, slots=True)
class MemberHealth:
    """One server that the URL names."""

    address: str
    """As `host:port`, or the path of a file."""
    error: str = ""
    """Why it does not serve; empty if it does."""
    version: str = ""
    latency_s: float | None = None
    """Of one linearizable read, or None if it failed."""


@dataclass(frozen=True, slots=True)
class Health:
    """One look at a store, taken now; never raises for what it finds."""

    kind: str
    """As in the URL: sqlite, etcd, consul, zk."""
    members: tuple[MemberHealth, ...]
    findings: tuple[Finding, ...] = ()
    cluster: str = ""
    """The server's own id of its cluster, if it has one."""
