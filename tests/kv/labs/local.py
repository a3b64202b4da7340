"""The stores that live in this process: memory, and the SQLite file."""

from __future__ import annotations

from pathlib import Path

from pyvxlan.daemon.kv import Store, Write
from pyvxlan.daemon.kv.database import Now
from pyvxlan.daemon.kv.embedded import EmbeddedStore
from pyvxlan.daemon.kv.memory import MemoryStore
from tests.kv.labs.lab import Stores

TICK_S = 0.02
LOG_LIMIT = 64


class MemoryLab(Stores[MemoryStore]):
    snapshots = True
    fresh_tokens = True
    resumes = True

    def __init__(self) -> None:
        super().__init__()
        self.time_s = 1000.0

    async def connect(self) -> MemoryStore:
        if self.stores:
            return self.stores[0].peer()
        return MemoryStore(clock=lambda: self.time_s, tick_s=TICK_S, log_limit=LOG_LIMIT)

    async def pass_time(self, seconds: float) -> None:
        self.time_s += seconds

    async def expire(self, store: Store) -> None:
        self.time_s += 60

    async def forget(self) -> None:
        await _overwrite(self.stores[0])


class SqliteLab(Stores[EmbeddedStore]):
    snapshots = True
    fresh_tokens = True
    resumes = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.time_s = 1000.0
        self.boot_id = "first boot"

    async def connect(self) -> EmbeddedStore:
        return await EmbeddedStore.open(
            self.path,
            now=lambda: Now(self.time_s, self.boot_id),
            tick_s=TICK_S,
            log_limit=LOG_LIMIT,
        )

    async def pass_time(self, seconds: float) -> None:
        self.time_s += seconds

    async def expire(self, store: Store) -> None:
        self.time_s += 60

    async def forget(self) -> None:
        await _overwrite(self.stores[0])


async def _overwrite(store: Store) -> None:
    """Writes more changes than are kept."""
    for number in range(3 * LOG_LIMIT):
        await store.txn([], [Write("forget/this", str(number).encode())])
