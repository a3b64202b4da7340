"""The daemon's command: flags, refusals, what it tells systemd, cleanup of nothing."""

from __future__ import annotations

import asyncio
import configparser
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyvxlan.daemon import cleanup, rundir
from pyvxlan.daemon import main as daemon
from pyvxlan.daemon.cleanup import clean_up
from pyvxlan.daemon.config import SETTINGS, Settings, flag
from pyvxlan.daemon.errors import ConfigError, ConflictError
from pyvxlan.daemon.kv.url import KINDS, OPTIONS
from pyvxlan.daemon.local import LocalRecords


def run(*args: str, environ: dict[str, str] | None = None) -> int:
    return daemon.main(args, environ or {})


def test_effective_settings_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text("port = 4790\n")
    assert run("--config", str(path), "--workers", "3", "--check-config") == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^port = 4790 +# {path}$", printed, re.MULTILINE)
    assert re.search(r"^workers = 3 +# flag$", printed, re.MULTILINE)


def test_flag_of_a_list_may_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--no-offload", "gro", "--no-offload", "tso4,csum")
    assert run(*flags, "--check-config") == 0
    assert 'no_offload = ["csum", "tso4", "gro"]' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "environ", "code", "named"),
    [
        (("--port", "0"), {}, 1, "--port = 0"),
        (("--prot", "1"), {}, 2, "--port"),
        (("extra",), {}, 2, "extra"),
        ((), {"PYVXLAN_PROT": "1"}, 1, "did you mean PYVXLAN_PORT?"),
        (("--config", "/no/such.toml"), {}, 1, "/no/such.toml"),
        (("--store", "redis://x"), {}, 1, "redis://x"),
        (("--no-offload", "tso5"), {}, 1, "--no-offload = tso5: 'tso5' is no offload: there are"),
        (("--store", "sqlite://relative.db"), {}, 1, "relative.db"),
    ],
)
def test_wrong_settings_are_one_line_of_error(
    args: tuple[str, ...],
    environ: dict[str, str],
    code: int,
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*args, "--check-config", environ=environ) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert named in printed.err
    assert printed.err.startswith("pyvxlan-daemon: ")
    assert printed.err.count("\n") == 1


def test_every_setting_has_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for name in SETTINGS:
        assert f"{flag(name)} VALUE" in text
    assert "pyvxlan-daemon --cleanup" in text


def test_every_store_and_its_options_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(f"  {kind}://" in text for kind in KINDS)
    assert all(f"{option}=" in text for options in OPTIONS.values() for option in options)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert re.fullmatch(r"pyvxlan-daemon \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_other_users_are_told_to_be_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for args in ((), ("--cleanup",)):
        assert run(*args) == 1
        assert "root" in capsys.readouterr().err


def test_grpc_is_told_of_forks_before_anything_is_imported() -> None:
    script = "import os, pyvxlan.daemon.main; print(os.environ['GRPC_ENABLE_FORK_SUPPORT'])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "0\n"


def test_run_directory_belongs_to_one_daemon(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with rundir.held(path):
        with pytest.raises(ConflictError, match=rf"{path}.*pid {os.getpid()}"), rundir.held(path):
            pass
        assert path.is_dir()
    with rundir.held(path):
        pass


def test_run_directory_that_can_not_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"file/run.*--run-dir"),
        rundir.held(tmp_path / "file/run"),
    ):
        pass


async def test_second_daemon_on_a_run_directory_is_refused(tmp_path: Path) -> None:
    settings = Settings(run_dir=tmp_path / "run", state_dir=tmp_path / "state")
    with rundir.held(settings.run_dir):
        with pytest.raises(ConflictError, match="stop it first"):
            await daemon.serve(settings)
        with pytest.raises(ConflictError, match="stop it first"):
            await clean_up(settings)
    assert not settings.state_dir.exists()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.remove_signal_handler(number)


async def test_cleanup_of_nothing_makes_nothing(tmp_path: Path) -> None:
    settings = Settings(run_dir=tmp_path / "run", state_dir=tmp_path / "state")
    assert await clean_up(settings) == []
    assert list(tmp_path.iterdir()) == []


async def test_cleanup_makes_no_store_to_withdraw_from(tmp_path: Path) -> None:
    local = LocalRecords(tmp_path / "state")
    await cleanup._withdraw(f"sqlite://{tmp_path}/none/store.db", local)
    local.close()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool
) -> None:
    name = f"@pyvxlan-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        daemon._notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_nobody_is_told_if_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    daemon._notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    daemon._notify("READY=1")


@pytest.mark.parametrize("journal", [False, True])
def test_log_has_the_time_unless_the_journal_writes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, journal: bool
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if journal:
        monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    daemon._set_up_log("info")
    logging.getLogger("pyvxlan.test").info("network created name=%s", "x")
    written = capsys.readouterr().err
    stamp = "" if journal else r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "
    assert re.fullmatch(rf"{stamp}INFO pyvxlan\.test network created name=x\n", written)


def test_unit_leaves_containers_alone_and_comes_before_docker() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string(
        Path(daemon.__file__).with_name("assets").joinpath("pyvxlan-daemon.service").read_text()
    )
    assert unit["Service"]["KillMode"] == "process"
    assert unit["Service"]["Type"] == "notify"
    assert unit["Unit"]["Before"] == "docker.service"
