"""What is asked of the local Docker Engine: networks, endpoints, containers' names, events.

A thin, typed layer over aiodocker. Every call is bounded in time. `GET /containers/ID/json` waits
for a lock that Docker holds while it waits for us; therefore `container` is never called from
within a plug-in call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp

from pyvxlan.daemon.errors import ConflictError, DaemonError, NotFoundError
from pyvxlan.daemon.model import Cidr, Network

log = logging.getLogger(__name__)

CALL_S = 30.0
QUICK_S = 2.0


class EngineError(DaemonError):
    """Docker's API could not be reached or refused a request."""

    status = 503
    retry = True


@dataclass(frozen=True, slots=True)
class EngineNetwork:
    """A network of Docker's list. `subnets` with anything that is no range left out."""

    id: str
    name: str
    subnets: frozenset[Cidr]
    gateways: tuple[str, ...] = ()
    ip_ranges: tuple[str, ...] = ()
    aux_addresses: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    internal: bool = False
    attachable: bool = False
    ipv6: bool = False
    endpoints: Mapping[str, EngineEndpoint] = field(default_factory=dict)
    """By Docker's endpoint id; only of a network that was asked for by itself."""


@dataclass(frozen=True, slots=True)
class EngineEndpoint:
    """An endpoint as Docker lists it with its network."""

    id: str
    name: str
    container_id: str
    """Empty while Docker has not started the container."""
    mac: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineContainer:
    """A container's names: its own, its hostname, and its aliases by endpoint id."""

    id: str
    name: str
    hostname: str
    aliases: Mapping[str, tuple[str, ...]]
    links: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What it alone calls other containers (`--link`): their names by alias, by endpoint id."""


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """Something that happened: `kind` is network or container, `id` of it."""

    kind: str
    action: str
    id: str
    attributes: Mapping[str, str]


class Engine:
    """One Docker Engine, found by its socket.

    Args:
        socket: Where its API is.
        driver: Name of our driver there.
    """

    def __init__(self, socket: Path, driver: str) -> None:
        self.driver = driver
        self.reachable = False
        """Whether Docker answers, as far as is known: its events are listened to."""
        self._socket = socket
        self._client: aiodocker.Docker | None = None

    async def close(self) -> None:
        """Lets go of the connections. May be called twice."""
        client, self._client = self._client, None
        self.reachable = False
        if client:
            with contextlib.suppress(aiodocker.DockerError, aiohttp.ClientError, OSError):
                await client.events.stop()  # Raises once more what ended the events.
            await client.close()

    async def networks(self) -> list[EngineNetwork]:
        """Lists the networks of our driver, without endpoints."""
        async with self._calling("list networks") as docker:
            listed = await docker.networks.list(filters={"driver": self.driver})
        return [_network(entry) for entry in listed if entry.get("Driver") == self.driver]

    async def network(self, engine_id: str, *, timeout_s: float = CALL_S) -> EngineNetwork:
        """Shows a network with its endpoints; takes about 2 ms, also within a plug-in call."""
        async with self._calling(f"inspect network {engine_id[:12]}", timeout_s) as docker:
            return _network(await aiodocker.networks.DockerNetwork(docker, engine_id).show())

    async def create(self, network: Network) -> str:
        """Makes a copy of the cluster's network; gives Docker's id of it.

        Raises:
            ConflictError: Docker has a network of that name.
        """
        versions = {subnet.cidr.version for subnet in network.subnets}
        config = {
            "Name": network.name,
            "CheckDuplicate": True,
            "Driver": self.driver,
            "Internal": network.internal,
            "Attachable": network.attachable,
            "EnableIPv4": 4 in versions,  # Docker 28 and later; others ask for IPv4 always.
            "EnableIPv6": 6 in versions,
            "Options": dict(network.options),
            "Labels": dict(network.labels),
            "IPAM": {
                "Driver": self.driver,
                "Config": [
                    {"Subnet": str(subnet.cidr), "Gateway": str(subnet.gateway)}
                    | ({"IPRange": str(subnet.ip_range)} if subnet.ip_range else {})
                    | (
                        {"AuxiliaryAddresses": {name: str(ip) for name, ip in subnet.aux}}
                        if subnet.aux
                        else {}
                    )
                    for subnet in network.subnets
                ],
            },
        }
        async with self._calling(f"create network {network.name}") as docker:
            return str((await docker.networks.create(config)).id)

    async def remove(self, engine_id: str) -> None:
        """Removes a network; one that is not there is no error."""
        with contextlib.suppress(NotFoundError):
            async with self._calling(f"remove network {engine_id[:12]}") as docker:
                await aiodocker.networks.DockerNetwork(docker, engine_id).delete()

    async def container(self, container_id: str) -> EngineContainer:
        """Shows a container's names. Never to be called from within a plug-in call."""
        async with self._calling(f"inspect container {container_id[:12]}") as docker:
            shown = await docker.containers.container(container_id).show()
        networks = (shown.get("NetworkSettings") or {}).get("Networks") or {}
        attached = [entry for entry in networks.values() if entry and entry.get("EndpointID")]
        return EngineContainer(
            id=shown["Id"],
            name=str(shown.get("Name", "")).removeprefix("/"),
            hostname=str((shown.get("Config") or {}).get("Hostname") or ""),
            aliases={
                entry["EndpointID"]: tuple(entry.get("Aliases") or entry.get("DNSNames") or ())
                for entry in attached
            },
            links={entry["EndpointID"]: _links(entry.get("Links") or ()) for entry in attached},
        )

    async def events(self) -> AsyncIterator[EngineEvent | None]:
        """Yields None once listening, then events; ends when the connection does.

        Raises:
            EngineError: Docker can't be reached.
        """
        await self.close()
        async with self._calling("listen", timeout_s=QUICK_S) as docker:
            await docker.version()
        subscriber = docker.events.subscribe(filters='{"type":["network","container"]}')
        self.reachable = True
        yield None
        while (event := await subscriber.get()) is not None:
            actor = event.get("Actor") or {}
            yield EngineEvent(
                str(event.get("Type", "")),
                str(event.get("Action", "")),
                str(actor.get("ID", "")),
                actor.get("Attributes") or {},
            )
        self.reachable = False

    @contextlib.asynccontextmanager
    async def _calling(
        self, what: str, timeout_s: float = CALL_S
    ) -> AsyncIterator[aiodocker.Docker]:
        if self._client is None:
            self._client = aiodocker.Docker(url=f"unix://{self._socket}")
        try:
            async with asyncio.timeout(timeout_s):
                yield self._client
        except aiodocker.DockerError as error:
            text = f"could not {what}: Docker says {error.message}"
            if error.status == 404:
                raise NotFoundError(text) from error
            if error.status in {403, 409}:
                raise ConflictError(text) from error
            raise EngineError(text) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EngineError(
                f"could not {what}: Docker does not answer at {self._socket} ({error!r})"
            ) from error


