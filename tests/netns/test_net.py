"""`Net` on a real kernel: a host's namespace, sandboxes, and what people do to them by hand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Network, ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.desired import Site, wanted_gateway, wanted_network
from pyvxlan.daemon.errors import (
    ConfigError,
    ConflictError,
    ExhaustedError,
    InvalidError,
    NetError,
    NotFoundError,
)
from pyvxlan.daemon.ipam import mac_for
from pyvxlan.daemon.model import Surroundings, gateway_host_ifname, host_ifname
from pyvxlan.daemon.net import (
    BRIDGE,
    GATEWAY_BRIDGE,
    Net,
    alias_of,
    faults,
    namespaces,
    nftables,
    sysctl,
)
from tests.netns.world import command, inside, socket_in
from tests.unit.memory_net import endpoint, host, local, network

pytestmark = pytest.mark.root

HOME, BOX = "p2home", "p2box"
NET = network(1, ipv6=True)
ENDPOINT = endpoint(2, NET, host(1))
V, G = host_ifname(ENDPOINT.id), gateway_host_ifname(ENDPOINT.id)


class Records:
    """Keeps sysctls in memory."""

    def __init__(self):
        self.host_id = host(1).id
        self.kept = {}

    def remember_sysctl(self, name, old):
        self.kept.setdefault(name, old)

    def sysctls(self):
        return dict(self.kept)

    def forget_sysctl(self, name):
        del self.kept[name]


@contextmanager
def netns(name):
    command("ip", "netns", "add", name)
    try:
        yield name
    finally:
        command("ip", "netns", "del", name, check=False)


@pytest.fixture
def home():
    with netns(HOME):
        command("ip", "-n", HOME, "link", "set", "lo", "up")
        command("ip", "-n", HOME, "link", "add", "under0", "type", "veth", "peer", "under1")
        command("ip", "-n", HOME, "addr", "add", "198.18.0.1/24", "dev", "under0")
        command("ip", "-n", HOME, "link", "set", "under0", "mtu", "1400", "up")
        yield HOME


@pytest.fixture
def box():
    with netns(BOX):
        yield BOX


@pytest.fixture
async def net(home, tmp_path):
    """`Net` whose host is the namespace `home`."""
    fd = namespaces.open_namespace(f"/run/netns/{home}")
    with namespaces.closing(fd), namespaces.inside(fd):
        made = Net(Settings(run_dir=tmp_path), Records())
    yield made
    await made.cleanup()
    await made.close()


def ip(netns, *args):
    """Runs `ip` in a named namespace, or in one given by its path."""
    return command("nsenter", f"--net={Path('/run/netns') / netns}", "ip", *args).stdout


async def wanted(net, box, of=NET, *, one=ENDPOINT, gateway=True):
    here = replace(local(one, gateway=gateway), sandbox=await net.resolve_sandbox(box))
    return wanted_network(
        Site(host(1), alias_of(host(1).id), 1400),
        of,
        netns=f"1-{of.id[:10]}",
        local=[(here, one)],
        endpoints=None,
        hosts={},
    )


async def build(net, want):
    """Everything but the data plane's part."""
    gateway = wanted_gateway(Site(host(1), alias_of(host(1).id), 1400), [want])
    if gateway:
        await net.ensure_gateway(gateway)
    await net.ensure_namespace(want.overlay.netns)
    await net.ensure_bridge(want.overlay.netns, want.overlay.bridge)
    await repair(net, want)
    return gateway


async def repair(net, want):
    for attachment in want.attachments:
        for veth in attachment.veths:
            await net.ensure_veth(attachment.sandbox, veth)


async def put_right(net, want, gateway):
    await net.ensure_gateway(gateway)
    await net.ensure_bridge(want.overlay.netns, want.overlay.bridge)
    await repair(net, want)


