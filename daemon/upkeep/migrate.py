"""Moves a cluster from one store to another while its hosts run (docs/stores.md).

Everything hangs on the old store's `meta`, which each change of a daemon is fenced by:

1. the new store is taken: its `meta` says that it is being filled, by this move;
2. MOVING: hosts try the new store and say so, while everything is copied once;
3. FROZEN: nothing changes; what has changed meanwhile is copied, and both are compared;
4. MOVED: the one moment at which the cluster changes over. Hosts follow by themselves;
5. the new store's `meta` says that it is in use. The first host to come does that too.

Until 4 the old store is the cluster's and the move can be given up at any point; from then on the
new one is. Whoever moves holds `move/keeper` with a session: if it dies, a freeze ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from pyvxlan.daemon import records
from pyvxlan.daemon.clusterstore import KEEPER_TTL_S
from pyvxlan.daemon.errors import (
    ConflictError,
    DaemonError,
    InvalidError,
    NotFoundError,
    StoreConflictError,
    StoreError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import ABSENT, Check, Delete, Item, Session, Store, Write
from pyvxlan.daemon.kv.url import parse_url
from pyvxlan.daemon.records import Phase, Transition
from pyvxlan.daemon.upkeep.content import (
    Progress,
    durable,
    fill,
    foreign,
    open_existing,
    open_whole,
    read_all,
    shortened,
    summary,
)
from pyvxlan.daemon.upkeep.integrity import parse
from pyvxlan.daemon.upkeep.restore import rewrite, seize, transition_of

KEEPER_S = 60.0
"""How long to wait for the session of a move that was killed to expire."""
READY_S = 30.0
"""How long to wait until every host has tried the new store."""
ARRIVE_S = 60.0
"""How long to wait until every host has left the old store."""
POLL_S = 0.2
ROUNDS = 5
"""How often a host may come up just before the freeze."""


async def migrate(source_url: str, target_url: str, *, replace: bool, say: Progress) -> str:
    """Moves the cluster behind one URL to another; returns what was moved, in a line.

    It may be repeated after it broke off, at whatever point.

    Raises:
        ConflictError: The target is not empty and `replace` is not given, or a host can't use it.
        DaemonError: It broke off. Before the cluster has moved, everything is as it was.
    """
    async with _both(source_url, target_url) as (source, target):
        return await Move(source, target, source_url, target_url, say).run(replace=replace)


async def abort(source_url: str, target_url: str, *, say: Progress) -> str:
    """Gives up a move that broke off, and empties what it had filled.

    Raises:
        ConflictError: The cluster has moved already.
        DaemonError: It broke off; run it again.
    """
    async with _both(source_url, target_url, aborting=True) as (source, target):
        return await Move(source, target, source_url, target_url, say).abort()


class Move:
    """One attempt to move a cluster.

    Args:
        source: The store that the cluster uses.
        target: The one that it shall use.
        source_url: What `source` is.
        target_url: What hosts open as the new store.
        say: Is told what happens.
    """

    def __init__(
        self, source: Store, target: Store, source_url: str, target_url: str, say: Progress
    ) -> None:
        self._source = source
        self._target = target
        self._source_kind = parse_url(source_url).kind
        self._target_kind = parse_url(target_url).kind
        self._to = target_url
        self._say = say

    async def run(self, *, replace: bool) -> str:
        """Moves the cluster, from wherever a former attempt had come to."""
        meta, transition = await _meta_of(self._source, self._to)
        if transition and transition.phase is Phase.MOVED:
            return await self._finish(transition)
        session = await self._source.session(KEEPER_TTL_S)
        try:
            keeper = await self._keep(session)
            claimed = await self._claim(meta, replace=replace)
            move = _transition(claimed)
            try:
                await self._change_over(meta, move, claimed, keeper, session)
            except BaseException:
                await self._retreat(move)
                raise
        finally:
            with contextlib.suppress(StoreError):
                await session.close()
        return await self._finish(move)

    async def abort(self) -> str:
        """Puts the source back to use, and empties the target if it was filled by a move."""
        meta, transition = await _meta_of(self._source, self._to, aborting=True)
        cluster = records.parse_meta(meta.value).cluster
        if transition:
            await rewrite(self._source, meta, records.with_transition(meta.value, None))
        claimed = await self._target.get(records.META)
        if claimed is None or not _is_filled_from(claimed, cluster):
            return "given up; there was nothing to empty"
        fresh = Transition(Phase.FILLING, secrets.token_hex(16))
        guard = await rewrite(self._target, claimed, records.with_transition(claimed.value, fresh))
        check = Check(records.META, guard.revision)
        await fill(self._target, {}, kind=self._target_kind, guard=check, say=self._say)
        await self._target.txn([check], [Delete(records.META)])
        return f"given up; {self._to} is empty again"

    async def _keep(self, session: Session) -> Check:
        """Makes this the only move; gives the check that proves it."""
        value = records.emit(session.id)
        said = False
        try:
            async with asyncio.timeout(KEEPER_S):
                while True:
                    with contextlib.suppress(StoreConflictError):
                        await self._source.txn(
                            [Check(records.MOVE_KEEPER, ABSENT)],
                            [Write(records.MOVE_KEEPER, value, bound=True)],
                            session=session,
                        )
                        break
                    if not said:
                        said = True
                        self._say("waiting for another move to end, or for its session to expire")
                    await asyncio.sleep(1)
        except TimeoutError as error:
            raise ConflictError(
                "another pyvxlan store migrate is at it: wait for it, or end it with --abort"
            ) from error
        keeper = await self._source.get(records.MOVE_KEEPER)
        if keeper is None or keeper.value != value:
            raise StoreConflictError("the session was lost at once: try again")
        return Check(records.MOVE_KEEPER, keeper.revision)

    async def _claim(self, meta: Item, *, replace: bool) -> Item:
        """Takes the new store, or finds it taken by a former attempt; gives its `meta`."""
        cluster = records.parse_meta(meta.value).cluster
        held = await self._target.get(records.META)
        if held and _is_filled_from(held, cluster):
            return held
        if held and _cluster(held) == cluster and transition_of(held) is None:
            raise ConflictError(
                "both URLs lead to this very cluster: name another store, or empty the copy"
            )
        items = await read_all(self._target, kind=self._target_kind)
        if items and not replace:
            strangers = foreign(items)
            other = f" and keys that are not pyvxlan's: {shortened(strangers)}" if strangers else ""
            raise ConflictError(
                f"store {self._to} is not empty: it holds {summary(items)}{other}; choose an empty "
                "prefix, or add --replace"
            )
        move = Transition(Phase.FILLING, secrets.token_hex(16))
        return await seize(self._target, held, records.with_transition(meta.value, move))

    async def _change_over(
        self, meta: Item, move: Transition, claimed: Item, keeper: Check, session: Session
    ) -> None:
        """Copies, freezes, copies the rest, and makes the new store the cluster's."""
        guard = Check(records.META, claimed.revision)

        async def become(phase: Phase, meta: Item) -> Item:
            value = records.with_transition(meta.value, Transition(phase, move.id, self._to))
            return await _rewrite_kept(self._source, meta, value, keeper, session)

        async def copy(items: Mapping[str, Item]) -> int:
            values = durable(items)
            await fill(self._target, values, kind=self._target_kind, guard=guard, say=self._say)
            return len(values)

        meta = await become(Phase.MOVING, meta)
        await copy(await self._source.list(""))
        for _ in range(ROUNDS):
            await self._all_ready(move)
            meta = await become(Phase.FROZEN, meta)
            # A host that came up between the two has not tried the new store yet, and can't say
            # so while nothing changes.
            if not (await self._not_ready(move)):
                break
            meta = await become(Phase.MOVING, meta)
        else:
            raise ConflictError("hosts keep coming up: try again in a quieter moment")
        self._say("frozen")
        count = await copy(await read_all(self._source, kind=self._source_kind))
        await become(Phase.MOVED, meta)
        self._say(f"moved: {count} records")

    async def _all_ready(self, move: Transition) -> None:
        """Returns when every host that is up can use the new store."""
        missing = await _gone(lambda: self._not_ready(move), READY_S)
        if missing:
            shown = "; ".join(f"{name}: {why}" for name, why in sorted(missing.items()))
            raise ConflictError(f"not every host can use {self._to}: {shown}")

    async def _not_ready(self, move: Transition) -> Mapping[str, str]:
        """Names the hosts that are up and can't use the new store, or have not said so."""
        reports = await self._source.list(records.READY)
        hosts = await _alive_hosts(self._source)
        missing = {}
        for host_id, name in hosts.items():
            item = reports.get(records.ready_key(host_id))
            report = _report(item.value) if item else {}
            if report.get("id") != move.id:
                missing[name] = f"it has not tried it within {READY_S:g} s: see its log"
            elif report.get("error"):
                missing[name] = str(report["error"])
        return missing

    async def _retreat(self, move: Transition) -> None:
        """Leaves the old store in use as before, unless somebody else has taken over."""
        with contextlib.suppress(DaemonError):
            meta = await self._source.get(records.META)
            transition = transition_of(meta) if meta else None
            if (
                meta
                and transition
                and transition.id == move.id
                and transition.phase is not Phase.MOVED
            ):
                await rewrite(self._source, meta, records.with_transition(meta.value, None))

    async def _finish(self, move: Transition) -> str:
        """Opens the new store for use, and waits until every host has left the old one."""
        claimed = await self._target.get(records.META)
        filling = transition_of(claimed) if claimed else None
        if claimed and filling and filling.phase is Phase.FILLING and filling.id == move.id:
            with contextlib.suppress(StoreConflictError):
                await rewrite(self._target, claimed, records.with_transition(claimed.value, None))
        behind = await _gone(lambda: _alive_hosts(self._source), ARRIVE_S)
        if behind:
            raise ConflictError(
                f"the cluster has moved, and not with it: {shortened(sorted(behind.values()))}; "
                f"see their logs, or start their daemons again with --store {self._to}"
            )
        return (
            f"moved to {self._to}: {summary(await self._target.list(''))}; set it as the store of "
            "each host, and leave the old one running until that is done"
        )


