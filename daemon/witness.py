"""Tells hosts that are dead from those that only can't reach the store: from these, frames come.

To the store both look alike. So a host that still gets frames from one whose session has ended says
so in the store, under `heard/<host>`, for as long as that is so and its own session lives; nobody
collects a host that is heard.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import DataplaneError, StoreConflictError
from pyvxlan.daemon.kv import ABSENT, Check, Delete, Store, Write
from pyvxlan.daemon.membership import Membership
from pyvxlan.daemon.state import State

log = logging.getLogger(__name__)


class Witness:
    """What this host hears of those that are absent, and what others do.

    Args:
        store: Where that is said.
        state: Tells who is absent.
        membership: What is said lives with its session.
        stats: Gives the data plane's counters: `Dataplane.stats`.
    """

    def __init__(
        self,
        store: Store,
        state: State,
        membership: Membership,
        stats: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self._store = store
        self._state = state
        self._membership = membership
        self._stats = stats
        self._received: Mapping[str, int] = {}
        """Datagrams that came from absent hosts up to the last look, by their ids."""
        self._said = False
        """Whether the store may hold something that this host said."""

    async def heard(self) -> set[str]:
        """Says whom this host heard since the last call; gives the absent hosts that anybody hears.

        Raises:
            StoreError: The store failed; try again.
        """
        state, me = self._state, self._membership.host_id
        absent = {
            id_: str(host.vtep) for id_, host in state.hosts.items() if id_ not in state.alive
        }
        absent.pop(me, None)
        before, self._received = self._received, await self._count(absent)
        heard = {id_ for id_, count in self._received.items() if count > before.get(id_, count)}
        if not absent and not self._said:
            return set()
        said = {
            key.removeprefix(records.HEARD): item
            for key, item in (await self._store.list(records.HEARD)).items()
        }
        mine = records.emit(me)
        for id_ in heard - said.keys():
            await self._say(id_, mine)
        stale = [id_ for id_, item in said.items() if item.value == mine and id_ not in heard]
        for id_ in stale:
            item = said.pop(id_)
            with contextlib.suppress(StoreConflictError):
                await self._store.txn([Check(item.key, item.revision)], [Delete(item.key)])
        self._said = bool(heard)
        return heard | said.keys()

    async def _count(self, absent: Mapping[str, str]) -> Mapping[str, int]:
        """Gives the datagrams with frames for us that came from hosts, by their ids."""
        if not absent:
            return {}
        try:
            vteps = (await self._stats())["vteps"]
        except DataplaneError:
            return {}
        return {
            id_: vteps[vtep]["received_datagrams"] if vtep in vteps else 0
            for id_, vtep in absent.items()
        }

    async def _say(self, host_id: str, mine: bytes) -> None:
        session = self._membership.session
        if session is None:
            return
        key = records.heard_key(host_id)
        with contextlib.suppress(StoreConflictError):
            write = Write(key, mine, bound=True)
            await self._store.txn([Check(key, ABSENT)], [write], session=session)
            log.warning(
                "host is heard, but has no session: cut off from the store? host=%s", host_id
            )
