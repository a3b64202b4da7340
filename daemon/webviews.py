"""What the web page shows, as JSON documents: one per view, from two readings and the state.

docs/web.md lists every field. Nothing here is secret: names, addresses, counters, states; no MAC,
container id, option or label. All texts that come from the store may hold anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

from pyvxlan.daemon.documents import Document
from pyvxlan.daemon.model import Endpoint
from pyvxlan.daemon.rates import FRAMES, TRAFFIC, comparable, rates
from pyvxlan.daemon.state import State

FRESH_S = 1.0
"""However many look, a reading is taken at most so often."""
STALE_S = 15.0
"""Two readings that are further apart give no rates: they would tell of the past."""
ENDPOINTS = 200
"""So many endpoints are shown at most; a search finds the others."""
NETWORKS = 1000
DROPS = 200
VIEWS = ("summary", "hosts", "networks", "endpoints", "tunnels", "drops", "store", "threads",
         "events")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """Two readings, and what happened between them; `rates` is None if there are no two."""

    now: Document
    rates: Document | None


class Readings:
    """Takes readings when somebody looks.

    Args:
        read: Gives the document of `GET /v1/status`, with that of `GET /v1/peers` as `tunnels`.
        monotonic: The clock.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Document]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._monotonic = monotonic
        self._last: Look | None = None
        self._taken = float("-inf")
        self._one_at_a_time = asyncio.Lock()

    async def look(self) -> Look:
        """Gives the last reading, or a new one if that is old."""
        async with self._one_at_a_time:
            age_s = self._monotonic() - self._taken
            if self._last is None or age_s >= FRESH_S:
                now = await self._read()
                before = self._last.now if self._last and age_s < STALE_S else None
                told = rates(before, now) if before and comparable(before, now) else None
                self._last, self._taken = Look(now, told), self._monotonic()
            return self._last


