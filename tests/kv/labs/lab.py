"""What the contract suite needs of each kind of store."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Generic, Protocol, TypeVar

from pyvxlan.daemon.kv import Store

S = TypeVar("S", bound=Store)


class Lab(Protocol):
    """One kind of store, empty at first; opens stores on the same data and moves their clock."""

    snapshots: bool
    """Whether a transaction is seen as one revision and `list` is a snapshot."""
    fresh_tokens: bool
    """Whether a revision never fits a key that was deleted and created again."""
    resumes: bool
    """Whether `watch(since=...)` goes on from a revision instead of beginning anew."""

    async def open(self) -> Store:
        """Opens a store on the data that all stores of this lab share, as a new process would."""

    async def silence(self, store: Store) -> None:
        """Makes a store's sessions silent, as the death of its process would: no renewal."""

    async def pass_time(self, seconds: float) -> None:
        """Moves the clock by which sessions expire; waits, where it is the machine's own."""

    async def expire(self, store: Store) -> None:
        """Ends a store's sessions in the store itself; the owner is to learn of it."""

    async def forget(self) -> None:
        """Makes the store forget its history, so that a watch can't resume, if it can forget."""

    async def close(self) -> None:
        """Closes every store that was opened."""


class Stores(Generic[S]):
    """What the labs have in common: the stores that they opened, on the machine's own clock."""

    def __init__(self) -> None:
        self.stores: list[S] = []

    @abstractmethod
    async def connect(self) -> S:
        """Makes one more store on the lab's data."""

    async def open(self) -> S:
        store = await self.connect()
        self.stores.append(store)
        return store

    async def silence(self, store: Store) -> None:
        await store.close()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        for store in self.stores:
            await store.close()
