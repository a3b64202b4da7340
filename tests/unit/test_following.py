"""Who reads everything anew waits for a turn, which depends on how many others do the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest

from pyvxlan.daemon.events import Events
from pyvxlan.daemon.following import Follower
from pyvxlan.daemon.kv import Event, Item, Snapshot, Stale
from pyvxlan.daemon.kv.memory import MemoryStore
from pyvxlan.daemon.tables import Table


class Compacted(MemoryStore):
    """A store of `records` records whose watches lose their place once."""

    def __init__(self, records: int) -> None:
        super().__init__()
        self._items = {key: Item(key, b"", 1) for key in map("k/{}".format, range(records))}
        self.asked = asyncio.Event()
        """Set when everything is to be read anew."""

    async def watch(self, prefix: str, *, since: int | None = None) -> AsyncIterator[Event]:
        yield Snapshot(self._items, 1)
        yield Stale("compacted", anew=True)
        self.asked.set()
        yield Snapshot(self._items, 2)


@pytest.mark.parametrize(
    ("hosts", "records", "at_once"),
    [
        pytest.param(2, 1, True, id="few hosts"),
        pytest.param(10**9, 1, False, id="many hosts"),
        pytest.param(10**9, 0, True, id="many hosts, nothing to read"),
    ],
)
async def test_many_hosts_do_not_read_anew_at_one_moment(
    hosts: int, records: int, *, at_once: bool
) -> None:
    store = Compacted(records)
    follower = Follower(
        store,
        None,
        lost=lambda: False,
        hosts=lambda: hosts,
        kind="ep/",
        whole=lambda: None,
        live=lambda: None,
        events=Events(),
        news=lambda _before, _after: None,
        hold_s=1,
        settle_s=1,
    )
    follower._rng = Random(1)
    follower.follow(Table("k/", lambda _, value: value), lambda *_: None, lambda: None)
    if at_once:
        await follower.wait_for(lambda: follower.resyncs["gap"] == 1, timeout_s=10, what="a list")
    else:
        await follower.wait_for(lambda: follower.stale_since is not None, timeout_s=10, what="")
        for _ in range(10):
            await asyncio.sleep(0)
        assert not store.asked.is_set()
    await follower.close()
    await store.close()
