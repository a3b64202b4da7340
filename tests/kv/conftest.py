"""The stores under test: each a `Lab` that opens stores on the same data and moves their clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import pytest

from pyvxlan.daemon.kv import Store
from pyvxlan.daemon.kv.database import Now
from pyvxlan.daemon.kv.embedded import EmbeddedStore
from pyvxlan.daemon.kv.memory import MemoryStore

TICK_S = 0.02
LOG_LIMIT = 64


class Lab(Protocol):
    """One kind of store."""

    async def open(self) -> Store:
        """Opens a store on the data that all stores of this lab share, as a new process would."""

    def advance(self, seconds: float) -> None:
        """Moves the clock by which sessions expire."""

    async def close(self) -> None:
        """Closes every store that was opened."""


class MemoryLab:
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

    def advance(self, seconds: float) -> None:
        self.time_s += seconds

    async def close(self) -> None:
        for store in self.stores:
            await store.close()


class SqliteLab:
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

    def advance(self, seconds: float) -> None:
        self.time_s += seconds

    async def close(self) -> None:
        for store in self.stores:
            await store.close()


@pytest.fixture
async def sqlite_lab(tmp_path: Path) -> AsyncIterator[SqliteLab]:
    lab = SqliteLab(tmp_path / "state" / "store.db")
    yield lab
    await lab.close()


@pytest.fixture(params=["sqlite", "memory"])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    made: Lab = SqliteLab(tmp_path / "store.db") if request.param == "sqlite" else MemoryLab()
    yield made
    await made.close()


@pytest.fixture
async def store(lab: Lab) -> Store:
    return await lab.open()


async def eventually(condition: Callable[[], bool], within_s: float = 5) -> None:
    """Returns once `condition` holds."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)
