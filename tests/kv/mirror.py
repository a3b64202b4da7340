"""A watcher that keeps what a watch says, as every user of a store does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyvxlan.daemon.kv import Event, Live, Put, Removal, Snapshot, Stale, Store


class Mirror:
    """Follows one watch in a task of its own until `stop`."""

    def __init__(self, store: Store, prefix: str, *, since: int | None = None) -> None:
        self.values: dict[str, bytes] = {}
        self.events: list[Event] = []
        self.ended = False
        self._watch = store.watch(prefix, since=since)
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for event in self._watch:
            self.events.append(event)
            match event:
                case Snapshot(items):
                    self.values = {key: item.value for key, item in items.items()}
                case Put(item):
                    self.values[item.key] = item.value
                case Removal(key):
                    self.values.pop(key, None)
                case Stale() | Live():
                    pass
        self.ended = True

    def seen(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, condition: Callable[[], bool], within_s: float = 5) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.002)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
