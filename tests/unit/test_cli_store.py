"""`pyvxlan store`: opens a store itself, with or without a daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from pyvxlan.daemon import records
from pyvxlan.daemon.cli import run
from pyvxlan.daemon.kv import Write
from pyvxlan.daemon.kv.embedded import EmbeddedStore
from tests.unit import stored
from tests.unit.doorway import doorway
from tests.unit.memory_net import host


@pytest.fixture(autouse=True)
def no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVXLAN_RUN_DIR", str(tmp_path / "run"))


async def _put(path: Path, values: Mapping[str, bytes]) -> None:
    store = await EmbeddedStore.open(path)
    for key, value in values.items():
        await store.txn([], [Write(key, value)])
    await store.close()


async def _held(path: Path) -> dict[str, bytes]:
    store = await EmbeddedStore.open(path)
    items = await store.list("")
    await store.close()
    return {key: item.value for key, item in items.items()}


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store of a small cluster."""
    asyncio.run(_put(tmp_path / "store.db", stored.cluster()))
    return f"sqlite://{tmp_path}/store.db"


def output(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    """Runs a command; returns what it printed on stdout and stderr."""
    assert run(["store", *args]) == code, capsys.readouterr()
    return capsys.readouterr()


def test_check_is_a_table_for_people(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed, _ = output(capsys, "check", url)
    lines = printed.splitlines()
    assert lines[0] == f"store:   {url}"
    assert lines[1] == f"cluster: {stored.CLUSTER}"
    assert lines[3].split() == ["MEMBER", "STATE", "VERSION", "LATENCY"]
    assert lines[4].split()[1] == "serves"
    assert lines[6].split() == ["CHECK", "RESULT", "DETAIL"]
    assert "2 networks, 2 hosts, 6 endpoints; all fit each other" in printed


def test_warnings_alone_end_with_0(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(output(capsys, "check", url, "--format", "json")[0])
    assert document["good"] is True
    levels = {finding["what"]: finding["level"] for finding in document["findings"]}
    assert levels == {
        "connection": "ok",
        "clock": "ok",
        "permissions": "ok",
        "schema": "ok",
        "records": "ok",
        "hosts": "warning",
    }


def test_an_error_ends_with_1(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(_put(tmp_path / "store.db", {"net/x": b"nonsense"}))
    printed, _ = output(capsys, "check", url, code=1)
    assert "not valid (1): net/x (not JSON: b'nonsense'); repair or delete them" in printed


def test_check_leaves_nothing_behind(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output(capsys, "check", url)
    assert asyncio.run(_held(tmp_path / "store.db")) == stored.cluster()


def test_store_of_a_newer_schema_is_an_error(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = records.emit_meta(records.Meta(stored.CLUSTER, min_reader=2))
    asyncio.run(_put(tmp_path / "store.db", {records.META: meta}))
    assert "needs a reader of schema 2" in output(capsys, "check", url, code=1)[0]


def test_file_that_is_not_there_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.db"
    for command in (["check"], ["dump"]):
        _, error = output(capsys, *command, f"sqlite://{path}", code=1)
        assert error == f"pyvxlan: store sqlite://{path}: there is no file {path}; check the path\n"
    assert not path.exists()


def test_file_that_is_no_store_is_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, and no database at all " * 20)
    printed, _ = output(capsys, "check", f"sqlite://{path}", code=1)
    assert "no member serves" in printed
    assert "it is not a store" in printed


def test_url_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    _, error = output(capsys, "check", "etdc://h1", code=1)
    assert error == (
        "pyvxlan: store 'etdc://h1' is of no kind that pyvxlan knows: did you mean etcd?\n"
    )


def test_store_is_the_one_that_the_configuration_names(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVXLAN_STORE", url)
    assert f"store:   {url}" in output(capsys, "check")[0]
    monkeypatch.delenv("PYVXLAN_STORE")
    config = tmp_path / "config.toml"
    config.write_text(f'store = "{url}"\nrun_dir = "{tmp_path}/run"\n')
    monkeypatch.setenv("PYVXLAN_CONFIG", str(config))
    assert f"store:   {url}" in output(capsys, "check")[0]
    config.write_text("stoer = 1\n")
    assert "did you mean store?" in output(capsys, "check", code=1)[1]


def test_store_is_the_one_that_the_daemon_uses(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVXLAN_STORE", "sqlite:////none/of/that.db")
    with doorway() as door:
        monkeypatch.setenv("PYVXLAN_RUN_DIR", str(door.run_dir))
        _, error = output(capsys, "dump", code=1)
        assert door.settings.store in error


def test_move_that_is_refused_makes_no_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(_put(tmp_path / "empty.db", {}))
    source, target = (f"sqlite://{tmp_path}/{name}.db" for name in ("empty", "target"))
    _, error = output(capsys, "migrate", source, target, code=1)
    assert "holds no cluster" in error
    assert not (tmp_path / "target.db").exists()


def test_dump_and_restore_make_the_same_store(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = tmp_path / "store.dump", tmp_path / "other.db"
    printed, said = output(capsys, "dump", url, "-o", str(file))
    assert printed == ""
    assert said.endswith("records: 2 networks, 2 hosts, 6 endpoints\n")
    assert file.stat().st_mode & 0o777 == 0o600
    output(capsys, "restore", str(file), f"sqlite://{other}")
    found = asyncio.run(_held(other))
    assert {**found, records.META: b""} == {**stored.cluster(), records.META: b""}


def test_dump_goes_to_stdout(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, _ = output(capsys, "dump", url)
    file = tmp_path / "store.dump"
    file.write_text(printed)
    output(capsys, "restore", str(file), f"sqlite://{tmp_path}/other.db")


def test_bad_dump_is_refused_before_the_store_is_touched(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "store.dump"
    file.write_text(output(capsys, "dump", url)[0][:-9])
    _, error = output(capsys, "restore", str(file), f"sqlite://{tmp_path}/other.db", code=1)
    assert error.startswith(f"pyvxlan: dump {file}")
    assert not (tmp_path / "other.db").exists()


def test_store_that_is_not_empty_is_not_filled(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "store.dump"
    output(capsys, "dump", url, "-o", str(file))
    asyncio.run(_put(tmp_path / "store.db", stored.of_host(host(3))))
    _, error = output(capsys, "restore", str(file), url, code=1)
    assert "it holds 2 networks, 3 hosts, 6 endpoints; choose an empty prefix" in error
    output(capsys, "restore", "--replace", str(file), url)
    assert records.host_key(host(3).id) not in asyncio.run(_held(tmp_path / "store.db"))


def test_cluster_is_moved_and_the_old_store_says_where(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = f"sqlite://{tmp_path}/other.db"
    _, said = output(capsys, "migrate", url, other)
    assert said.splitlines()[-1] == (
        f"pyvxlan: moved to {other}: 2 networks, 2 hosts, 6 endpoints; set it as the store of each "
        "host, and leave the old one running until that is done"
    )
    assert asyncio.run(_held(tmp_path / "other.db")) == stored.cluster()
    assert (
        f"the cluster has moved to {other}: set the hosts' store" in output(capsys, "check", url)[0]
    )
    output(capsys, "migrate", url, other)
    _, error = output(capsys, "migrate", "--abort", url, other, code=1)
    assert f"the cluster has moved to {other}" in error


def test_move_that_is_not_begun_has_nothing_to_abort(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = output(capsys, "migrate", "--abort", url, f"sqlite://{tmp_path}/other.db")
    assert said == "pyvxlan: given up; there was nothing to empty\n"
    _, error = output(capsys, "migrate", "--abort", "--replace", url, url, code=2)
    assert "exclude each other" in error


def test_store_is_not_moved_to_itself(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, error = output(capsys, "migrate", url, url, code=1)
    assert "both URLs lead to this very cluster" in error
