"""The stores that live in this process: memory, and the SQLite file."""

from __future__ import annotations

from pathlib import Path

from pyvxlan.daemon.kv import Store, Write
from pyvxlan.daemon.kv.database import Now
from pyvxlan.daemon.kv.embedded import EmbeddedStore
from pyvxlan.daemon.kv.memory import MemoryStore

TICK_S = 0.02
LOG_LIMIT = 64


class MemoryLab:
    snapshots = True
    fresh_tokens = True
    resumes = True

    def __init__(self) -> None:
        self.time_s = 1000.0
        self.stores: list[MemoryStore] = []

    async def open(self) -> MemoryStore:
        if self.stores:
            store = self.stores[0].peer()
        else:
            store = MemoryStore(clock=lambda: self.time_s, tick_s=TICK_S, log_limit=LOG_LIMIT)
        self.stores.append(store)
        return store

    async def silence(self, store: Store) -> None:
        await store.close()

    async def pass_time(self, seconds: float) -> None:
        self.time_s += seconds

    async def expire(self, store: Store) -> None:
        self.time_s += 60

    async def forget(self) -> None:
        await _overwrite(self.stores[0])

    async def close(self) -> None:
        for store in self.stores:
            await store.close()


class SqliteLab:
    snapshots = True
    fresh_tokens = True
    resumes = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.time_s = 1000.0
        self.boot_id = "first boot"
        self.stores: list[EmbeddedStore] = []

    async def open(self) -> EmbeddedStore:
        store = await EmbeddedStore.open(
            self.path,
            now=lambda: Now(self.time_s, self.boot_id),
            tick_s=TICK_S,
            log_limit=LOG_LIMIT,
        )
        self.stores.append(store)
        return store

    async def silence(self, store: Store) -> None:
        await store.close()

    async def pass_time(self, seconds: float) -> None:
        self.time_s += seconds

    async def expire(self, store: Store) -> None:
        self.time_s += 60

    async def forget(self) -> None:
        await _overwrite(self.stores[0])

    async def close(self) -> None:
        for store in self.stores:
            await store.close()


async def _overwrite(store: Store) -> None:
    """Writes more changes than are kept."""
    for number in range(3 * LOG_LIMIT):
        await store.txn([], [Write("forget/this", str(number).encode())])
