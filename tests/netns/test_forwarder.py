"""The forwarder as a real process: its privileges, its life, and frames through two of them.

The underlay is the loopback device, one address per forwarder; each has one TAP in a network
namespace of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyvxlan import ForwarderLostError, ForwarderRefusedError, open_tap, open_underlay, parse_mac
from pyvxlan.forwarder.client import ForwarderClient, Handover
from pyvxlan.forwarder.protocol import Attachment, Event, TableUpdate

pytestmark = pytest.mark.root

VNI = 42
PORT = 47893
NOBODY = 65534


@dataclass(frozen=True)
class Side:
    """One end: its VTEP, and the namespace with its port."""

    netns: str
    vtep: str
    address: str
    mac: str


SIDES = (
    Side("l1a", "127.18.0.1", "198.18.42.1", "02:42:c6:12:2a:01"),
    Side("l1b", "127.18.0.2", "198.18.42.2", "02:42:c6:12:2a:02"),
)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass
class Process:
    """A forwarder process with the listening socket that outlives it."""

    listener: socket.socket
    path: Path
    popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    def start(self) -> None:
        """Starts it, as the daemon does."""
        with self.path.with_suffix(".log").open("ab") as log:
            self.popen = subprocess.Popen(
                command(self.listener.fileno()),
                pass_fds=[self.listener.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Ends it and gives its exit status."""
        assert self.popen is not None
        self.popen.send_signal(number)
        return self.popen.wait(10)

    async def client(self) -> ForwarderClient:
        return await ForwarderClient.connect(self.path)


def command(descriptor: int) -> list[str]:
    module = [sys.executable, "-m", "pyvxlan.forwarder"]
    return [*module, "--listen-fd", str(descriptor), "--uid", str(NOBODY), "--gid", str(NOBODY)]


@contextmanager
def process(path: Path) -> Iterator[Process]:
    """A started forwarder, ended with the block."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        made = Process(listener, path)
        made.start()
        try:
            yield made
        finally:
            if made.popen is not None and made.popen.poll() is None:
                made.kill()


@pytest.fixture
def forwarder(tmp_path: Path) -> Iterator[Process]:
    with process(tmp_path / "forwarder.sock") as made:
        yield made


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Process, Process]]:
    """Two forwarders that carry VNI 42 between the namespaces `l1a` and `l1b`."""
    with ExitStack() as stack:
        for side in SIDES:
            ip("netns", "add", side.netns)
            stack.callback(ip, "netns", "del", side.netns)
        one, two = (stack.enter_context(process(tmp_path / f"{side.netns}.sock")) for side in SIDES)
        for forwarder, own, other in ((one, *SIDES), (two, *SIDES[::-1])):
            async with await forwarder.client() as client:
                await connect(client, own, other)
        yield one, two


async def connect(client: ForwarderClient, own: Side, other: Side) -> None:
    """Opens a side's descriptors, hands them over, and fills its tables."""
    underlay = open_underlay(own.vtep, PORT, workers=2, send_sockets=4)
    netns = os.open(f"/run/netns/{own.netns}", os.O_RDONLY)
    queues = open_tap(netns, "vxlan0", queues=2, mtu_bytes=1450)
    await client.configure(underlay, 2, own.vtep, PORT)
    await client.attach(Attachment(VNI, 1450), queues, netns)
    for descriptor in (*underlay, *queues, netns):
        os.close(descriptor)
    await client.update([tables(other)])
    await client.resume()
    inside = ("-n", own.netns)
    ip(*inside, "link", "set", "vxlan0", "address", own.mac)
    ip(*inside, "address", "add", f"{own.address}/24", "dev", "vxlan0")
    ip(*inside, "link", "set", "vxlan0", "up")


def tables(other: Side) -> TableUpdate:
    mac = parse_mac(other.mac)
    return TableUpdate(VNI, {mac: other.vtep}, (), {other.address: mac}, [other.vtep])


