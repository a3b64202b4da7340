"""From a transaction of the Protocol to ZooKeeper's `multi`, given what was read. Pure.

ZooKeeper checks versions alone, and a version begins at 0 again when a node is deleted and created
anew. Therefore a revision is the `mzxid` of a node, which never repeats: it is compared with what
was just read, and the `multi` checks the version that was read with it. What could still happen
between the two, a deletion and a creation that reach the same version, is caught by the version of
the top directory, which every creation raises.

ZooKeeper has no check that a node is absent: to create and to delete it does that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kazoo.protocol.serialization import CheckVersion, Create, SetData
from kazoo.protocol.serialization import Delete as DeleteNode
from kazoo.protocol.states import ZnodeStat
from kazoo.security import ACL

from pyvxlan.daemon.errors import StoreConflictError
from pyvxlan.daemon.kv.store import ABSENT, PRESENT, Check, Delete, Write
from pyvxlan.daemon.kv.zookeeper.layout import Layout

Operation: TypeAlias = CheckVersion | Create | DeleteNode | SetData
ANY_VERSION = -1
PERSISTENT, EPHEMERAL = 0, 1


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes, and how."""

    layout: Layout
    acl: Sequence[ACL]
    """Of every node that is created."""
    session_id: int = 0
    """ZooKeeper's id of the session that bound keys belong to."""


def nodes_to_read(
    layout: Layout, checks: Sequence[Check], ops: Sequence[Write | Delete]
) -> set[str]:
    """The paths of the nodes whose state decides about a transaction."""
    tops = {layout.top(check.key) for check in checks if isinstance(check.expect, int)}
    return tops | {layout.value(entry.key) for entry in (*checks, *ops)}


def plan(
    checks: Sequence[Check],
    ops: Sequence[Write | Delete],
    stats: Mapping[str, ZnodeStat | None],
    writer: Writer,
) -> list[Operation]:
    """Gives the `multi` that does what is asked if everything still is as `stats` says.

    `stats` is what was read of `nodes_to_read`, None where there is no node.

    Raises:
        StoreConflictError: A check does not hold.
    """
    layout = writer.layout
    guards: dict[str, int] = {}
    changes: list[Operation] = []
    removals: list[Operation] = []
    tops: set[str] = set()
    changed = {op.key for op in ops}
    for check in checks:
        path = layout.value(check.key)
        _hold(check, stats[path])
        if isinstance(check.expect, int):
            top = layout.top(check.key)
            guards[top] = _version(stats[top])
            guards[path] = _version(stats[path])
        elif check.expect is PRESENT and check.key not in changed:
            guards.setdefault(path, ANY_VERSION)
        elif check.expect is ABSENT and check.key not in changed:
            changes += _absent(path, writer)
    for op in ops:
        path = layout.value(op.key)
        stat = stats[path]
        if isinstance(op, Delete):
            removals += [DeleteNode(path, ANY_VERSION)] if stat else _absent(path, writer)
            continue
        owner = writer.session_id if op.bound else 0
        if stat and stat.ephemeralOwner == owner:
            changes.append(SetData(path, op.value, stat.version))
            continue
        if stat:
            changes.append(DeleteNode(path, stat.version))
        flags = EPHEMERAL if op.bound else PERSISTENT
        changes.append(Create(path, op.value, writer.acl, flags))
        tops.add(layout.top(op.key))
    return [
        *(CheckVersion(path, version) for path, version in guards.items()),
        *changes,
        *removals,
        *(SetData(path, b"", ANY_VERSION) for path in sorted(tops)),
    ]


def _hold(check: Check, stat: ZnodeStat | None) -> None:
    holds = stat is None if check.expect is ABSENT else stat is not None
    if stat and isinstance(check.expect, int):
        holds = stat.mzxid == check.expect
    if not holds:
        raise StoreConflictError(f"{check.key} is not as expected: {check.expect}")


def _absent(path: str, writer: Writer) -> list[Operation]:
    return [Create(path, b"", writer.acl, PERSISTENT), DeleteNode(path, ANY_VERSION)]


def _version(stat: ZnodeStat | None) -> int:
    """The version of a node that is there; ANY_VERSION lets the `multi` say that it is not."""
    return stat.version if stat else ANY_VERSION
