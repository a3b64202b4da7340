"""Says in words what is wrong and what mends it: one function for each cause. Pure.

What mends it begins with the host on which to do it.

It is one module since it is one text: whoever changes one sentence should see the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyvxlan.daemon.dataplane import KERNEL
from pyvxlan.daemon.model import OVERHEAD_BYTES
from pyvxlan.daemon.reasons import in_words
from pyvxlan.daemon.why import facts
from pyvxlan.daemon.why.case import ALL, LARGE, NONE, Finding, Side
from pyvxlan.daemon.why.facts import FULL, REQUEST, Entry, Facts, Fault, Resolution


@dataclass(frozen=True, slots=True)
class _Words:
    """A fault's text and remedy, to be filled in, and what it breaks."""

    text: str
    remedy: str
    breaks: frozenset[str] = ALL


_IN = "nsenter --net={sandbox} ip"
_OVERLAY = "nsenter --net={netns} ip"
_HEALS = "{heals}"
"""The daemon does it."""
_FAULTS: Mapping[tuple[str, str], _Words] = {
    (facts.ETH, "sandbox"): _Words(
        "the namespace of {name} on {host} ({sandbox}) is gone",
        "pyvxlan detach {name}, and attach the one that has its place",
    ),
    (facts.ETH, "fetched"): _Words(
        "Docker has not given {name} its interface ({wanted} waits on {host})",
        "docker network disconnect and connect {name}",
    ),
    (facts.ETH, "missing"): _Words(
        "{name} has no interface of this network: {veth} on {host} has no other end there", _HEALS
    ),
    (facts.ETH, "down"): _Words("{ifname} in {name} is down", f"{_IN} link set {{ifname}} up"),
    (facts.ETH, "mac"): _Words(
        "{ifname} in {name} has MAC {found}, and the store says {wanted}",
        f"{_IN} link set {{ifname}} address {{wanted}}",
    ),
    (facts.ETH, "address"): _Words(
        "{ifname} in {name} has address {found}, and the store says {wanted}",
        "{readdress}",
    ),
    (facts.ETH, "mtu"): _Words(
        "{ifname} in {name} has MTU {found}, and the network {wanted}",
        f"{_IN} link set {{ifname}} mtu {{wanted}}",
        LARGE,
    ),
    (facts.ETH, "way"): _Words(
        "{name} sends what is for {peer_address} by another way ({found}) than {ifname}",
        f"{_IN} route get {{peer_address}}, and remove that route",
    ),
    (facts.ETH, "neighbour"): _Words(
        "{name} takes {found} for the MAC of {peer_address}, which is {wanted}",
        f"{_IN} neighbour del {{peer_address}} dev {{ifname}}",
    ),
    (facts.ETH, "noarp"): _Words(
        "ARP is off on {ifname} in {name}", f"{_IN} link set {{ifname}} arp on"
    ),
    (facts.VETH, "missing"): _Words(
        "{veth}, the host's end of {name}, is missing on {host}", _HEALS
    ),
    (facts.VETH, "down"): _Words(
        "{veth}, the host's end of {name}, is down on {host}", f"{_OVERLAY} link set {{veth}} up"
    ),
    (facts.VETH, "master"): _Words(
        "{veth}, the host's end of {name}, hangs on {found} instead of br0",
        f"{_OVERLAY} link set {{veth}} master br0",
    ),
    (facts.VETH, "stations"): _Words(
        "br0 on {host} does not know {wanted} behind {veth}",
        "nsenter --net={netns} bridge fdb replace {wanted} dev {veth} master static",
        NONE,
    ),
    (facts.BRIDGE, "namespace"): _Words("the network's namespace on {host} is missing", _HEALS),
    (facts.BRIDGE, "missing"): _Words("br0 is missing on {host}", _HEALS),
    (facts.BRIDGE, "down"): _Words("br0 is down on {host}", f"{_OVERLAY} link set br0 up"),
    (facts.PORT, "missing"): _Words(
        "vxlan0, the way from br0 to the tunnels, is missing on {host}", _HEALS
    ),
    (facts.PORT, "lost"): _Words(
        "vxlan0, the way from br0 to the tunnels, was deleted on {host}", _HEALS
    ),
    (facts.PORT, "detached"): _Words("the forwarder on {host} does not carry {wanted}", _HEALS),
    (facts.PORT, "down"): _Words("vxlan0 is down on {host}", f"{_OVERLAY} link set vxlan0 up"),
    (facts.PORT, "master"): _Words(
        "vxlan0 on {host} hangs on {found} instead of br0", f"{_OVERLAY} link set vxlan0 master br0"
    ),
}
_LABELS = {
    facts.ETH: "{ifname} in {name}",
    facts.VETH: "{veth}, its other end",
    facts.BRIDGE: "br0",
    facts.PORT: "vxlan0, to the tunnels",
    facts.UNDERLAY: "{vtep_link}, the underlay ({vtep})",
}
_DROPS: Mapping[str, tuple[str, str]] = {
    "frame_too_big": ("mtu", "set the same MTU inside, as the network has"),
    "underlay_mtu": ("mtu", "ip link; or create the network with a smaller --mtu"),
    "path_mtu": ("mtu", "pyvxlan peers, and widen the underlay's path"),
    "underlay_error": ("firewall", "nft list ruleset; ip route get {peer_vtep}"),
    "source_not_vtep": ("vtep_wrong", "look for NAT on the underlay, and for a wrong --advertise"),
    "source_mac_unknown": ("mac_unknown", "pyvxlan status: is it in step with the store?"),
    "source_mac_elsewhere": ("mac_unknown", "pyvxlan endpoint ls"),
    "destination_unknown": ("fdb_missing", "pyvxlan endpoint ls"),
    "vni_unknown": ("vni_unknown", "pyvxlan network ls, as on the other host"),
}
"""What a reason for a drop means here, and what to do; of others docs/dataplane.md says it."""


