"""Fills a store from a dump: an empty one, or in place of what it holds.

`meta` is written first, with a transition that keeps every daemon from using the store, and once
more at the end without it. So a restoration that broke off is seen by all, and is finished by the
same command again.

The cluster gets a new id. A dump is older than what the hosts have: to them, a network that is
missing in a store of the same cluster was removed, and they would cut its endpoints off. In
another cluster it counts as lost, and they publish it again.
"""

from __future__ import annotations

import secrets

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import (
    ConflictError,
    InvalidError,
    StoreConflictError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import ABSENT, Check, Delete, Item, Store, Write
from pyvxlan.daemon.kv.url import parse_url
from pyvxlan.daemon.records import Phase, Transition
from pyvxlan.daemon.upkeep.content import (
    Progress,
    fill,
    foreign,
    open_whole,
    read_all,
    shortened,
    summary,
)
from pyvxlan.daemon.upkeep.dump import Dump
from pyvxlan.daemon.upkeep.integrity import parse


async def restore(url: str, dump: Dump, *, replace: bool, say: Progress) -> str:
    """Fills the store behind a URL as `restore_into` does; returns what it holds, in a line."""
    store = await open_whole(url)
    try:
        await restore_into(store, dump, kind=parse_url(url).kind, replace=replace, say=say)
    finally:
        await store.close()
    return f"{len(dump.values)} records: {summary(dump.values)}"


async def restore_into(
    store: Store, dump: Dump, *, kind: str, replace: bool, say: Progress
) -> None:
    """Makes a store hold what the dump does, in a cluster of its own.

    Args:
        store: Where to write.
        dump: What was checked by `load`.
        kind: The kind of the store, as in its URL.
        replace: Whether it may hold something else.
        say: Is told how far it came.

    Raises:
        ConflictError: The store is not empty and `replace` is not given, or hosts use it.
        DaemonError: It broke off; run it again.
    """
    held = await claim(store, dump, kind=kind, replace=replace)
    guard = Check(records.META, held.revision)
    await fill(store, dump.values, kind=kind, guard=guard, say=say)
    await rewrite(store, held, records.with_transition(held.value, None))


async def claim(store: Store, dump: Dump, *, kind: str, replace: bool) -> Item:
    """Keeps everybody from using the store; returns the `meta` that does.

    Raises:
        ConflictError: The store is in use.
    """
    held = await store.get(records.META)
    mine = Transition(Phase.FILLING, dump.digest)
    if held and transition_of(held) == mine:
        return held
    items = await read_all(store, kind=kind)
    if items and not replace:
        strangers = foreign(items)
        other = f" and keys that are not pyvxlan's: {shortened(strangers)}" if strangers else ""
        raise ConflictError(
            f"the store is not empty: it holds {summary(items)}{other}; choose an empty prefix, or "
            "stop all daemons and add --replace"
        )
    meta = records.with_transition(dump.values[records.META], mine, cluster=secrets.token_hex(16))
    return await seize(store, held, meta)


async def seize(store: Store, held: Item | None, meta: bytes) -> Item:
    """Replaces `meta` if no host is alive, or puts back what was there.

    Raises:
        ConflictError: Hosts are alive, or the store is being moved.
    """
    if (
        held
        and (transition := transition_of(held))
        and transition.phase
        in {
            Phase.MOVING,
            Phase.FROZEN,
        }
    ):
        raise ConflictError(
            f"the store is being moved to {transition.to}: end that first, with pyvxlan store "
            "migrate, or with its --abort"
        )
    await _refuse_alive(store)
    taken = await rewrite(store, held, meta)
    try:
        # Whoever registered between the two looks has seen the former `meta`; nobody can any more.
        await _refuse_alive(store)
    except ConflictError:
        undo = Write(records.META, held.value) if held else Delete(records.META)
        await store.txn([Check(records.META, taken.revision)], [undo])
        raise
    return taken


async def rewrite(store: Store, held: Item | None, value: bytes) -> Item:
    """Writes `meta` if it is still what was read; returns it as it is then.

    Raises:
        StoreConflictError: Somebody else was faster.
    """
    check = Check(records.META, held.revision if held else ABSENT)
    try:
        await store.txn([check], [Write(records.META, value)])
    except StoreUncertainError:
        item = await store.get(records.META)
        if item is None or item.value != value:
            raise
        return item
    item = await store.get(records.META)
    if item is None or item.value != value:
        raise StoreConflictError("somebody else writes into the store: look who, then try again")
    return item


def transition_of(meta: Item) -> Transition | None:
    """Reads what is being done to a store from its `meta`."""
    try:
        return records.parse_meta(meta.value).transition
    except InvalidError as error:
        raise InvalidError(f"store record {records.META}: {error}") from error


async def _refuse_alive(store: Store) -> None:
    alive = [key.removeprefix(records.ALIVE) for key in await store.list(records.ALIVE)]
    if not alive:
        return
    hosts = parse(
        {key: item.value for key, item in (await store.list(records.HOSTS)).items()}
    ).hosts
    names = sorted(hosts[id_].name if id_ in hosts else id_[:12] for id_ in alive)
    raise ConflictError(
        f"hosts use the store: {shortened(names)}; stop their daemons first (traffic goes on), or "
        "choose another store"
    )