class Views:
    """Makes the documents.

    Args:
        readings: Of this daemon.
        state: What the store says, as far as this host knows.
        events: Gives the events with a greater number.
    """

    def __init__(
        self, readings: Readings, state: State, events: Callable[[int], list[Document]]
    ) -> None:
        self._readings = readings
        self._state = state
        self._events = events

    async def view(self, name: str, *, find: str = "", after: int = 0) -> object:
        """Gives one of `VIEWS`.

        Args:
            name: Of the view.
            find: Of endpoints and networks, only those in whose texts this occurs.
            after: Of events, only those with a greater number.
        """
        look = await self._readings.look()
        return self._made(name, look, find.casefold(), after)

    async def everything(self, *, find: str, after: int) -> Document:
        """Gives all views as one document, by name."""
        look = await self._readings.look()
        return {name: self._made(name, look, find.casefold(), after) for name in VIEWS}

    def _made(self, name: str, look: Look, find: str, after: int) -> object:
        makers: Mapping[str, Callable[[], object]] = {
            "summary": lambda: self._summary(look.now),
            "hosts": self._hosts,
            "networks": lambda: self._networks(look, find),
            "endpoints": lambda: self._endpoints(find),
            "tunnels": lambda: self._tunnels(look),
            "drops": lambda: self._drops(look),
            "store": lambda: look.now["store"],
            "threads": lambda: look.rates["workers"] if look.rates else [],
            "events": lambda: self._events(after),
        }
        return makers[name]()

    def _summary(self, now: Document) -> Document:
        return {
            "host": now["host"]["name"],
            "version": now["version"],
            "uptime_s": now["uptime_s"],
            "store": now["store"]["state"],
            "forwarder": now["forwarder"],
            "reconcile": now["reconcile"],
            "names": now["names"],
            "hosts_alive": len(self._state.hosts.keys() & self._state.alive),
            "hosts": len(self._state.hosts),
            "networks": len(self._state.networks),
            "endpoints_here": now["endpoints"],
        }

    def _hosts(self) -> list[Document]:
        counts: dict[str, int] = {}
        for endpoints in self._state.endpoints.values():
            for endpoint in endpoints.values():
                counts[endpoint.host_id] = counts.get(endpoint.host_id, 0) + 1
        found = [
            {
                "id": host.id,
                "name": host.name,
                "vtep": str(host.vtep),
                "version": host.version,
                "alive": host.id in self._state.alive,
                "self": host.id == self._state.host.id,
                "endpoints": counts.get(host.id, 0),
            }
            for host in self._state.hosts.values()
        ]
        return sorted(found, key=lambda host: (not host["self"], host["name"]))

    def _networks(self, look: Look, find: str) -> Document:
        here = {network["id"]: network for network in look.now["networks"]}
        flows = {network["id"]: network for network in (look.rates or {}).get("networks", ())}
        found = []
        for network in self._state.networks.values():
            subnets = [str(subnet.cidr) for subnet in network.subnets]
            if not _occurs(find, network.name, network.id, *subnets):
                continue
            reading, flow = here.get(network.id), flows.get(network.id)
            found.append(
                {
                    "id": network.id,
                    "name": network.name,
                    "vni": network.vni,
                    "subnets": subnets,
                    "mtu_bytes": network.mtu_bytes,
                    "state": network.state,
                    "here": reading is not None,
                    "local": reading["endpoints"] if reading else 0,
                    "remote": reading["remote_endpoints"] if reading else None,
                    "rates": _some(flow, (*FRAMES, "drops")),
                }
            )
        # Those of this host first, the busiest of them before the others.
        found.sort(key=lambda one: (not one["here"], -_sum(one["rates"]), one["name"]))
        return {"total": len(found), "shown": found[:NETWORKS]}

    def _endpoints(self, find: str) -> Document:
        total = 0
        shown: list[Document] = []
        for document in self._each_endpoint():
            texts = (document["name"], document["network"], document["host"])
            if _occurs(find, *texts, *document["addresses"]):
                total += 1
                if len(shown) < ENDPOINTS:
                    shown.append(document)
        return {"total": total, "shown": shown}

    def _each_endpoint(self) -> Iterator[Document]:
        state = self._state
        for network_id, endpoints in state.endpoints.items():
            network = state.networks.get(network_id)
            for endpoint in endpoints.values():
                yield {
                    "id": endpoint.id,
                    "name": endpoint.name or endpoint.id[:12],
                    "network": network.name if network else "",
                    "network_id": network_id,
                    "host": self._host_name(endpoint),
                    "host_id": endpoint.host_id,
                    "addresses": [str(address.ip) for address in endpoint.addresses],
                }

    def _host_name(self, endpoint: Endpoint) -> str:
        host = self._state.hosts.get(endpoint.host_id)
        return host.name if host else ""

    def _tunnels(self, look: Look) -> list[Document]:
        alive = {
            host.name: host_id in self._state.alive for host_id, host in self._state.hosts.items()
        }
        flows = {peer["host"]: peer for peer in (look.rates or {}).get("peers", ())}
        probed = {
            tunnel["host"]: tunnel
            for tunnel in look.now["tunnels"]
            if tunnel["answer_age_s"] is not None
        }
        found = [
            {
                "host": peer["host"],
                "alive": alive.get(peer["host"], False),
                "rates": _some(flows.get(peer["host"]), TRAFFIC),
                "rtt_s": tunnel["round_trip_s"]["p50"] if tunnel else None,
                "loss": tunnel["loss"] if tunnel else None,
                "path_mtu_bytes": tunnel["path_mtu_bytes"] if tunnel else None,
            }
            for peer in look.now["peers"]
            for tunnel in (probed.get(peer["host"]),)
        ]
        return sorted(found, key=lambda one: (-_sum(one["rates"]), one["host"]))

    def _drops(self, look: Look) -> Document:
        """What was dropped since the forwarder started; reasons of which nothing was, are not."""
        found = [
            {"network": "", "direction": "ingress", "reason": reason, "frames": count}
            for reason, count in look.now["underlay"]["drops"].items()
            if count
        ]
        for network in look.now["networks"]:
            for direction in ("egress", "ingress"):
                found += [
                    {
                        "network": network["name"],
                        "direction": direction,
                        "reason": reason,
                        "frames": count,
                    }
                    for reason, count in network["counters"][f"{direction}_drops"].items()
                    if count
                ]
        found.sort(key=lambda one: -int(str(one["frames"])))
        return {"total": len(found), "shown": found[:DROPS]}


def _occurs(find: str, *texts: str) -> bool:
    return not find or any(find in text.casefold() for text in texts)


def _some(document: Mapping[str, object] | None, names: tuple[str, ...]) -> Document | None:
    return None if document is None else {name: document[name] for name in names}


def _sum(rates: object) -> float:
    """Weighs rates by their bytes, to put the busiest first."""
    if not isinstance(rates, dict):
        return 0.0
    return float(sum(rate for name, rate in rates.items() if name.endswith("_bytes")))
