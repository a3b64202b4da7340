"""The SQLite file of the embedded store: schema, transactions, and what its errors mean.

Synchronous, and used by one thread only. One counter in `meta` numbers the transactions; it begins
at a random place, so that a revision from a file that was deleted fits no revision of the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyvxlan.daemon.errors import (
    StoreError,
    StoreUnavailableError,
    StoreUncertainError,
)
from pyvxlan.daemon.kv.store import (
    ABSENT,
    PRESENT,
    Change,
    Check,
    Delete,
    Item,
    Put,
    Removal,
    Revision,
    Snapshot,
    Write,
)
from pyvxlan.daemon.kv.watching import Missed

T = TypeVar("T")
FORMAT = 1
"""`user_version` of the file; a higher one was written by a newer program."""
BUSY_S = 5.0
PAUSE_S = (0.0005, 0.003)
"""Between two looks whether another writer is done; a transaction takes less than a millisecond."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (
    id TEXT NOT NULL, revision INTEGER NOT NULL, floor INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS kv (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, session TEXT);
CREATE INDEX IF NOT EXISTS kv_session ON kv (session) WHERE session IS NOT NULL;
CREATE TABLE IF NOT EXISTS log (
    revision INTEGER NOT NULL, position INTEGER NOT NULL, key TEXT NOT NULL,
    PRIMARY KEY (revision, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, ttl REAL NOT NULL, deadline REAL NOT NULL, boot TEXT NOT NULL)
    WITHOUT ROWID;
"""
REMEDIES = {
    sqlite3.SQLITE_ERROR: "it is not a store: choose another path, or move the file away",
    sqlite3.SQLITE_BUSY: "another process holds its lock: is one stuck? Try again",
    sqlite3.SQLITE_FULL: "the disk is full: free some space",
    sqlite3.SQLITE_READONLY: "it can't be written: make the file and its directory writable",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened: check the path and its permissions",
    sqlite3.SQLITE_PERM: "it may not be opened: check its permissions",
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore it, or move it away to begin with an empty one",
    sqlite3.SQLITE_NOTADB: "it is not a store: choose another path, or move the file away",
    sqlite3.SQLITE_IOERR: "the disk failed: check the file system",
}
NOT_APPLIED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY}
"""Errors of COMMIT after which SQLite has surely rolled back."""
REOPEN = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
}


@dataclass(frozen=True, slots=True)
class Now:
    """A moment on the clock by which sessions expire, and the boot that the clock belongs to."""

    boottime_s: float
    boot_id: str


@dataclass(eq=False, slots=True)
class Transaction:
    """What is to be applied wholly, or not at all."""

    checks: Sequence[Check]
    ops: Sequence[Write | Delete]
    session_id: str | None
    """Of the session that has to live, and that bound keys live with."""
    failed: str | None = None
    """Which check did not hold; None if all did."""


class Database:
    """One connection to the file, opened when first used and again after it broke.

    Args:
        path: The file; it and its directory are created.
        now: Tells the time.
        log_limit: About how many changes are kept for watches that resume.
    """

    def __init__(self, path: Path, *, now: Callable[[], Now], log_limit: int) -> None:
        self.path = path
        self.bell = path.with_name(f"{path.name}.bell")
        """Touched after every commit; whoever watches it knows of the change."""
        self._now = now
        self._log_limit = log_limit
        self._connection: sqlite3.Connection | None = None
        self._inode = (0, 0)

    def close(self) -> None:
        """Closes the file. May be called twice."""
        connection, self._connection = self._connection, None
        if connection:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def get(self, key: str) -> Item | None:
        """Reads one key."""
        with self._opened() as db:
            row = db.execute("SELECT value, revision FROM kv WHERE key = ?", (key,)).fetchone()
        return Item(key, row[0], row[1]) if row else None

    def list(self, prefix: str) -> dict[str, Item]:
        """Reads every key that starts with `prefix`, by key."""
        with self._opened() as db:
            return _below(db, prefix)

    def apply(self, transactions: Sequence[Transaction]) -> None:
        """Applies transactions in order, each wholly or not at all, and notes why it was not.

        They share one commit and one write to the disk. Rings the bell.

        Raises:
            StoreError: None of them was applied, or maybe all of them were.
        """
        with self._writing() as db:
            changed = self._sweep(db)
            for one in transactions:
                one.failed = _failed(db, one.checks)
                if one.failed is None and one.session_id is not None:
                    row = db.execute("SELECT 1 FROM sessions WHERE id = ?", (one.session_id,))
                    expired = f"session {one.session_id} has expired"
                    one.failed = None if row.fetchone() else expired
                if one.failed is None:
                    changed |= self._apply(db, one.ops, one.session_id)
        if changed:
            self._ring()

    def open_session(self, session_id: str, ttl_s: float) -> float:
        """Makes a session; returns the clock at that time."""
        with self._writing() as db:
            now = self._now()
            db.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?)",
                (session_id, ttl_s, now.boottime_s + ttl_s, now.boot_id),
            )
        return now.boottime_s

    def end_session(self, session_id: str) -> None:
        """Removes a session with its keys."""
        with self._writing() as db:
            changed = self._end(db, session_id)
        if changed:
            self._ring()

    def renew_sessions(self, session_ids: Sequence[str]) -> set[str]:
        """Renews sessions; returns those that have expired."""
        with self._writing() as db:
            swept = self._sweep(db)
            now = self._now()
            lost = {
                session_id
                for session_id in session_ids
                if not db.execute(
                    "UPDATE sessions SET deadline = ? + ttl WHERE id = ?",
                    (now.boottime_s, session_id),
                ).rowcount
            }
        if swept:
            self._ring()
        return lost

    def sweep(self) -> None:
        """Ends the sessions that have expired."""
        with self._opened() as db:
            expired = self._expired(db)
        if expired:
            self.renew_sessions(())

    def probe(self) -> None:
        """Writes something that changes nothing: raises if the file can't be written."""
        with self._writing() as db:
            db.execute("UPDATE meta SET floor = floor")

    def read(self, prefix: str, since: Revision | None) -> Snapshot | Missed:
        """Reads all below a prefix, or what came after `since` if the log still knows it."""
        with self._opened() as db, _reading(db):
            _, revision, floor = _meta(db)
            if since is None or not floor <= since <= revision:
                return Snapshot(_below(db, prefix), revision)
            return Missed(_missed(db, since, prefix), revision)

    def poll(self, known_id: str, since: Revision) -> tuple[str, Snapshot | Missed]:
        """Tells the file's id and what came after `since`; an empty `Snapshot` stands for a gap."""
        with self._opened() as db, _reading(db):
            file_id, revision, floor = _meta(db)
            if file_id != known_id or not floor <= since <= revision:
                return file_id, Snapshot({}, revision)
            return file_id, Missed(_missed(db, since, "") if revision > since else (), revision)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Gives the connection; turns what goes wrong into a `StoreError` that names the remedy."""
        try:
            if self._connection is None:
                self._connection = self._open()
            elif self._identity() != self._inode:
                self.close()
                raise StoreUnavailableError(
                    f"store {self.path} was deleted or replaced: it is opened anew; hosts publish "
                    "their records again"
                )
            yield self._connection
        except sqlite3.Error as error:
            raise self._explained(error, StoreUnavailableError) from error
        except OSError as error:
            raise StoreUnavailableError(
                f"store {self.path}: {error.strerror or error}; check the path and its permissions"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Gives the connection inside a transaction that is committed, and on disk, at the end.

        What is written is made durable after the commit, when the file is not locked any more: the
        next writer need not wait for that, and the disk takes what several have written at once.
        """
        with self._opened() as db:
            _begin(db)
            before = db.total_changes
            try:
                yield db
                try:
                    db.execute("COMMIT")
                except sqlite3.Error as error:
                    surely_not = _code(error) in NOT_APPLIED
                    kind = StoreUnavailableError if surely_not else StoreUncertainError
                    raise self._explained(error, kind) from error
            finally:
                if db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        db.execute("ROLLBACK")
            if self._identity() != self._inode:
                raise StoreUncertainError(
                    f"store {self.path} was deleted or replaced meanwhile: read, then try again"
                )
            if db.total_changes != before:
                self._sync()

    def _sync(self) -> None:
        """Waits until all that was committed so far is on disk."""
        try:
            log = os.open(f"{self.path}-wal", os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fdatasync(log)
            finally:
                os.close(log)
        except OSError as error:
            raise StoreUncertainError(
                f"store {self.path}: what was written may not be on disk "
                f"({error.strerror or error}): check the file system, then read and try again"
            ) from error

    def _open(self) -> sqlite3.Connection:
        if self.path.exists() and not self.path.is_file():
            raise StoreError(f"store {self.path} is no regular file: choose another path")
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        bell = os.open(self.bell, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(bell, fcntl.LOCK_EX)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._inode = self._identity()
        finally:
            os.close(bell)
        return connection

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise StoreError(
                f"store {self.path} has format {version}, this program knows {FORMAT}: upgrade it"
            )
        if version < FORMAT and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StoreError(
                f"store {self.path} is the database of another program: choose another path"
            )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if version == FORMAT:
            return
        db.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
        start = secrets.randbits(48)
        db.execute("INSERT INTO meta VALUES (?, ?, ?)", (secrets.token_hex(16), start, start))
        db.execute(f"PRAGMA user_version = {FORMAT}")
        db.execute("COMMIT")

    def _identity(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return (0, 0)
        return (status.st_dev, status.st_ino)

    def _explained(self, error: sqlite3.Error, kind: type[StoreError]) -> StoreError:
        code = _code(error)
        if code in REOPEN:
            self.close()
        remedy = REMEDIES.get(code, "see the cause")
        return kind(f"store {self.path}: {remedy} ({error})")

    def _apply(
        self, db: sqlite3.Connection, ops: Sequence[Write | Delete], session_id: str | None
    ) -> bool:
        """Applies operations at a new revision; tells whether anything changed."""
        revision = _meta(db)[1] + 1
        changed = False
        for position, op in enumerate(ops):
            if isinstance(op, Write):
                db.execute(
                    "INSERT INTO kv VALUES (?1, ?2, ?3, ?4) ON CONFLICT (key) DO UPDATE SET "
                    "value = ?2, revision = ?3, session = ?4",
                    (op.key, op.value, revision, session_id if op.bound else None),
                )
            elif not db.execute("DELETE FROM kv WHERE key = ?", (op.key,)).rowcount:
                continue
            db.execute("INSERT INTO log VALUES (?, ?, ?)", (revision, position, op.key))
            changed = True
        if changed:
            db.execute("UPDATE meta SET revision = ?", (revision,))
            self._trim(db, revision)
        return changed

    def _trim(self, db: sqlite3.Connection, revision: Revision) -> None:
        step = max(1, self._log_limit // 8)
        if revision % step == 0:
            floor = revision - self._log_limit
            if floor > _meta(db)[2]:
                db.execute("DELETE FROM log WHERE revision <= ?", (floor,))
                db.execute("UPDATE meta SET floor = ?", (floor,))

    def _expired(self, db: sqlite3.Connection) -> Sequence[str]:
        now = self._now()
        rows = db.execute(
            "SELECT id FROM sessions WHERE deadline < ? OR boot <> ?", (now.boottime_s, now.boot_id)
        )
        return [row[0] for row in rows]

    def _sweep(self, db: sqlite3.Connection) -> bool:
        changed = [self._end(db, session_id) for session_id in self._expired(db)]
        return any(changed)

    def _end(self, db: sqlite3.Connection, session_id: str) -> bool:
        db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
        rows = db.execute("SELECT key FROM kv WHERE session = ?", (session_id,)).fetchall()
        return self._apply(db, [Delete(row[0]) for row in rows], None)

    def _ring(self) -> None:
        """Touches the bell; a lost ring only costs the others' slow check its delay."""
        with contextlib.suppress(OSError):
            try:
                os.utime(self.bell)
            except FileNotFoundError:
                os.close(os.open(self.bell, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _code(error: sqlite3.Error) -> int:
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def boot_now() -> Now:
    """Reads the clock that also counts while the machine sleeps, and the boot's id."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return Now(time.clock_gettime(time.CLOCK_BOOTTIME), boot_id)


def _begin(db: sqlite3.Connection) -> None:
    """Begins a transaction that writes, when the others let it.

    SQLite would look again after ever longer pauses, so that whoever waits longest looks least
    often: with many writers one waits for seconds while others go in and out.
    """
    give_up_s = time.monotonic() + BUSY_S
    db.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                db.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_s:
                    raise
            time.sleep(random.uniform(*PAUSE_S))  # noqa: S311 - spreads writers, guards nothing
    finally:
        db.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000:.0f}")


@contextlib.contextmanager
def _reading(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _meta(db: sqlite3.Connection) -> tuple[str, Revision, Revision]:
    row = db.execute("SELECT id, revision, floor FROM meta").fetchone()
    return (row[0], row[1], row[2])


def _bounds(prefix: str) -> tuple[str, str]:
    """Gives the range of keys that start with `prefix`; keys are ASCII."""
    return (prefix, prefix + "\x7f")


def _below(db: sqlite3.Connection, prefix: str) -> dict[str, Item]:
    rows = db.execute(
        "SELECT key, value, revision FROM kv WHERE key >= ? AND key < ? ORDER BY key",
        _bounds(prefix),
    )
    return {key: Item(key, value, revision) for key, value, revision in rows}


def _missed(db: sqlite3.Connection, since: Revision, prefix: str) -> list[Change]:
    """Reads the newest state of every key that changed after `since`, in the order of changes."""
    rows = db.execute(
        "SELECT log.key, max(log.revision), kv.value, kv.revision FROM log LEFT JOIN kv "
        "ON kv.key = log.key WHERE log.revision > ? AND log.key >= ? AND log.key < ? "
        "GROUP BY log.key ORDER BY max(log.revision), log.position",
        (since, *_bounds(prefix)),
    )
    return [
        Removal(key, last) if revision is None else Put(Item(key, value, revision))
        for key, last, value, revision in rows
    ]


def _failed(db: sqlite3.Connection, checks: Sequence[Check]) -> str | None:
    """Names the first check that does not hold."""
    for check in checks:
        row = db.execute("SELECT revision FROM kv WHERE key = ?", (check.key,)).fetchone()
        if check.expect is ABSENT:
            if row:
                return f"{check.key} is there already"
        elif row is None:
            return f"{check.key} is not there"
        elif check.expect is not PRESENT and row[0] != check.expect:
            return f"{check.key} has changed"
    return None
