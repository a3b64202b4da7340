"""What etcd says of its own condition, and what a client can learn of the way it is run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

from grpc import aio

from pyvxlan.daemon.errors import StoreError, StoreUnavailableError
from pyvxlan.daemon.kv.etcd import messages as pb
from pyvxlan.daemon.kv.etcd.channel import EtcdChannel
from pyvxlan.daemon.kv.etcd.findings import clear_password, version_of
from pyvxlan.daemon.kv.etcd.keys import Keys
from pyvxlan.daemon.kv.health import Finding, Health, MemberHealth

HISTORY_S = 3.0
"""How long the question for the oldest revision may take."""
DEFAULT_QUOTA_BYTES = 2 << 30
FULL = 0.8
"""The part of the quota from which on it is time to act."""
YOUNG_REVISIONS = 10_000
"""A store with less history than that was perhaps not compacted only because it is new."""
LONG_REVISIONS = 2_000_000
"""About 750 MB of history, at 376 bytes of file per update."""
COMPACTION = "start etcd with --auto-compaction-retention=1h"


@dataclass(frozen=True, slots=True)
class _Look:
    """What was found out about one member."""

    member: MemberHealth
    status: pb.Message | None = None


async def examine(channel: EtcdChannel, keys: Keys) -> Health:
    """Looks at every member, and at the store as a whole. Never raises for what it finds."""
    looks = await asyncio.gather(*(_look(channel, keys, name) for name in channel.members))
    answered = [look for look in looks if look.status is not None]
    findings = [
        *(version_of(look.member.address, look.member.version) for look in answered),
        *_clusters(answered),
        *_space(answered),
        *clear_password(channel.url),
    ]
    if answered:
        findings += await asyncio.gather(
            _alarms(channel, answered), _permissions(channel, keys), _compaction(channel, keys)
        )
    clusters = sorted({f"{look.status.header.cluster_id:x}" for look in answered if look.status})
    return Health("etcd", tuple(look.member for look in looks), tuple(findings), ",".join(clusters))


async def _look(channel: EtcdChannel, keys: Keys, name: str) -> _Look:
    try:
        status = await channel.ask(name, pb.STATUS, pb.StatusRequest())
    except StoreError as error:
        return _Look(MemberHealth(name, str(error)))
    asked_at = time.monotonic()
    read = pb.RangeRequest(key=keys.key(""), count_only=True)
    try:
        await channel.ask(name, pb.RANGE, read)
    except StoreError as error:
        return _Look(MemberHealth(name, str(error), status.version), status)
    latency_s = time.monotonic() - asked_at
    return _Look(MemberHealth(name, "", status.version, latency_s), status)


def _clusters(looks: list[_Look]) -> Iterable[Finding]:
    by_cluster: dict[int, list[str]] = {}
    for look in looks:
        if look.status is not None:
            by_cluster.setdefault(look.status.header.cluster_id, []).append(look.member.address)
    if len(by_cluster) > 1:
        groups = "; ".join(
            f"{', '.join(names)} to {cluster_id:x}" for cluster_id, names in by_cluster.items()
        )
        yield Finding(
            "error",
            "cluster",
            f"the members belong to different clusters ({groups}): name members of one",
        )


def _space(looks: Iterable[_Look]) -> Iterable[Finding]:
    for look in looks:
        status = look.status
        if status is None:
            continue
        quota = status.dbSizeQuota or DEFAULT_QUOTA_BYTES
        whose = (
            "its quota"
            if status.dbSizeQuota
            else "etcd's default quota (before 3.6 it does not tell its own)"
        )
        text = (
            f"{look.member.address} holds {status.dbSize / 2**20:.0f} MiB of "
            f"{quota / 2**20:.0f} MiB, {whose}"
        )
        if status.dbSize < FULL * quota:
            yield Finding("ok", "space", text)
        else:
            yield Finding(
                "warning",
                "space",
                f"{text}: {COMPACTION} and run etcdctl defrag, or raise --quota-backend-bytes",
            )


async def _alarms(channel: EtcdChannel, looks: list[_Look]) -> Finding:
    names = {look.status.header.member_id: look.member.address for look in looks if look.status}
    try:
        answer = await channel.call(pb.ALARM, pb.AlarmRequest(), repeatable=True)
    except StoreError as error:
        return Finding("warning", "alarms", f"alarms can't be read: {error}")
    for alarm in answer.alarms:
        name = names.get(alarm.memberID, f"{alarm.memberID:x}")
        if alarm.alarm == pb.ALARM_NOSPACE:
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


async def _permissions(channel: EtcdChannel, keys: Keys) -> Finding:
    """Tries a transaction that may read and write under the prefix, but never does.

    etcd checks the permissions of both branches; the condition, a version below 0, never holds.
    """
    prefix = channel.url.prefix
    start, end = keys.below("")
    never = pb.Compare(result=pb.COMPARE_LESS, target=pb.COMPARE_VERSION, key=start, version=0)
    put = pb.RequestOp(request_put=pb.PutRequest(key=keys.session("check")))
    read = pb.RequestOp(request_range=pb.RangeRequest(key=start, range_end=end, count_only=True))
    request = pb.TxnRequest(compare=[never], success=[put, read], failure=[])
    try:
        await channel.call(pb.TXN, request, repeatable=True)
    except StoreError as error:
        return Finding("error", "permissions", str(error))
    return Finding("ok", "permissions", f"{prefix}/ can be read and written")


async def _compaction(channel: EtcdChannel, keys: Keys) -> Finding:
    """Judges by how much history there is: etcd tells no client how it was started."""
    try:
        async with asyncio.timeout(HISTORY_S):
            oldest, newest = await _history(channel, keys)
    except (TimeoutError, StoreError, aio.AioRpcError) as error:
        return Finding("warning", "compaction", f"the oldest revision can't be read: {error}")
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


async def _history(channel: EtcdChannel, keys: Keys) -> tuple[int, int]:
    """The revision up to which history was compacted (0: never was), and the newest revision.

    A watch from the first revision on a key that nobody writes: etcd ends it and says from where
    it could begin, or confirms it.
    """
    _, call = await channel.stream(pb.WATCH)
    create = pb.WatchCreateRequest(key=keys.session("check"), start_revision=1, watch_id=1)
    try:
        await call.write(pb.WatchRequest(create_request=create))
        created: pb.Message = await call.read()
        # The end of a watch is told within a round of etcd's that takes place every 100 ms.
        read = asyncio.ensure_future(call.read())
        done, _ = await asyncio.wait([read], timeout=0.5)
        ended: pb.Message = read.result() if done else None
        if ended is aio.EOF or created is aio.EOF:
            raise StoreUnavailableError("the stream of watches ended")
    finally:
        call.cancel()
    return (ended.compact_revision if ended else 0), created.header.revision