def place(stop: str, side: Side) -> str:
    """Names a stop."""
    held = side.facts
    if held is None or (stop == facts.UNDERLAY and not held.vtep_link):
        return {facts.ETH: f"the interface in {side.name}", facts.UNDERLAY: "the underlay"}.get(
            stop, stop
        )
    return _LABELS[stop].format_map(_known(side))


def fault(side: Side, other: Side, found: Fault) -> Finding:
    """Something that the kernel has otherwise than it should."""
    told = _FAULTS.get((found.stop, found.what))
    if told is None:
        instead = ": {found} instead of {wanted}" if found.found or found.wanted else ""
        breaks = LARGE if found.what == "mtu" else NONE
        told = _Words(f"{{what}} of {{label}} is not as it should be{instead}", _HEALS, breaks)
    known = _known(side) | {
        "peer_address": other.address,
        "found": found.found,
        "wanted": found.wanted,
        "what": found.what,
        "label": place(found.stop, side),
    }
    breaks = told.breaks
    if (found.stop, found.what) == (facts.ETH, "address"):
        lacking = [one for one in found.wanted.split(", ") if one not in found.found.split(", ")]
        known["readdress"] = _readdress(known, lacking)
        breaks = ALL if any((":" in one) == (":" in other.address) for one in lacking) else NONE
    return Finding(
        f"{found.stop}_{found.what}",
        side,
        found.stop,
        told.text.format_map(known),
        f"on {side.host}: {told.remedy.format_map(known)}",
        breaks,
    )


def _readdress(known: Mapping[str, object], lacking: Sequence[str]) -> str:
    """The commands that add addresses, after those that take away one with another prefix."""
    held = {one.partition("/")[0]: one for one in str(known["found"]).split(", ")}
    commands = []
    for one in lacking:
        if wrong := held.get(one.partition("/")[0]):
            commands.append(f"address del {wrong}")
        commands.append(f"address add {one}")
    do = _IN.format_map(known)
    return "; ".join(f"{do} {command} dev {known['ifname']}" for command in commands)


def not_attached(side: Side) -> Finding:
    """The store has the endpoint, and its host has not."""
    return Finding(
        "not_attached",
        side,
        facts.ETH,
        f"the store has {side.name} on {side.host}, and that host has not attached it",
        f"on {side.host}: pyvxlan endpoint ls --local; attach it anew",
    )


def forwarder(side: Side, *, breaks: bool) -> Finding:
    """The forwarder does not answer."""
    held = _facts(side)
    return Finding(
        "forwarder",
        side,
        facts.TABLES,
        f"the forwarder on {side.host} does not answer: {held.forwarder}",
        f"on {side.host}: kill -9 $(cut -d' ' -f1 {held.run_dir}/forwarder.pid); the daemon starts "
        "another one",
        ALL if breaks else NONE,
    )


