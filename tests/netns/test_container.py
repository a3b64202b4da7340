"""Containers of `pyvxlan run` by themselves, without a daemon: namespaces, files, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.world import command, eventually

pytestmark = pytest.mark.root
SCRIPT = """
import sys
from pathlib import Path
from pyvxlan.daemon.apiclient import ClientError
from pyvxlan.daemon.container import Container
try:
    detached = sys.argv[1] == "-d"
    log = Path(sys.argv.pop(2)) if detached else None
    made = Container.create(sys.argv[2:], hostname="boxhost", detached=detached, log_file=log)
    addresses = ["198.18.0.9/24", "fd98::9/64"]
    if not detached:
        sys.exit(made.run(addresses))
    made.start(addresses)
    print(made.pid)
except ClientError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def contained(*words: str) -> subprocess.Popen[str]:
    """Starts a command in a container, in the foreground."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def output(*words: str, code: int = 0) -> str:
    process = contained("--", *words)
    printed, error = process.communicate(timeout=20)
    assert process.returncode == code, error
    return printed + error


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"ck{os.getpid()}"
    command("ip", "netns", "add", name)
    yield name
    command("ip", "netns", "del", name, check=False)


def test_command_is_process_1_with_its_own_surroundings() -> None:
    assert output("sh", "-c", "echo $$; hostname; ls /sys/class/net").split() == [
        "1",
        "boxhost",
        "lo",
    ]
    assert output("sh", "-c", "ls -d /proc/[0-9]* | wc -l").strip() <= "3"


def test_resolver_hosts_and_hostname_are_its_own_and_the_host_keeps_its_files() -> None:
    paths = [Path("/etc/resolv.conf"), Path("/etc/hosts"), Path("/etc/hostname")]
    before = [path.read_bytes() if path.exists() else None for path in paths]
    printed = output("sh", "-c", "cat /etc/resolv.conf /etc/hosts /etc/hostname; touch /etc/mine")
    assert "nameserver 127.0.0.11\noptions ndots:0\n" in printed
    assert "127.0.0.1\tlocalhost\n" in printed
    assert "198.18.0.9\tboxhost\nfd98::9\tboxhost\n" in printed
    assert printed.endswith("boxhost\n")
    assert [path.read_bytes() if path.exists() else None for path in paths] == before
    assert not Path("/etc/mine").exists()


def test_namespaces_of_others_are_not_kept_alive(netns: str) -> None:
    process = contained("--", "sleep", "20")
    try:
        child = eventually(lambda: children(process.pid))[0]
        eventually(lambda: Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"sleep"))
        mounts = Path(f"/proc/{child}/mountinfo").read_text()
        assert not [line for line in mounts.splitlines() if " nsfs " in line]
        assert netns in os.listdir("/run/netns")
        assert os.listdir(f"/proc/{child}/root/run/netns") == []
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("sh", "-c", "exit 7"), 7, ""),
        (("sh", "-c", "kill -9 $$; exit 0"), 0, ""),
        (("/no/such/program",), 127, "/no/such/program"),
        (("/etc/passwd",), 126, "/etc/passwd: Permission denied"),
    ],
)
def test_exit_code_is_that_of_the_command(words: tuple[str, ...], code: int, named: str) -> None:
    assert named in output(*words, code=code)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_ends_a_command_that_does_not_catch_it(number: signal.Signals, code: int) -> None:
    process = contained("--", "tail", "-f", "/etc/hostname")
    assert process.stdout is not None
    assert process.stdout.readline() == "boxhost\n"
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == code


def test_signal_reaches_a_command_that_catches_it() -> None:
    process = contained(
        "--", "sh", "-c", "trap 'echo caught; exit 5' TERM; echo up; while :; do sleep 0.05; done"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=10)
    assert (printed, process.returncode) == ("caught\n", 5)


def test_container_ends_with_whoever_waits_for_it() -> None:
    process = contained("--", "sh", "-c", "echo up; sleep 20")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    (child,) = children(process.pid)
    process.kill()
    process.wait()
    eventually(lambda: not Path(f"/proc/{child}").exists())
    process.communicate()


def test_detached_container_lives_on_with_its_output_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = contained("-d", str(log), "sh", "-c", "echo started; echo bad >&2; sleep 20")
    printed, _ = process.communicate(timeout=10)
    pid = int(printed)
    try:
        eventually(lambda: log.read_text() == "started\nbad\n")
        assert os.getsid(pid) == pid
        time.sleep(0.1)
        assert Path(f"/proc/{pid}").exists()
    finally:
        os.kill(pid, signal.SIGKILL)