async def wrong(net, want, gateway=None):
    """All faults, by link; empty if everything is as wanted."""
    seen = await net.observe(want.attachments)
    links = seen.namespaces.get(want.overlay.netns, {})
    found = {BRIDGE: faults(want.overlay.bridge, links.get(BRIDGE))}
    if gateway:
        found[GATEWAY_BRIDGE] = faults(gateway.link, seen.gateway and seen.gateway.link)
    for attachment in want.attachments:
        for veth in attachment.veths:
            outer = links if veth.netns else seen.uplinks
            found[veth.outer_name] = faults(veth.outer, outer.get(veth.outer_name))
            found[veth.inner_name] = faults(veth.inner, seen.inner.get(veth.outer_name))
    return {name: told for name, told in found.items() if told}


async def test_what_is_built_is_what_was_wanted(net, box):
    want = await wanted(net, box)
    gateway = await build(net, want)
    assert await wrong(net, want, gateway) == {}
    seen = await net.observe(want.attachments)
    assert seen.gateway == replace(gateway, link=seen.gateway.link)


async def test_container_reaches_the_gateways_over_both_interfaces(net, box):
    await build(net, await wanted(net, box))
    for address in ("10.0.1.1", "fd00:1::1", "172.18.0.1"):
        command("ip", "netns", "exec", box, "ping", "-c1", "-W2", "-n", address)


async def test_interfaces_are_as_users_expect_them(net, box):
    await build(net, await wanted(net, box))
    shown = ip(box, "addr", "show", "eth0")
    assert "mtu 1450" in shown
    assert "link/ether 02:42:0a:00:01:02" in shown
    assert "inet 10.0.1.2/24 brd 10.0.1.255" in shown
    assert "inet6 fd00:1::2/64 scope global nodad" in shown
    assert ip(box, "route", "show", "default").startswith("default via 172.18.0.1 dev eth1")


async def test_ipv4_network_leaves_no_ipv6_on_its_interface(net, box):
    of = network(2)
    one = endpoint(2, of, host(1))
    await build(net, await wanted(net, box, of, one=one))
    assert "inet6" not in ip(box, "addr", "show", "eth0")
    assert "inet6" not in ip(box, "addr", "show", "eth1")


async def test_one_endpoint_costs_less_than_40_ms(net, box):
    want = await wanted(net, box)
    await build(net, want)
    spent = []
    for _ in range(5):
        for veth in want.attachments[0].veths:
            await net.remove_veth(veth.netns, veth.outer_name)
        began = time.perf_counter()
        await repair(net, want)
        spent.append(time.perf_counter() - began)
    assert min(spent) < 0.040, spent


