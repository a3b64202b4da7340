"""Who is measured: each peer lays its own network over its own site.

A peer more is a class more in `PEERS`: it says what it needs, lays its network between the hosts of
a fresh `Site`, and names two namespaces that reach each other through it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benches.net.site import Site, prepare_end
from tests.netns.world import Host, command, eventually

_NUMBERS = itertools.count()
VNI = 4097
OVERLAY_MTU_BYTES = 1450
ADDRESSES = ("10.77.0.1", "10.77.0.2")
MACS = ("02:42:0a:4d:00:01", "02:42:0a:4d:00:02")


@dataclass(frozen=True, slots=True)
class Ends:
    """Two network namespaces and their addresses; the first is the client's."""

    netns: tuple[str, str]
    addresses: tuple[str, str]


class Peer(ABC):
    """A way to carry frames between two hosts, standing on a site of its own."""

    summary = ""
    needs: Sequence[str] = ()
    """Programs that must be installed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.site = Site(f"b{next(_NUMBERS)}{name[:5]}{os.getpid() % 10000}")
        try:
            self.ends = self.lay()
            for netns in self.ends.netns:
                prepare_end(netns)
            eventually(self._answers, within_s=20, what=f"ping through {name}")
        except BaseException:
            self.close()
            raise

    @classmethod
    def missing(cls) -> list[str]:
        """Programs that are not there."""
        return [program for program in cls.needs if shutil.which(program) is None]

    @abstractmethod
    def lay(self) -> Ends:
        """Lays the network over the site."""

    def pids(self) -> list[int]:
        """The processes that carry the frames; none if the kernel does."""
        return []

    def close(self) -> None:
        """Removes everything."""
        self.site.close()

    def _answers(self) -> bool:
        netns, target = self.ends.netns[0], self.ends.addresses[1]
        words = ("nsenter", f"--net=/run/netns/{netns}", "ping", "-q", "-c", 1, "-W", 1, target)
        return command(*words, check=False).returncode == 0


class Underlay(Peer):
    """No overlay: from host to host."""

    summary = "the bare underlay, from host to host"

    def lay(self) -> Ends:
        one, two = self.site.hosts
        return Ends((one.netns, two.netns), (one.address, two.address))


class Pyvxlan(Peer):
    """This repository's daemon and forwarder, as users run them."""

    summary = "pyvxlan, daemon and forwarder as users run them"
    programs: Path | None = None
    """Where it is installed, if it is not what runs the benchmark."""
    options: tuple[str, ...] = ()
    """Flags of the daemon."""
    network_options: tuple[str, ...] = ()
    """Flags of `network create`."""

    def lay(self) -> Ends:
        for host in self.site.hosts:
            if self.programs is not None:
                host.programs = self.programs
            host.start(*self.options, wait=False)
        for host in self.site.hosts:
            host.wait()
        self.site[1].cli("network", "create", *self.network_options, "speed")
        containers = [host.container() for host in self.site.hosts]
        self.overlay_addresses: list[list[str]] = []
        """All addresses of both containers, IPv4 first."""
        for container in containers:
            container.attach("speed")
            addresses = [address.split("/")[0] for address in container.addresses()]
            self.overlay_addresses.append(sorted(addresses, key=lambda address: ":" in address))
        one, two = containers
        first = [addresses[0] for addresses in self.overlay_addresses]
        return Ends((one.netns, two.netns), (first[0], first[1]))

    def pids(self) -> list[int]:
        return [host.forwarder_pid() for host in self.site.hosts]


class PyvxlanKernel(Pyvxlan):
    """The same, with a vxlan device of the kernel as the network's datapath."""

    summary = "pyvxlan with --opt datapath=kernel"
    network_options = ("--opt", "datapath=kernel")

    def pids(self) -> list[int]:
        return []


def lay_container(host: Host, outer: str, outer_netns: str) -> str:
    """A namespace with `eth0`, whose other end is `outer` elsewhere; returns its name."""
    netns = host.container().netns
    index = host.number - 1
    command(
        *("ip", "-n", outer_netns, "link", "add", outer, "mtu", OVERLAY_MTU_BYTES, "type", "veth"),
        *("peer", "name", "eth0", "mtu", OVERLAY_MTU_BYTES, "address", MACS[index]),
        *("netns", netns),
    )
    command("ip", "-n", netns, "addr", "add", f"{ADDRESSES[index]}/24", "dev", "eth0")
    for name in ("lo", "eth0"):
        command("ip", "-n", netns, "link", "set", name, "up")
    return netns