def unknown_peer(side: Side, other: Side) -> Finding:
    """One host's view of the store lacks the other endpoint."""
    held = _facts(side)
    unknown = f"{side.host} does not know {other.name} at {other.host}"
    if held.stale_s is None:
        return Finding(
            "unknown",
            side,
            facts.TABLES,
            f"{unknown}, though it is in step with its store",
            f"on {side.host} and {other.host}: pyvxlan store check; both must use one store",
        )
    return Finding(
        "store_stale",
        side,
        facts.TABLES,
        f"{unknown}, {_since(held)}",
        f"on {side.host}: pyvxlan store check",
    )


def stale(side: Side) -> Finding:
    """A host's view of the store is old, and yet has both endpoints."""
    return Finding(
        "store_stale",
        side,
        facts.TABLES,
        f"{side.host} goes on from what it knew, {_since(_facts(side))}",
        f"on {side.host}: pyvxlan store check",
        NONE,
    )


def wrong_record(side: Side, other: Side, vtep: str) -> Finding:
    """One host's view of the store has another VTEP for the other host than that host has."""
    held = _facts(side)
    return Finding(
        "vtep_wrong",
        side,
        facts.TABLES,
        f"{side.host} takes {held.peer_vtep or 'nothing'} for the VTEP of {other.host}, which is "
        f"{vtep}",
        f"on {side.host} and {other.host}: pyvxlan store check",
    )


def vteps_apart(side: Side, other: Side, vtep: str) -> Finding:
    """One host is on an IPv4 underlay, the other on an IPv6 one."""
    return Finding(
        "vtep_wrong",
        side,
        facts.TABLES,
        f"{side.host} has VTEP {_facts(side).vtep} and {other.host} {vtep}: no tunnel joins IPv4 "
        "with IPv6",
        f"on {side.host} or {other.host}: start the daemon with another --advertise",
    )


def ports_apart(side: Side, other: Side) -> Finding:
    """The hosts have the tunnels at different UDP ports."""
    here, there = _facts(side), _facts(other)
    setting = "kernel_port" if here.datapath == KERNEL else "port"
    return Finding(
        "port_differs",
        other,
        facts.TABLES,
        f"the {_carrier(side)} on {side.host} has UDP port {here.port}, the {_carrier(other)} on "
        f"{other.host} {there.port}: neither hears the other",
        f"on {side.host} or {other.host}: start the daemon with the same {setting}",
    )


def fdb(side: Side, other: Side, entry: Entry, vtep: str) -> Finding:
    """The data plane sends frames for the other endpoint elsewhere, or nowhere."""
    has = f"sends them to {entry.found}" if entry.found else "has no entry"
    return Finding(
        "vtep_wrong" if entry.found else "fdb_missing",
        side,
        facts.TABLES,
        f"for frames to {other.name} ({entry.key}) the {_carrier(side)} on {side.host} {has}, and "
        f"should send them to {vtep}",
        _heals(side),
    )


def neighbour(side: Side, other: Side, entry: Entry) -> Finding:
    """The data plane answers ARP for the other endpoint wrongly, or not."""
    has = f"answers {entry.found}" if entry.found else "has no answer"
    return Finding(
        "neighbour_wrong" if entry.found else "neighbour_missing",
        side,
        facts.TABLES,
        f"who asks for {entry.key} ({other.name}) gets no right answer: the {_carrier(side)} on "
        f"{side.host} {has}, and should say {entry.wanted}",
        _heals(side),
    )


def vtep_missing(side: Side) -> Finding:
    """A host says that its tunnels end at an address that it does not have."""
    held = _facts(side)
    return Finding(
        "vtep_wrong",
        side,
        facts.UNDERLAY,
        f"{side.host} says that its VTEP is {held.vtep}, and no interface of it has that address; "
        f"it has {', '.join(held.addresses) or 'none'}",
        f"on {side.host}: ip address add {held.vtep}/PREFIX dev INTERFACE; or start the daemon "
        "with another --advertise",
    )


def underlay_mtu(side: Side, needed: int) -> Finding:
    """The underlay's MTU has no room for the network's."""
    held = _facts(side)
    return Finding(
        "mtu",
        side,
        facts.UNDERLAY,
        f"frames of {held.mtu} bytes need an MTU of {needed} on the underlay, and {held.vtep_link} "
        f"of {side.host} has {held.underlay_mtu}",
        f"on {side.host}: ip link set {held.vtep_link} mtu {needed}; or create the network with "
        f"--mtu {held.mtu - needed + held.underlay_mtu}",
        LARGE,
    )


