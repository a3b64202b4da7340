"""`Net`: all that the daemon asks of the kernel, as asyncio calls.

Work is done in a few threads, which move into a namespace for the length of one job; each job
opens the sockets it needs, which costs 50 µs, so that no descriptor outlives its namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.errors import ConfigError, ConflictError, DaemonError, NetError, NotFoundError
from pyvxlan.daemon.model import Address, Interface, Sandbox, Surroundings
from pyvxlan.daemon.net import gateway as gateway_bridge
from pyvxlan.daemon.net import (
    host,
    links,
    namespaces,
    nftables,
    overlay,
    survey,
    sysctl,
    veth,
    vxlan,
)
from pyvxlan.daemon.net.links import KernelLink
from pyvxlan.daemon.net.sandbox import SandboxFiles, open_dns_sockets
from pyvxlan.daemon.net.survey import Survey
from pyvxlan.daemon.net.values import (
    BRIDGE,
    GATEWAY_BRIDGE,
    NAMES_LINK,
    OUTER_NAME,
    Attachment,
    Carried,
    Gateway,
    Link,
    Observed,
    Route,
    Veth,
    Vxlan,
    VxlanState,
    alias_of,
)

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

THREADS = 2
ADDRESS_S = 5.0
"""How long the kernel may ask for an IPv6 address on its link; by default it takes 1 to 2 s."""
_NETNS_NAME = re.compile(r"\d+-[0-9a-f]{10}")


class HostRecords(Protocol):
    """What outlives the daemon on this host; `daemon.local.LocalRecords` keeps it."""

    host_id: str

    def remember_sysctl(self, name: str, old: str) -> None:
        """Keeps the value that a sysctl had before us; only the first one counts."""

    def sysctls(self) -> Mapping[str, str]:
        """Values from before us, by sysctl."""

    def forget_sysctl(self, name: str) -> None:
        """Drops a remembered value once it was put back."""


class Net:
    """The kernel's network objects on this host.

    Whatever the kernel refuses is raised as NetError, or as a more telling DaemonError. All
    `ensure_` calls leave alone what is right already. The host's namespace is that of the thread
    that makes the object.

    Args:
        settings: For the run directory, which holds the overlay namespaces' files.
        records: Where values from before us are kept.
    """

    def __init__(self, settings: Settings, records: HostRecords) -> None:
        self._records = records
        self._netns_dir = settings.run_dir / "netns"
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._sandboxes = SandboxFiles()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="net")

    async def close(self) -> None:
        """Releases threads and descriptors; changes nothing in the kernel. May be repeated."""
        await asyncio.to_thread(self._threads.shutdown)
        self._sandboxes.close()
        if self._home >= 0:
            os.close(self._home)
            self._home = -1

    def netns_path(self, netns: str) -> Path:
        """Where the file of an overlay namespace is."""
        return self._netns_dir / netns

    # What is there

    async def observe(self, attachments: Iterable[Attachment]) -> Observed:
        """Reads all overlay namespaces, our part of the host's, and the attachments' sandboxes."""
        return await self._run("read the host's links", self._observe, tuple(attachments))

    async def resolve_sandbox(self, text: str) -> Sandbox:
        """Finds a network namespace by name, path or process id."""
        return await self._run(f"find sandbox {text}", self._sandboxes.resolve, text)

    def sandbox_alive(self, sandbox: Sandbox) -> bool:
        """Whether the process runs, and the namespace still is the same."""
        return self._sandboxes.alive(sandbox)

    async def sandbox_links(self, sandbox: Sandbox) -> Sequence[str]:
        """Names of the interfaces in a sandbox."""
        return await self._run(f"read {sandbox.path}", self._sandboxes.link_names, sandbox)

    async def dns_sockets(self, sandbox: Sandbox) -> tuple[socket.socket, socket.socket]:
        """Opens UDP and TCP sockets on 127.0.0.11:53 in a sandbox; the caller closes them."""
        what = f"open name server sockets in {sandbox.path}"
        return await self._run(what, self._sandboxes.dns_sockets, sandbox)

    async def names_sockets(
        self, netns: str, address: Address
    ) -> tuple[socket.socket, socket.socket]:
        """Opens UDP and TCP sockets on port 53 of an address of an overlay namespace.

        An empty `netns` stands for the host's own. The caller closes the sockets.
        """
        what = f"open name server sockets on {address}"
        return await self._run(what, self._names_sockets, netns, address)

    async def underlay_mtu(self, address: Address) -> int:
        """MTU in bytes of the interface that holds an underlay address."""
        return host.mtu(await self._host(), address)

    async def surroundings(self, underlay: Address) -> Surroundings:
        """What the host routes over which link, and the MTU behind an underlay address."""
        found = await self._host()
        return Surroundings(tuple(host.routes(found)), host.mtu(found, underlay))

    async def local_addresses(self) -> Sequence[tuple[str, Interface]]:
        """Addresses that other hosts might reach, each with its interface."""
        return host.addresses(await self._host())

    async def detect_advertise(self, text: str | None) -> Address:
        """Finds the underlay address; `text` is an address, an interface, or None.

        Waits for a new IPv6 address while the kernel asks whether somebody on the link has it.

        Raises:
            ConfigError: There is none, no way to choose, or it can't be used.
        """
        found = await self._host()
        address = host.advertised(found, text)
        name = host.holder(found, address)
        down = ""
        if not found[name].link.up:
            down = f"interface {name} is down: ip link set {name} up"
        give_up_s = time.monotonic() + ADDRESS_S
        while await self._run(f"use {address}", host.unusable, self._home, address):
            if down or time.monotonic() > give_up_s:
                why = down or (
                    f"interface {name} has no carrier, or another host has this address: "
                    f"ip address show {name}"
                )
                raise ConfigError(f"underlay address {address} can't be used, {why}")
            await asyncio.sleep(ADDRESS_S / 50)
        if down:
            log.warning("underlay address can't be reached address=%s cause=%s", address, down)
        return address

    async def carried(self) -> Mapping[str, Carried]:
        """What endpoints on this host have sent and received, by the outer ends of their pairs."""
        return await self._run("read the endpoints' counters", self._carried)

    async def survey(
        self, netns: str, outer_name: str, sandbox: Sandbox, toward: Address
    ) -> Survey:
        """Reads an endpoint's way to its bridge, and its sandbox's way to an address."""
        what = f"read the way of {outer_name}"
        return await self._run(what, self._survey, netns, outer_name, sandbox, toward)

    async def within(self, place: Sandbox | str, job: Callable[[], T]) -> T:
        """Does a short job in a sandbox, or an overlay's namespace, or ("") the host's own."""
        return await self._run("enter a namespace", self._within, place, job)

    # What is changed

    async def open_netns(self, netns: str) -> int:
        """Opens an overlay namespace; the caller closes it. Its file is not kept busy."""
        file = self.netns_path(netns)
        return await self._run(f"open namespace {netns}", namespaces.open_apart, file)

    async def ensure_namespace(self, netns: str, adopt: int | None = None) -> None:
        """Puts a namespace on its file: a new one, or that of `adopt`, which stays the caller's."""
        file = self.netns_path(netns)
        await self._run(f"make namespace {netns}", overlay.ensure_namespace, file, adopt)

    async def ensure_bridge(self, netns: str, wanted: Link) -> None:
        """Makes `br0` of an overlay namespace what it should be."""
        await self._run(f"make br0 in {netns}", self._inside, netns, overlay.ensure_bridge, wanted)

    async def ensure_port(self, netns: str, wanted: Link) -> None:
        """Hangs `vxlan0`, which the data plane has made, on the bridge."""
        await self._run(
            f"set up vxlan0 in {netns}", self._inside, netns, overlay.ensure_port, wanted
        )

    async def ensure_vxlan(self, netns: int, name: str, wanted: Vxlan) -> None:
        """Makes a vxlan device in the namespace behind a descriptor, and sets it up."""
        await self._run(f"make {name}", vxlan.ensure, self._home, netns, name, wanted)

    async def read_vxlan(self, netns: int, name: str, wanted: Vxlan) -> VxlanState | None:
        """Reads what a vxlan device holds; None if there is none that is as wanted."""
        return await self._run(f"read {name}", vxlan.read, netns, name, wanted)

    async def change_vxlan(
        self,
        netns: int,
        name: str,
        *,
        add: Mapping[bytes, str],
        remove: Iterable[bytes],
        neighbours: Mapping[str, bytes] | None,
        flood: Iterable[str] | None,
    ) -> None:
        """Changes what a vxlan device knows; `neighbours` and `flood` replace, if given."""
        await self._run(
            f"fill {name}",
            vxlan.change,
            netns,
            name,
            add=add,
            remove=remove,
            neighbours=neighbours,
            flood=flood,
        )

    async def remove_vxlan(self, netns: int, name: str) -> None:
        """Removes a vxlan device, if it is there."""
        await self._run(f"remove {name}", vxlan.remove, netns, name)

    async def ensure_veth(self, sandbox: Sandbox, wanted: Veth) -> None:
        """Makes a pair what it should be; nothing is left of a new one that can't be."""
        what = f"make {wanted.inner_name} in {sandbox.path}"
        await self._run(what, self._ensure_veth, sandbox, wanted)

    async def ensure_gateway(self, wanted: Gateway) -> None:
        """Makes the gateway bridge, its rules and forwarding what they should be."""
        await self._run(
            f"make {GATEWAY_BRIDGE}",
            gateway_bridge.ensure,
            self._home,
            wanted,
            self._alias,
            self._records.remember_sysctl,
        )

    async def remove_veth(self, netns: str, outer_name: str) -> None:
        """Removes a pair by its outer end; an empty `netns` stands for the host's own."""
        await self._run(f"remove {outer_name}", self._remove_veth, netns, outer_name)

    async def remove_namespace(self, netns: str) -> None:
        """Takes an overlay namespace away, with all links in it."""
        file = self.netns_path(netns)
        await self._run(f"remove namespace {netns}", namespaces.remove, file)

    async def ensure_names_link(self, wanted: Link) -> None:
        """Makes the link that holds the name server's address in the host's namespace."""
        await self._run(f"make {NAMES_LINK}", self._ensure_names_link, wanted)

    async def remove_names_link(self) -> None:
        """Removes that link, if it is ours."""
        await self._run(f"remove {NAMES_LINK}", self._remove_names_link)

    async def docker_ifname(self, netns: str, outer_name: str, sandbox: Sandbox) -> str:
        """Finds how Docker has named the inner end of a pair in a sandbox; empty if it has not."""
        what = f"find the peer of {outer_name} in {sandbox.path}"
        return await self._run(what, self._docker_ifname, netns, outer_name, sandbox)

    async def add_route(self, sandbox: Sandbox, ifname: str, route: Route) -> None:
        """Adds a route to a sandbox; one to that destination that is there already stays."""
        what = f"add a route to {route.destination} in {sandbox.path}"
        await self._run(what, self._add_route, sandbox, ifname, route)

    async def remove_gateway(self) -> None:
        """Removes the gateway bridge and its rules, and puts forwarding back as it was.

        A bridge of that name that is not ours stays.
        """
        await self._run(f"remove {GATEWAY_BRIDGE}", self._remove_gateway)

    async def cleanup(self) -> None:
        """Removes everything that a daemon with these directories ever made on this host.

        Goes on to its end whatever happens.

        Raises:
            ExceptionGroup: What could not be removed.
        """
        seen = await self.observe(())
        steps: list[Callable[[], object]] = [
            functools.partial(self.remove_veth, "", name) for name in seen.uplinks
        ]
        # Before their namespace: the kernel takes links away with it, but only some time later.
        steps += [
            functools.partial(self.remove_veth, netns, name)
            for netns, found in seen.namespaces.items()
            for name in found
            if OUTER_NAME.fullmatch(name)
        ]
        names = [entry.name for entry in self._netns_files()]
        steps += [functools.partial(self.remove_namespace, name) for name in names]
        steps += [self.remove_names_link, self.remove_gateway]
        failures: list[Exception] = []
        for step in steps:
            try:
                await step()  # type: ignore[misc]
            except DaemonError as error:
                failures.append(error)
        with contextlib.suppress(OSError):
            self._netns_dir.rmdir()
        if failures:
            raise ExceptionGroup("not everything could be removed", failures)

    # In a thread

    @property
    def _alias(self) -> str:
        return alias_of(self._records.host_id)

    async def _run(self, what: str, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        with _explained(what):
            return await loop.run_in_executor(
                self._threads, functools.partial(job, *args, **kwargs)
            )

    async def _host(self) -> Mapping[str, KernelLink]:
        return await self._run("read the host's links", host.read, self._home)

    def _observe(self, attachments: Sequence[Attachment]) -> Observed:
        overlays: dict[str, Mapping[str, KernelLink]] = {}
        for file in self._netns_files():
            with contextlib.suppress(OSError):
                opened = namespaces.open_namespace(file)
                with namespaces.closing(opened), namespaces.entered(opened) as netlink:
                    overlays[file.name] = links.read_links(netlink, routes=True, stations=True)
        with namespaces.entered(self._home) as netlink:
            own = links.read_links(netlink, stations=True)
            bridge, names = own.get(GATEWAY_BRIDGE), own.get(NAMES_LINK)
            gateway = None
            if bridge is not None and self._is_our_bridge(bridge):
                gateway = gateway_bridge.read(netlink, bridge)
        outer = {"": own, **overlays}
        return Observed(
            namespaces={
                name: _plain(found)
                | ({BRIDGE: _with_loopback(BRIDGE, found)} if BRIDGE in found else {})
                for name, found in overlays.items()
            },
            names=names.link if names and self._is_our_bridge(names) else None,
            gateway=gateway,
            uplinks={
                name: found.link
                for name, found in own.items()
                if found.kind == "veth" and found.alias.startswith(f"{self._alias} ")
            },
            inner=dict(self._observe_inner(attachments, outer)),
        )

    def _carried(self) -> dict[str, Carried]:
        found = {}
        for file in self._netns_files():
            with contextlib.suppress(OSError):
                opened = namespaces.open_namespace(file)
                with namespaces.closing(opened), namespaces.entered(opened) as netlink:
                    ports = links.read_ports(netlink)
                    found.update({n: port for n, port in ports.items() if OUTER_NAME.fullmatch(n)})
        return found

    def _observe_inner(
        self,
        attachments: Sequence[Attachment],
        outer: Mapping[str, Mapping[str, KernelLink]],
    ) -> Iterator[tuple[str, Link]]:
        for attachment in attachments:
            if attachment.overlay.handover:
                continue
            try:
                with (
                    self._sandboxes.opened(attachment.sandbox) as opened,
                    namespaces.entered(opened) as netlink,
                ):
                    found = links.read_links(netlink, routes=True)
            except (DaemonError, OSError):
                continue  # Gone, or going: whoever asks whether it lives will be told so.
            for pair in attachment.veths:
                inner = found.get(pair.inner_name)
                end = outer.get(pair.netns, {}).get(pair.outer_name)
                if inner is not None and veth.is_pair(end, inner):
                    yield pair.outer_name, _with_loopback(pair.inner_name, found)

    def _survey(self, netns: str, outer_name: str, sandbox: Sandbox, toward: Address) -> Survey:
        try:
            with self._opened(netns) as outer:
                found, end = survey.read_overlay(outer, outer_name)
        except FileNotFoundError:
            return Survey(None)
        try:
            with self._sandboxes.opened(sandbox) as opened:
                return Survey(found, survey.read_inside(opened, end, toward))
        except NotFoundError:
            return Survey(found)

    def _within(self, place: Sandbox | str, job: Callable[[], T]) -> T:
        with contextlib.ExitStack() as stack:
            where = self._home
            if isinstance(place, Sandbox):
                where = stack.enter_context(self._sandboxes.opened(place))
            elif place:
                where = stack.enter_context(self._opened(place))
            stack.enter_context(namespaces.inside(where))
            return job()

    def _netns_files(self) -> list[Path]:
        try:
            entries = list(self._netns_dir.iterdir())
        except FileNotFoundError:
            return []
        return sorted(entry for entry in entries if _NETNS_NAME.fullmatch(entry.name))

    def _names_sockets(self, netns: str, address: Address) -> tuple[socket.socket, socket.socket]:
        with contextlib.ExitStack() as stack:
            where = stack.enter_context(self._opened(netns)) if netns else self._home
            stack.enter_context(namespaces.inside(where))
            return open_dns_sockets((str(address), 53))

    def _ensure_names_link(self, wanted: Link) -> None:
        with namespaces.entered(self._home) as netlink:
            found = links.find(netlink, NAMES_LINK)
            if found is None:
                links.create_bridge(netlink, NAMES_LINK, wanted)
                found = links.find(netlink, NAMES_LINK)
            elif not self._is_our_bridge(found):
                raise ConflictError(f"{NAMES_LINK} was not made by this daemon: remove it")
            if found is None:
                raise NetError(f"{NAMES_LINK} vanished while it was made; it is made again")
            links.shape(netlink, found, wanted, alias=self._alias)
            sysctl.limit_ipv6(NAMES_LINK, enabled=False)
            links.activate(netlink, found.index, wanted)

    def _remove_names_link(self) -> None:
        with namespaces.entered(self._home) as netlink:
            found = links.find(netlink, NAMES_LINK)
            if found is not None and self._is_our_bridge(found):
                links.delete(netlink, found.index)

    def _docker_ifname(self, netns: str, outer_name: str, sandbox: Sandbox) -> str:
        with self._opened(netns) as outer, namespaces.entered(outer) as netlink:
            end = links.find(netlink, outer_name)
        with self._sandboxes.opened(sandbox) as inner, namespaces.entered(inner) as netlink:
            found = links.read_links(netlink)
        return next((name for name, link in found.items() if veth.is_pair(end, link)), "")

    def _add_route(self, sandbox: Sandbox, ifname: str, route: Route) -> None:
        with self._sandboxes.opened(sandbox) as inner, namespaces.entered(inner) as netlink:
            found = links.find(netlink, ifname)
            if found is None:
                raise NetError(f"{ifname} is not in {sandbox.path}")
            with contextlib.suppress(FileExistsError):
                links.add_route(netlink, found.index, route)

    def _is_our_bridge(self, bridge: KernelLink) -> bool:
        return bridge.kind == "bridge" and bridge.alias == self._alias

    def _opened(self, netns: str) -> contextlib.AbstractContextManager[int]:
        """Opens an overlay namespace for a while."""
        return namespaces.closing(namespaces.open_namespace(self.netns_path(netns)))

    def _inside(self, netns: str, job: Callable[[int, Link], None], wanted: Link) -> None:
        with self._opened(netns) as opened:
            job(opened, wanted)

    def _ensure_veth(self, sandbox: Sandbox, wanted: Veth) -> None:
        if wanted.handover:
            self._hand_over(sandbox, wanted)
            return
        with self._sandboxes.opened(sandbox) as inner:
            if not wanted.netns:
                veth.ensure(self._home, inner, wanted)
                return
            with self._opened(wanted.netns) as outer:
                veth.ensure(outer, inner, wanted)

    def _hand_over(self, sandbox: Sandbox, wanted: Veth) -> None:
        with contextlib.ExitStack() as stack:
            outer = stack.enter_context(self._opened(wanted.netns))
            inner = None
            with contextlib.suppress(NotFoundError):
                inner = stack.enter_context(self._sandboxes.opened(sandbox))
            veth.hand_over(outer, self._home, inner, wanted)

    def _remove_veth(self, netns: str, outer_name: str) -> None:
        with contextlib.ExitStack() as stack:
            where = self._home
            if netns:
                where = stack.enter_context(self._opened(netns))
            veth.remove(stack.enter_context(namespaces.entered(where)), outer_name)

    def _remove_gateway(self) -> None:
        with namespaces.entered(self._home) as netlink:
            bridge = links.find(netlink, GATEWAY_BRIDGE)
            if bridge is not None and self._is_our_bridge(bridge):
                links.delete(netlink, bridge.index)
            if bridge is None or self._is_our_bridge(bridge):
                with contextlib.suppress(OSError), nftables.open_netfilter() as netfilter:
                    if nftables.exists(netfilter):
                        nftables.remove(netfilter)
            for name, old in self._records.sysctls().items():
                sysctl.write(name, old)
                self._records.forget_sysctl(name)


def _plain(found: Mapping[str, KernelLink]) -> dict[str, Link]:
    return {name: entry.link for name, entry in found.items()}


def _with_loopback(name: str, found: Mapping[str, KernelLink]) -> Link:
    """A link, at fault if the loopback interface beside it is down: who makes one sets up both."""
    link = found[name].link
    return link if found["lo"].link.up else replace(link, odd=link.odd | {"loopback"})


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns the kernel's refusals into the daemon's errors, with what was to be done."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPERM:
            raise NetError(f"could not {what}: {error.strerror}; the daemon needs root") from error
        if error.errno == errno.EEXIST:
            raise ConflictError(f"could not {what}: a name is taken already") from error
        raise NetError(f"could not {what}: {error.strerror or error}") from error
