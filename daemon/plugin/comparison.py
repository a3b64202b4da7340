"""What is to be done so that Docker shows the cluster's networks, each exactly once. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pyvxlan.daemon.model import Network
from pyvxlan.daemon.plugin.engine import EngineNetwork


@dataclass(frozen=True, slots=True)
class Pair:
    """Docker's network is the cluster's: note it."""

    engine_id: str
    network: Network


@dataclass(frozen=True, slots=True)
class Publish:
    """Docker's network is new: tell the cluster."""

    shown: EngineNetwork

    @property
    def engine_id(self) -> str:
        """Docker's id of it."""
        return self.shown.id


@dataclass(frozen=True, slots=True)
class Remove:
    """Docker's network is none of the cluster's: take it out of Docker."""

    shown: EngineNetwork
    why: str

    @property
    def engine_id(self) -> str:
        """Docker's id of it."""
        return self.shown.id


@dataclass(frozen=True, slots=True)
class Copy:
    """Docker lacks the cluster's network: make it there."""

    network: Network


@dataclass(frozen=True, slots=True)
class Part:
    """Docker has lost the network without telling: forget the pair. The network stays."""

    engine_id: str


Step: TypeAlias = Pair | Publish | Remove | Copy | Part


def compare(
    networks: Mapping[str, Network],
    shown: Sequence[EngineNetwork],
    pairs: Mapping[str, Network],
    *,
    hidden: Collection[str] = (),
    leaving: Collection[str] = (),
) -> list[Step]:
    """Gives the steps, removals before what takes their place.

    Args:
        networks: The cluster's, by id.
        shown: Docker's networks of our driver.
        pairs: What is known to belong together, by Docker's id.
        hidden: The cluster's networks that this host's Docker shall not show.
        leaving: Docker's ids of pairs that may be about to end; what is not listed of them counts
            as there.
    """
    steps: list[Step] = []
    by_name = {network.name: network for network in networks.values()}
    listed = {entry.id: entry for entry in shown}
    missing = pairs.keys() - listed.keys()
    here = {pairs[engine_id].id for engine_id in missing if engine_id in leaving}
    steps += [Part(engine_id) for engine_id in pairs if engine_id in missing - set(leaving)]
    # Known pairs first: of several networks with one name the one that is paired stays.
    for entry in sorted(shown, key=lambda entry: (entry.id not in pairs, entry.id)):
        known = pairs.get(entry.id)
        if known is not None:
            current = networks.get(known.id)
            if current is None or current.name != entry.name:
                steps.append(Remove(entry, "it was removed from the cluster"))
            elif known.id in here:
                steps.append(Remove(entry, "it is there twice"))
            else:
                here.add(known.id)
            continue
        namesake = by_name.get(entry.name)
        if namesake is None:
            steps.append(Publish(entry))
        elif namesake.id in here:
            steps.append(Remove(entry, "another network of the cluster has its name"))
        elif entry.subnets == {subnet.cidr for subnet in namesake.subnets}:
            here.add(namesake.id)
            steps.append(Pair(entry.id, namesake))
        else:
            steps.append(Remove(entry, "the cluster's network of that name has other subnets"))
    steps += [
        Copy(network)
        for network in networks.values()
        if network.state == "up" and network.id not in here and network.id not in hidden
    ]
    return sorted(steps, key=lambda step: _ORDER[type(step)])


_ORDER: Mapping[type[object], int] = {Part: 0, Pair: 1, Remove: 2, Publish: 3, Copy: 4}
