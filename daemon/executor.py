"""Carries out single operations of a plan, in the kernel and in the data plane."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from pyvxlan.daemon.dataplane import Dataplane
from pyvxlan.daemon.model import Address, Sandbox
from pyvxlan.daemon.net import PORT, Attachment, Gateway, Link, Observed, Veth
from pyvxlan.daemon.operations import (
    AttachPort,
    DetachPort,
    EnsureBridge,
    EnsureGateway,
    EnsureNamesLink,
    EnsureNamespace,
    EnsurePort,
    EnsureVeth,
    NetOp,
    Op,
    RemoveNamespace,
    RemoveVeth,
    UpdateTables,
)


class Kernel(Protocol):
    """What is asked of `daemon.net.Net`, which says what each call does."""

    async def observe(self, attachments: Iterable[Attachment]) -> Observed:
        """Reads what is there."""

    def sandbox_alive(self, sandbox: Sandbox) -> bool:
        """Whether a sandbox still is what it was."""

    async def underlay_mtu(self, address: Address) -> int:
        """MTU in bytes of the interface that holds an address."""

    async def open_netns(self, netns: str) -> int:
        """Opens an overlay namespace; the caller closes it."""

    async def ensure_namespace(self, netns: str, adopt: int | None = None) -> None:
        """Puts a namespace on its file."""

    async def ensure_bridge(self, netns: str, wanted: Link) -> None:
        """Makes an overlay's bridge."""

    async def ensure_port(self, netns: str, wanted: Link) -> None:
        """Hangs an overlay's port on its bridge."""

    async def ensure_veth(self, sandbox: Sandbox, wanted: Veth) -> None:
        """Makes a pair."""

    async def ensure_gateway(self, wanted: Gateway) -> None:
        """Makes the gateway bridge."""

    async def ensure_names_link(self, wanted: Link) -> None:
        """Makes the host's link of the name server."""

    async def remove_veth(self, netns: str, outer_name: str) -> None:
        """Removes a pair."""

    async def remove_namespace(self, netns: str) -> None:
        """Takes an overlay namespace away."""


class Executor:
    """Does one operation at a time; whatever refuses raises its DaemonError."""

    def __init__(self, net: Kernel, dataplane: Dataplane) -> None:
        self._net = net
        self._dataplane = dataplane

    async def perform(self, op: Op) -> None:
        """Carries out an operation."""
        match op:
            case AttachPort():
                await self._attach(op)
            case UpdateTables(update=update):
                await self._dataplane.apply(update)
            case DetachPort(vni=vni):
                await self._dataplane.detach(vni)
            case _:
                await self._perform_in_kernel(op)

    async def _perform_in_kernel(self, op: NetOp) -> None:
        match op:
            case EnsureNamespace():
                await self._ensure_namespace(op)
            case EnsureBridge(netns=netns, link=link):
                await self._net.ensure_bridge(netns, link)
            case EnsurePort(netns=netns, link=link):
                await self._net.ensure_port(netns, link)
            case EnsureGateway(gateway=gateway):
                await self._net.ensure_gateway(gateway)
            case EnsureNamesLink(link=link):
                await self._net.ensure_names_link(link)
            case EnsureVeth(sandbox=sandbox, veth=veth):
                await self._net.ensure_veth(sandbox, veth)
            case RemoveVeth(netns=netns, outer_name=outer_name):
                await self._net.remove_veth(netns, outer_name)
            case RemoveNamespace(netns=netns):
                await self._net.remove_namespace(netns)

    async def _ensure_namespace(self, op: EnsureNamespace) -> None:
        held = await self._dataplane.adopt_netns(op.vni) if op.adopt else None
        try:
            await self._net.ensure_namespace(op.netns, held)
        finally:
            if held is not None:
                os.close(held)

    async def _attach(self, op: AttachPort) -> None:
        netns = await self._net.open_netns(op.netns)
        try:
            await self._dataplane.attach(netns, PORT, op.port)
        finally:
            os.close(netns)
