"""Which of Docker's networks is which of the cluster's, remembered over restarts.

Docker picks an id of its own on every host. A pair is made when Docker makes the network and ends
when Docker removes it. The cluster's record is kept with it, so that a start without the store
knows which network has which subnet.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from pyvxlan.daemon import records
from pyvxlan.daemon.errors import InvalidError
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.model import Address, Cidr, Network

log = logging.getLogger(__name__)

DOCUMENT = "docker"


class Pairing:
    """The pairs of this host; every change but a new pair is on the disk when the call returns.

    Docker waits while a pair is made, and a disk may take 6 ms. One that is lost in a crash before
    `flush` is found again by its name and subnets.
    """

    def __init__(self, local: LocalRecords) -> None:
        self._local = local
        self._pairs: dict[str, Network] = {}
        self._lost: dict[str, Network] = {}
        self._hidden: set[str] = set()
        self._doomed: set[str] = set()
        self._unsaved = False
        self._load(local.document(DOCUMENT))

    @property
    def pairs(self) -> Mapping[str, Network]:
        """The cluster's networks by Docker's ids."""
        return MappingProxyType(self._pairs)

    @property
    def hidden(self) -> frozenset[str]:
        """Networks that a user has removed from this host's Docker alone."""
        return frozenset(self._hidden)

    @property
    def doomed(self) -> frozenset[str]:
        """Networks that a user has removed from Docker, and that the cluster still has."""
        return frozenset(self._doomed)

    def join(self, engine_id: str, network: Network) -> None:
        """Notes a pair; `flush` puts it on the disk."""
        self._pairs[engine_id] = network
        self._hidden.discard(network.id)
        self._unsaved = True

    def flush(self) -> None:
        """Puts new pairs on the disk."""
        if self._unsaved:
            self._save()

    def part(self, engine_id: str, *, doomed: bool = False) -> Network | None:
        """Ends a pair; gives the cluster's side, which is noted as `doomed` at the same moment."""
        network = self._pairs.pop(engine_id, None) or self._lost.pop(engine_id, None)
        if network:
            if doomed:
                self._doomed.add(network.id)
            self._save()
        return network

    def forget_hidden(self, network_ids: Collection[str]) -> None:
        """Notes that hidden networks are gone from the cluster."""
        if self._hidden & set(network_ids):
            self._hidden -= set(network_ids)
            self._save()

    def lose(self, engine_id: str) -> None:
        """Ends a pair that Docker does not list; if it still says why, `part` knows of it."""
        if network := self._pairs.pop(engine_id, None):
            self._lost[engine_id] = network
            self._save()

    def settle(self, network_id: str, *, hidden: bool) -> None:
        """Notes what became of a doomed network: it is gone, or only hidden here."""
        self._doomed.discard(network_id)
        if hidden:
            self._hidden.add(network_id)
        self._save()

    def engine_id(self, network_id: str) -> str | None:
        """Docker's id of a network."""
        return next((key for key, one in self._pairs.items() if one.id == network_id), None)

    def of_subnet(self, cidr: Cidr) -> Network | None:
        """The paired network that has a subnet."""
        for network in self._pairs.values():
            if any(subnet.cidr == cidr for subnet in network.subnets):
                return network
        return None

    def _load(self, document: Mapping[str, Any]) -> None:
        try:
            for engine_id, entry in dict(document.get("pairs", {})).items():
                record = str(entry["record"]).encode()
                self._pairs[str(engine_id)] = records.parse_network(entry["network"], record)
            self._hidden = {str(one) for one in document.get("hidden", [])}
            self._doomed = {str(one) for one in document.get("doomed", [])}
        except (TypeError, KeyError, ValueError, AttributeError, InvalidError) as error:
            # What is missing is found again by names and subnets.
            log.error("pairs with Docker's networks not readable cause=%r", error)
            self._pairs, self._hidden, self._doomed = {}, set(), set()

    def _save(self) -> None:
        self._local.save_document(
            DOCUMENT,
            {
                "v": records.VERSION,
                "pairs": {
                    engine_id: {
                        "network": network.id,
                        "record": records.emit_network(network).decode(),
                    }
                    for engine_id, network in self._pairs.items()
                },
                "hidden": sorted(self._hidden),
                "doomed": sorted(self._doomed),
            },
        )
        self._unsaved = False


def held_by_itself(network: Network) -> frozenset[Address]:
    """The addresses that a network has itself: gateways, and what is given to nobody."""
    return frozenset(
        address
        for subnet in network.subnets
        for address in (subnet.gateway, *(spared for _, spared in subnet.aux))
    )
