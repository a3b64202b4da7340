"""What this host has of one endpoint's way to another: answers the question `explain`.

All is read anew: what the reconciler would find and repair in a moment is what is wrong now.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import Any, Protocol, TypeVar

import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype

from pyvxlan.daemon import records
from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.dataplane import FORWARDER, KERNEL, Dataplane, NetworkTables
from pyvxlan.daemon.desired import WantedNetwork, datapath_of
from pyvxlan.daemon.errors import ConfigError, DaemonError, InvalidError
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.model import (
    Address,
    Endpoint,
    Host,
    Interface,
    LocalEndpoint,
    Sandbox,
    format_mac,
    host_ifname,
)
from pyvxlan.daemon.net import BRIDGE, PORT, Inside, Link, Survey, Veth, faults, watching
from pyvxlan.daemon.state import State
from pyvxlan.daemon.why import facts
from pyvxlan.daemon.why.facts import Entry, Facts, Fault, Resolution

T = TypeVar("T")

FORWARDER_S = 2.5
"""How long the forwarder may take; one that is fine takes milliseconds."""
PING_S = 0.7
QUERY_S = 1.0
ATTEMPTS = 2
NAME_SERVER = IPv4Address("127.0.0.11")
DOCKERS = frozenset({"missing", "mac", "mtu", "down", "address"})
"""Of a container of Docker's, all that is looked at inside: the rest is Docker's business."""
NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}")


class Kernel(Protocol):
    """What is asked of the kernel; `daemon.net.Net` does it."""

    async def survey(
        self, netns: str, outer_name: str, sandbox: Sandbox, toward: Address
    ) -> Survey:
        """Reads an endpoint's way from its sandbox to the bridge."""

    async def within(self, place: Sandbox | str, job: Callable[[], T]) -> T:
        """Does a short job in a sandbox, an overlay's namespace, or the host's own."""

    async def local_addresses(self) -> Sequence[tuple[str, Interface]]:
        """Addresses that other hosts might reach, each with its interface."""

    async def underlay_mtu(self, address: Address) -> int:
        """MTU in bytes of the interface that holds an underlay address."""


