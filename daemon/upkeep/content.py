"""What stands in a store: read as of one moment, told apart, and made so in another store.

What belongs together, an owner and its claims, is written and removed in one transaction, here as
everywhere (docs/schema.md).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import (
    ConfigError,
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv import Check, Delete, Item, Store, Write
from pyvxlan.daemon.kv.open import open_store
from pyvxlan.daemon.kv.url import parse_url
from pyvxlan.daemon.kv.watching import TXN_MAX

SETTLE_S = 60.0
"""How long a store without snapshots is read again in the hope that nothing changes meanwhile."""
LIST_S = 120.0
"""How long a list of everything may take."""
IN_FLIGHT = 16
ATTEMPTS = 5
RETRY_S = 0.2
"""Before the second attempt; doubled each time."""
SHOWN = 5
"""Keys or names that a message shows before it counts the rest."""
WITHOUT_SNAPSHOTS = frozenset({"zk"})
"""Kinds of stores whose `list` may show two moments at once."""
NOUNS = {"net": "network", "host": "host", "ep": "endpoint"}

Values = Mapping[str, bytes]
Progress = Callable[[str], None]
"""Takes a line for people who wait."""


async def open_existing(url: str) -> Store:
    """Opens a store; a file that is not there is an error, and not made.

    Raises:
        ConfigError: The URL is not usable, or there is no such file.
        StoreError: The store can't be used.
    """
    path = parse_url(url).path
    if path is not None and not path.exists():
        raise ConfigError(f"store {url}: there is no file {path}; check the path")
    return await open_whole(url)


async def open_whole(url: str) -> Store:
    """Opens a store with the time that it takes to list all of it.

    Raises:
        ConfigError: The URL is not usable.
        StoreError: The store can't be used.
    """
    return await open_store(url, list_s=LIST_S)


async def read_all(store: Store, *, kind: str, settle_s: float = SETTLE_S) -> Mapping[str, Item]:
    """Reads everything below the prefix as of one moment.

    Args:
        store: Where to read.
        kind: What it is, as in the URL; one without snapshots is read until nothing changes.
        settle_s: How long to go on with that, in seconds.

    Raises:
        StoreConflictError: It keeps changing.
        StoreError: It can't be read.
    """
    before = await store.list("")
    if kind not in WITHOUT_SNAPSHOTS:
        return before
    deadline = time.monotonic() + settle_s
    while time.monotonic() < deadline:
        after = await store.list("")
        if {key: item.revision for key, item in before.items()} == {
            key: item.revision for key, item in after.items()
        }:
            return after
        before = after
    raise StoreConflictError(
        f"the store changed during each reading for {settle_s:g} s, and {kind} can't show one "
        "moment: try again when fewer containers come and go"
    )


def durable(items: Mapping[str, Item]) -> dict[str, bytes]:
    """Keeps the records that outlive sessions, by key; what is not ours is left out."""
    return {key: item.value for key, item in items.items() if kind_of(key) in records.KINDS}


def foreign(keys: Iterable[str]) -> list[str]:
    """Finds the keys that pyvxlan does not write."""
    known = records.KINDS | records.BOUND_KINDS
    return sorted(key for key in keys if kind_of(key) not in known)


def kind_of(key: str) -> str:
    """Gives the first part of a key."""
    return key.partition("/")[0]


def summary(keys: Iterable[str]) -> str:
    """Counts what people know by name: `2 networks, 1 host, 7 endpoints`."""
    counts = Counter(map(kind_of, keys))
    return ", ".join(
        f"{counts[kind]} {noun}{'' if counts[kind] == 1 else 's'}" for kind, noun in NOUNS.items()
    )


def shortened(texts: Sequence[str]) -> str:
    """Joins the first few and counts the rest."""
    rest = [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return ", ".join([*texts[:SHOWN], *rest])


def owner_of(key: str, value: bytes) -> str:
    """Gives the id of what a record belongs to: a claim to its owner, an owner to itself."""
    kind = kind_of(key)
    if kind in {"net", "gone", "ep", "host"}:
        return key.rpartition("/")[2]
    try:
        owner = json.loads(value)
    except (ValueError, RecursionError):
        return key
    return owner if isinstance(owner, str) else key


async def fill(store: Store, wanted: Values, *, kind: str, guard: Check, say: Progress) -> None:
    """Makes a store hold exactly `wanted`, `meta` and keys of sessions aside.

    What is right already is left alone, so that it can be repeated after it broke off.

    Args:
        store: Where to write; nobody else may write there (see `guard`).
        wanted: Values by key.
        kind: The kind of the store, as in its URL.
        guard: Checked by each transaction: proves that the store is still ours to fill.
        say: Is told how far it came.

    Raises:
        StoreConflictError: The guard does not hold any more.
        StoreError: The store failed; try again.
    """
    held = durable(await read_all(store, kind=kind))
    changes = list(_batches(_changes(held, wanted), TXN_MAX - 1))
    queue = iter(changes)
    done = 0

    async def work() -> None:
        nonlocal done
        for ops in queue:
            await _apply(store, guard, ops)
            done += 1
            if done % 500 == 0:
                say(f"{done} of {len(changes)} transactions")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work())
    except ExceptionGroup as failures:
        # `except*` would put this error into a group of its own, too, in Debian 12's Python.
        refused, others = failures.split(StoreError)
        if others or refused is None:
            raise
        raise _first(refused) from None
    left = list(_changes(durable(await read_all(store, kind=kind)), wanted))
    if left:
        keys = sorted(op.key for op in chain.from_iterable(left))
        raise StoreConflictError(f"somebody else writes into the store: {shortened(keys)}")


def _changes(held: Values, wanted: Values) -> Iterator[list[Write | Delete]]:
    """Yields the difference, one owner with its claims at a time."""
    by_owner: dict[str, list[Write | Delete]] = {}
    for key, value in wanted.items():
        if key != records.META and held.get(key) != value:
            by_owner.setdefault(owner_of(key, value), []).append(Write(key, value))
    for key, value in held.items():
        if key != records.META and key not in wanted:
            by_owner.setdefault(owner_of(key, value), []).append(Delete(key))
    yield from by_owner.values()


def _batches(
    groups: Iterable[list[Write | Delete]], limit: int
) -> Iterator[Sequence[Write | Delete]]:
    """Packs groups into transactions; only one that is larger than a transaction is cut."""
    batch: list[Write | Delete] = []
    for group in groups:
        if batch and len(batch) + len(group) > limit:
            yield batch
            batch = []
        batch += group
        while len(batch) > limit:
            yield batch[:limit]
            batch = batch[limit:]
    if batch:
        yield batch


async def _apply(store: Store, guard: Check, ops: Sequence[Write | Delete]) -> None:
    """Applies a transaction that may be applied twice, so one that failed is tried again."""
    for attempt in range(ATTEMPTS):
        try:
            await store.txn([guard], ops)
        except (StoreUnavailableError, StoreUncertainError):
            if attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(RETRY_S * 2**attempt)
        else:
            return


def _first(failures: BaseExceptionGroup[StoreError]) -> StoreError:
    """Gives one of the errors that several writers met for the same reason."""
    error = failures.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