OVERLAY = object()
BY_HAND = {
    "bridge_deleted": (OVERLAY, "link del br0"),
    "bridge_down": (OVERLAY, "link set br0 down"),
    "bridge_mtu": (OVERLAY, "link set br0 mtu 1000"),
    "bridge_mac": (OVERLAY, "link set br0 address 02:00:00:00:00:09"),
    "bridge_address": (OVERLAY, "addr flush dev br0"),
    "bridge_route": (OVERLAY, "route del 10.0.1.0/24"),
    "bridge_snoops": (OVERLAY, "link set br0 type bridge mcast_snooping 1"),
    "bridge_spans_trees": (OVERLAY, "link set br0 type bridge stp_state 1"),
    "bridge_delays": (OVERLAY, "link set br0 type bridge forward_delay 1500"),
    "bridge_no_arp": (OVERLAY, "link set br0 arp off"),
    "bridge_no_multicast": (OVERLAY, "link set br0 multicast off"),
    "overlay_loopback_down": (OVERLAY, "link set lo down"),
    "outer_deleted": (OVERLAY, f"link del {V}"),
    "outer_released": (OVERLAY, f"link set {V} nomaster"),
    "outer_down": (OVERLAY, f"link set {V} down"),
    "outer_isolated": (OVERLAY, f"link set {V} type bridge_slave isolated on"),
    "outer_learns": (OVERLAY, f"link set {V} type bridge_slave learning on"),
    "inner_down": (BOX, "link set eth0 down"),
    "inner_mtu": (BOX, "link set eth0 mtu 900"),
    "inner_mac": (BOX, "link set eth0 address 02:00:00:00:00:09"),
    "inner_address": (BOX, "addr del 10.0.1.2/24 dev eth0"),
    "inner_address_v6": (BOX, "addr del fd00:1::2/64 dev eth0"),
    "inner_link_local": (BOX, "-6 addr flush dev eth0 scope link"),
    "inner_addresses": (BOX, "addr flush dev eth0"),
    "inner_route": (BOX, "route del 10.0.1.0/24"),
    "inner_routes": (BOX, "route flush dev eth0"),
    "inner_route_v6": (BOX, "-6 route del fd00:1::/64 dev eth0"),
    "inner_no_arp": (BOX, "link set eth0 arp off"),
    "loopback_down": (BOX, "link set lo down"),
    "inner_deleted": (BOX, "link del eth0"),
    "uplink_deleted": (HOME, f"link del {G}"),
    "uplink_released": (HOME, f"link set {G} nomaster"),
    "uplink_not_isolated": (HOME, f"link set {G} type bridge_slave isolated off"),
    "uplink_learns": (HOME, f"link set {G} type bridge_slave learning on"),
    "default_route": (BOX, "route del default"),
    "gateway_deleted": (HOME, f"link del {GATEWAY_BRIDGE}"),
    "gateway_snoops": (HOME, f"link set {GATEWAY_BRIDGE} type bridge mcast_snooping 1"),
    "gateway_route": (HOME, "route del 172.18.0.0/16"),
    "uplink_route": (BOX, "route flush dev eth1"),
    "gateway_address": (HOME, f"addr flush dev {GATEWAY_BRIDGE}"),
}


@pytest.mark.parametrize("name", BY_HAND)
async def test_what_is_changed_by_hand_is_seen_and_put_right(net, box, name):
    where, done = BY_HAND[name]
    want = await wanted(net, box)
    gateway = await build(net, want)
    place = net.netns_path(want.overlay.netns) if where is OVERLAY else where
    ip(place, *done.split())
    assert await wrong(net, want, gateway) != {}
    await put_right(net, want, gateway)
    assert await wrong(net, want, gateway) == {}


SYSCTLS = {
    "bridge": (OVERLAY, "br0"),
    "outer": (OVERLAY, V),
    "inner": (BOX, "eth0"),
    "uplink": (HOME, G),
    "uplink_inner": (BOX, "eth1"),
    "gateway": (HOME, GATEWAY_BRIDGE),
}


@pytest.mark.parametrize("name", SYSCTLS)
async def test_ipv6_settings_changed_by_hand_are_seen_and_put_right(net, box, name):
    where, ifname = SYSCTLS[name]
    want = await wanted(net, box)
    gateway = await build(net, want)
    place = net.netns_path(want.overlay.netns) if where is OVERLAY else where
    ours = {"disable_ipv6": 0, "accept_ra": 0, "autoconf": 0}
    if name not in ("bridge", "inner"):
        ours = {"disable_ipv6": 1}
    for setting, value in ours.items():
        file = f"/proc/sys/net/ipv6/conf/{ifname}/{setting}"
        script = f"echo {1 - value} >{file}"
        command("nsenter", f"--net={Path('/run/netns') / place}", "sh", "-c", script)
        assert await wrong(net, want, gateway) != {}, setting
        await put_right(net, want, gateway)
        assert await wrong(net, want, gateway) == {}, setting


