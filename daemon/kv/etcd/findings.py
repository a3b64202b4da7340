"""What is found of etcd's condition, with either client, out of what members say. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pyvxlan.daemon.kv.health import Finding
from pyvxlan.daemon.kv.url import StoreUrl

DEFAULT_QUOTA_BYTES = 2 << 30
FULL = 0.8
"""The part of the quota from which on it is time to act."""
YOUNG_REVISIONS = 10_000
"""A store with less history than that was perhaps not compacted only because it is new."""
LONG_REVISIONS = 2_000_000
"""About 750 MB of history, at 376 bytes of file per update."""
COMPACTION = "start etcd with --auto-compaction-retention=1h"


def version_of(name: str, version: str) -> Finding:
    """Judges a member's version."""
    if _loses_data(version):
        return Finding(
            "warning",
            "version",
            f"{name} runs etcd {version}, which can lose data after a crash: upgrade to "
            "3.4.22, 3.5.6 or later",
        )
    return Finding("ok", "version", f"{name} runs etcd {version}")


def one_cluster(cluster_ids: Mapping[str, int]) -> Iterable[Finding]:
    """Compares the clusters that members, by name, say they belong to."""
    by_cluster: dict[int, list[str]] = {}
    for name, cluster_id in cluster_ids.items():
        by_cluster.setdefault(cluster_id, []).append(name)
    if len(by_cluster) > 1:
        groups = "; ".join(
            f"{', '.join(names)} to {cluster_id:x}" for cluster_id, names in by_cluster.items()
        )
        yield Finding(
            "error",
            "cluster",
            f"the members belong to different clusters ({groups}): name members of one",
        )


def space_of(name: str, size_bytes: int, quota_bytes: int) -> Finding:
    """Judges how full a member is; a quota of 0 is one that it does not tell."""
    quota = quota_bytes or DEFAULT_QUOTA_BYTES
    whose = (
        "its quota" if quota_bytes else "etcd's default quota (before 3.6 it does not tell its own)"
    )
    text = f"{name} holds {size_bytes / 2**20:.0f} MiB of {quota / 2**20:.0f} MiB, {whose}"
    if size_bytes < FULL * quota:
        return Finding("ok", "space", text)
    return Finding(
        "warning",
        "space",
        f"{text}: {COMPACTION} and run etcdctl defrag, or raise --quota-backend-bytes",
    )


def alarms_of(alarms: Iterable[tuple[str, bool]]) -> Finding:
    """Judges alarms: the member that raised each, and whether it is of its space."""
    for name, no_space in alarms:
        if no_space:
            return Finding(
                "error",
                "space",
                f"{name} has no space left (alarm NOSPACE), and no change is taken: compact and "
                "defragment it, then run etcdctl alarm disarm",
            )
        return Finding(
            "error", "alarms", f"{name} raised an alarm (etcdctl alarm list tells which)"
        )
    return Finding("ok", "alarms", "no alarm")


def compaction_of(oldest: int, newest: int) -> Finding:
    """Judges by how much history there is: etcd tells no client how it was started.

    Args:
        oldest: The revision up to which history was compacted; 0 if it never was.
        newest: The store's revision.
    """
    if oldest == 0 and newest < YOUNG_REVISIONS:
        return Finding(
            "ok",
            "compaction",
            f"revision {newest}, none compacted so far, which is too young to judge: {COMPACTION}",
        )
    if oldest == 0:
        return Finding(
            "warning",
            "compaction",
            f"none of {newest} revisions was ever compacted, so etcd will run full: {COMPACTION}",
        )
    kept = f"history begins at revision {oldest} of {newest}"
    if newest - oldest > LONG_REVISIONS:
        return Finding("warning", "compaction", f"{kept}, which is long: {COMPACTION}")
    return Finding("ok", "compaction", kept)


def clear_password(url: StoreUrl) -> Iterable[Finding]:
    """Warns of a password that everybody on the way can read."""
    if url.user and not url.tls:
        yield Finding(
            "warning",
            "password",
            f"the password of user {url.user} goes over the network unencrypted: use TLS (ca=PATH)",
        )


def _loses_data(version: str) -> bool:
    """Whether upstream advises against a version; one that can't be read is not judged."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        return False
    number = tuple(map(int, match.groups()))
    return number < (3, 4, 22) or (3, 5, 0) <= number <= (3, 5, 5)