async def restore(client: ForwarderClient, held: Handover) -> None:
    """Gives a new forwarder what another held."""
    hello = held.hello
    await client.configure(held.underlay, hello.workers, hello.address, hello.port)
    for vni, port in held.ports.items():
        state = held.networks[vni]
        await client.attach(state.port, port.queues, port.netns)
        await client.update([TableUpdate(vni, state.fdb, (), state.neighbours, state.flood)])
    await client.resume()


async def ping(count: int, interval_s: float = 0.02) -> int:
    """Pings from one side to the other; gives how many answers came."""
    words = ["netns", "exec", SIDES[0].netns, "ping", "-n", "-q", "-c", str(count)]
    words += ["-i", str(interval_s), "-W", "2", SIDES[1].address]
    pinging = await asyncio.create_subprocess_exec("ip", *words, stdout=asyncio.subprocess.PIPE)
    output, _ = await pinging.communicate()
    received = re.search(rb"(\d+) received", output)
    assert received is not None, output
    return int(received[1])


def status(pid: int) -> dict[str, list[str]]:
    """The fields of /proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


async def test_every_thread_of_the_forwarder_is_nobody_without_capabilities_under_seccomp(pair):
    for forwarder in pair:
        threads = os.listdir(f"/proc/{forwarder.pid}/task")
        assert len(threads) >= 3
        for thread in threads:
            fields = status(int(thread))
            assert fields["Uid"] == fields["Gid"] == [str(NOBODY)] * 4
            assert fields["Groups"] == []
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(fields[kind][0], 16) == 0, kind
            assert (fields["NoNewPrivs"], fields["Seccomp"]) == (["1"], ["2"])


def test_a_confined_process_can_open_nothing_and_become_nobody_else():
    script = textwrap.dedent("""
        import ctypes, errno, json, os, socket, sys, threading
        from pyvxlan._dataplane import confine

        libc = ctypes.CDLL(None, use_errno=True)
        spare = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        path = b"/etc/passwd"

        def call(name, *arguments):
            ctypes.set_errno(0)
            if getattr(libc, name)(*arguments) < 0:
                raise OSError(ctypes.get_errno(), name)

        attempts = {
            "open": lambda: os.open(path, os.O_RDONLY),
            "create": lambda: os.open(b"/tmp/l1-confined", os.O_CREAT | os.O_WRONLY),
            "list": lambda: os.listdir("/"),
            "stat": lambda: os.stat(path),
            "unlink": lambda: os.unlink(b"/tmp/l1-confined"),
            "chdir": lambda: os.chdir("/"),
            "udp socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "tcp socket": lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM),
            "unix socket": lambda: socket.socket(socket.AF_UNIX),
            "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
            "socket pair": socket.socketpair,
            "bind": lambda: spare.bind(("127.0.0.1", 0)),
            "connect": lambda: spare.connect(("127.0.0.1", 9)),
            "fork": os.fork,
            "exec": lambda: os.execv("/bin/true", ["true"]),
            "setuid": lambda: os.setuid(0),
            "setgroups": lambda: os.setgroups([0]),
            "kill": lambda: os.kill(os.getppid(), 0),
            "unshare": lambda: call("unshare", 0x40000000),
            "setns": lambda: call("setns", 0, 0),
            "mount": lambda: call("mount", path, path, path, 0, None),
            "ptrace": lambda: call("ptrace", 16, os.getppid(), None, None),
            "chroot": lambda: os.chroot("/"),
            "bpf": lambda: call("syscall", 321, 0, None, 0),
            "io_uring": lambda: call("syscall", 425, 1, None),
            "executable memory": lambda: call("mprotect", None, 0, 4),
        }
        confine(65534, 65534)
        results = {}
        for name, attempt in attempts.items():
            try:
                attempt()
                results[name] = "allowed"
            except OSError as error:
                results[name] = errno.errorcode[error.errno]
        thread = threading.Thread(target=lambda: results.update(thread="runs"))
        thread.start()
        thread.join()
        print(json.dumps(results))
    """)
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    results = json.loads(run.stdout)
    assert results.pop("thread") == "runs"
    assert {name: errno for name, errno in results.items() if errno != "EPERM"} == {}


def test_confine_refuses_a_process_with_threads_and_leaves_it_as_it_was():
    script = textwrap.dedent("""
        import os, threading
        from pyvxlan._dataplane import confine

        done = threading.Event()
        threading.Thread(target=done.wait).start()
        try:
            confine(65534, 65534)
        except RuntimeError as error:
            print(os.getuid(), error)
        done.set()
    """)
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.startswith("0 ")


async def test_frames_pass_between_two_forwarders(pair):
    assert await ping(20) == 20
    async with await pair[0].client() as client:
        stats = await client.stats()
    counters = stats.networks[VNI]
    assert counters["egress_frames"] >= 20
    assert counters["ingress_frames"] >= 20
    assert counters["replies"] >= 1
    (peer,) = stats.vteps.values()
    assert peer["sent_datagrams"] == counters["egress_frames"]
    assert peer["received_datagrams"] == counters["ingress_frames"]
    assert peer["sent_bytes"] == counters["egress_bytes"] + 8 * counters["egress_frames"]


async def test_a_client_that_goes_away_costs_no_frame(pair):
    pinging = asyncio.create_task(ping(60))
    for _ in range(5):
        await asyncio.sleep(0.1)
        for forwarder in pair:
            async with await forwarder.client() as client:
                assert list(await client.dump()) == [VNI]
    assert await pinging == 60


async def test_garbage_on_the_socket_costs_no_frame(pair):
    pinging = asyncio.create_task(ping(50))
    for garbage in (b"\xff" * 4096, b"\x00\x00\x00\x01\xc1", b"GET / HTTP/1.0\r\n\r\n"):
        for forwarder in pair:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(forwarder.path))
                sock.sendall(garbage)
                assert await asyncio.to_thread(sock.recv, 1) == b""
    assert await pinging == 50


async def test_a_killed_forwarder_is_replaced_through_kept_descriptors(pair):
    forwarder = pair[0]
    async with await forwarder.client() as client:
        held = await client.handover()
    index = ip("-n", SIDES[0].netns, "link", "show", "vxlan0").split(":")[0]
    assert forwarder.kill() == -signal.SIGKILL
    forwarder.start()
    async with await forwarder.client() as client:
        await restore(client, held)
        assert await client.dump() == held.networks
        assert (await client.hello()).pid != held.hello.pid
    held.close()
    assert await ping(20) == 20
    assert ip("-n", SIDES[0].netns, "link", "show", "vxlan0").split(":")[0] == index


async def test_pings_wait_for_the_successor_of_a_killed_forwarder_and_none_is_lost(pair):
    forwarder = pair[0]
    async with await forwarder.client() as client:
        held = await client.handover()
    pinging = asyncio.create_task(ping(150))
    await asyncio.sleep(0.5)
    forwarder.kill()
    await asyncio.sleep(0.3)
    forwarder.start()
    async with await forwarder.client() as client:
        await client.configure(held.underlay, 2, SIDES[0].vtep, PORT)
        port = held.ports[VNI]
        await client.attach(held.networks[VNI].port, port.queues, port.netns)
        await asyncio.sleep(0.2)
        await client.update([tables(SIDES[1])])
        await client.resume()
    held.close()
    assert await pinging == 150


async def test_a_successor_takes_over_while_both_run(pair, tmp_path):
    with process(tmp_path / "next.sock") as successor:
        async with await successor.client() as new, await pair[0].client() as old:
            held = await old.handover()
            await restore(new, held)
            held.close()
            await old.shutdown()
        assert pair[0].popen.wait(10) == 0
        assert await ping(20) == 20


async def test_a_deleted_tap_is_told_and_shown_and_can_be_attached_anew(pair):
    own, other = SIDES
    async with await pair[0].client() as client:
        ip("-n", own.netns, "link", "del", "vxlan0")
        event = await asyncio.wait_for(client.next_event(), 5)
        assert event == Event("port_lost", str(VNI))
        assert not (await client.dump())[VNI].port_alive
        netns = await client.netns(VNI)
        queues = open_tap(netns, "vxlan0", queues=2, mtu_bytes=1450)
        await client.attach(Attachment(VNI, 1450), queues, netns)
        for descriptor in (*queues, netns):
            os.close(descriptor)
        state = (await client.dump())[VNI]
        assert state.port_alive
        assert state.fdb == {parse_mac(other.mac): other.vtep}


async def test_an_invalid_entry_is_refused_with_its_value_and_nothing_of_it_is_applied(pair):
    async with await pair[0].client() as client:
        before = await client.dump()
        update = TableUpdate(VNI, {b"\x01" * 6: "198.18.0.2"}, (), {}, [])
        with pytest.raises(ForwarderRefusedError, match=f"vni {VNI}: .*01:01:01:01:01:01"):
            await client.update([update])
        assert await client.dump() == before


def test_the_forwarder_survives_sigkill_of_who_started_it(tmp_path):
    path = tmp_path / "forwarder.sock"
    script = textwrap.dedent("""
        import socket, subprocess, sys, time
        path, *command = sys.argv[1:]
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        command[command.index("--listen-fd") + 1] = str(listener.fileno())
        started = subprocess.Popen(
            command, pass_fds=[listener.fileno()], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        print(started.pid, flush=True)
        time.sleep(60)
    """)
    words = [sys.executable, "-c", script, str(path), *command(-1)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert asyncio.run(hello_pid(path)) == pid
        starter.kill()
    assert asyncio.run(hello_pid(path)) == pid
    process_descriptor = os.pidfd_open(pid)
    asyncio.run(shut_down(path))
    assert select.select([process_descriptor], [], [], 10)[0], "the forwarder has not ended"
    os.close(process_descriptor)


async def hello_pid(path: Path) -> int:
    async with await ForwarderClient.connect(path) as client:
        return (await client.hello()).pid


async def shut_down(path: Path) -> None:
    async with await ForwarderClient.connect(path) as client:
        await client.shutdown()


async def test_sigterm_ends_the_forwarder_in_order_and_others_do_not(pair):
    forwarder = pair[0]
    for number in (signal.SIGINT, signal.SIGHUP):
        forwarder.popen.send_signal(number)
    assert await ping(5) == 5
    client = await forwarder.client()
    await client.hello()
    assert forwarder.kill(signal.SIGTERM) == 0
    await asyncio.wait_for(client.wait_lost(), 5)
    with pytest.raises(ForwarderLostError):
        await client.hello()
    await client.close()
    assert "vxlan0" not in ip("-n", SIDES[0].netns, "link")


async def test_an_idle_forwarder_uses_no_processor(pair):
    def ticks() -> int:
        fields = Path(f"/proc/{pair[0].pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    await asyncio.sleep(0.5)
    before = ticks()
    await asyncio.sleep(1)
    assert ticks() - before <= 1


async def test_descriptors_that_are_no_sockets_are_refused_and_the_forwarder_goes_on(forwarder):
    async with await forwarder.client() as client:
        with open("/dev/null", "rb") as null, pytest.raises(ForwarderRefusedError) as refused:
            await client.configure([null.fileno()] * 2, 1, "198.18.0.1", 4789)
        assert refused.value.kind in {"invalid", "system"}
        assert (await client.hello()).workers == 0


def test_a_descriptor_that_is_no_listening_socket_is_refused():
    with socket.socket(socket.AF_UNIX) as sock:
        descriptor = sock.fileno()
        run = subprocess.run(
            command(descriptor), pass_fds=[descriptor], capture_output=True, text=True, check=False
        )
    assert run.returncode == 1
    assert f"descriptor {descriptor} is no listening Unix stream socket" in run.stderr