@pytest.mark.parametrize(
    "done",
    [
        "delete table ip pyvxlan",
        "flush chain ip pyvxlan forward",
        "delete chain ip pyvxlan postrouting",
        "add rule ip pyvxlan forward accept",
        "chain ip pyvxlan forward { policy drop ; }",
    ],
)
async def test_changed_rules_are_seen_and_put_right(net, box, done):
    gateway = await build(net, await wanted(net, box))
    command("ip", "netns", "exec", HOME, "nft", done)
    assert not (await net.observe(())).gateway.ruled
    await net.ensure_gateway(gateway)
    assert (await net.observe(())).gateway.ruled


async def test_the_table_of_a_former_version_is_replaced(net, box):
    command("ip", "netns", "exec", HOME, "nft", "add table inet pyvxlan")
    await build(net, await wanted(net, box))
    assert (await net.observe(())).gateway.ruled
    tables = command("ip", "netns", "exec", HOME, "nft", "list", "tables").stdout
    assert tables.splitlines() == ["table ip pyvxlan"]


async def test_masquerading_tracks_no_connections_of_ipv6(net, box):
    await build(net, await wanted(net, box))
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket_in(HOME, family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", (address, 9))
    tracked = command("nsenter", f"--net=/run/netns/{HOME}", "cat", "/proc/net/nf_conntrack").stdout
    assert {line.split()[0] for line in tracked.splitlines()} == {"ipv4"}


async def test_other_tables_are_not_touched(net, box):
    command("ip", "netns", "exec", HOME, "nft", "add table inet mine")
    await build(net, await wanted(net, box))
    assert "table inet mine" in command("ip", "netns", "exec", HOME, "nft", "list", "tables").stdout


async def test_endpoints_can_not_talk_over_the_gateway_bridge(net, box):
    with netns("p2box2") as second:
        await build(net, await wanted(net, box))
        other = endpoint(3, NET, host(1))
        await repair(net, await wanted(net, second, one=other))
        target = str(local(other).gateway_address.ip)
        command("ip", "netns", "exec", box, "ping", "-c1", "-W2", "-n", "10.0.1.3")
        lost = command(
            "ip",
            "netns",
            "exec",
            box,
            "ping",
            "-I",
            "eth1",
            "-c1",
            "-W1",
            "-n",
            target,
            check=False,
        )
        assert lost.returncode != 0


def fdb(place, *args):
    """Runs `bridge fdb` in the namespace of a path."""
    return command("nsenter", f"--net={Path('/run/netns') / place}", "bridge", "fdb", *args).stdout


def send_as(box, interface, mac):
    """Broadcasts a frame from a sandbox, as if it came from `mac`."""
    fd = namespaces.open_namespace(f"/run/netns/{box}")
    with (
        namespaces.closing(fd),
        namespaces.inside(fd),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock,
    ):
        sock.bind((interface, 0))
        sock.send(b"\xff" * 6 + mac + b"\x88\xb5" + bytes(46))


async def test_no_container_draws_another_ones_frames_by_its_mac(net, box):
    with netns("p2box2") as second:
        want = await wanted(net, box)
        await build(net, want)
        await repair(net, await wanted(net, second, one=endpoint(3, NET, host(1))))
        overlay = net.netns_path(want.overlay.netns)
        way_out = local(ENDPOINT).gateway_address.ip
        for place, port, mac, address, interface in (
            (overlay, V, ENDPOINT.mac, "10.0.1.2", "eth0"),
            (HOME, G, mac_for(way_out), way_out, "eth1"),
        ):
            ping = ("nsenter", f"--net={Path('/run/netns') / place}", "ping", "-c1", "-W2", "-n")
            command(*ping, address)
            send_as(second, interface, mac)
            command(*ping, address)
            held = [line.split()[2] for line in fdb(place).splitlines() if mac.hex(":") in line]
            assert held == [port]


async def test_bridge_learns_no_mac_from_a_container(net, box):
    want = await wanted(net, box)
    await build(net, want)
    overlay, stranger = net.netns_path(want.overlay.netns), bytes.fromhex("0242c6120009")
    send_as(box, "eth0", stranger)
    send_as(box, "eth1", stranger)
    assert stranger.hex(":") not in fdb(overlay) + fdb(HOME)


async def test_station_removed_from_the_bridge_is_seen_and_put_back(net, box):
    want = await wanted(net, box)
    await build(net, want)
    overlay = net.netns_path(want.overlay.netns)
    fdb(overlay, "del", ENDPOINT.mac.hex(":"), "dev", V, "master")
    assert await wrong(net, want) == {V: ("stations",)}
    await repair(net, want)
    assert await wrong(net, want) == {}


async def test_forwarding_is_put_back_by_cleanup(net, box):
    def forwarding():
        return command("ip", "netns", "exec", HOME, "cat", "/proc/sys/net/ipv4/ip_forward").stdout

    assert forwarding() == "0\n"
    await build(net, await wanted(net, box))
    assert forwarding() == "1\n"
    await net.cleanup()
    assert forwarding() == "0\n"


async def test_cleanup_removes_all_of_ours_and_nothing_else(net, box):
    ip(HOME, "link", "add", "g0123456789", "type", "veth", "peer", "mine1")
    before = ip(HOME, "-brief", "link")
    await build(net, await wanted(net, box))
    await net.cleanup()
    await net.cleanup()
    assert ip(HOME, "-brief", "link") == before
    assert [line.split()[0] for line in ip(box, "-brief", "link").splitlines()] == ["lo"]
    assert command("ip", "netns", "exec", HOME, "nft", "list", "tables").stdout == ""
    assert not list(net.netns_path("x").parent.glob("*"))


async def test_foreign_gateway_bridge_is_refused_and_kept(net, box):
    ip(HOME, "link", "add", GATEWAY_BRIDGE, "type", "bridge")
    ip(HOME, "link", "set", GATEWAY_BRIDGE, "alias", "somebody else's")
    with pytest.raises(ConflictError, match="not made by this daemon"):
        await build(net, await wanted(net, box))
    await net.cleanup()
    assert "somebody" in ip(HOME, "link", "show", GATEWAY_BRIDGE)


async def test_taken_interface_name_is_refused_and_nothing_is_left(net, box):
    ip(box, "link", "add", "eth0", "type", "veth", "peer", "mine0")
    want = await wanted(net, box)
    with pytest.raises(ConflictError, match="eth0"):
        await build(net, want)
    seen = await net.observe(want.attachments)
    assert V not in seen.namespaces[want.overlay.netns]


async def test_default_route_of_the_sandbox_is_kept(net, box):
    ip(box, "link", "add", "mine0", "type", "veth", "peer", "mine1")
    ip(box, "addr", "add", "198.19.0.2/24", "dev", "mine0")
    ip(box, "link", "set", "mine0", "up")
    ip(box, "route", "add", "default", "via", "198.19.0.1")
    want = await wanted(net, box)
    gateway = await build(net, want)
    assert ip(box, "route", "show", "default").startswith("default via 198.19.0.1")
    assert await wrong(net, want, gateway) == {}


async def test_full_bridge_is_one_clear_error_and_leaves_nothing(net, box, tmp_path):
    want = await wanted(net, box, gateway=False)
    await net.ensure_namespace(want.overlay.netns)
    await net.ensure_bridge(want.overlay.netns, want.overlay.bridge)
    batch = tmp_path / "batch"
    batch.write_text(
        "".join(f"link add d{n} master br0 type veth peer name e{n}\n" for n in range(1023))
    )
    ip(net.netns_path(want.overlay.netns), "-batch", batch)
    with pytest.raises(ExhaustedError, match="full"):
        await repair(net, want)
    assert "eth0" not in await net.sandbox_links(want.attachments[0].sandbox)


async def test_frames_on_an_overlays_bridge_are_not_shown_to_the_packet_filter(net, box):
    want = await wanted(net, box)
    await build(net, want)
    names = [f"bridge/bridge-nf-call-{family}tables" for family in ("arp", "ip", "ip6")]

    def values(place):
        return inside(place, lambda: [sysctl.read(name) for name in names])

    there = values(box)  # None each, if the kernel has no br_netfilter
    ours = values(net.netns_path(want.overlay.netns))
    assert ours == ["0" if value is not None else None for value in there]


async def test_namespace_is_adopted_with_all_that_is_in_it(net, box):
    want = await wanted(net, box)
    gateway = await build(net, want)
    held = await net.open_netns(want.overlay.netns)
    file = net.netns_path(want.overlay.netns)
    command("umount", file)
    file.unlink()
    assert (await net.observe(())).namespaces == {}
    with namespaces.closing(held):
        await net.ensure_namespace(want.overlay.netns, held)
    assert await wrong(net, want, gateway) == {}


async def test_two_daemons_of_two_namespaces_do_not_disturb_each_other(net, box, tmp_path):
    with netns("p2other") as other:
        fd = namespaces.open_namespace(f"/run/netns/{other}")
        with namespaces.closing(fd), namespaces.inside(fd):
            second = Net(Settings(run_dir=tmp_path / "second"), Records())
        want = await wanted(net, box)
        gateway = await build(net, want)
        await second.cleanup()
        await second.close()
        assert await wrong(net, want, gateway) == {}


async def test_every_descriptor_is_closed(net, box):
    want = await wanted(net, box)
    await build(net, want)
    await net.observe(want.attachments)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await net.observe(want.attachments)
        await repair(net, want)
        with pytest.raises(NetError):
            await net.remove_veth("9-0123456789", "v0123456789")
    assert len(os.listdir("/proc/self/fd")) == before


# Sandboxes


async def test_sandbox_is_found_by_name_path_and_pid(net, box):
    process = subprocess.Popen(["ip", "netns", "exec", box, "sleep", "60"])
    try:
        time.sleep(0.2)
        by_name, by_path, by_pid = [
            await net.resolve_sandbox(text) for text in (box, f"/run/netns/{box}", str(process.pid))
        ]
        assert by_name.inode == by_path.inode == by_pid.inode
        assert by_pid.pid == process.pid
        assert net.sandbox_alive(by_pid)
    finally:
        process.kill()
        process.wait()
    assert not net.sandbox_alive(by_pid)
    assert net.sandbox_alive(by_name)


async def test_sandbox_of_the_same_name_made_anew_is_another(net):
    with netns(BOX):
        found = await net.resolve_sandbox(BOX)
        held = namespaces.open_namespace(found.path)
    with namespaces.closing(held), netns(BOX):
        assert not net.sandbox_alive(found)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("p2nowhere", NotFoundError),
        ("/run/netns/p2nowhere", NotFoundError),
        ("99999999", NotFoundError),
        ("/etc/hostname", InvalidError),
        ("/etc", InvalidError),
        ("/proc/self/ns/mnt", InvalidError),
        ("/proc/self/ns/net", InvalidError),
        (str(os.getpid()), InvalidError),
        (f"/proc/{os.getpid()}/ns/net", InvalidError),
        ("run/netns/x", InvalidError),
        ("..", InvalidError),
        ("", InvalidError),
        ("a\0b", InvalidError),
    ],
)
async def test_what_is_no_sandbox_is_one_clear_error(net, text, error):
    with pytest.raises(error):
        await net.resolve_sandbox(text)


