"""The library's system calls as a program meets them: privileges, names that are taken, documents.

Everything happens in namespaces of the test's own; needs root.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import resource
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

import pyvxlan
from pyvxlan import open_tap
from tests.netns.world import command, inside
from tests.unit.library.frames import UDP4

pytestmark = pytest.mark.root

DOCS = Path(__file__).parents[2]


@pytest.fixture
def netns() -> Iterator[str]:
    """An empty namespace with a loopback."""
    name = f"lib{os.getpid() % 10000}"
    command("ip", "netns", "add", name)
    command("ip", "-n", name, "link", "set", "lo", "up")
    yield name
    command("ip", "netns", "del", name)


def path(netns: str) -> str:
    return f"/run/netns/{netns}"


def links(netns: str) -> set[str]:
    printed = command("ip", "-n", netns, "-brief", "link").stdout
    return {line.split()[0].split("@")[0] for line in printed.splitlines()}


def close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "made",
    [
        ("link", "add", "taken", "type", "bridge"),
        ("tuntap", "add", "dev", "taken", "mode", "tap"),
        ("tuntap", "add", "dev", "taken", "mode", "tun"),
    ],
)
def test_name_that_another_interface_has_is_refused_with_the_remedy(
    netns: str, made: tuple[str, ...]
) -> None:
    command("ip", "-n", netns, *made)
    before = open_descriptors()
    with pytest.raises(OSError, match=r'"taken".* choose another, or delete that one') as caught:
        open_tap(path(netns), "taken", queues=2)
    assert caught.value.errno == errno.EINVAL
    assert path(netns) in str(caught.value)
    assert links(netns) == {"lo", "taken"}
    assert open_descriptors() == before


def test_tap_of_several_queues_is_taken_as_it_is(netns: str) -> None:
    first = open_tap(path(netns), "mine", queues=2, mtu_bytes=1400)
    again = open_tap(path(netns), "mine", queues=2, mtu_bytes=1450)
    assert "mtu 1450" in command("ip", "-n", netns, "link", "show", "mine").stdout
    with pytest.raises(OSError, match="at most 256, those that others hold counted in"):
        open_tap(path(netns), "mine", queues=253)
    close_all(first)
    assert "mine" in links(netns)
    close_all(again)
    assert links(netns) == {"lo"}


@pytest.mark.parametrize("bad", ["/etc/hostname", "/proc/self/ns/mnt", "/run/netns/no-such"])
def test_namespace_that_is_none_is_named(bad: str) -> None:
    with pytest.raises(OSError, match=re.escape(bad)):
        open_tap(bad)


def test_descriptor_of_no_namespace_is_named() -> None:
    with (
        open(os.devnull, "rb") as null,
        pytest.raises(OSError, match=rf"\(it is none\).*: {null.fileno()}$"),
    ):
        open_tap(null.fileno())


def test_tap_of_which_not_all_queues_can_be_had_is_not_there(netns: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            open_tap(path(netns), "many", queues=100)
        assert caught.value.errno == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_descriptors() == before
    assert links(netns) == {"lo"}


def with_capabilities(capabilities: str, netns: str, program: str) -> str:
    """Runs a program in a namespace with these capabilities only; gives what it printed."""
    words = (sys.executable, "-c", textwrap.dedent(program))
    few = ("setpriv", "--inh-caps=-all", f"--bounding-set=-all{capabilities}")
    return command("nsenter", f"--net={path(netns)}", "--", *few, *words).stdout


OPEN = """
    import os, pyvxlan
    try:
        print(len(pyvxlan.open_tap({netns!r}, "mine")))
    except OSError as error:
        print(type(error).__name__, error)
