"""The copy of the store on a host's own disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from pathlib import Path

import pytest

from pyvxlan.daemon.kv.mirror import Kept, Mirror

URL = "etcd://h1:2379,h2:2379"
PAGE_BYTES = 4096


async def reopened(mirror: Mirror, url: str = URL) -> Mirror:
    await mirror.close()
    return await Mirror.open(mirror._path, url)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mirror.db"


async def test_fresh_mirror_knows_nothing(path: Path) -> None:
    mirror = await Mirror.open(path, URL)
    assert mirror.take("net/") is None
    assert mirror.seen_s is None
    assert mirror.cluster == ""
    await mirror.close()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_was_noted_is_there_after_a_restart(path: Path) -> None:
    mirror = await Mirror.open(path, URL)
    mirror.replace("net/", {"net/a": b"1", "net/b": b"2"}, 7)
    mirror.change("net/", "net/a", None, 8)
    mirror.change("net/", "net/c", b"3", 9)
    mirror.replace("cfg", {"cfg": b"{}"}, None)
    mirror.remember_cluster("c" * 32)
    mirror = await reopened(mirror)
    assert mirror.take("net/") == Kept({"net/b": b"2", "net/c": b"3"}, 9)
    assert mirror.take("net/") is None, "given once"
    assert mirror.take("cfg") == Kept({"cfg": b"{}"}, None)
    assert mirror.cluster == "c" * 32
    await mirror.close()


async def test_empty_prefix_that_was_read_is_known(path: Path) -> None:
    mirror = await Mirror.open(path, URL)
    mirror.replace("net/", {}, 4)
    mirror = await reopened(mirror)
    assert mirror.take("net/") == Kept({}, 4)
    await mirror.close()


async def test_new_list_replaces_all_but_what_is_spared(path: Path) -> None:
    mirror = await Mirror.open(path, URL)
    mirror.replace("net/", {"net/a": b"1", "net/b": b"2", "net/c": b"3"}, 1)
    mirror = await reopened(mirror)
    mirror.change("net/", "net/d", b"4", 2)
    mirror.replace("net/", {"net/b": b"5"}, None, spared=["net/c", "net/d"])
    mirror = await reopened(mirror)
    assert mirror.take("net/") == Kept({"net/b": b"5", "net/c": b"3", "net/d": b"4"}, None)
    await mirror.close()


async def test_forgotten_prefix_is_gone_and_others_stay(path: Path) -> None:
    mirror = await Mirror.open(path, URL)
    mirror.replace("ep/1/", {"ep/1/a": b"1"}, 1)
    mirror.replace("ep/2/", {"ep/2/a": b"1"}, 1)
    mirror = await reopened(mirror)
    mirror.forget("ep/1/")
    mirror.forget("ep/2/")
    mirror.replace("ep/2/", {"ep/2/b": b"1"}, 2)
    mirror = await reopened(mirror)
    assert set(mirror.prefixes) == {"ep/2/"}
    assert mirror.take("ep/2/") == Kept({"ep/2/b": b"1"}, 2)
    await mirror.close()


async def test_changes_are_on_disk_a_moment_later_without_a_close(path: Path) -> None:
    mirror = await Mirror.open(path, URL)
    mirror.replace("net/", {f"net/{number}": b"1" for number in range(100)}, 1)

    def written() -> int:
        db = sqlite3.connect(path)
        try:
            count: int = db.execute("SELECT count(*) FROM item").fetchone()[0]
        finally:
            db.close()
        return count

    async with asyncio.timeout(5):
        while written() != 100:
            await asyncio.sleep(0.01)
    await mirror.close()


async def test_time_in_step_is_kept(path: Path) -> None:
    mirror = await Mirror.open(path, URL)
    mirror.mark(in_step=True)
    before = time.time()
    await asyncio.sleep(0.01)
    mirror = await reopened(mirror)
    assert mirror.seen_s is not None
    assert before < mirror.seen_s <= time.time()
    seen_s = mirror.seen_s
    mirror = await reopened(mirror)
    assert mirror.seen_s == seen_s, "was not in step meanwhile"
    await mirror.close()


@pytest.mark.parametrize(
    ("url", "used"),
    [
        (URL, True),
        ("etcd://h2:2379", True),
        ("etcd://h3:2379", False),
        ("etcd://h1:2379/other", False),
        ("consul://h1:2379", False),
        ("sqlite:////var/lib/pyvxlan/store.db", False),
    ],
)
async def test_mirror_of_another_store_is_not_used(
    path: Path, url: str, used: bool, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = await Mirror.open(path, URL)
    mirror.replace("net/", {"net/a": b"1"}, 1)
    mirror.mark(in_step=True)
    with caplog.at_level(logging.WARNING):
        mirror = await reopened(mirror, url)
    assert (mirror.take("net/") is not None) == used
    assert (mirror.seen_s is not None) == used
    assert ("mirror not used" in caplog.text) != used
    mirror = await reopened(mirror, url)
    await mirror.close()


@pytest.mark.parametrize("content", [b"not a database" * 100, b""])
async def test_damaged_mirror_is_begun_anew(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(content)
    mirror = await Mirror.open(path, URL)
    assert mirror.take("net/") is None
    mirror.replace("net/", {"net/a": b"1"}, 1)
    mirror = await reopened(mirror)
    assert mirror.take("net/") == Kept({"net/a": b"1"}, 1)
    assert ("mirror begun anew" in caplog.text) == bool(content)
    await mirror.close()


async def test_page_that_is_damaged_leaves_no_prefix_with_a_part_of_its_keys(path: Path) -> None:
    """Else a watch would go on from the revision, and what is missing would never be told."""
    keys = {
        prefix: {f"{prefix}{number:03}": b"x" * 200 for number in range(60)}
        for prefix in ("ep/1/", "net/", "vtep/")
    }
    mirror = await Mirror.open(path, URL)
    for prefix, items in keys.items():
        mirror.replace(prefix, items, 7)
    await mirror.close()
    whole, known = path.read_bytes(), 0
    for offset in range(0, len(whole), PAGE_BYTES):
        path.write_bytes(whole[:offset] + b"\xff" * PAGE_BYTES + whole[offset + PAGE_BYTES :])
        mirror = await Mirror.open(path, URL)
        for prefix in list(mirror.prefixes):
            kept = mirror.take(prefix)
            assert kept == Kept(keys[prefix], 7)
            mirror.change(prefix, f"{prefix}new", b"1", 8)
        mirror = await reopened(mirror)
        for prefix in list(mirror.prefixes):
            known += 1
            assert mirror.take(prefix) == Kept({**keys[prefix], f"{prefix}new": b"1"}, 8)
        await mirror.close()
    assert len(whole) >= 10 * PAGE_BYTES


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE fact SET value = 'yesterday' WHERE name = 'seen'",
        "UPDATE item SET value = 'text'",
        "UPDATE item SET value = 5",
        "UPDATE prefix SET revision = 'text'",
        "ALTER TABLE fact RENAME COLUMN name TO nome",
        "PRAGMA user_version = 7",
    ],
)
async def test_mirror_that_is_no_longer_as_it_was_written_is_begun_anew(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = await Mirror.open(path, URL)
    mirror.replace("net/", {"net/a": b"1"}, 1)
    mirror.mark(in_step=True)
    await mirror.close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(damage)
    mirror = await Mirror.open(path, URL)
    kept = mirror.take("net/")
    assert kept is None
    assert "mirror begun anew" in caplog.text
    await mirror.close()


async def test_mirror_that_can_not_be_written_is_told_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pyvxlan.daemon.kv.mirror.RETRY_S", 0.01)
    path.mkdir()
    mirror = await Mirror.open(path, URL)
    mirror.replace("net/", {"net/a": b"1"}, 1)
    await asyncio.sleep(0.3)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "mirror not written, tried again" in told
    path.rmdir()
    mirror = await reopened(mirror)
    assert mirror.take("net/") == Kept({"net/a": b"1"}, 1)
    await mirror.close()


async def test_disk_that_fails_for_a_while_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pyvxlan.daemon.kv.mirror.RETRY_S", 0.05)
    mirror = await Mirror.open(path, URL)
    write, failures = mirror._write, 0

    def failing(*args: object) -> None:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise sqlite3.OperationalError("database or disk is full")
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(mirror, "_write", failing)
    mirror.replace("net/", {"net/a": b"1", "net/b": b"1"}, 1)
    mirror.forget("ep/1/")
    async with asyncio.timeout(5):
        while failures < 1:
            await asyncio.sleep(0.005)
    mirror.change("net/", "net/a", b"2", 2)
    async with asyncio.timeout(5):
        while failures < 3:
            await asyncio.sleep(0.005)
    mirror = await reopened(mirror)
    assert mirror.take("net/") == Kept({"net/a": b"2", "net/b": b"1"}, 2)
    assert "mirror not written" in caplog.text
    await mirror.close()