async def _meta_of(
    source: Store, to: str, *, aborting: bool = False
) -> tuple[Item, Transition | None]:
    """Reads `meta` of the store to move from; refuses what can't be moved to a URL."""
    meta = await source.get(records.META)
    if meta is None:
        raise NotFoundError("the store to move from holds no cluster")
    transition = transition_of(meta)
    if transition is None:
        return meta, None
    if transition.phase is Phase.FILLING:
        raise ConflictError("the store to move from is being filled: wait until that is done")
    if transition.phase is Phase.MOVED and (aborting or transition.to != to):
        raise ConflictError(
            f"the cluster has moved to {transition.to}; to go back, migrate from there"
        )
    if transition.to != to and not aborting:
        raise ConflictError(
            f"the cluster is being moved to {transition.to}: go on with that, or end it with "
            "--abort"
        )
    return meta, transition


@contextlib.asynccontextmanager
async def _both(
    source_url: str, target_url: str, *, aborting: bool = False
) -> AsyncIterator[tuple[Store, Store]]:
    source = await open_existing(source_url)
    try:
        await _meta_of(source, target_url, aborting=aborting)  # before a file is made for nothing
        target = await open_whole(target_url)
        try:
            yield source, target
        finally:
            await target.close()
    finally:
        await source.close()