def narrow(side: Side, other: Side) -> Finding:
    """A container has been told that less than its network's MTU gets through."""
    assert side.traced
    held, known = _facts(side), side.traced.path_mtu
    return Finding(
        "mtu",
        side,
        facts.UNDERLAY,
        f"{side.name} knows that packets of at most {known} bytes get to {other.name}, and sends "
        f"no longer ones, though the network has MTU {held.mtu}",
        f"find out where the path between {side.host} and {other.host} is narrow, or create the "
        f"network with --mtu {known}",
        NONE,
    )


def unresolved(side: Side, found: Resolution, address: str) -> Finding:
    """The name server inside A does not give B's address."""
    held = _facts(side)
    said = f"gives no address: {found.problem}"
    if not found.problem:
        said = f"says {', '.join(found.addresses) or 'that it has none'}"
    return Finding(
        "name",
        side,
        facts.ETH,
        f"{side.name} reaches {address} and does not find it by name: {found.server}, asked for "
        f"{found.name} inside, {said}",
        f"on {side.host}: nsenter --net={held.sandbox} nft list ruleset; pyvxlan status",
        NONE,
    )


def unheard(side: Side) -> Finding:
    """A's host does not answer, so nothing could be sent."""
    return Finding(
        "unheard",
        side,
        facts.ETH,
        f"nothing can be sent from {side.name}: {side.unheard}",
        f"on {side.host}: pyvxlan why; its daemon must run, and peer_port (TCP) be let through",
    )


def not_sent(side: Side, address: str) -> Finding:
    """Nothing came out of A's interface."""
    held, traced = _facts(side), side.traced
    problem = traced.problem if traced else ""
    look = f"on {side.host}: nsenter --net={held.sandbox} nft list ruleset"
    if traced and traced.neighbour == facts.UNANSWERED:
        return Finding(
            "neighbour_missing",
            side,
            facts.ETH,
            f"{side.name} asks for the MAC of {address}, and nobody answers",
            f"on {side.host}: nsenter --net={held.netns} nft list ruleset; pyvxlan status",
        )
    return Finding(
        "firewall",
        side,
        facts.ETH,
        f"the kernel in {side.name} refuses to send to {address}: {problem}"
        if problem
        else f"what {side.name} sends to {address} does not come out of {held.ifname}: a rule in "
        "there holds it back",
        look,
    )


def pair(side: Side, kind: str) -> Finding:
    """A frame went into one end of a pair and did not come out of the other."""
    held = _facts(side)
    return Finding(
        "pair",
        side,
        facts.VETH,
        f"{_what(kind)} is lost between {held.ifname} in {side.name} and {held.veth} outside",
        f"on {side.host}: nsenter --net={held.netns} tc filter show dev {held.veth} ingress",
    )


def bridge(side: Side, kind: str) -> Finding:
    """A frame came to the bridge and did not leave it."""
    held = _facts(side)
    return Finding(
        "bridge",
        side,
        facts.BRIDGE,
        f"{_what(kind)} is lost on br0 of {side.host}: by a rule there, or its table of MACs",
        f"on {side.host}: nsenter --net={held.netns} nft list ruleset, and bridge fdb",
    )


def no_answer(side: Side, size: str) -> Finding:
    """The other container's kernel got the request and gave no answer."""
    held = _facts(side)
    six = ":" in side.address
    silent = "net.ipv6.icmp.echo_ignore_all" if six else "net.ipv4.icmp_echo_ignore_all"
    return Finding(
        "firewall",
        side,
        facts.ETH,
        f"the frame comes to {held.ifname} in {side.name}{_of(size)}, and the kernel there does "
        "not answer: a rule in there drops it",
        f"on {side.host}: nsenter --net={held.sandbox} nft list ruleset, and sysctl {silent}, "
        "which must be 0",
    )


def not_taken(side: Side, other: Side) -> Finding:
    """The answer is back in A, and A's kernel keeps it from who had sent."""
    held = _facts(side)
    return Finding(
        "firewall",
        side,
        facts.ETH,
        f"the answer of {other.name} comes back to {held.ifname} in {side.name}, and the kernel "
        "there does not take it: a rule in there drops it",
        f"on {side.host}: nsenter --net={held.sandbox} nft list ruleset",
    )