async def test_name_server_sockets_are_inside_the_sandbox(net, box):
    sandbox = await net.resolve_sandbox(box)
    udp, tcp = await net.dns_sockets(sandbox)
    with udp, tcp:
        assert udp.getsockname() == tcp.getsockname() == ("127.0.0.11", 53)
        assert "127.0.0.11" in command("ip", "netns", "exec", box, "ss", "-lun").stdout
        with pytest.raises(ConflictError, match="is taken"):
            await net.dns_sockets(sandbox)
        asker = f"import socket; s=socket.socket({int(socket.AF_INET)}, {int(socket.SOCK_DGRAM)});"
        asker += " s.sendto(b'x', ('127.0.0.11', 53))"
        command("ip", "netns", "exec", box, sys.executable, "-c", asker)
        assert udp.recvfrom(10)[0] == b"x"


# The host


async def test_underlay_is_found_and_described(net):
    assert await net.detect_advertise(None) == ip_address("198.18.0.1")
    assert await net.detect_advertise("under0") == ip_address("198.18.0.1")
    assert await net.detect_advertise("198.18.0.1") == ip_address("198.18.0.1")
    assert await net.underlay_mtu(ip_address("198.18.0.1")) == 1400
    assert await net.local_addresses() == [("under0", ip_interface("198.18.0.1/24"))]


