"""Checks of `pyvxlan doctor` on the host itself: kernel, port, firewall, checksums, MTU and more.

Each reads something and judges it; the judgement is a pure function, so that faults which no test
can make for real are tested as a table. What can't be read is a warning that says so, never an ok.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pyvxlan.daemon import firewall, hostview
from pyvxlan.daemon.apiclient import ClientError
from pyvxlan.daemon.cards import check_receive_offload
from pyvxlan.daemon.findings import Finding
from pyvxlan.daemon.firewall import Chains, Datagram
from pyvxlan.daemon.hostview import Host, run
from pyvxlan.daemon.model import OVERHEAD_BYTES

TUNGETFEATURES = 0x800454CF
"""linux/if_tun.h: which of the flags below the kernel knows."""
TUN_FLAGS: Mapping[str, int] = {"multi-queue TAPs": 0x0100, "offloads of TAPs": 0x4000}
SOL_UDP = 17
UDP_OPTIONS: Mapping[str, int] = {"UDP segmentation": 103, "UDP receive offload": 104}
"""linux/udp.h; Linux 4.18 and 5.0."""
KINDS: Mapping[str, tuple[str, ...]] = {
    "bridge": ("type", "bridge"),
    "veth": ("type", "veth", "peer", "name", "b"),
}
"""Links that are made for every network: made here in a namespace that ends with the command."""
NETLINK_NETFILTER = 12
"""linux/netlink.h"""
UNSYNCHRONISED = 5
"""sys/timex.h, TIME_ERROR: nobody keeps the clock in step."""
GATEWAY_BRIDGE = "pyvxlan_gw"
ALIAS = "pyvxlan "
"""How the aliases of links begin that a daemon made; the host's id follows."""
WRONG_SUMS = 10
WRONG_SHARE = 1e-4
"""From so many datagrams with a wrong checksum, and such a share of all, something is broken."""
BAD_DRIVERS = frozenset({"vmxnet3"})
"""Network drivers whose tunnel offloads are known to send VXLAN with wrong inner checksums."""


def check_kernel(_: Host) -> Finding:
    """Whether the kernel has what networks are made of."""
    try:
        lacking = [*_lacking_tap(), *_lacking_sockets(), *_lacking_links()]
    except PermissionError:
        text = "only root may try what the kernel can: run it with sudo"
        return Finding("warning", "kernel", text)
    return kernel_of(lacking, os.uname().release)


def kernel_of(lacking: Sequence[str], release: str) -> Finding:
    """Judges what a kernel lacks."""
    if not lacking:
        return Finding("ok", "kernel", f"{release} has all that networks need")
    text = (
        f"{release} lacks {', '.join(lacking)}: load the modules (modprobe tun bridge veth "
        "nf_tables), or boot a kernel of 5.0 or later that has them"
    )
    return Finding("error", "kernel", text)


def _lacking_tap() -> Iterator[str]:
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        raise
    except OSError as error:
        yield f"/dev/net/tun ({error.strerror})"
        return
    try:
        answer = bytearray(4)
        fcntl.ioctl(descriptor, TUNGETFEATURES, answer)
        (flags,) = struct.unpack("I", answer)
        yield from (name for name, flag in TUN_FLAGS.items() if not flags & flag)
    finally:
        os.close(descriptor)


def _lacking_sockets() -> Iterator[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for name, option in UDP_OPTIONS.items():
            try:
                sock.setsockopt(SOL_UDP, option, 0)
            except OSError:
                yield name
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER).close()
    except OSError:
        yield "nftables"


def _lacking_links() -> Iterator[str]:
    if os.geteuid() != 0:
        raise PermissionError(errno.EPERM, "needs root")
    if run("unshare", "--net", "--", "ip", "link") is None:
        yield "network namespaces (or unshare and ip are not installed)"
        return
    for name, words in KINDS.items():
        if run("unshare", "--net", "--", "ip", "link", "add", "name", "a", *words) is None:
            yield f"links of type {name}"


@dataclass(frozen=True, slots=True)
class Listener:
    """A UDP socket that is bound, and the processes that have it: the kernel's own has none."""

    address: str
    pids: frozenset[int]
    name: str
    """Of one of them."""


def check_port(host: Host) -> Finding:
    """Whether the underlay's UDP port is the forwarder's."""
    port = host.settings.port
    inodes = dict(_bound(port))
    owners = _owners(inodes)
    listeners = [
        Listener(address, frozenset(owners[inode]), next(iter(owners[inode].values()), ""))
        for inode, address in inodes.items()
    ]
    return port_of(listeners, _our_pids(host), port, host.vtep)


