"""The command line: what it prints, where, and the code it ends with."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from pyvxlan.daemon import apiclient, cli_format
from pyvxlan.daemon.cli import cli
from pyvxlan.daemon.cli import run as run_cli
from tests.unit.doorway import Doorway, doorway


@pytest.fixture(scope="module")
def door() -> Iterator[Doorway]:
    with doorway() as made:
        yield made


class Shell:
    """Runs commands in this process; keeps what the last one printed."""

    def __init__(self, door: Doorway, captured: pytest.CaptureFixture[str]) -> None:
        self.door = door
        self.error = ""
        self._captured = captured

    def __call__(self, *args: str, code: int = 0) -> str:
        exit_code = run_cli(["--run-dir", str(self.door.run_dir), *args])
        printed, self.error = self._captured.readouterr()
        assert exit_code == code, self.error
        if code == 0:
            assert self.error == ""
        return printed


@pytest.fixture
def shell(door: Doorway, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    made = Shell(door, capsys)
    yield made
    for endpoint in json.loads(made("endpoint", "ls", "--format", "json")):
        made("detach", endpoint["id"])
    made("network", "prune")


def test_create_prints_the_id_and_ls_shows_it(shell: Shell) -> None:
    printed = shell("network", "create", "ov_net1")
    assert re.fullmatch(r"[0-9a-f]{32}\n", printed)
    network_id = printed.strip()
    assert shell("network", "ls") == (
        "NETWORK ID     NAME      DRIVER    SCOPE\n"
        f"{network_id[:12]}   ov_net1   pyvxlan   global\n"
    )
    assert shell("network", "ls", "-q") == f"{network_id[:12]}\n"
    assert shell("network", "ls", "-q", "--no-trunc") == f"{network_id}\n"
    assert f"{network_id}   ov_net1" in shell("network", "ls", "--no-trunc")
    assert json.loads(shell("network", "ls", "--format", "json"))[0]["id"] == network_id


def test_empty_lists_have_headers_or_nothing(shell: Shell) -> None:
    assert shell("network", "ls") == "NETWORK ID   NAME   DRIVER   SCOPE\n"
    assert shell("network", "ls", "-q") == ""
    assert shell("endpoint", "ls", "-q") == ""
    assert json.loads(shell("endpoint", "ls", "--format", "json")) == []


def test_every_option_of_create_arrives(shell: Shell) -> None:
    made = json.loads(
        shell(
            "network", "create", "full", "--subnet", "10.9.0.0/24", "--subnet", "fd09::/64",
            "--gateway", "10.9.0.254", "--ip-range", "10.9.0.128/25", "--ipv6", "--mtu", "1400",
            "--aux-address", "router=10.9.0.129", "--aux-address", "old=fd09::9",
            "--vni", "5000", "--internal", "--opt", "multicast=off", "-o", "flood-rate=5",
            "--label", "team=blue", "--label", "empty=", "--format", "json",
        )
    )  # fmt: skip
    assert made["subnets"] == [
        {
            "cidr": "10.9.0.0/24",
            "gateway": "10.9.0.254",
            "ip_range": "10.9.0.128/25",
            "aux_addresses": {"router": "10.9.0.129"},
        },
        {
            "cidr": "fd09::/64",
            "gateway": "fd09::1",
            "ip_range": None,
            "aux_addresses": {"old": "fd09::9"},
        },
    ]
    assert (made["mtu_bytes"], made["vni"], made["internal"]) == (1400, 5000, True)
    assert made["multicast"] is False
    assert made["labels"] == {"team": "blue", "empty": ""}


def test_attached_namespace_is_listed_inspected_and_detached(shell: Shell) -> None:
    shell.door.node.net.add("box")
    shell("network", "create", "blue", "--subnet", "10.8.0.0/24")
    eid = shell("attach", "--network", "blue", "--name", "bbox1", "--alias", "web", "box").strip()
    assert shell("endpoint", "ls") == (
        "ENDPOINT ID    NAME    NETWORK   ADDRESSES     MAC                 HOST\n"
        f"{eid[:12]}   bbox1   blue      10.8.0.2/24   02:42:0a:08:00:02   host1\n"
    )
    (shown,) = json.loads(shell("endpoint", "inspect", "bbox1"))
    assert (shown["id"], shown["aliases"], shown["local"]) == (eid, ["web"], True)
    (network,) = json.loads(shell("network", "inspect", "blue"))
    assert network["endpoints"] == [shown]
    assert shell("endpoint", "ls", "--network", "blue", "--local", "-q") == f"{eid[:12]}\n"
    assert shell("detach", "box") == f"{eid}\n"
    assert shell("endpoint", "ls", "-q") == ""


def test_attach_can_print_json(shell: Shell) -> None:
    shell.door.node.net.add("json")
    shell("network", "create", "blue")
    made = json.loads(shell("attach", "--format", "json", "--network", "blue", "json"))
    assert made["ifname"] == "eth0"


def test_networks_are_removed_one_by_one_whatever_fails(shell: Shell) -> None:
    shell("network", "create", "a")
    shell("network", "create", "b")
    assert shell("network", "rm", "a", "no_such", "b", code=1) == "a\nb\n"
    assert shell.error == "pyvxlan: no network 'no_such': see pyvxlan network ls\n"


def test_prune_removes_what_nobody_uses(shell: Shell) -> None:
    shell("network", "create", "unused")
    assert shell("network", "prune", "--force") == "unused\n"


def test_nodes_and_status_are_shown(shell: Shell) -> None:
    lines = shell("node", "ls").splitlines()
    assert lines[0].split() == ["NODE", "ID", "NAME", "VTEP", "STATUS", "VERSION"]
    assert lines[1].split()[1:] == ["*", "host1", "198.18.0.1:4789", "up", "0.1.0"]
    assert lines[2].split()[1:] == ["host2", "198.18.0.2:4789", "up", "0.1.0"]
    assert "host1" in shell("status")
    assert json.loads(shell("status", "--format", "json"))["version"] == "9.9.9"


@pytest.mark.parametrize(
    ("args", "code", "named"),
    [
        (("network", "create", "odd/name"), 1, "odd/name"),
        (("network", "inspect", "none"), 1, "none"),
        (("endpoint", "inspect", "none"), 1, "none"),
        (("detach", "none"), 1, "none"),
        (("attach", "--network", "none", "nowhere"), 1, "nowhere"),
        (("network", "create", "x", "--subnet", "banana"), 1, "banana"),
        (("network", "create"), 2, "NAME"),
        (("network", "create", "-x"), 2, "-x"),
        (("network", "create", "x", "--mtu", "many"), 2, "many"),
        (("network", "create", "x", "--opt", "multicast"), 2, "multicast"),
        (("network", "create", "x", "--label", "=y"), 2, "=y"),
        (("network", "lst"), 2, "lst"),
        (("netwrok", "ls"), 2, "network"),
        (("attach", "box"), 2, "--network"),
        (("run", "--network", "x"), 2, "COMMAND"),
        (("run", "sh"), 2, "--network"),
        (("exec", "bbox1"), 2, "COMMAND"),
        (("exec", "bbox1", "--"), 2, "command"),
        (("exec", "none", "--", "true"), 1, "none"),
        (("run", "--network", "x", "--nmae", "y", "--", "true"), 2, "--name"),
        (("network", "rm", ""), 2, "''"),
        (("network", "inspect", "x", ""), 2, "''"),
        (("detach", ""), 2, "''"),
        (("exec", "", "--", "true"), 2, "''"),
        (("completion", "csh"), 2, "csh"),
        (("status", "--format", "yaml"), 2, "yaml"),
    ],
)
def test_wrong_use_is_one_line_that_names_it(
    shell: Shell, args: tuple[str, ...], code: int, named: str
) -> None:
    assert shell(*args, code=code) == ""
    assert named in shell.error
    assert shell.error.startswith("pyvxlan: ")
    assert shell.error.count("\n") == 1


def test_daemon_that_is_not_there_is_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["--run-dir", str(tmp_path), "status"]) == 3
    error = capsys.readouterr().err
    assert str(tmp_path / "api.sock") in error
    assert "systemctl start" in error


def test_run_directory_may_come_from_the_environment(
    door: Doorway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYVXLAN_RUN_DIR", str(door.run_dir))
    assert run_cli(["node", "ls", "-q"]) == 0
    assert capsys.readouterr().out


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(group, click.Group):
        yield path
        return
    for name, command in group.commands.items():
        yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands(cli)), ids=" ".join)
def test_help_of_every_command_has_examples(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli([*path, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert f"\n    pyvxlan {' '.join(path)}" in text
    assert max(map(len, text.splitlines())) <= 100


def test_group_without_command_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli([]) == 2
    assert "pyvxlan network create ov_net1" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_completion_script_is_printed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["completion", kind]) == 0
    assert "_PYVXLAN_COMPLETE" in capsys.readouterr().out


def entry(door: Doorway, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", "from pyvxlan.daemon.cli import main; main()", *args]
    environment = os.environ | {"PYVXLAN_RUN_DIR": str(door.run_dir)} | environ
    return subprocess.run(
        words, capture_output=True, text=True, env=environment, timeout=30, check=False
    )


def test_names_are_completed(shell: Shell) -> None:
    shell("network", "create", "ov_green")
    shell("network", "create", "other")
    words = {"COMP_WORDS": "pyvxlan network rm ov_", "COMP_CWORD": "3"}
    done = entry(shell.door, **words, _PYVXLAN_COMPLETE="bash_complete")
    assert done.stdout.split() == ["plain,ov_green"]


def test_completion_without_a_daemon_is_silent(door: Doorway) -> None:
    words = {"COMP_WORDS": "pyvxlan network rm ov_", "COMP_CWORD": "3"}
    done = entry(door, **words, _PYVXLAN_COMPLETE="bash_complete", PYVXLAN_RUN_DIR="/none")
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_version_is_printed(door: Doorway) -> None:
    assert re.fullmatch(r"pyvxlan \d+\.\d+\.\d+\n", entry(door, "--version").stdout)


def test_command_line_imports_no_heavy_library(door: Doorway) -> None:
    heavy = {"aiohttp", "asyncio", "pyroute2", "dns", "prometheus_client", "sqlite3", "msgpack"}
    script = (
        "import sys; from pyvxlan.daemon.cli import run; code = run(['network', 'ls']); "
        f"sys.exit(code or ','.join(sorted({heavy!r} & sys.modules.keys())) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYVXLAN_RUN_DIR": str(door.run_dir)},
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


class Scripted:
    """A daemon that lets a test write its answers by hand."""

    def __init__(self, directory: Path, answer: Callable[[socket.socket], None]) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(directory / "api.sock"))
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, args=(answer,))
        self.thread.start()

    def serve(self, answer: Callable[[socket.socket], None]) -> None:
        connection, _ = self.listener.accept()
        with connection:
            connection.recv(65536)
            answer(connection)

    def close(self) -> None:
        self.thread.join()
        self.listener.close()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n[", b"nonsense"])
def test_daemon_that_dies_meanwhile_is_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes
) -> None:
    daemon = Scripted(tmp_path, lambda connection: connection.sendall(answer))
    assert run_cli(["--run-dir", str(tmp_path), "node", "ls"]) == 3
    daemon.close()
    assert "api.sock" in capsys.readouterr().err


def test_long_wait_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apiclient, "NOTICE_AFTER_S", 0.05)

    def late(connection: socket.socket) -> None:
        waited.wait(0.3)
        connection.sendall(b'HTTP/1.1 201 Created\r\n\r\n{"id": "abc"}')

    waited = threading.Event()
    daemon = Scripted(tmp_path, late)
    assert run_cli(["--run-dir", str(tmp_path), "network", "create", "slow"]) == 0
    daemon.close()
    printed = capsys.readouterr()
    assert printed.out == "abc\n"
    assert printed.err == "pyvxlan: creating network slow ...\n"


def test_interrupt_ends_with_130_and_without_a_traceback(tmp_path: Path) -> None:
    connected = threading.Event()
    released = threading.Event()

    def hang(_: socket.socket) -> None:
        connected.set()
        released.wait(10)

    daemon = Scripted(tmp_path, hang)
    process = subprocess.Popen(
        [sys.executable, "-c", "from pyvxlan.daemon.entry import command_line; command_line()",
         "--run-dir", str(tmp_path), "network", "create", "x"],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert connected.wait(10)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    released.set()
    daemon.close()
    assert process.returncode == 130
    assert error.strip() == b""


@pytest.mark.parametrize("command", ["command_line", "daemon"])
def test_interrupt_while_it_is_still_imported_ends_it_without_a_traceback(
    tmp_path: Path, command: str
) -> None:
    slow = "import time; print('importing', flush=True); time.sleep(60)"
    (tmp_path / "click.py").write_text(slow)
    search = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", f"from pyvxlan.daemon.entry import {command}; {command}()"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": search},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert error == b""


def test_reader_that_leaves_is_no_error(shell: Shell) -> None:
    shell("network", "create", "piped")
    script = f"{sys.executable} -c 'from pyvxlan.daemon.cli import main; main()' network ls | true"
    done = subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYVXLAN_RUN_DIR": str(shell.door.run_dir)},
        timeout=30,
        check=False,
    )
    assert done.stderr == ""


STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "pid": 7,
    "uptime_s": 3725.0,
    "host": {"id": "a" * 32, "name": "h1", "vtep": "fd98::1", "port": 4789},
    "store": {
        "url": "sqlite:///s.db",
        "configured": "sqlite:///s.db",
        "move_problem": "",
        "state": "stale",
        "synced": False,
        "stale_s": 5.0,
        "cause": "cut",
        "problem": "no session",
        "held": 3,
        "invalid": {"net/x": "is not JSON"},
    },
    "forwarder": {"up": True, "pid": 8, "workers": 2},
    "endpoints": 1,
    "names": {"sandboxes": 1},
    "reconcile": {"repairs": 4, "problems": ["could not make eth0"]},
    "metrics_url": None,
    "workers": [
        {"number": 0, "segment": True, "gro": True},
        {"number": 1, "segment": False, "gro": True},
    ],
    "no_offload": ["tso6"],
    "web_url": None,
    "networks": [
        {
            "name": "blue",
            "vni": 4097,
            "endpoints": 1,
            "offloads": ["csum", "tso4"],
            "counters": {
                "egress_frames": 12,
                "egress_bytes": 1200,
                "ingress_frames": 3,
                "ingress_bytes": 2_500_000,
                "egress_drops": {"destination_unknown": 2},
                "ingress_drops": {"truncated": 1},
            },
        }
    ],
}


def test_status_is_a_page_for_people() -> None:
    assert cli_format.status_text(STATUS) == (
        "daemon:         0.1.0, pid 7, up 1 h 2 min\n"
        "host:           h1 (aaaaaaaaaaaa), VTEP [fd98::1]:4789\n"
        "store:          sqlite:///s.db, not reachable for 5 s, shown is what was known: cut\n"
        "forwarder:      pid 8, 2 workers\n"
        "offloads:       worker 0: segment gro, worker 1: gro; switched off: tso6\n"
        "endpoints:      1 on this host, names for 1\n"
        "repairs:        4\n"
        "metrics:        off\n"
        "web page:       off\n"
        "held back:      3 records that the store lacks\n"
        "problem:        not registered: no session\n"
        "problem:        could not make eth0\n"
        "invalid record: net/x: is not JSON\n"
        "\n"
        "NETWORK   VNI    ENDPOINTS   FRAMES OUT    FRAMES IN    DROPS   OFFLOADS\n"
        "blue      4097   1           12 (1.2 kB)   3 (2.5 MB)   3       csum tso4"
    )


def test_status_says_that_the_cluster_has_moved() -> None:
    moved = {**STATUS["store"], "configured": "etcd://h1", "move_problem": "no library"}
    lines = cli_format.status_text({**STATUS, "store": moved}).splitlines()
    assert "problem:        the cluster has moved, not this host: no library" in lines
    assert "problem:        the cluster has left etcd://h1: change the setting" in lines


def test_status_without_forwarder_says_where_to_look() -> None:
    down = {"forwarder": {"up": False}, "networks": [], "workers": []}
    text = cli_format.status_text(STATUS | down)
    assert "down: see forwarder.log" in text
    assert "offloads:       none known; switched off: tso6" in text


def test_offloads_are_said_once_where_all_workers_use_the_same() -> None:
    alike = [{"number": number, "segment": False, "gro": False} for number in range(2)]
    shown = {"workers": alike, "no_offload": [], "networks": [STATUS["networks"][0]]}
    shown["networks"][0] |= {"offloads": None}
    text = cli_format.status_text(STATUS | shown)
    assert "offloads:       none\n" in text
    assert text.endswith("3       -")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (61, "1 min 1 s"), (3600, "1 h"), (90061, "1 d 1 h")],
)
def test_duration_has_two_units(seconds: float, text: str) -> None:
    assert cli_format.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e15, "2000.0 TB")]
)
def test_size_is_short(count: float, text: str) -> None:
    assert cli_format.size(int(count)) == text