async def _gone(
    look: Callable[[], Awaitable[Mapping[str, str]]], within_s: float
) -> Mapping[str, str]:
    """Looks until there is nothing any more, or the time is over; gives what was seen last."""
    deadline = time.monotonic() + within_s
    while True:
        seen = await look()
        if not seen or time.monotonic() > deadline:
            return seen
        await asyncio.sleep(POLL_S)


async def _rewrite_kept(
    store: Store, meta: Item, value: bytes, keeper: Check, session: Session
) -> Item:
    """Writes `meta` if it is as it was and this is the only move still; gives it as it is then."""
    checks = [Check(records.META, meta.revision), keeper]
    try:
        await store.txn(checks, [Write(records.META, value)], session=session)
    except StoreConflictError as error:
        raise StoreConflictError(
            "the move was ended by somebody else, or its session was lost: run it again"
        ) from error
    except StoreUncertainError:
        now = await store.get(records.META)
        if now is None or now.value != value:
            raise
    now = await store.get(records.META)
    if now is None or now.value != value:
        raise StoreConflictError("somebody else writes into the store: look who, then try again")
    return now


async def _alive_hosts(store: Store) -> Mapping[str, str]:
    """Names the hosts that have a session, by id."""
    alive = [key.removeprefix(records.ALIVE) for key in await store.list(records.ALIVE)]
    if not alive:
        return {}
    items = await store.list(records.HOSTS)
    hosts = parse({key: item.value for key, item in items.items()}).hosts
    return {id_: hosts[id_].name if id_ in hosts else id_[:12] for id_ in alive}


def _report(value: bytes) -> Mapping[str, object]:
    try:
        report = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}


def _transition(meta: Item) -> Transition:
    transition = transition_of(meta)
    assert transition is not None, "taken by `_claim`"
    return transition


def _cluster(meta: Item) -> str:
    try:
        return records.parse_meta(meta.value).cluster
    except InvalidError as error:
        raise InvalidError(f"store record {records.META}: {error}") from error


def _is_filled_from(meta: Item, cluster: str) -> bool:
    """Whether a move of this cluster was about to fill a store."""
    transition = transition_of(meta)
    return (
        transition is not None and transition.phase is Phase.FILLING and _cluster(meta) == cluster
    )