def port_of(listeners: Sequence[Listener], ours: Iterable[int], port: int, vtep: str) -> Finding:
    """Judges who has the underlay's port.

    Args:
        listeners: Sockets on it.
        ours: Process ids of daemon and forwarder.
        port: Of the underlay.
        vtep: This host's address; empty if not known.
    """
    mine = set(ours)
    for one in listeners:
        theirs = ip_address(one.address)
        apart = vtep and not theirs.is_unspecified and theirs != ip_address(vtep)
        if one.pids & mine or apart:
            continue
        pids = ", ".join(map(str, sorted(one.pids)))
        who = f"{one.name} (pid {pids})" if pids else "the kernel (ip -d link show type vxlan)"
        text = (
            f"UDP port {port} of {one.address} is taken by {who}: stop it, or set port to the same "
            "other one on all hosts"
        )
        return Finding("error", "port", text)
    if any(one.pids & mine for one in listeners):
        return Finding("ok", "port", f"UDP port {port} is the forwarder's")
    return Finding("ok", "port", f"UDP port {port} is free")


def _bound(port: int) -> Iterator[tuple[int, str]]:
    """Gives inode and address of the UDP sockets on a port, of this network namespace."""
    for name in ("udp", "udp6"):
        try:
            lines = Path("/proc/self/net", name).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if int(number, 16) == port:
                # proc_pid_net(5): words of 32 bits, each in the byte order of the machine.
                words = struct.unpack(f">{len(address) // 8}I", bytes.fromhex(address))
                packed = struct.pack(f"={len(words)}I", *words)
                yield int(fields[9]), str(ip_address(packed))


def _owners(inodes: Iterable[int]) -> Mapping[int, Mapping[int, str]]:
    """Finds which processes have each socket, as names by process id."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, dict[int, str]] = {inode: {} for inode in wanted.values()}
    for process in Path("/proc").iterdir() if wanted else ():
        if not process.name.isdecimal():
            continue
        try:
            links = [os.readlink(entry) for entry in os.scandir(process / "fd")]
            name = (process / "comm").read_text().strip()
        except OSError:
            continue
        for link in links:
            if (inode := wanted.get(link)) is not None:
                found[inode][int(process.name)] = name
    return found


def _our_pids(host: Host) -> set[int]:
    pids = set()
    if not isinstance(host.status, ClientError):
        pids |= {host.status["pid"], host.status["forwarder"]["pid"]}
    with contextlib.suppress(OSError, ValueError, IndexError):
        pids.add(int((host.settings.run_dir / "forwarder.pid").read_text().split()[0]))
    return pids - {None}


def check_firewall(host: Host) -> Finding:
    """Whether rules let datagrams of other hosts in, and containers out."""
    underlay = host.underlay["ifname"] if host.underlay else ""
    ports = [host.settings.port]
    if has_kernel_networks(host):
        ports.append(host.settings.kernel_port)
    outward = Datagram(firewall.PROTOCOLS["tcp"], 443, GATEWAY_BRIDGE)
    there = any(link["ifname"] == GATEWAY_BRIDGE for link in host.links)
    listed = run("nft", "-j", "list", "ruleset"), run("iptables-save"), run("ip6tables-save")
    if listed == (None, None, None):
        text = "rules can't be read: run it as root, and install nftables or iptables"
        return Finding("warning", "firewall", text)
    inward = {
        port: firewall.blockers(
            _rulesets(listed, Datagram(firewall.PROTOCOLS["udp"], port, underlay)), "input"
        )
        for port in ports
    }
    return firewall_of(
        inward, firewall.blockers(_rulesets(listed, outward), "forward") if there else []
    )


def firewall_of(inward: Mapping[int, Sequence[str]], outward: Sequence[str]) -> Finding:
    """Judges what drops datagrams of other hosts, by UDP port, and frames on their way out."""
    for port, blockers in inward.items():
        if not blockers:
            continue
        text = (
            f"UDP port {port} is closed by {blockers[0]}: open it to the other hosts, such as with "
            f"iptables -I INPUT -p udp --dport {port} -j ACCEPT, or nft insert rule ... udp dport "
            f"{port} accept"
        )
        return Finding("error", "firewall", text)
    if outward:
        text = (
            f"containers have no way out: {outward[0]} drops what comes from {GATEWAY_BRIDGE}; let "
            f"it through: iptables -I FORWARD -i {GATEWAY_BRIDGE} -j ACCEPT, and the same with -o"
        )
        return Finding("warning", "firewall", text)
    open_ports = " or ".join(map(str, inward))
    return Finding("ok", "firewall", f"no rule is seen that closes UDP port {open_ports}")


def _rulesets(
    listed: tuple[str | None, str | None, str | None], datagram: Datagram
) -> list[Chains]:
    nft, *saved = listed
    found = [firewall.iptables(text, datagram) for text in saved if text]
    if nft:
        found += firewall.nftables(json.loads(nft), datagram)
    return found


def check_checksums(host: Host) -> Finding:
    """Whether checksums arrive as they should be."""
    counters = _snmp("/proc/self/net/snmp")
    wrong = counters.get("UdpInCsumErrors", 0)
    right = counters.get("UdpInDatagrams", 0)
    device = ""
    if host.underlay:
        device = _driver(host.underlay["ifname"])
    kernel = has_kernel_networks(host)
    link = host.underlay["ifname"] if host.underlay else "the underlay's interface"
    return checksums_of(wrong, right, device if kernel else "", link)


def has_kernel_networks(host: Host) -> bool:
    """Whether any network's frames go by a vxlan device of the kernel."""
    return any(
        network["options"].get("datapath") == "kernel" for network in host.listed("networks")
    )


