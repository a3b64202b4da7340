"""`Mirror`: what this host watches in the store, on its own disk, for a start without the store.

A SQLite file beside the local records. Changes are taken down as they come in and written a moment
later, together, by a thread; a crash loses the last moment and nothing else, since each prefix is
written with the revision that it belongs to. The file can always be thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pyvxlan.daemon.errors import ConfigError
from pyvxlan.daemon.kv.store import Revision
from pyvxlan.daemon.kv.url import parse_url, same_store

log = logging.getLogger(__name__)

T = TypeVar("T")
FORMAT = 1
BATCH_S = 0.05
"""How long changes wait for more of them."""
SEEN_S = 30.0
"""How often an idle mirror notes that it is in step still."""
RETRY_S = 5.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS prefix (prefix TEXT PRIMARY KEY, revision INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS item (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """What was known below a prefix: values by key, and where a watch can go on from."""

    items: Mapping[str, bytes]
    revision: Revision | None


@dataclass(slots=True)
class _Pending:
    """What is to be written of one prefix; None removes a key."""

    items: dict[str, bytes | None] = field(default_factory=dict)
    revision: Revision | None = None
    spared: frozenset[str] | None = None
    """If set, all keys go but those in `items` and these."""

    def then(self, later: _Pending) -> _Pending:
        """Both, one after the other."""
        if later.spared is None:
            return _Pending(self.items | later.items, later.revision, self.spared)
        kept = {key: self.items[key] for key in later.spared & self.items.keys()}
        return _Pending(kept | later.items, later.revision, later.spared)


class Mirror:
    """The file of one daemon; make one with `open`."""

    def __init__(self, path: Path, url: str) -> None:
        self.seen_s: float | None = None
        """Wall clock when it was surely in step with the store; None if it never was."""
        self.cluster = ""
        """The cluster that it is of, as far as is known."""
        self._path = path
        self._url = url
        self._in_step = False
        self._kept: dict[str, Kept] = {}
        self._pending: dict[str, _Pending] = {}
        self._gone: set[str] = set()
        self._connection: sqlite3.Connection | None = None
        self._told = ""
        """Why the disk does not take it, as the log says already."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mirror")
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, path: Path, url: str) -> Mirror:
        """Opens the file or makes it. One of another store, or that is damaged, is begun anew.

        Args:
            path: The file.
            url: The store that it is to mirror.
        """
        mirror = cls(path, url)
        try:
            await mirror._call(mirror._load)
        except (sqlite3.Error, OSError) as error:
            try:
                await mirror._call(mirror._begin_anew)
            except (sqlite3.Error, OSError):
                mirror._tell(error)
            else:
                log.error("mirror begun anew, it was damaged path=%s cause=%s", path, error)
        mirror._writer = asyncio.create_task(mirror._write_on(), name="mirror")
        return mirror

    async def close(self) -> None:
        """Writes what is left and closes the file."""
        if self._writer:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
            await self._flush()
        await self._call(self._close)
        self._thread.shutdown(wait=False)

    @property
    def prefixes(self) -> Collection[str]:
        """The prefixes that the file held when it was opened and nobody took yet."""
        return self._kept.keys()

    def take(self, prefix: str) -> Kept | None:
        """Gives what the file held of a prefix when it was opened; once."""
        return self._kept.pop(prefix, None)

    def replace(
        self,
        prefix: str,
        items: Mapping[str, bytes],
        revision: Revision | None,
        *,
        spared: Collection[str] = (),
    ) -> None:
        """Notes all that is below a prefix; `spared` keys stay as they are."""
        self._note(prefix, _Pending(dict(items), revision, frozenset(spared)))

    def change(self, prefix: str, key: str, value: bytes | None, revision: Revision | None) -> None:
        """Notes a key's new value, or that it is gone."""
        self._note(prefix, _Pending({key: value}, revision))

    def forget(self, prefix: str) -> None:
        """Drops all that is below a prefix: nobody watches it any more."""
        self._pending.pop(prefix, None)
        self._kept.pop(prefix, None)
        self._gone.add(prefix)
        self._wake.set()

    def mark(self, *, in_step: bool) -> None:
        """Notes whether all that is watched is what the store says now."""
        if in_step != self._in_step:
            self._in_step = in_step
            self.seen_s = time.time()
            self._wake.set()

    def remember_cluster(self, cluster: str) -> None:
        """Notes the cluster that the store belongs to."""
        if self.cluster != cluster:
            self.cluster = cluster
            self._wake.set()

    def move(self, url: str) -> None:
        """Notes that what it mirrors is in another store from now on."""
        self._url = url
        self._wake.set()

    def _note(self, prefix: str, pending: _Pending) -> None:
        before = self._pending.get(prefix)
        self._pending[prefix] = before.then(pending) if before else pending
        self._gone.discard(prefix)
        self._wake.set()

    async def _write_on(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SEEN_S):
                    await self._wake.wait()
            await asyncio.sleep(BATCH_S)
            self._wake.clear()
            if not await self._flush():
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def _flush(self) -> bool:
        """Writes what is pending; keeps it for later if the disk does not take it."""
        if self._in_step:
            self.seen_s = time.time()
        pending, self._pending = self._pending, {}
        gone, self._gone = self._gone, set()
        facts = {"url": self._url, "cluster": self.cluster, "seen": str(self.seen_s or "")}
        try:
            await self._call(lambda: self._write(pending, gone, facts))
        except BaseException as error:
            later, self._pending = self._pending, pending
            self._gone |= gone - later.keys()
            for prefix, one in later.items():
                before = self._pending.get(prefix)
                self._pending[prefix] = before.then(one) if before else one
            if not isinstance(error, (sqlite3.Error, OSError)):
                raise
            self._tell(error)
            return False
        self._told = ""
        return True

    def _tell(self, error: Exception) -> None:
        """Says once that nothing is kept for a start without the store."""
        if str(error) != self._told:
            self._told = str(error)
            log.error(
                "mirror not written, tried again: a start without the store would know less; "
                "make room, or move the file away path=%s cause=%s",
                self._path,
                error,
            )

    async def _call(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, action)

    def _load(self) -> None:
        db = self._opened()
        facts = dict(db.execute("SELECT name, value FROM fact").fetchall())
        if facts and not _same(facts.get("url", ""), self._url):
            log.warning(
                "mirror not used path=%s: it is of store %s, and this daemon uses %s",
                self._path,
                facts.get("url"),
                self._url,
            )
            self._begin_anew()
            return
        try:
            seen_s = float(facts["seen"]) if facts.get("seen") else None
        except ValueError as error:
            raise sqlite3.DatabaseError(str(error)) from error
        kept = {
            prefix: _sound(Kept(_below(db, prefix), revision))
            for prefix, revision in db.execute("SELECT prefix, revision FROM prefix").fetchall()
        }
        # Not before all of it was read: a file that is begun anew holds nothing, and a watch that
        # goes on from a revision is told only what came after it.
        self._kept, self.cluster, self.seen_s = kept, facts.get("cluster", ""), seen_s

    def _begin_anew(self) -> None:
        self._close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(f"{self._path.name}{suffix}").unlink(missing_ok=True)
        self._opened()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            db = sqlite3.connect(self._path, isolation_level=None)
            try:
                self._path.chmod(0o600)
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version not in {0, FORMAT}:
                    raise sqlite3.DatabaseError(f"format {version} is not {FORMAT}")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                db.executescript(SCHEMA)
                db.execute(f"PRAGMA user_version = {FORMAT}")
            except BaseException:
                db.close()
                raise
            self._connection = db
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def _write(
        self, pending: Mapping[str, _Pending], gone: Collection[str], facts: Mapping[str, str]
    ) -> None:
        db = self._opened()
        db.execute("BEGIN IMMEDIATE")
        try:
            for prefix in gone:
                db.execute("DELETE FROM prefix WHERE prefix = ?", (prefix,))
                db.executemany("DELETE FROM item WHERE key = ?", [(k,) for k in _below(db, prefix)])
            for prefix, one in pending.items():
                _write_prefix(db, prefix, one)
            db.executemany("REPLACE INTO fact VALUES (?, ?)", facts.items())
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def _write_prefix(db: sqlite3.Connection, prefix: str, pending: _Pending) -> None:
    removed = {key for key, value in pending.items.items() if value is None}
    if pending.spared is not None:
        removed |= _below(db, prefix).keys() - pending.items.keys() - pending.spared
    db.executemany("DELETE FROM item WHERE key = ?", [(key,) for key in removed])
    db.executemany(
        "REPLACE INTO item VALUES (?, ?)",
        [(key, value) for key, value in pending.items.items() if value is not None],
    )
    db.execute("REPLACE INTO prefix VALUES (?, ?)", (prefix, pending.revision))


def _below(db: sqlite3.Connection, prefix: str) -> dict[str, bytes]:
    rows = db.execute(
        "SELECT key, value FROM item WHERE key >= ? AND key < ?", (prefix, f"{prefix}\x7f")
    )
    return dict(rows.fetchall())


def _sound(kept: Kept) -> Kept:
    """Gives it back if it is of the types that were written; SQLite keeps any type anywhere.

    Raises:
        sqlite3.DatabaseError: It is not.
    """
    values = all(isinstance(value, bytes) for value in kept.items.values())
    if not values or not isinstance(kept.revision, int | None):
        raise sqlite3.DatabaseError("a value or a revision is of another type")
    return kept


def _same(one: str, other: str) -> bool:
    try:
        return same_store(parse_url(one), parse_url(other))
    except ConfigError:
        return one == other
