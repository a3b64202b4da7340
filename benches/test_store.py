"""Time of the embedded store's calls, as a daemon makes them, beside plain SQLite.

Input: values of 200 bytes; a prefix of 1,000 keys to list. Each benchmark checks its own result.
The other stores are servers: `benches.store.allocate` and `benches.store.visible` measure them.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from contextlib import closing

import pytest

from pyvxlan.daemon.kv import ABSENT, Check, Write
from pyvxlan.daemon.kv.embedded import EmbeddedStore

KEYS = 1_000
VALUE = b"v" * 200


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def store(runner, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "store.db"
    store = runner.run(EmbeddedStore.open(path))

    async def fill() -> None:
        for first in range(0, KEYS, 20):
            keys = range(first, first + 20)
            await store.txn([], [Write(f"listed/{number:04}", VALUE) for number in keys])

    runner.run(fill())
    yield store
    runner.run(store.close())


@pytest.mark.benchmark(group="store: create a key")
def test_create(benchmark, runner, store):
    numbers = itertools.count()

    def create() -> str:
        key = f"made/{next(numbers)}"
        runner.run(store.txn([Check(key, ABSENT)], [Write(key, VALUE)]))
        return key

    last = benchmark(create)
    assert runner.run(store.get(last)).value == VALUE


@pytest.mark.benchmark(group="store: create a key")
def test_create_sqlite(benchmark, tmp_path):
    with closing(sqlite3.connect(tmp_path / "plain.db", isolation_level=None)) as plain:
        plain.execute("PRAGMA journal_mode = WAL")
        plain.execute("CREATE TABLE items (key TEXT PRIMARY KEY, value BLOB)")
        numbers = itertools.count()
        benchmark(
            lambda: plain.execute("INSERT INTO items VALUES (?, ?)", (str(next(numbers)), VALUE))
        )
        assert plain.execute("SELECT count(*) FROM items").fetchone()[0] == next(numbers)


@pytest.mark.benchmark(group="store: read a key")
def test_get(benchmark, runner, store):
    assert benchmark(lambda: runner.run(store.get("listed/0007"))).value == VALUE


@pytest.mark.benchmark(group="store: list 1,000 keys")
def test_list(benchmark, runner, store):
    assert len(benchmark(lambda: runner.run(store.list("listed/")))) == KEYS