def between(sender: Side, receiver: Side, size: str) -> Finding:
    """Datagrams leave one host and do not come to the other, or nothing is known of it there."""
    held = _facts(sender)
    needed = held.mtu + OVERHEAD_BYTES[6 if ":" in held.vtep else 4]
    to = receiver.facts.vtep if receiver.facts else held.peer_vtep
    code, remedy = "udp_blocked", f"let UDP port {held.port} from {held.vtep} to {to} through"
    if size == FULL:
        code = "mtu"
        text = (
            f"frames of {held.mtu} bytes leave {sender.host} and do not come to {receiver.host}, "
            f"small ones do: the underlay between them carries less than {needed} bytes"
        )
        remedy = f"set an MTU of {needed} on that path, or create the network with a smaller --mtu"
    elif receiver.facts:
        text = (
            f"the datagram leaves {sender.host} and does not come to {receiver.host}, whose daemon "
            f"answers: something between them blocks UDP port {held.port}"
        )
    elif held.pinged is False:
        return _vtep_unreachable(sender, receiver)
    else:
        text = (
            f"the datagram leaves {sender.host} for {to}, and nothing comes back; what came of it "
            f"there is not known: {receiver.unheard}"
        )
        remedy += f", and TCP peer_port; see that {receiver.host} runs"
    return Finding(code, sender, facts.UNDERLAY, text, remedy)


def tunnel_end(here: Side, there: Side, size: str, *, outwards: bool) -> Finding:
    """A frame was lost between the port and the underlay of one host."""
    held = _facts(here)
    if outwards and held.pinged is False and there.facts is None:
        return _vtep_unreachable(here, there)
    if here.traced and here.traced.drops:
        reason = here.traced.drops[-1]
        code, remedy = _DROPS.get(reason, ("dropped", "pyvxlan drops"))
        return Finding(
            code,
            here,
            facts.TABLES,
            f"the {_carrier(here)} on {here.host} drops the frame{_of(size)}: {in_words(reason)}",
            f"on {here.host}: {remedy.format_map(_known(here))}",
        )
    if size == FULL:
        return Finding(
            "mtu",
            here,
            facts.TABLES,
            f"frames of {held.mtu} bytes do not pass the {_carrier(here)} on {here.host}, small "
            "ones do",
            f"on {here.host}: ip link; the underlay needs the network's MTU and room for headers",
        )
    return Finding(
        "firewall",
        here,
        facts.TABLES,
        f"the frame comes to vxlan0 and does not leave {here.host}: a rule there drops UDP port "
        f"{held.port}"
        if outwards
        else f"the datagram comes to {held.vtep} of {here.host} and not to the {_carrier(here)}: a "
        f"rule there drops UDP port {held.port}",
        f"on {here.host}: nft list ruleset; let UDP port {held.port} through",
    )


def _vtep_unreachable(sender: Side, receiver: Side) -> Finding:
    held = _facts(sender)
    return Finding(
        "vtep_unreachable",
        sender,
        facts.UNDERLAY,
        f"{sender.host} does not reach {held.peer_vtep}, the VTEP of {receiver.host}: no answer to "
        f"a ping, and {receiver.unheard}",
        f"on {sender.host}: ip route get {held.peer_vtep}; ping -I {held.vtep} {held.peer_vtep}; "
        f"see that {receiver.host} is up, and repair the underlay",
    )


def _facts(side: Side) -> Facts:
    """What a host said; whatever is judged of a side has been said by its host."""
    assert side.facts
    return side.facts


def _known(side: Side) -> dict[str, object]:
    held = _facts(side)
    known: dict[str, object] = {"name": side.name, "host": side.host}
    for one in ("vtep", "vtep_link", "peer_vtep", "netns", "veth", "sandbox"):
        known[one] = getattr(held, one)
    heals = f"the daemon mends it within {held.repair_s:g} s; if not: pyvxlan status"
    if held.problems:
        heals = f"the daemon tries to mend it, and says: {held.problems[0]}"
    return known | {"ifname": held.ifname or "eth0", "heals": heals}


def _carrier(side: Side) -> str:
    return "kernel's vxlan device" if _facts(side).datapath == KERNEL else "forwarder"


def _heals(side: Side) -> str:
    return f"on {side.host}: {_HEALS.format_map(_known(side))}"


def _since(held: Facts) -> str:
    cause = f" ({held.stale_cause})" if held.stale_cause else ""
    return f"since the store has not answered it for {held.stale_s or 0:.0f} s{cause}"


def _what(kind: str) -> str:
    return "the frame" if kind == REQUEST else "the answer"


def _of(size: str) -> str:
    return " of full size" if size == FULL else ""