class Kernel(Peer):
    """The kernel's vxlan device behind a bridge, as Docker's overlay driver lays it."""

    summary = "the kernel's vxlan device and a bridge in an overlay namespace"

    def lay(self) -> Ends:
        containers = []
        for host, other in zip(self.site.hosts, reversed(self.site.hosts), strict=True):
            # A container's namespace without a container: removed with the site.
            overlay = host.container("ov").netns
            self._lay_vxlan(host, other, overlay)
            containers.append(lay_container(host, "vc", overlay))
            command("ip", "-n", overlay, "link", "set", "vc", "master", "br0", "up")
        return Ends((containers[0], containers[1]), ADDRESSES)

    def _lay_vxlan(self, host: Host, other: Host, overlay: str) -> None:
        command(
            *("ip", "-n", host.netns, "link", "add", "vxlan0", "mtu", OVERLAY_MTU_BYTES),
            *("type", "vxlan", "id", VNI, "dstport", 4789, "local", host.address, "nolearning"),
        )
        command("ip", "-n", host.netns, "link", "set", "vxlan0", "netns", overlay)
        command("ip", "-n", overlay, "link", "add", "br0", "type", "bridge", "mcast_snooping", 0)
        command("ip", "-n", overlay, "link", "set", "br0", "up", "mtu", OVERLAY_MTU_BYTES)
        command("ip", "-n", overlay, "link", "set", "vxlan0", "master", "br0", "up")
        for mac in (MACS[other.number - 1], "00:00:00:00:00:00"):
            command(
                *("bridge", "-n", overlay, "fdb", "append", mac, "dev", "vxlan0"),
                *("dst", other.address),
            )


class OpenVswitch(Peer):
    """Open vSwitch's userspace datapath with a vxlan tunnel, over AF_PACKET."""

    summary = "Open vSwitch's userspace datapath (AF_PACKET) with a vxlan tunnel"
    needs = ("ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-appctl")

    def lay(self) -> Ends:
        self._processes: list[subprocess.Popen[bytes]] = []
        # The tunnel's way leads over a bridge of its own, which has the host's address.
        bridges = [self._start(host) for host in self.site.hosts]
        containers = []
        for host, (other, mac) in zip(self.site.hosts, reversed(bridges), strict=True):
            self._call(host, "ovs-appctl", "tnl/arp/set", "brunder", other.address, mac)
            container = lay_container(host, "vc", host.netns)
            containers.append(container)
            # It takes frames as they are: whole ones, with their checksums.
            command(
                *("nsenter", f"--net=/run/netns/{container}", "ethtool", "-K", "eth0"),
                *("tx", "off", "tso", "off", "gso", "off"),
            )
            host.run("ip", "link", "set", "vc", "up")
            self._call(
                *(host, "ovs-vsctl", "add-br", "brint"),
                *("--", "set", "bridge", "brint", "datapath_type=netdev"),
                *("--", "add-port", "brint", "vc"),
                *("--", "add-port", "brint", "vxlan0", "--", "set", "interface", "vxlan0"),
                *("type=vxlan", f"options:key={VNI}", f"options:remote_ip={other.address}"),
                *(f"options:local_ip={host.address}",),
            )
        return Ends((containers[0], containers[1]), ADDRESSES)

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def close(self) -> None:
        for process in reversed(getattr(self, "_processes", [])):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        super().close()

    def _start(self, host: Host) -> tuple[Host, str]:
        directory = host.log.parent
        schema = "/usr/share/openvswitch/vswitch.ovsschema"
        self._call(host, "ovsdb-tool", "create", directory / "conf.db", schema)
        database = f"unix:{directory}/db.sock"
        self._run(host, "ovsdb-server", directory / "conf.db", f"--remote=p{database}")
        eventually((directory / "db.sock").exists, what="ovsdb-server listens")
        self._call(host, "ovs-vsctl", "--no-wait", "init")
        self._run(host, "ovs-vswitchd", database)
        self._call(
            *(host, "ovs-vsctl", "add-br", "brunder"),
            *("--", "set", "bridge", "brunder", "datapath_type=netdev"),
            *("--", "add-port", "brunder", "under0"),
        )
        host.run("ip", "addr", "del", f"{host.address}/24", "dev", "under0")
        host.run("ip", "addr", "add", f"{host.address}/24", "dev", "brunder")
        host.run("ip", "link", "set", "brunder", "up")
        link = json.loads(host.run("ip", "-json", "link", "show", "brunder").stdout)[0]
        return host, str(link["address"])

    def _environment(self, host: Host) -> dict[str, str]:
        directory = str(host.log.parent)
        return os.environ | dict.fromkeys(("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"), directory)

    def _run(self, host: Host, program: str, *words: object) -> None:
        log = host.log.parent / f"{program}.log"
        with log.open("wb") as output:
            self._processes.append(
                subprocess.Popen(
                    [
                        *("nsenter", f"--net=/run/netns/{host.netns}", program),
                        *(str(word) for word in words),
                        f"--unixctl={host.log.parent}/{program}.ctl",
                    ],
                    env=self._environment(host),
                    stdout=output,
                    stderr=output,
                )
            )

    def _call(self, host: Host, program: str, *words: object) -> str:
        if program == "ovs-appctl":
            words = ("-t", host.log.parent / "ovs-vswitchd.ctl", *words)
        if program == "ovs-vsctl":
            words = (f"--db=unix:{host.log.parent}/db.sock", "-t", 10, *words)
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{host.netns}", program, *(str(w) for w in words)],
            env=self._environment(host),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"{program} {words}: {done.stdout}{done.stderr}")
        return done.stdout


PEERS: dict[str, type[Peer]] = {
    "underlay": Underlay,
    "kernel": Kernel,
    "pyvxlan": Pyvxlan,
    "pyvxlan-kernel": PyvxlanKernel,
    "ovs": OpenVswitch,
}
"""By the name that the command line takes, in the order of the table."""


def another(name: str, programs: Path, *options: str) -> type[Peer]:
    """pyvxlan as it is installed elsewhere, or with other settings."""
    return type(name, (Pyvxlan,), {"programs": programs, "options": options})
