"""Hosts and containers for the tests: network namespaces made, used and removed by the test.

A `World` is an underlay: one namespace with a bridge (the switch) and one namespace per host with
`under0` in 198.18.0.0/24 (and fd98::/64). Nothing has a route out of the machine. A `Host` runs
one daemon, with directories and a store of the world's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pyvxlan.daemon.apiclient import ApiClient, UnreachableError
from tests.servers.kinds import SERVERS
from tests.servers.process import Server

T = TypeVar("T")
BIN = Path(sys.executable).parent
NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000
SERVER_ADDRESS = "198.18.0.250"
"""Where store servers listen: on the switch itself, so that the way to them can be cut alone."""


def command(
    *args: object, check: bool = True, timeout_s: float = 30
) -> subprocess.CompletedProcess[str]:
    """Runs a command; a failure shows everything that it printed."""
    words = [str(arg) for arg in args]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join(words)} exited with {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


def eventually(condition: Callable[[], T], *, within_s: float = 5, what: str = "") -> T:
    """Returns the first true value of `condition`; fails if there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what or condition}")
        time.sleep(0.02)


def inside(netns: str | Path, action: Callable[[], T]) -> T:
    """Runs `action` in a thread of its own that has entered a network namespace."""
    path = netns if isinstance(netns, Path) else NETNS_DIR / netns
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns {path}")
            finally:
                os.close(fd)
            outcome.append(action())
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            failure.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def socket_in(netns: str, family: int, kind: int) -> socket.socket:
    """A socket that lives in a namespace; usable from any thread afterwards."""
    return inside(netns, lambda: socket.socket(family, kind))


@dataclass
class Container:
    """A namespace of its own that a test attaches: what a container is to the network."""

    netns: str
    host: Host
    endpoints: list[dict[str, Any]] = field(default_factory=list)

    def attach(self, network: str, *options: object) -> dict[str, Any]:
        """Attaches it; returns the endpoint as the CLI shows it."""
        printed = self.host.cli(
            "attach", "--format", "json", "--network", network, *options, self.netns
        )
        endpoint: dict[str, Any] = json.loads(printed)
        self.endpoints.append(endpoint)
        return endpoint

    def detach(self) -> None:
        """Detaches everything that was attached."""
        while self.endpoints:
            self.host.cli("detach", self.endpoints.pop()["id"])

    def run(self, *args: object, check: bool = True, timeout_s: float = 30) -> str:
        """Runs a command inside; returns what it printed."""
        done = command(
            "nsenter",
            f"--net=/run/netns/{self.netns}",
            "--",
            *args,
            check=check,
            timeout_s=timeout_s,
        )
        return done.stdout

    def ping(self, target: str, *, count: int = 3, interval_s: float = 0.1) -> int:
        """Returns how many of `count` pings were answered."""
        printed = self.run(
            "ping",
            "-n",
            "-q",
            "-c",
            count,
            "-i",
            interval_s,
            "-W",
            1,
            target,
            check=False,
            timeout_s=count * interval_s + 10,
        )
        return int(printed.split(" received")[0].split()[-1]) if " received" in printed else 0

    def addresses(self, ifname: str = "eth0") -> list[str]:
        """Global addresses of an interface, with their prefix length."""
        links = json.loads(self.run("ip", "-json", "addr", "show", "dev", ifname))
        return [
            f"{info['local']}/{info['prefixlen']}"
            for info in links[0]["addr_info"]
            if info["scope"] == "global"
        ]

    def link(self, ifname: str = "eth0") -> dict[str, Any]:
        """An interface as iproute2 shows it."""
        found: dict[str, Any] = json.loads(self.run("ip", "-json", "-d", "link", "show", ifname))[0]
        return found

    def socket(self, family: int, kind: int) -> socket.socket:
        """A socket inside; it times out after 5 s."""
        made = socket_in(self.netns, family, kind)
        made.settimeout(5)
        return made


