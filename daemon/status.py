"""How this host is doing: one reading of everything, shown by `pyvxlan status` and the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from pyvxlan.daemon import ipam, records
from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.dataplane import Dataplane
from pyvxlan.daemon.dataplane.threads import Worker
from pyvxlan.daemon.documents import Document, host_document
from pyvxlan.daemon.errors import DataplaneError
from pyvxlan.daemon.events import Event, Events
from pyvxlan.daemon.following import REASONS
from pyvxlan.daemon.listening import url
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.membership import Membership
from pyvxlan.daemon.model import Network
from pyvxlan.daemon.state import State
from pyvxlan.daemon.tunnels import LOOK_S, Changes, Tunnel, read_tunnels

COUNTERS = (
    "egress_frames",
    "egress_bytes",
    "ingress_frames",
    "ingress_bytes",
    "flood_frames",
    "replies",
    "path_mtu_replies",
    "mss_clamped",
)
SIZES = ("fdb_entries", "neighbour_entries", "flood_vteps")
"""What the tables of a network hold."""
STORE_STATES = ("init", "synced", "stale")
"""Never read; in step; what was known last."""
FORWARDER_FACTS = ("pid", "workers", "restarts")
PEER_COUNTERS = tuple(
    f"{direction}_{what}" for direction in ("sent", "received") for what in ("datagrams", "bytes")
)
UNDERLAY_COUNTERS = (
    *PEER_COUNTERS,
    *(f"{way}_{what}" for way in ("sent", "received") for what in ("syscalls", "batches")),
)


class Progress(Protocol):
    """What the reconciler says of its own work."""

    repairs: int
    """How often something that somebody else had changed was put right again."""

    def problems(self) -> Sequence[str]:
        """What could not be done in the last round."""


class UsedStore(Protocol):
    """What the store says of where it is; `ClusterStore` is one."""

    @property
    def url(self) -> str:
        """URL of the store that is used now."""

    @property
    def problem(self) -> str:
        """Why this host can't go where its cluster went; empty if it can."""


class NameService(Protocol):
    """What the name servers say of their work."""

    @property
    def serving(self) -> int:
        """Number of sandboxes that are served."""

    @property
    def outcomes(self) -> Mapping[str, int]:
        """What became of queries."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was carried for one network, or was not: counters by name, drops by reason."""

    counters: Mapping[str, int]
    egress_drops: Mapping[str, int] = field(default_factory=dict)
    ingress_drops: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(SIZES, 0))

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> Traffic:
        """Reads what the data plane gives for a VNI; what it does not give is zero."""
        return cls(
            {name: int(stats.get(name, 0)) for name in COUNTERS},
            dict(stats.get("egress_drops", {})),
            dict(stats.get("ingress_drops", {})),
            {name: int(stats.get(name, 0)) for name in SIZES},
        )


@dataclass(frozen=True, slots=True)
class Use:
    """How much of something is in use: addresses of `ipv4` or `ipv6`, blocks of a pool."""

    name: str
    used: int
    size: int


@dataclass(frozen=True, slots=True)
class NetworkReading:
    """One network that is on this host. `remote` counts the endpoints of other hosts."""

    id: str
    name: str
    vni: int
    netns: str
    local: int
    remote: int
    traffic: Traffic
    addresses: tuple[Use, ...]
    offloads: tuple[str, ...] | None
    """In use by its port; None if that is none of the forwarder's, or not known."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at one moment. `forwarder` is empty while there is none."""

    networks: tuple[NetworkReading, ...]
    forwarder: Mapping[str, int]
    workers: tuple[Worker, ...]
    underlay: Mapping[str, int]
    underlay_drops: Mapping[str, int]
    endpoints: int
    cluster_networks: int
    pools: tuple[Use, ...]
    hosts_alive: int
    hosts_down: int
    repairs: int
    problems: tuple[str, ...]
    store_state: str
    """One of `STORE_STATES`."""
    tunnels: tuple[Tunnel, ...]
    peers: Mapping[str, Mapping[str, int]]
    """Datagrams and bytes by name of the host at the other end; "" is one that the store lacks."""
    stale_s: float | None
    resyncs: Mapping[str, int]
    held: int
    session_valid_s: float
    invalid: Mapping[str, str]
    names_served: int
    name_outcomes: Mapping[str, int]
    events: Mapping[str, int]
    """How many there were, by kind."""
    uptime_s: float