@pytest.mark.parametrize("text", ["198.18.0.77", "under9", "under1", "not an address"])
async def test_wrong_underlay_names_the_addresses_to_choose_from(net, text):
    with pytest.raises(ConfigError, match=r"198\.18\.0\.1"):
        await net.detect_advertise(text)


async def test_new_ipv6_address_is_waited_for(net):
    ip(HOME, "link", "set", "under1", "up")
    ip(HOME, "addr", "add", "fd98::1/64", "dev", "under0")
    assert "tentative" in ip(HOME, "addr", "show", "under0")
    assert await net.detect_advertise("fd98::1") == ip_address("fd98::1")
    with socket_in(HOME, socket.AF_INET6, socket.SOCK_DGRAM) as used:
        used.bind(("fd98::1", 0))


@pytest.mark.parametrize(
    ("commands", "told"),
    [
        ([], "interface under0 has no carrier, or another host has this address"),
        ([("link", "set", "under0", "down")], "interface under0 is down: ip link set under0 up"),
    ],
)
async def test_ipv6_address_that_can_not_be_used_is_told(net, monkeypatch, commands, told):
    monkeypatch.setattr("pyvxlan.daemon.net.net.ADDRESS_S", 0.2)
    for words in (*commands, ("addr", "add", "fd98::1/64", "dev", "under0")):
        ip(HOME, *words)
    with pytest.raises(ConfigError, match=f"underlay address fd98::1 can't be used, {told}"):
        await net.detect_advertise("fd98::1")


