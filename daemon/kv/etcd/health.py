"""What etcd says of its own condition, and what a client can learn of the way it is run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from grpc import aio

from pyvxlan.daemon.errors import StoreError, StoreUnavailableError
from pyvxlan.daemon.kv.etcd import messages as pb
from pyvxlan.daemon.kv.etcd.channel import EtcdChannel
from pyvxlan.daemon.kv.etcd.findings import (
    alarms_of,
    clear_password,
    compaction_of,
    one_cluster,
    space_of,
    version_of,
)
from pyvxlan.daemon.kv.etcd.keys import Keys
from pyvxlan.daemon.kv.health import Finding, Health, MemberHealth

HISTORY_S = 3.0
"""How long the question for the oldest revision may take."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What was found out about one member."""

    member: MemberHealth
    status: pb.Message | None = None


async def examine(channel: EtcdChannel, keys: Keys) -> Health:
    """Looks at every member, and at the store as a whole. Never raises for what it finds."""
    looks = await asyncio.gather(*(_look(channel, keys, name) for name in channel.members))
    answered = {look.member.address: look.status for look in looks if look.status is not None}
    findings = [
        *(version_of(name, status.version) for name, status in answered.items()),
        *one_cluster({name: status.header.cluster_id for name, status in answered.items()}),
        *(space_of(name, status.dbSize, status.dbSizeQuota) for name, status in answered.items()),
        *clear_password(channel.url),
    ]
    if answered:
        findings += await asyncio.gather(
            _alarms(channel, answered), _permissions(channel, keys), _compaction(channel, keys)
        )
    clusters = sorted({f"{status.header.cluster_id:x}" for status in answered.values()})
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


async def _alarms(channel: EtcdChannel, answered: Mapping[str, pb.Message]) -> Finding:
    names = {status.header.member_id: name for name, status in answered.items()}
    try:
        answer = await channel.call(pb.ALARM, pb.AlarmRequest(), repeatable=True)
    except StoreError as error:
        return Finding("warning", "alarms", f"alarms can't be read: {error}")
    return alarms_of(
        (names.get(alarm.memberID, f"{alarm.memberID:x}"), alarm.alarm == pb.ALARM_NOSPACE)
        for alarm in answer.alarms
    )


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
    try:
        async with asyncio.timeout(HISTORY_S):
            oldest, newest = await _history(channel, keys)
    except (TimeoutError, StoreError, aio.AioRpcError) as error:
        return Finding("warning", "compaction", f"the oldest revision can't be read: {error}")
    return compaction_of(oldest, newest)


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
