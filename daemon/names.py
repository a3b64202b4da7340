"""Which names an overlay's containers have, and what they mean to one container. Pure.

On every network that it is on, a container answers to its endpoint name, its aliases, its
hostname, and the first 12 digits of its endpoint and container ids; each also followed by a dot
and the network's name. Names and aliases come first: only if nobody has one is a hostname or an
id looked at, so that no hostname can take a name away. Case does not matter.

All of that may be followed by `.pyvxlan`. Docker's own name server, which comes before this one
and knows its own host's containers alone, passes such a name on: so it has all holders of an alias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pyvxlan.daemon.model import Address, Endpoint, Network

SHORT_ID_DIGITS = 12
ZONE = ".pyvxlan"
SUFFIX = re.compile(r"(\.[a-z0-9_-]{1,63})+")
SUFFIX_MAX = 253 - 63
"""What a domain name has room for behind a container's."""


class Directory(Protocol):
    """The networks and endpoints that names are made from; `State` is one."""

    @property
    def networks(self) -> Mapping[str, Network]:
        """All networks, by id."""

    @property
    def endpoints(self) -> Mapping[str, Mapping[str, Endpoint]]:
        """Endpoints on all hosts of the networks that matter here, by network id, then id."""

    def version(self, network_id: str) -> int:
        """A number that changes with a network's endpoints."""


class Names:
    """Looks names and addresses up, each time for the networks that the asker is on.

    A network's index is built when it is first asked for and again after its endpoints changed.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._indexes: dict[str, _Index] = {}

    def addresses(self, network_ids: Iterable[str], asked: str) -> Sequence[Address] | None:
        """Gives all addresses that a name has on these networks, v4 and v6, in no special order.

        Returns None if nobody on them has the name. `asked` has no dot at its end.
        """
        wanted = asked.lower()
        indexes = list(self._known(network_ids))
        found = _holders(indexes, wanted)
        if not found and wanted.endswith(ZONE):
            found = _holders(indexes, wanted.removesuffix(ZONE))
        return found or None

    def name_of(self, network_ids: Iterable[str], address: Address) -> str | None:
        """Gives `name.network` of the endpoint that holds an address on one of these networks.

        Only its name, if the network's is none that the DNS has.
        """
        for index in self._known(network_ids):
            if endpoint := index.holders.get(address):
                suffix = f".{index.network.name}" if index.suffix else ""
                return f"{canonical_name(endpoint)}{suffix}"
        return None

    def covers(self, network_ids: Iterable[str], address: Address) -> bool:
        """Tells whether an address belongs to one of these networks, held by anybody or not."""
        return any(
            address in subnet.cidr
            for network_id in network_ids
            if (network := self._directory.networks.get(network_id))
            for subnet in network.subnets
        )

    def _known(self, network_ids: Iterable[str]) -> Iterator[_Index]:
        for network_id in network_ids:
            network = self._directory.networks.get(network_id)
            if network is None:
                self._indexes.pop(network_id, None)
                continue
            version = self._directory.version(network_id)
            index = self._indexes.get(network_id)
            if index is None or index.version != version or index.network is not network:
                endpoints = self._directory.endpoints.get(network_id, {})
                index = _Index.of(network, version, endpoints.values())
                self._indexes[network_id] = index
            yield index


@dataclass(slots=True)
class _Index:
    """Who has which name on one network."""

    network: Network
    version: int
    suffix: str
    """A dot and the network's name; empty if that can't be a part of a domain name."""
    names: dict[str, list[Endpoint]] = field(default_factory=dict)
    nicknames: dict[str, list[Endpoint]] = field(default_factory=dict)
    holders: dict[Address, Endpoint] = field(default_factory=dict)

    @classmethod
    def of(cls, network: Network, version: int, endpoints: Iterable[Endpoint]) -> _Index:
        suffix = f".{network.name.lower()}"
        if len(suffix) > SUFFIX_MAX or not SUFFIX.fullmatch(suffix):
            suffix = ""
        index = cls(network, version, suffix)
        for endpoint in endpoints:
            for name in {endpoint.name.lower(), *map(str.lower, endpoint.aliases)} - {""}:
                index.names.setdefault(name, []).append(endpoint)
            ids = (endpoint.id[:SHORT_ID_DIGITS], endpoint.container_id[:SHORT_ID_DIGITS])
            for name in {endpoint.hostname.lower(), *ids} - {""}:
                index.nicknames.setdefault(name, []).append(endpoint)
            index.holders.update((address.ip, endpoint) for address in endpoint.addresses)
        return index

    def unqualified(self, name: str) -> str:
        """Cuts the network's name off; gives "" if the name does not end with it."""
        ours = self.suffix and name.endswith(self.suffix)
        return name.removesuffix(self.suffix) if ours else ""


def _holders(indexes: Sequence[_Index], wanted: str) -> list[Address]:
    for tier in ([index.names for index in indexes], [index.nicknames for index in indexes]):
        found: dict[Address, None] = {}
        for index, holders in zip(indexes, tier, strict=True):
            for name in (wanted, index.unqualified(wanted)):
                for endpoint in holders.get(name, ()):
                    found.update(dict.fromkeys(address.ip for address in endpoint.addresses))
        if found:
            return list(found)
    return []


def canonical_name(endpoint: Endpoint) -> str:
    """The one name by which an endpoint is shown: its own, its hostname, or its short id."""
    return endpoint.name or endpoint.hostname or endpoint.id[:SHORT_ID_DIGITS]