def checksums_of(wrong: int, right: int, driver: str, link: str) -> Finding:
    """Judges counters of UDP, and the driver below the kernel's vxlan devices (empty: none)."""
    if wrong >= WRONG_SUMS and wrong >= WRONG_SHARE * (wrong + right):
        text = (
            f"{wrong} UDP datagrams came with a wrong checksum, beside {right} others: a network "
            f"card on the way computes it wrongly; on the host that sends: ethtool -K {link} tx off"
        )
        return Finding("error", "checksums", text)
    if driver in BAD_DRIVERS:
        text = (
            f"{link} is of driver {driver}, which spoils checksums inside VXLAN, and there are "
            f"networks with datapath=kernel: ethtool -K {link} tx-udp_tnl-segmentation off "
            "tx-udp_tnl-csum-segmentation off"
        )
        return Finding("warning", "checksums", text)
    return Finding("ok", "checksums", f"{wrong} of {wrong + right} UDP datagrams had a wrong one")


def _snmp(path: str) -> dict[str, int]:
    """Reads counters: a line of names, a line of values, for each protocol."""
    try:
        lines = Path(path).read_text("ascii").splitlines()
    except OSError:
        return {}
    found = {}
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        protocol, *keys = names.split()
        for key, value in zip(keys, values.split()[1:], strict=False):
            found[f"{protocol.removesuffix(':')}{key}"] = int(value)
    return found


def _driver(ifname: str) -> str:
    try:
        return os.readlink(f"/sys/class/net/{ifname}/device/driver").rpartition("/")[2]
    except OSError:
        return ""


def check_mtu(host: Host) -> Finding | None:
    """Whether the underlay carries what the networks on this host promise."""
    if isinstance(host.status, ClientError):
        return None
    underlay = host.underlay
    if underlay is None:
        text = f"no interface here has {host.vtep}: put the address back, or restart pyvxlan-daemon"
        return Finding("error", "mtu", text)
    here = {network["id"] for network in host.status["networks"]}
    promised = {
        network["name"]: network["mtu_bytes"]
        for network in host.listed("networks")
        if network["id"] in here
    }
    overhead = OVERHEAD_BYTES[ip_address(host.vtep).version]
    return mtu_of(underlay["ifname"], underlay["mtu"], overhead, promised)


def mtu_of(link: str, mtu_bytes: int, overhead_bytes: int, promised: Mapping[str, int]) -> Finding:
    """Judges the MTUs of networks, by name, against the underlay's.

    Containers are told what gets through, so a smaller one costs speed and no more: a warning.
    """
    room = mtu_bytes - overhead_bytes
    over = {name: mtu for name, mtu in promised.items() if mtu > room}
    if not over:
        return Finding("ok", "mtu", f"{link} has {mtu_bytes}, so networks may have up to {room}")
    name, mtu = max(over.items(), key=lambda one: one[1])
    text = (
        f"network {name} has MTU {mtu}, but {link} with {mtu_bytes} carries {room} inside: set "
        f"that of {link} to {mtu + overhead_bytes}, or make the network anew with --mtu {room}"
    )
    return Finding("warning", "mtu", text)