class Progress(Protocol):
    """What is asked of the reconciler."""

    def wanted(self, network_id: str) -> WantedNetwork | None:
        """What this host shall have of a network."""

    def problems(self) -> Sequence[str]:
        """What could not be done in the last round."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A question's arguments: this host's endpoint, and an address of another one.

    Both endpoints are as whoever asks knows them.
    """

    own: Endpoint
    peer: Endpoint
    toward: Address
    name: str = ""
    """What the container calls the other one, if that is to be looked at."""

    def emit(self) -> dict[str, Any]:
        """Gives the arguments of a question."""
        return {
            "network": self.own.network_id,
            "own": {"id": self.own.id, "record": records.emit_endpoint(self.own).decode()},
            "peer": {"id": self.peer.id, "record": records.emit_endpoint(self.peer).decode()},
            "toward": str(self.toward),
            "name": self.name,
        }

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> Pair:
        """Reads a question's arguments.

        Raises:
            InvalidError: They are none.
        """
        try:
            network = arguments["network"]
            own, peer = (
                records.parse_endpoint(
                    network, arguments[which]["id"], arguments[which]["record"].encode()
                )
                for which in ("own", "peer")
            )
            toward, name = ip_address(arguments["toward"]), arguments["name"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidError(f"the question is not understood: {error!r}") from error
        if toward not in {address.ip for address in peer.addresses}:
            raise InvalidError(f"{toward} is no address of endpoint {peer.id}")
        if not isinstance(name, str) or (name and not NAME.fullmatch(name)):
            raise InvalidError(f"{name!r} is no name")
        return cls(own, peer, toward, name)


class Explainer:
    """Reads this host's facts.

    Args:
        settings: Those of this daemon.
        host: This host.
        state: What it knows of the store.
        local: What is attached here.
        net: The kernel.
        dataplane: What carries the frames.
        progress: What this host works towards.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        host: Host,
        state: State,
        local: LocalRecords,
        net: Kernel,
        dataplane: Dataplane,
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._host = host
        self._state = state
        self._local = local
        self._net = net
        self._dataplane = dataplane
        self._progress = progress

    async def explain(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Answers another daemon's question."""
        return facts.emit(await self.facts(Pair.parse(arguments)))

    async def facts(self, pair: Pair) -> Facts:
        """Reads everything about one endpoint of this host and its way to another one."""
        own, peer, state = pair.own, pair.peer, self._state
        here = self._local.endpoints.get(own.id)
        netns = self._local.netns_names.get(own.network_id, "")
        other = state.hosts.get(peer.host_id)
        remote = peer.host_id != self._host.id
        (
            survey,
            (tables, silent),
            pinged,
            resolution,
            addresses,
            underlay_mtu,
        ) = await asyncio.gather(
            self._survey(netns, here, pair.toward),
            self._tables(),
            self._ping(other.vtep) if other and remote else _nothing(),
            self._resolve(here, pair) if here and pair.name else _nothing(),
            self._net.local_addresses(),
            self._underlay_mtu(),
        )
        network = state.networks.get(own.network_id) or self._local.networks.get(own.network_id)
        wanted = self._progress.wanted(own.network_id)
        vni = network.vni if network else 0
        datapath = datapath_of(network.options) if network else FORWARDER
        known = state.endpoint(own.network_id, peer.id)
        found = tables.get(vni)
        wrong = list(_faults(here, pair, wanted, survey)) if here else []
        if here and not silent:
            wrong += _port_faults(vni, found)
        return Facts(
            host=self._host.name,
            vtep=str(self._host.vtep),
            port=self._settings.kernel_port if datapath == KERNEL else self._settings.port,
            datapath=datapath,
            run_dir=str(self._settings.run_dir),
            netns=str(self._settings.run_dir / "netns" / netns) if netns else "",
            veth=host_ifname(own.id),
            ifname=survey.inside.name if survey.inside else (here.ifname if here else ""),
            sandbox=here.sandbox.path if here else "",
            stale_s=None if state.stale_since is None else time.monotonic() - state.stale_since,
            stale_cause=state.stale_reason,
            knows_peer=known is not None and known.host_id == peer.host_id,
            peer_vtep=str(other.vtep) if other else "",
            vtep_link=next((link for link, held in addresses if held.ip == self._host.vtep), ""),
            addresses=tuple(f"{held.ip} ({link})" for link, held in addresses),
            underlay_mtu=underlay_mtu,
            mtu=network.mtu_bytes if network else 0,
            forwarder=silent,
            problems=tuple(self._progress.problems()),
            repair_s=float(self._settings.reconcile_interval_s),
            faults=tuple(wrong),
            fdb=_fdb(peer, found, str(other.vtep) if other else "") if remote else None,
            neighbours=_neighbours(peer, found) if remote else (),
            pinged=pinged,
            resolution=resolution,
        )

    async def _survey(self, netns: str, here: LocalEndpoint | None, toward: Address) -> Survey:
        if here is None or not netns:
            return Survey(None)
        return await self._net.survey(netns, host_ifname(here.id), here.sandbox, toward)

    async def _tables(self) -> tuple[Mapping[int, NetworkTables], str]:
        """What the data plane holds, or why it does not say."""
        try:
            async with asyncio.timeout(FORWARDER_S):
                return await self._dataplane.dump(), ""
        except TimeoutError:
            return {}, f"no answer within {FORWARDER_S:g} s"
        except DaemonError as error:
            return {}, str(error)

    async def _underlay_mtu(self) -> int:
        with contextlib.suppress(ConfigError):  # No interface has the address, which shows.
            return self._settings.mtu_bytes or await self._net.underlay_mtu(self._host.vtep)
        return 0

    async def _ping(self, vtep: Address) -> bool:
        """Whether another host answers a ping, from the host's own namespace."""
        mark = secrets.token_bytes(watching.MARK_BYTES)
        try:
            echo = await self._net.within("", lambda: watching.open_echo(vtep))
        except DaemonError:
            return False
        with echo:
            for number in range(ATTEMPTS):
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(PING_S):
                        await _answered(echo, watching.request(vtep.version, mark, number), mark)
                        return True
        return False

    async def _resolve(self, here: LocalEndpoint, pair: Pair) -> Resolution:
        """Asks the name server inside the container."""
        server = str(NAME_SERVER)
        kind = dns.rdatatype.A if pair.toward.version == 4 else dns.rdatatype.AAAA
        query = dns.message.make_query(pair.name, kind)
        try:
            asked = await self._net.within(here.sandbox, lambda: watching.open_query(NAME_SERVER))
            with asked:
                answer = await _asked(asked, query)
        except OSError as error:
            return Resolution(server, pair.name, problem=error.strerror or str(error))
        except (DaemonError, dns.exception.DNSException) as error:
            return Resolution(server, pair.name, problem=str(error) or type(error).__name__)
        if answer is None:
            return Resolution(server, pair.name, problem="no answer")
        if answer.rcode() != dns.rcode.NOERROR:
            return Resolution(server, pair.name, problem=dns.rcode.to_text(answer.rcode()))
        found = [one.to_text() for rrset in answer.answer for one in rrset if one.rdtype == kind]
        return Resolution(server, pair.name, tuple(found))


async def _nothing() -> None:
    return None


async def _answered(echo: socket.socket, request: bytes, mark: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(echo, request)
    await heard(echo, mark)


async def heard(echo: socket.socket, mark: bytes) -> None:
    """Returns once the kernel has given a marked answer to the socket that asked."""
    loop = asyncio.get_running_loop()
    while mark not in await loop.sock_recv(echo, watching.FRAME_BYTES):
        pass


async def _asked(asked: socket.socket, query: dns.message.Message) -> dns.message.Message | None:
    loop = asyncio.get_running_loop()
    for _ in range(ATTEMPTS):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUERY_S):
                await loop.sock_sendall(asked, query.to_wire())
                while True:
                    answer = dns.message.from_wire(await loop.sock_recv(asked, 4096))
                    if query.is_response(answer):
                        return answer
    return None


def _faults(
    here: LocalEndpoint, pair: Pair, wanted: WantedNetwork | None, survey: Survey
) -> Iterator[Fault]:
    """Names all in the kernel that is not as it should be, from the container outwards."""
    attachments = wanted.attachments if wanted else ()
    veth = next((one.overlay for one in attachments if one.endpoint_id == here.id), None)
    if wanted is None or veth is None or survey.inside is None:
        yield Fault(facts.ETH, "sandbox", "gone", here.sandbox.path)
    else:
        yield from _inside(pair, veth, survey.inside)
    if wanted is None or survey.links is None:
        yield Fault(facts.BRIDGE, "namespace", "missing", wanted.overlay.netns if wanted else "")
        return
    if veth:
        yield from _compared(facts.VETH, veth.outer, survey.links.get(veth.outer_name))
    yield from _compared(facts.BRIDGE, wanted.overlay.bridge, survey.links.get(BRIDGE))
    yield from _compared(facts.PORT, wanted.overlay.port, survey.links.get(PORT))


def _port_faults(vni: int, tables: NetworkTables | None) -> Iterator[Fault]:
    """Names what is wrong with a network's port in the data plane."""
    if tables is None:
        yield Fault(facts.PORT, "detached", "not attached", f"VNI {vni}")
    elif not tables.port_alive:
        yield Fault(facts.PORT, "lost", "deleted", PORT)


def _inside(pair: Pair, veth: Veth, inside: Inside) -> Iterator[Fault]:
    if veth.handover and not inside.name:
        yield Fault(facts.ETH, "fetched", "no interface of the pair", veth.handover)
        return
    found = [
        fault
        for fault in _compared(facts.ETH, veth.inner, inside.link)
        if not veth.handover or fault.what in DOCKERS
    ]
    yield from found
    if not {"missing", "down", "address"} & {fault.what for fault in found}:
        yield from _towards(pair, inside)


def _towards(pair: Pair, inside: Inside) -> Iterator[Fault]:
    """Names what is wrong with the way to the other endpoint, out of an interface that is fine."""
    if inside.way != inside.name:
        yield Fault(facts.ETH, "way", inside.way or "no route", inside.name)
    if inside.neighbour and inside.neighbour != pair.peer.mac:
        yield Fault(facts.ETH, "neighbour", format_mac(inside.neighbour), format_mac(pair.peer.mac))


def _compared(stop: str, wanted: Link, found: Link | None) -> Iterator[Fault]:
    for what in faults(wanted, found):
        yield Fault(stop, what, *(_shown(what, found), _shown(what, wanted)) if found else ())


def _shown(what: str, link: Link) -> str:
    """Says what a link has of something, for people; empty where there is no more to say."""
    addresses = (str(one) for one in link.addresses if not one.ip.is_link_local)
    shown = {
        "mac": format_mac(link.mac),
        "mtu": str(link.mtu_bytes),
        "master": link.master or "no bridge",
        "ipv6": "on" if link.ipv6 else "off",
        "address": ", ".join(sorted(addresses)) or "none",
        "route": ", ".join(sorted(str(route.destination) for route in link.routes)) or "none",
        "stations": ", ".join(sorted(map(format_mac, link.stations))) or "none",
    }
    return shown.get(what, "")


def _fdb(peer: Endpoint, tables: NetworkTables | None, vtep: str) -> Entry:
    return Entry(format_mac(peer.mac), tables.fdb.get(peer.mac, "") if tables else "", vtep)


def _neighbours(peer: Endpoint, tables: NetworkTables | None) -> tuple[Entry, ...]:
    held = tables.neighbours if tables else {}
    return tuple(
        Entry(
            str(address.ip),
            format_mac(held[str(address.ip)]) if str(address.ip) in held else "",
            format_mac(peer.mac),
        )
        for address in peer.addresses
    )