class Status:
    """Reads from every part of the daemon; changes nothing."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: UsedStore,
        state: State,
        local: LocalRecords,
        membership: Membership,
        dataplane: Dataplane,
        progress: Progress,
        names: NameService,
        events: Events,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._store = store
        self._state = state
        self._local = local
        self._membership = membership
        self._dataplane = dataplane
        self._progress = progress
        self._names = names
        self._events = events
        self._monotonic = monotonic
        self._started = monotonic()
        self._tunnel_changes = Changes()

    async def reading(self) -> Reading:
        """Reads everything now; a forwarder that does not answer counts as none."""
        try:
            stats: Mapping[str, Any] = await self._dataplane.stats()
        except DataplaneError:
            stats = {}
        underlay: Mapping[str, Any] = stats.get("underlay", {})
        traffic: dict[int, Mapping[str, Any]] = dict(stats.get("networks", ()))
        forwarder = {name: int(stats[name]) for name in FORWARDER_FACTS if name in stats}
        state, now = self._state, self._monotonic()
        return Reading(
            networks=tuple(self._networks(traffic, stats.get("offloads", {}))),
            forwarder=forwarder,
            workers=tuple(stats.get("threads", ())),
            underlay={name: int(underlay.get(name, 0)) for name in UNDERLAY_COUNTERS},
            underlay_drops=dict(underlay.get("drops", {})),
            endpoints=len(self._local.endpoints),
            cluster_networks=len(state.networks),
            pools=tuple(self._pools()),
            hosts_alive=len(state.hosts.keys() & state.alive),
            hosts_down=len(state.hosts.keys() - state.alive),
            repairs=self._progress.repairs,
            problems=(*self._progress.problems(), *self._apart()),
            store_state=self._store_state(),
            tunnels=self._tunnels(stats.get("tunnels", {})),
            peers=self._peers(stats.get("vteps", {})),
            stale_s=None if state.stale_since is None else now - state.stale_since,
            resyncs={reason: state.resyncs.get(reason, 0) for reason in REASONS},
            held=state.held,
            session_valid_s=self._membership.session_valid_s,
            invalid=dict(state.invalid),
            names_served=self._names.serving,
            name_outcomes=dict(self._names.outcomes),
            events=dict(self._events.counts),
            uptime_s=now - self._started,
        )

    async def document(self, version: str) -> Document:
        """Gives the document of `GET /v1/status`."""
        return self._document(version, await self.reading())

    async def document_with_tunnels(self, version: str) -> Document:
        """Gives the same, and the document of `GET /v1/peers` as `tunnels`, of one reading."""
        reading = await self.reading()
        tunnels = [tunnel.document() for tunnel in reading.tunnels]
        return self._document(version, reading) | {"tunnels": tunnels}

    def _apart(self) -> Sequence[str]:
        """Says that hosts that are up are on an underlay of the other IP version."""
        state, own = self._state, self._state.host.vtep.version
        names = sorted(
            host.name
            for host in state.hosts.values()
            if host.vtep.version != own and host.id in state.alive
        )
        if not names:
            return ()
        more = f" and {len(names) - 1} more" if names[1:] else ""
        return (
            f"no tunnel joins this host's IPv{own} VTEP with that of {names[0]}{more}: start the "
            "daemons with --advertise and addresses of one IP version",
        )

    def _document(self, version: str, reading: Reading) -> Document:
        host = self._state.hosts.get(self._state.host.id, self._state.host)
        return {
            "version": version,
            "pid": os.getpid(),
            "uptime_s": round(reading.uptime_s, 3),
            "run_dir": str(self._settings.run_dir),
            "state_dir": str(self._settings.state_dir),
            "host": host_document(host, alive=host.id in self._state.alive, is_self=True),
            "store": {
                "url": self._store.url,
                "configured": self._settings.store,
                "cluster": self._membership.cluster,
                "state": reading.store_state,
                "synced": reading.store_state == "synced",
                "stale_s": None if reading.stale_s is None else round(reading.stale_s, 3),
                "cause": self._state.stale_reason,
                "problem": self._membership.problem,
                "move_problem": self._store.problem,
                "held": reading.held,
                "resyncs": dict(reading.resyncs),
                "session_valid_s": round(reading.session_valid_s, 3),
                "invalid": reading.invalid,
            },
            "forwarder": {
                "up": "pid" in reading.forwarder,
                "pid": None,
                "workers": 0,
                "restarts": 0,
            }
            | dict(reading.forwarder),
            "underlay": dict(reading.underlay) | {"drops": reading.underlay_drops},
            "endpoints": reading.endpoints,
            "names": {"sandboxes": reading.names_served, "queries": reading.name_outcomes},
            "workers": [asdict(worker) for worker in reading.workers],
            "no_offload": list(self._settings.no_offload),
            "peers": [{"host": name} | dict(peer) for name, peer in reading.peers.items()],
            "reconcile": {"repairs": reading.repairs, "problems": list(reading.problems)},
            "metrics_url": url(self._settings, self._settings.metrics_address, "/metrics"),
            "web_url": url(self._settings, self._settings.web_address),
            "networks": [
                {
                    "id": network.id,
                    "name": network.name,
                    "vni": network.vni,
                    "netns": str(self._settings.run_dir / "netns" / network.netns),
                    "endpoints": network.local,
                    "remote_endpoints": network.remote,
                    "offloads": None if network.offloads is None else list(network.offloads),
                    "counters": dict(network.traffic.counters)
                    | {
                        "egress_drops": network.traffic.egress_drops,
                        "ingress_drops": network.traffic.ingress_drops,
                    },
                }
                for network in reading.networks
            ],
        }

    def events(self, after: int = 0) -> list[Document]:
        """Gives the answer of `GET /v1/events`: the events with a greater number, oldest first."""
        return [_event_document(event) for event in self._events.after(after)]

    async def peers_document(self) -> list[Document]:
        """Gives the document of `GET /v1/peers`."""
        return [tunnel.document() for tunnel in (await self.reading()).tunnels]

    async def watch_tunnels(self) -> None:
        """Notes events when tunnels are lost, come back, become narrow or wide; never ends."""
        while True:
            with contextlib.suppress(DataplaneError):
                stats: Mapping[str, Any] = await self._dataplane.stats()
                tunnels = self._tunnels(stats.get("tunnels", {}))
                for kind, text in self._tunnel_changes.tell(tunnels):
                    self._events.note(kind, text)
            await asyncio.sleep(LOOK_S)

    def _tunnels(self, tunnels: Mapping[str, Mapping[str, Any]]) -> tuple[Tunnel, ...]:
        return read_tunnels(
            tunnels,
            {str(host.vtep): host for host in self._state.hosts.values()},
            {network.vni: network.name for network in self._state.networks.values()},
            self._settings.probe_interval_s,
            self._tunnel_changes.lost,
        )

    def _store_state(self) -> str:
        if self._state.synced:
            return "synced"
        return "stale" if self._state.known else "init"

    def _networks(
        self,
        traffic: Mapping[int, Mapping[str, Any]],
        offloads: Mapping[int, tuple[str, ...]],
    ) -> list[NetworkReading]:
        local = self._local
        here: dict[str, int] = {}
        for endpoint in local.endpoints.values():
            here[endpoint.network_id] = here.get(endpoint.network_id, 0) + 1
        joined = self._state.endpoints
        found = []
        for network_id, count in here.items():
            network = self._state.networks.get(network_id) or local.networks.get(network_id)
            if network is None:
                continue
            endpoints = joined.get(network_id, {})
            found.append(
                NetworkReading(
                    id=network_id,
                    name=network.name,
                    vni=network.vni,
                    netns=local.netns_names.get(network_id, ""),
                    local=count,
                    remote=sum(e.host_id != local.host_id for e in endpoints.values()),
                    traffic=Traffic.of(traffic.get(network.vni, {})),
                    addresses=tuple(self._addresses(network)),
                    offloads=offloads.get(network.vni),
                )
            )
        return sorted(found, key=lambda network: network.name)

    def _peers(self, vteps: Mapping[str, Mapping[str, int]]) -> Mapping[str, Mapping[str, int]]:
        """Sums the counters of VTEPs by host; those of every host of the cluster are there."""
        own = self._state.host.id
        names = {str(host.vtep): host.name for host in self._state.hosts.values() if host.id != own}
        peers = {name: dict.fromkeys(PEER_COUNTERS, 0) for name in names.values()}
        for vtep, counters in vteps.items():
            peer = peers.setdefault(names.get(vtep, ""), dict.fromkeys(PEER_COUNTERS, 0))
            for name in PEER_COUNTERS:
                peer[name] += counters.get(name, 0)
        return peers

    def _addresses(self, network: Network) -> Iterator[Use]:
        taken = self._state.taken(network.id)
        for version in (4, 6):
            subnets = [subnet for subnet in network.subnets if subnet.cidr.version == version]
            if subnets:
                used = sum(address.version == version for address in taken)
                yield Use(f"ipv{version}", used, sum(map(ipam.capacity, subnets)))

    def _pools(self) -> Iterator[Use]:
        """Says of each pool, as users write it, how much of it the cluster's networks take."""
        pools = self._state.config.pools
        if pools is None:
            pools = tuple(records.parse_pool(text) for text in self._settings.pools)
        subnets = [
            subnet.cidr for network in self._state.networks.values() for subnet in network.subnets
        ]
        for pool in pools:
            yield Use(
                f"{pool.base}:{pool.size}",
                ipam.blocks_used(pool, subnets),
                1 << (pool.size - pool.base.prefixlen),
            )


def _event_document(event: Event) -> Document:
    seconds, milliseconds = divmod(event.number, 1000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return {
        "number": event.number,
        "time": f"{stamp}.{milliseconds:03d}Z",
        "kind": event.kind,
        "text": event.text,
    }