async def test_interface_that_is_down_is_told_and_its_address_used(net, caplog):
    ip(HOME, "link", "set", "under0", "down")
    assert await net.detect_advertise("under0") == ip_address("198.18.0.1")
    assert "interface under0 is down: ip link set under0 up" in caplog.text


async def test_two_addresses_and_no_default_route_are_not_obvious(net):
    ip(HOME, "addr", "add", "198.19.0.1/24", "dev", "under0")
    with pytest.raises(ConfigError, match="not obvious"):
        await net.detect_advertise(None)


async def test_host_routes_leave_out_our_own(net, box):
    vtep = ip_address("198.18.0.1")
    before = await net.surroundings(vtep)
    await build(net, await wanted(net, box))
    routes = ((ip_network("198.18.0.0/24"), "under0"),)
    assert await net.surroundings(vtep) == before == Surroundings(routes, 1400)


async def test_rules_are_for_the_bridges_subnet(net, home):
    fd = namespaces.open_namespace(f"/run/netns/{home}")
    with (
        namespaces.closing(fd),
        namespaces.inside(fd),
        nftables.open_netfilter() as netfilter,
    ):
        nftables.replace(netfilter, GATEWAY_BRIDGE, IPv4Network("172.18.0.0/16"))
        assert nftables.matches(netfilter, GATEWAY_BRIDGE, IPv4Network("172.18.0.0/16"))
        assert not nftables.matches(netfilter, GATEWAY_BRIDGE, IPv4Network("172.19.0.0/16"))
        nftables.remove(netfilter)
        nftables.remove(netfilter)
        assert not nftables.exists(netfilter)
