"""What etcd says when it refuses: what became of the call, and what to do about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import grpc

from pyvxlan.daemon.errors import StoreConflictError, StoreError, StoreUnavailableError
from pyvxlan.daemon.kv.url import StoreUrl

HAS_LEADER = ("hasleader", "true")
"""Metadata by which a member without a leader refuses, instead of being silent."""
_EXPIRED = ("invalid auth token", "revision of auth store is old", "user name is empty")
_ELSEWHERE = ("no leader", "not capable", "too many requests", "learner")
_REFUSING_CODES = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_REMEDIES = (
    (
        "permission denied",
        "does not let {user} use {prefix}/: run etcdctl role grant-permission ROLE --prefix=true "
        "readwrite {prefix}/",
    ),
    ("user name is empty", "wants a user: add ?user=NAME&password-file=PATH to the URL"),
    (
        "invalid user ID or password",
        "refuses {user} with the password in {password_file}: correct them, or set it with "
        "etcdctl user passwd",
    ),
    (
        "database space exceeded",
        "has no space left (alarm NOSPACE) and takes no change: compact and defragment it, then "
        "run etcdctl alarm disarm",
    ),
    ("corrupt cluster", "found its data damaged (alarm CORRUPT): replace that member"),
    ("request is too large", "refuses so large a change: start it with more --max-request-bytes"),
    ("no leader", "has no leader: most members must run and reach each other"),
)


class CompactedError(StoreError):
    """The revision that was asked for is history no more."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest that was read of a cluster; in one cluster none of it ever goes backwards."""

    cluster_id: int = 0
    revision: int = 0
    raft_term: int = 0

    @classmethod
    def of(cls, header: Any) -> Seen:
        """What the header of a linearizable answer says."""
        return cls(header.cluster_id, header.revision, header.raft_term)

    def contradicts(self, before: Seen) -> str:
        """Tells why this is not the store that was seen `before`; empty if it may be."""
        if before.cluster_id not in {0, self.cluster_id}:
            return f"cluster {self.cluster_id:x} instead of {before.cluster_id:x}"
        if self.revision < before.revision:
            return f"revision {self.revision} after {before.revision}"
        if self.raft_term < before.raft_term:
            return f"raft term {self.raft_term} after {before.raft_term}"
        return ""


class Verdict(Enum):
    """What became of a call that failed."""

    EXPIRED = "not applied: the token is unknown, authenticate and repeat"
    ELSEWHERE = "not applied: another member, or this one later, may serve it"
    REFUSED = "not applied, and nobody else would"
    UNKNOWN = "may have been applied"


def judge(code: grpc.StatusCode, details: str) -> Verdict:
    """Tells what became of a call that ended with this status."""
    if any(words in details for words in _EXPIRED):
        return Verdict.EXPIRED
    if details.startswith("etcdserver:") and any(words in details for words in _ELSEWHERE):
        return Verdict.ELSEWHERE
    return Verdict.REFUSED if code in _REFUSING_CODES else Verdict.UNKNOWN


def explain(code: grpc.StatusCode, details: str, member: str, url: StoreUrl) -> StoreError:
    """Turns a status into our error, with the remedy if it is a special one."""
    about = f"store {url}: {member}"
    if "lease not found" in details:
        return StoreConflictError(f"{about}: the session has expired")
    if "required revision has been compacted" in details:
        return CompactedError(f"{about}: {details}")
    for words, text in _REMEDIES:
        if words in details:
            told = text.format(
                user=f"user {url.user}" if url.user else "this daemon",
                prefix=url.prefix,
                password_file=url.password_file,
            )
            return StoreUnavailableError(f"{about} {told}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return StoreUnavailableError(f"{member} did not answer in time")
    return StoreUnavailableError(f"{member}: {details or code}")
