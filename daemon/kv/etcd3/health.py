"""What a client of python-etcd3 can learn of etcd's condition."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Mapping
from typing import Any

from etcd3.etcdrpc import NOSPACE, StatusRequest
from etcd3.exceptions import RevisionCompactedError

from pyvxlan.daemon.errors import StoreError
from pyvxlan.daemon.kv.etcd.findings import (
    alarms_of,
    clear_password,
    compaction_of,
    one_cluster,
    space_of,
    version_of,
)
from pyvxlan.daemon.kv.etcd.keys import Keys
from pyvxlan.daemon.kv.etcd3.connection import CALL_S, Connection
from pyvxlan.daemon.kv.etcd3.watcher import Client, StreamEndedError, StreamWatcher
from pyvxlan.daemon.kv.health import Finding, Health, MemberHealth
from pyvxlan.daemon.kv.url import Member, member_name

ENDED_S = 0.5
"""By when the end of a watch is told: in a round of etcd's that takes place every 100 ms."""


async def examine(connection: Connection, keys: Keys) -> Health:
    """Looks at every member, and at the store as a whole. Never raises for what it finds."""
    looks = await asyncio.gather(
        *(_look(connection, keys, member) for member in connection.url.members)
    )
    answered = {member.address: status for member, status in looks if status is not None}
    findings = [
        *(version_of(name, status.version) for name, status in answered.items()),
        *one_cluster({name: status.header.cluster_id for name, status in answered.items()}),
        *(space_of(name, status.dbSize, 0) for name, status in answered.items()),
        *clear_password(connection.url),
    ]
    if answered:
        findings += await asyncio.gather(
            _alarms(connection, answered),
            _permissions(connection, keys),
            _compaction(connection, keys),
        )
    clusters = sorted({f"{status.header.cluster_id:x}" for status in answered.values()})
    members = tuple(member for member, _ in looks)
    return Health(connection.url.kind, members, tuple(findings), ",".join(clusters))


async def _look(connection: Connection, keys: Keys, member: Member) -> tuple[MemberHealth, Any]:
    name = member_name(member)

    status, latency_s = None, None

    def ask_status(client: Client) -> Any:
        # The library's own `status` also lists the members, and tells no cluster.
        return client.maintenancestub.Status(StatusRequest(), CALL_S, metadata=client.metadata)

    try:
        async with connection.visit(member) as ask:
            status = await ask(ask_status)
            asked_at = time.monotonic()
            await ask(lambda client: client.get_response(keys.key("probe")))
            latency_s = time.monotonic() - asked_at
    except StoreError as error:
        why = str(error).removeprefix(f"{name} ")
        return MemberHealth(name, why, status.version if status else ""), status
    return MemberHealth(name, version=status.version, latency_s=latency_s), status


async def _alarms(connection: Connection, answered: Mapping[str, Any]) -> Finding:
    names = {status.header.member_id: name for name, status in answered.items()}
    try:
        alarms = await connection.call(lambda client: list(client.list_alarms()), repeatable=True)
    except StoreError as error:
        return Finding("warning", "alarms", f"alarms can't be read: {error}")
    return alarms_of(
        (names.get(alarm.member_id, f"{alarm.member_id:x}"), alarm.alarm_type == NOSPACE)
        for alarm in alarms
    )


async def _permissions(connection: Connection, keys: Keys) -> Finding:
    """Tries a transaction that may read and write under the prefix, but never does.

    etcd checks the permissions of both branches; the condition, a version below 0, never holds.
    """
    start, end = keys.below("")

    def attempt(client: Client) -> None:
        make = client.transactions
        ops = [make.put(keys.session("check"), b""), make.get(start, end)]
        client.transaction([make.version(start) < 0], ops, [])

    try:
        await connection.call(attempt, repeatable=True)
    except StoreError as error:
        return Finding("error", "permissions", str(error))
    return Finding("ok", "permissions", f"{connection.url.prefix}/ can be read and written")


async def _compaction(connection: Connection, keys: Keys) -> Finding:
    """Asks for a watch from the first revision on a key that nobody writes.

    etcd ends it and says from where it could begin, or confirms it.
    """
    key = keys.session("check")

    def history(client: Client) -> tuple[int, int]:
        newest = client.get_response(key).header.revision
        told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        watcher = StreamWatcher(client, told.put, begin_s=CALL_S)
        try:
            watcher.add_callback(key, told.put, start_revision=1)
            ended = told.get(timeout=ENDED_S)
        except RevisionCompactedError as error:
            ended = error
        except queue.Empty:
            return 0, newest
        if isinstance(ended, RevisionCompactedError):
            return ended.compacted_revision, newest
        raise StreamEndedError(ended)

    try:
        async with connection.visit((await connection.settled()).member) as ask:
            return compaction_of(*await ask(history))
    except StoreError as error:
        return Finding("warning", "compaction", f"the oldest revision can't be read: {error}")
