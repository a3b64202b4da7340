"""`pyvxlan debug dump`: what is in it, what is not, and that it works when nothing else does."""

from __future__ import annotations

import io
import json
import stat
import tarfile
from pathlib import Path

import pytest

from pyvxlan.daemon.cli import run as run_cli
from pyvxlan.daemon.debugdump import scrubbed
from pyvxlan.daemon.requests import NetworkSpec
from tests.unit.doorway import doorway

KEY = "-----{} EC PRIVATE KEY-----"


def unpacked(path: Path) -> dict[str, str]:
    """Files of an archive by name, without the directory that they all are in."""
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert len({member.name.split("/")[0] for member in members}) == 1
        return {
            member.name.partition("/")[2]: tar.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in members
        }


def test_archive_holds_what_the_daemon_says(tmp_path: Path) -> None:
    path = tmp_path / "dump.tar.gz"
    with doorway() as door:
        door.do(door.node.service.create_network(NetworkSpec("blue", vni=4242)))
        (door.run_dir / "forwarder.log").write_text("forwarder says hello\n")
        assert run_cli(["--run-dir", str(door.run_dir), "debug", "dump", "-o", str(path)]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files = unpacked(path)
    assert json.loads(files["networks.json"])[0]["name"] == "blue"
    assert len(json.loads(files["hosts.json"])) == 2
    assert json.loads(files["status.json"])["version"] == "9.9.9"
    assert json.loads(files["about.json"])["kernel"]["system"] == "Linux"
    assert files["forwarder.log"] == "forwarder says hello\n"
    assert "MemTotal" in files["host/proc-meminfo.txt"]
    assert str(door.run_dir) in files["settings.toml"]


def test_dump_without_a_daemon_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dump.tar.gz"
    assert run_cli(["--run-dir", str(tmp_path / "none"), "debug", "dump", "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    files = unpacked(path)
    failures = files["failures.txt"].splitlines()
    assert any(line.startswith("status.json: ") and "no daemon" in line for line in failures)
    assert "networks.json" not in files
    assert any("daemon" in one["what"] for one in json.loads(files["doctor.json"]))


def test_file_that_is_there_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dump.tar.gz"
    path.write_text("mine")
    assert run_cli(["--run-dir", str(tmp_path), "debug", "dump", "-o", str(path)]) == 1
    assert capsys.readouterr().err == f"pyvxlan: {path} can't be written: File exists\n"
    assert path.read_text() == "mine"


def test_archive_goes_to_standard_output(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run_cli(["--run-dir", str(tmp_path), "debug", "dump", "-o", "-"]) == 0
    with tarfile.open(fileobj=io.BytesIO(capsysbinary.readouterr().out)) as tar:
        assert any(name.endswith("/about.json") for name in tar.getnames())


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("store etcd://root:hunter2@10.0.0.1:2379", "store etcd://root:(removed)@10.0.0.1:2379"),
        ("consul://10.0.0.1:8500?token_file=/etc/t", "consul://10.0.0.1:8500?token_file=/etc/t"),
        ("PASSWORD=hunter2 next", "PASSWORD=(removed) next"),
        ('"token": "abc-def"', '"token": "(removed)"'),
        ("Authorization: Bearer hunter2", "Authorization: (removed)"),
        (f"{KEY.format('BEGIN')}\nAAA\n{KEY.format('END')}", "(private key removed)"),
        ("sqlite:////var/lib/pyvxlan/store.db", "sqlite:////var/lib/pyvxlan/store.db"),
        ("fd98::1:4789 is up", "fd98::1:4789 is up"),
    ],
)  # fmt: skip
def test_secrets_are_taken_out(text: str, instead: str) -> None:
    assert scrubbed(text) == instead
