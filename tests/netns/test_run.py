"""`pyvxlan run` and `exec`, names inside containers, a store shared by hosts."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import time
from collections.abc import Iterator

import pytest

from tests.netns.world import BIN, Host, World, eventually

pytestmark = pytest.mark.root
SLEEP = ("busybox", "sleep", "600")


@pytest.fixture(scope="module")
def named(two_hosts: World) -> Iterator[World]:
    """bbox1 on host 1 and bbox2 on host 2, on the dual-stack network ov_names."""
    two_hosts[1].cli("network", "create", "--ipv6", "ov_names")
    two_hosts[1].cli("network", "create", "ov_other")
    started = []
    for number, extra in (
        (1, ("--alias", "web", "--hostname", "boxhost")),
        (2, ("--alias", "web")),
    ):
        host = two_hosts[number]
        name = f"bbox{number}"
        host.cli("run", "-d", "--network", "ov_names", "--name", name, *extra, "--", *SLEEP)
        started.append((host, name))
    two_hosts[2].cli("run", "-d", "--network", "ov_other", "--name", "loner", "--", *SLEEP)
    started.append((two_hosts[2], "loner"))
    yield two_hosts
    for host, name in started:
        end(host, name)
    two_hosts[1].cli("network", "rm", "ov_names", "ov_other")


def end(host: Host, name: str) -> None:
    """Ends a container by its process; the daemon withdraws its endpoint by itself."""
    pid = json.loads(host.cli("endpoint", "inspect", name))[0]["sandbox"]["pid"]
    os.kill(pid, 9)
    eventually(lambda: name not in host.cli("endpoint", "ls").split())


def inside(host: Host, name: str, *words: object, check: bool = True) -> str:
    done = host.cli_try("exec", name, "--", *words)
    if check:
        assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_ping_by_name_across_hosts(named: World) -> None:
    for target in ("bbox1", "bbox1.ov_names", "web", "boxhost", "BBOX1"):
        printed = inside(named[2], "bbox2", "busybox", "ping", "-c", "2", target)
        assert " 0% packet loss" in printed, target


def test_every_record_type_resolves(named: World) -> None:
    endpoint = json.loads(named[1].cli("endpoint", "inspect", "bbox1"))[0]
    v4, v6 = sorted(
        (address.split("/")[0] for address in endpoint["addresses"]), key=lambda text: ":" in text
    )
    printed = inside(named[2], "bbox2", "busybox", "nslookup", "bbox1", "127.0.0.11")
    assert v4 in printed
    assert v6 in printed
    for address in (v4, v6):
        printed = inside(named[2], "bbox2", "busybox", "nslookup", address, "127.0.0.11")
        assert "bbox1.ov_names" in printed
    printed = inside(named[2], "bbox2", "busybox", "nslookup", "web", "127.0.0.11")
    assert printed.count("10.") >= 2, "an alias names all its holders"


def test_names_of_other_networks_are_not_seen(named: World) -> None:
    started = time.monotonic()
    printed = named[2].cli_try("exec", "loner", "--", "busybox", "nslookup", "bbox1", "127.0.0.11")
    assert printed.returncode != 0
    assert time.monotonic() - started < 5, "an unknown name fails soon"
    assert "Address: 10." not in printed.stdout


def test_resolver_of_a_container_is_the_daemon(named: World) -> None:
    assert "nameserver 127.0.0.11" in inside(named[1], "bbox1", "cat", "/etc/resolv.conf")
    assert inside(named[1], "bbox1", "hostname").strip() == "boxhost"


def test_names_survive_a_daemon_restart(named: World) -> None:
    named[2].stop(signal.SIGKILL)
    named[2].start()
    assert " 0% packet loss" in inside(named[2], "bbox2", "busybox", "ping", "-c", "1", "bbox1")


def test_exit_code_and_output_of_the_command_are_passed_on(named: World) -> None:
    done = named[1].cli_try("run", "--network", "ov_names", "--", "sh", "-c", "echo here; exit 7")
    assert done.returncode == 7
    assert done.stdout == "here\n"
    done = named[1].cli_try("exec", "bbox1", "--", "sh", "-c", "exit 9")
    assert done.returncode == 9


def test_endpoint_ends_with_its_container(named: World) -> None:
    before = named[1].cli("endpoint", "ls", "-q")
    named[1].cli("run", "--network", "ov_names", "--name", "brief", "--", "true")
    assert named[1].cli("endpoint", "ls", "-q") == before


def test_command_that_does_not_exist_leaves_nothing(named: World) -> None:
    before = named[1].cli("endpoint", "ls", "-q")
    line = named[1].refused("run", "--network", "ov_names", "--", "/no/such/program")
    assert "/no/such/program" in line
    eventually(lambda: named[1].cli("endpoint", "ls", "-q") == before)


def test_refused_attachment_leaves_nothing(named: World) -> None:
    before = named[1].cli("endpoint", "ls", "-q")
    assert "no_such" in named[1].refused("run", "--network", "no_such", "--", "true")
    assert "bbox2" in named[1].refused(
        "run", "--network", "ov_names", "--name", "bbox2", "--", "true"
    )
    assert named[1].cli("endpoint", "ls", "-q") == before


def test_shell_on_a_terminal(named: World) -> None:
    """A person types into it: `pyvxlan run ... -- sh` is a shell on the caller's terminal."""
    pid, leader = pty.fork()
    if pid == 0:
        environment = {**os.environ, "PS1": "prompt# ", "TERM": "dumb"}
        os.execve(
            BIN / "pyvxlan",
            [
                "pyvxlan",
                "--run-dir",
                str(named[1].run_dir),
                "run",
                "--network",
                "ov_names",
                "--name",
                "typed",
                "--",
                "busybox",
                "sh",
            ],
            environment,
        )
    seen = b""

    def until(text: bytes, within_s: float = 10) -> None:
        nonlocal seen
        deadline = time.monotonic() + within_s
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([leader], [], [], 0.1)[0]:
                seen += os.read(leader, 4096)

    until(b"prompt# ")
    os.write(leader, b"echo one$((40+2)); ip addr show eth0 | grep -c 'inet 10'\n")
    until(b"one42\r\n1\r\n")
    os.write(leader, b"ping -c 1 bbox2 | grep -c ' 0% packet loss'; exit 3\n")
    until(b"1\r\n")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 3
    assert b"job control turned off" not in seen
    os.close(leader)
    assert "typed" not in named[1].cli("endpoint", "ls")