"""


def test_own_namespace_needs_one_capability_and_says_which(netns: str) -> None:
    program = OPEN.format(netns="/proc/self/ns/net")
    assert with_capabilities(",+net_admin", netns, program) == "1\n"
    refused = with_capabilities("", netns, program)
    assert refused.startswith("PermissionError")
    assert 'TAP "mine" (needs CAP_NET_ADMIN)' in refused


def test_missing_driver_is_named_and_not_the_tap(netns: str) -> None:
    program = textwrap.dedent(OPEN.format(netns=path(netns)))
    hidden = 'mount -t tmpfs none /dev/net && exec "$0" -c "$1"'
    printed = command("unshare", "-m", "sh", "-c", hidden, sys.executable, program).stdout
    assert printed.startswith("FileNotFoundError [Errno 2] opening /dev/net/tun")
    assert links(netns) == {"lo"}


def test_another_namespace_needs_one_more_and_says_which(netns: str) -> None:
    other = f"{netns}o"
    command("ip", "netns", "add", other)
    try:
        program = OPEN.format(netns=path(other))
        assert with_capabilities(",+net_admin,+sys_admin", netns, program) == "1\n"
        refused = with_capabilities(",+net_admin", netns, program)
        assert refused.startswith("PermissionError")
        assert "network namespace (needs CAP_SYS_ADMIN)" in refused
        assert path(other) in refused
    finally:
        command("ip", "netns", "del", other)


def test_program_that_ends_without_closing_ends(netns: str) -> None:
    program = """
        import threading, pyvxlan
        engine = pyvxlan.Engine(pyvxlan.open_underlay("127.0.0.1", workers=2), workers=2)
        engine.attach(7, pyvxlan.open_tap("/proc/self/ns/net", queues=2), mtu_bytes=1450)
        ask = lambda: [engine.stats() for _ in iter(int, 1)]
        for _ in range(3):
            threading.Thread(target=ask, daemon=True).start()
        print("end")
    """
    assert with_capabilities(",+net_admin", netns, program) == "end\n"
    assert links(netns) == {"lo"}


def test_interface_that_vanishes_is_an_event_and_can_be_attached_anew(netns: str) -> None:
    async def body() -> None:
        sockets = inside(netns, lambda: pyvxlan.open_underlay("127.0.0.1", workers=2))
        with pyvxlan.Engine(sockets, workers=2) as engine:
            engine.attach(7, open_tap(path(netns), queues=2), mtu_bytes=1450)
            engine.apply(7, {"02:42:0a:00:00:03": "127.0.0.2"})
            command("ip", "-n", netns, "link", "del", "vxlan0")
            async with asyncio.timeout(10):
                assert await engine.wait_events() == [pyvxlan.Event("port_lost", 7)]
            assert not engine.dump(7).port_alive
            engine.attach(7, open_tap(path(netns), queues=2), mtu_bytes=1450)
            assert engine.dump(7).port_alive
            assert len(engine.dump(7).fdb) == 1

    asyncio.run(body())


def test_two_programs_carry_frames_as_the_document_says(netns: str) -> None:
    other = f"{netns}o"
    command("ip", "netns", "add", other)
    hosts = (netns, other)
    macs = ("02:42:0a:00:00:02", "02:42:0a:00:00:03")
    try:
        cable = ("type", "veth", "peer", "name", "under0", "netns", other)
        command("ip", "-n", netns, "link", "add", "under0", *cable)
        for number, host in enumerate(hosts, 1):
            command("ip", "-n", host, "addr", "add", f"198.18.0.{number}/24", "dev", "under0")
            command("ip", "-n", host, "link", "set", "under0", "up")
        with ExitStack() as stack:
            for number, host in enumerate(hosts, 1):
                own, far = macs[number - 1], macs[2 - number]
                vtep = f"198.18.0.{number}"
                sockets = inside(host, partial(pyvxlan.open_underlay, vtep, workers=2))
                engine = stack.enter_context(pyvxlan.Engine(sockets, workers=2))
                engine.attach(42, open_tap(path(host), queues=2), mtu_bytes=1450)
                engine.apply(42, {far: f"198.18.0.{3 - number}"})
                engine.set_neighbours(42, {f"10.0.0.{3 - number}": far})
                command("ip", "-n", host, "addr", "add", f"10.0.0.{number}/24", "dev", "vxlan0")
                command("ip", "-n", host, "link", "set", "vxlan0", "address", own, "up")
            ping = ("ping", "-n", "-c", "3", "-i", "0.1", "-W", "5", "10.0.0.2")
            printed = command("ip", "netns", "exec", netns, *ping).stdout
            assert " 3 received" in printed
    finally:
        command("ip", "netns", "del", other)


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_examples_of_the_documents_run_as_they_stand(netns: str) -> None:
    command("ip", "-n", netns, "addr", "add", "198.18.0.1/32", "dev", "lo")
    in_memory, with_an_engine = examples("docs/library.md")
    (readme,) = examples("README.md")
    for example in (in_memory, readme):
        program = f"frame = {UDP4!r}\n{example}"
        sock, peer = socket.socketpair(type=socket.SOCK_DGRAM)
        with sock, peer:
            exec(compile(program, "example", "exec"), {"sock": sock})
    # The last line waits for an event: the loss of the TAP.
    program = with_an_engine.replace("/run/netns/overlay", path(netns))
    program = f"async def main():\n{textwrap.indent(program, '    ')}\n    print(events)\n"
    program += "import asyncio\nasyncio.run(main())\n"
    running = subprocess.Popen(
        ("nsenter", f"--net={path(netns)}", "--", sys.executable, "-c", program),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("Stats(workers=2, ")
        command("ip", "-n", netns, "link", "del", "vxlan0")
        printed, _ = running.communicate(timeout=20)
        assert printed == "[Event(kind='port_lost', number=42)]\n"
        assert running.returncode == 0
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        running.wait()