def check_sysctls(host: Host) -> Finding:
    """Whether the kernel's settings leave room for what the daemon makes."""
    names = ("user/max_net_namespaces", "net/ipv4/ip_forward")
    gateway = any(link["ifname"] == GATEWAY_BRIDGE for link in host.links)
    return sysctls_of({name: _sysctl(name) for name in names}, gateway=gateway)


def sysctls_of(values: Mapping[str, str | None], *, gateway: bool) -> Finding:
    """Judges settings of the kernel; None is one that this kernel does not have."""
    if values.get("user/max_net_namespaces") == "0":
        text = "user.max_net_namespaces is 0, so no network can be made: sysctl -w it to 1000"
        return Finding("error", "sysctls", text)
    if gateway and values.get("net/ipv4/ip_forward") == "0":
        text = (
            "net.ipv4.ip_forward is 0, so containers have no way out: sysctl -w it to 1, and see "
            "who sets it (sysctl.d)"
        )
        return Finding("error", "sysctls", text)
    return Finding("ok", "sysctls", "are as they should be")


def _sysctl(name: str) -> str | None:
    try:
        return (hostview.PROC / "sys" / name).read_text("ascii").strip()
    except OSError:
        return None


def check_versions(host: Host) -> Finding | None:
    """Whether all hosts run the same version."""
    hosts = host.listed("hosts")
    if not hosts:
        return None
    return versions_of({one["name"]: one["version"] for one in hosts if one["alive"]})


def versions_of(versions: Mapping[str, str]) -> Finding:
    """Judges the versions of the hosts that are up, by host name."""
    hosts: dict[str, list[str]] = {}
    for name, version in sorted(versions.items()):
        hosts.setdefault(version, []).append(name)
    if len(hosts) > 1:
        told = "; ".join(f"{version} on {', '.join(names)}" for version, names in hosts.items())
        return Finding("warning", "versions", f"hosts differ: {told}: upgrade the older ones")
    return Finding("ok", "versions", f"{len(versions)} hosts up, all with {next(iter(hosts), '?')}")


def check_clock(_: Host) -> Finding:
    """Whether something keeps the clock in step."""
    libc = ctypes.CDLL(None, use_errno=True)
    # adjtimex(2) with a struct timex of zeros changes nothing; it is of 208 bytes.
    return clock_of(libc.adjtimex(ctypes.create_string_buffer(512)))


def clock_of(state: int) -> Finding:
    """Judges what adjtimex(2) returns."""
    if state == UNSYNCHRONISED:
        text = (
            "nothing keeps the clock in step: times of events and logs can't be compared among "
            "hosts, and certificates may be refused; install chrony or systemd-timesyncd"
        )
        return Finding("warning", "clock", text)
    if state < 0:
        return Finding("warning", "clock", "the kernel does not tell whether it is in step")
    return Finding("ok", "clock", "is kept in step")


def check_leftovers(host: Host) -> Finding:
    """Whether links are left over from a daemon that is no more."""
    return leftovers_of(host.links, _host_id(host))


def leftovers_of(links: Iterable[Mapping[str, Any]], host_id: str) -> Finding:
    """Judges the links of this namespace; `host_id` is empty if there was never a daemon."""
    left = []
    for link in links:
        alias = str(link.get("ifalias", ""))
        if alias.startswith(ALIAS) and alias.split()[1] != host_id:
            left.append(link["ifname"])
    if left:
        text = (
            f"{', '.join(left)} were made by a daemon with another state directory: pyvxlan-daemon "
            f"--cleanup with that one's settings, or ip link del {left[0]}"
        )
        return Finding("warning", "leftovers", text)
    return Finding("ok", "leftovers", "nothing of another daemon is here")


def _host_id(host: Host) -> str:
    if not isinstance(host.status, ClientError):
        return str(host.status["host"]["id"])
    try:
        return (host.settings.state_dir / "host-id").read_text("ascii").strip()
    except OSError:
        return ""


HOST_CHECKS = (
    check_kernel,
    check_port,
    check_firewall,
    check_checksums,
    check_receive_offload,
    check_mtu,
    check_sysctls,
    check_versions,
    check_clock,
    check_leftovers,
)