def _links(texts: Iterable[str]) -> dict[str, str]:
    pairs = (text.partition(":") for text in texts)
    return {(alias or name).lower(): name for name, _, alias in pairs}


def _network(entry: Mapping[str, Any]) -> EngineNetwork:
    ipv6 = bool(entry.get("EnableIPv6"))
    ipam = []
    subnets = set()
    for config in (entry.get("IPAM") or {}).get("Config") or []:
        with contextlib.suppress(ValueError):
            cidr = ip_network(config.get("Subnet", ""))
            # Docker shows an IPv6 subnet that it was given without --ipv6, and does not use it.
            if cidr.version == 4 or ipv6:
                subnets.add(cidr)
                ipam.append(config)
    return EngineNetwork(
        id=entry["Id"],
        name=entry["Name"],
        subnets=frozenset(subnets),
        gateways=tuple(str(c["Gateway"]).partition("/")[0] for c in ipam if c.get("Gateway")),
        ip_ranges=tuple(str(config["IPRange"]) for config in ipam if config.get("IPRange")),
        aux_addresses={
            name: str(address).partition("/")[0]
            for config in ipam
            for name, address in (config.get("AuxiliaryAddresses") or {}).items()
        },
        options=dict(entry.get("Options") or {}),
        labels=dict(entry.get("Labels") or {}),
        internal=bool(entry.get("Internal")),
        attachable=bool(entry.get("Attachable")),
        ipv6=ipv6,
        endpoints={
            info["EndpointID"]: EngineEndpoint(
                info["EndpointID"],
                str(info.get("Name", "")),
                "" if key.startswith("ep-") else key,
                str(info.get("MacAddress", "")),
                tuple(
                    text
                    for name in ("IPv4Address", "IPv6Address")
                    if (text := str(info.get(name) or ""))
                ),
            )
            for key, info in (entry.get("Containers") or {}).items()
            if info.get("EndpointID")
        },
    )