class Host:
    """One host: a namespace on the underlay, with a daemon when started."""

    programs = BIN
    """Where the daemon and the command line are installed."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.netns = f"{world.name}h{number}"
        self.address = f"198.18.0.{number}"
        self.address6 = f"fd98::{number}"
        self.run_dir = world.directory / f"host{number}" / "run"
        self.state_dir = world.directory / f"host{number}" / "state"
        self.log = world.directory / f"host{number}" / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.containers: list[Container] = []
        self.log.parent.mkdir(parents=True)

    def daemon_args(self, *extra: object) -> list[str]:
        """Flags of this host's daemon; later ones win."""
        return [
            "--host-name",
            f"h{self.number}",
            "--run-dir",
            str(self.run_dir),
            "--state-dir",
            str(self.state_dir),
            "--store",
            self.world.store,
            *[str(word) for word in (*self.world.daemon_options, *extra)],
        ]

    def enter(self) -> list[str]:
        """What stands before a command that shall run on this host."""
        return ["nsenter", f"--net=/run/netns/{self.netns}", "--"]

    def daemon_words(self) -> list[str]:
        """The daemon's command, as a user would start it: in a mount namespace of its own."""
        return [*self.enter(), "unshare", "-m", str(self.programs / "pyvxlan-daemon")]

    def start(self, *extra: object, wait: bool = True) -> None:
        """Starts the daemon."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.daemon_words(), *self.daemon_args(*extra)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait()

    def wait(self, within_s: float = 20) -> None:
        """Returns when the daemon answers."""

        def answers() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon of {self.netns} ended:\n{self.log.read_text()}")
            with contextlib.suppress(UnreachableError):
                return bool(self.status())
            return False

        eventually(answers, within_s=within_s, what=f"the daemon of {self.netns} answers")

    def stop(self, how: signal.Signals = signal.SIGTERM, *, within_s: float = 15) -> int:
        """Ends the daemon; returns its exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(within_s)
        self.process = None
        return code

    def close(self) -> None:
        """Ends the daemon and takes back all that it made; goes on to its end."""
        with contextlib.suppress(Exception):
            if self.process is not None:
                self.stop(signal.SIGKILL)
        if self.log.exists():  # else it was never started, and has made nothing
            with contextlib.suppress(Exception):
                self.cleanup()
        for container in self.containers:
            command("ip", "netns", "del", container.netns, check=False)

    def cleanup(self) -> subprocess.CompletedProcess[str]:
        """Runs `pyvxlan-daemon --cleanup`."""
        return self.run(
            self.programs / "pyvxlan-daemon", *self.daemon_args(), "--cleanup", timeout_s=60
        )

    def run(
        self, *args: object, check: bool = True, timeout_s: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the host's namespace."""
        return command(*self.enter(), *args, check=check, timeout_s=timeout_s)

    def cli_try(self, *args: object, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        """Runs `pyvxlan` against this host's daemon, whatever comes of it."""
        return command(
            *(self.programs / "pyvxlan", "--run-dir", self.run_dir, *args),
            check=False,
            timeout_s=timeout_s,
        )

    def cli(self, *args: object, timeout_s: float = 30) -> str:
        """Runs `pyvxlan` against this host's daemon; fails if it fails."""
        return self.printed(self.cli_try(*args, timeout_s=timeout_s), f"pyvxlan {args}")

    def printed(self, done: subprocess.CompletedProcess[str], what: str) -> str:
        """Gives what a command printed; one that failed fails with the end of the daemon's log."""
        if done.returncode != 0:
            tail = self.log.read_text()[-4000:] if self.log.exists() else ""
            raise AssertionError(f"{what} exited with {done.returncode}\n{done.stderr}\n{tail}")
        return done.stdout

    def refused(self, *args: object) -> str:
        """Runs `pyvxlan`, which must refuse in one clear line; returns that line."""
        done = self.cli_try(*args)
        assert done.returncode != 0, f"pyvxlan {args} was accepted: {done.stdout}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr.strip()

    def container(self, name: str = "") -> Container:
        """Makes a namespace for a container on this host; it is removed with the world."""
        name = name or f"c{len(self.containers) + 1}"
        netns = f"{self.netns}{name}"
        command("ip", "netns", "add", netns)
        made = Container(netns, self)
        self.containers.append(made)
        return made

    def overlay(self, network_id: str) -> Path:
        """The namespace file of a network on this host, usable from the test's mount namespace."""
        names = eventually(
            lambda: list((self.run_dir / "netns").glob(f"*-{network_id[:10]}")),
            what=f"overlay namespace of {network_id}",
        )
        # The daemon runs in a mount namespace of its own; its root shows what it mounted.
        return Path(f"/proc/{self.daemon_pid()}/root{names[0]}")

    def daemon_pid(self) -> int:
        """The daemon itself (`unshare -m` execs it)."""
        assert self.process is not None
        return self.process.pid

    def status(self) -> dict[str, Any]:
        """The daemon's status; unlike with the command line, it costs next to nothing to ask."""
        document: dict[str, Any] = ApiClient(self.run_dir).get("status")
        return document

    def forwarder_pid(self) -> int:
        """The forwarder, as `status` names it."""
        pid: int = self.status()["forwarder"]["pid"]
        return pid

    def in_overlay(self, network_id: str, *args: object, check: bool = True) -> str:
        """Runs a command in a network's namespace on this host."""
        return command(
            "nsenter", f"--net={self.overlay(network_id)}", "--", *args, check=check
        ).stdout

    def drops(self, network: str) -> dict[str, int]:
        """Drops of a network on this host by reason, both directions, zeros left out."""
        status = self.status()
        for entry in status["networks"]:
            if entry["name"] == network:
                merged: dict[str, int] = {}
                for direction in ("egress_drops", "ingress_drops"):
                    for reason, count in entry["counters"][direction].items():
                        if count:
                            merged[reason] = merged.get(reason, 0) + count
                return merged
        raise AssertionError(f"{network} is not in {status}")


class World:
    """An underlay with hosts; removes everything that it made."""

    host_type: type[Host] = Host

    def __init__(
        self,
        name: str,
        hosts: int,
        *daemon_options: object,
        mtu_bytes: int = 1500,
        store: str = "sqlite",
    ) -> None:
        self.name = name
        self.daemon_options = daemon_options
        self.directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self.store = f"sqlite://{self.directory}/store.db"
        self.switch = f"{name}sw"
        self.hosts: list[Host] = []
        self.servers: list[Server] = []
        try:
            command("ip", "netns", "add", self.switch)
            command(
                "ip", "-n", self.switch, "link", "add", "sw0", "type", "bridge", "mcast_snooping", 0
            )
            command("ip", "-n", self.switch, "link", "set", "sw0", "up", "mtu", mtu_bytes)
            for number in range(1, hosts + 1):
                self._add_host(number, mtu_bytes)
            if store != "sqlite":
                self.store = self.serve(store).url
        except BaseException:
            self.close()
            raise

    def _add_host(self, number: int, mtu_bytes: int) -> None:
        host = self.host_type(self, number)
        self.hosts.append(host)
        command("ip", "netns", "add", host.netns)
        self._plug(host, mtu_bytes)
        command("ip", "-n", host.netns, "link", "set", "lo", "up")
        command("ip", "-n", host.netns, "addr", "add", f"{host.address}/24", "dev", "under0")
        command(
            "ip", "-n", host.netns, "addr", "add", f"{host.address6}/64", "dev", "under0", "nodad"
        )
        command("ip", "-n", host.netns, "link", "set", "under0", "up")

    def _plug(self, host: Host, mtu_bytes: int) -> None:
        """Gives a host its `under0`, here a port of the switch."""
        port = f"port{host.number}"
        command(
            "ip",
            "-n",
            self.switch,
            "link",
            "add",
            port,
            "mtu",
            mtu_bytes,
            "type",
            "veth",
            "peer",
            "name",
            "under0",
            "mtu",
            mtu_bytes,
            "netns",
            host.netns,
        )
        command("ip", "-n", self.switch, "link", "set", port, "master", "sw0", "up")

    def __getitem__(self, number: int) -> Host:
        return self.hosts[number - 1]

    def start(self) -> None:
        """Starts every host's daemon."""
        for host in self.hosts:
            host.start(wait=False)
        for host in self.hosts:
            host.wait()

    def serve(self, kind: str) -> Server:
        """Starts a server of a store on the switch; it ends with the world."""
        if not self.servers:
            address = f"{SERVER_ADDRESS}/24"
            command("ip", "-n", self.switch, "address", "add", address, "dev", "sw0")
            command("ip", "-n", self.switch, "link", "set", "lo", "up")
        directory = self.directory / f"server-{kind}"
        make = partial(SERVERS[kind], directory, address=SERVER_ADDRESS, netns=self.switch)
        server = inside(self.switch, make)
        for name in {"ready", "call"} & set(dir(server)):
            # What talks to it must do so from here: elsewhere its address leads out of the machine.
            setattr(server, name, self._on_the_switch(getattr(server, name)))
        self.servers.append(server)
        server.start()
        return server

    def _on_the_switch(self, method: Callable[..., T]) -> Callable[..., T]:
        return lambda *given, **named: inside(self.switch, partial(method, *given, **named))

    def cut(self, *hosts: Host) -> None:
        """Cuts hosts off from the servers without a sound; what hosts say to each other passes."""
        addresses = ", ".join(host.address for host in hosts)
        rules = f"""
            table inet cut {{
                chain in {{ type filter hook input priority 0; ip saddr {{ {addresses} }} drop; }}
                chain out {{ type filter hook output priority 0; ip daddr {{ {addresses} }} drop; }}
            }}
        """
        command("ip", "netns", "exec", self.switch, "nft", rules)

    def heal(self) -> None:
        """Ends what `cut` began."""
        command("ip", "netns", "exec", self.switch, "nft", "delete", "table", "inet", "cut")

    def close(self) -> None:
        """Stops what was started and removes what was made; goes on to its end."""
        with ThreadPoolExecutor() as at_once:
            for host in self.hosts:
                at_once.submit(host.close)
        for host in self.hosts:
            command("ip", "netns", "del", host.netns, check=False)
        for server in self.servers:
            with contextlib.suppress(Exception):
                server.kill()
        command("ip", "netns", "del", self.switch, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def world(
    name: str,
    hosts: int = 2,
    *daemon_options: object,
    start: bool = True,
    store: str = "sqlite",
) -> Iterator[World]:
    """A world for the length of a `with`; names are made unique by the test process's id.

    `store` is a kind of `SERVERS`, of which one server is started, or `sqlite`.
    """
    made = World(f"{name}{os.getpid() % 10000}", hosts, *daemon_options, store=store)
    try:
        if start:
            made.start()
        yield made
    finally:
        made.close()
