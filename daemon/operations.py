"""Operations of a plan, and what each leaves behind. Pure: `reconcile` carries them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from pyvxlan.daemon.dataplane import NetworkTables, PortConfig, TableUpdate
from pyvxlan.daemon.model import Sandbox
from pyvxlan.daemon.net import BRIDGE, PORT, Gateway, Link, Observed, Veth

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Actual:
    """All that this host has: in the kernel, and in the data plane by VNI."""

    net: Observed = field(default_factory=Observed)
    tables: Mapping[int, NetworkTables] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step. `scope` is the first 10 digits of its network's id, empty for the host's own."""

    scope: str = ""
    endpoint_id: str = ""

    @property
    def key(self) -> str:
        """Names the thing that is changed; of two operations with one key the later counts."""
        return f"{type(self).__name__} {self.scope} {self.endpoint_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureNamespace(Operation):
    """Makes an overlay namespace, or finds the one that the data plane still holds for `vni`.

    What is in an adopted one is not known: it must be read before more is planned for it.
    """

    netns: str
    vni: int
    adopt: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureBridge(Operation):
    """Makes an overlay's bridge what it should be."""

    netns: str
    link: Link
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachPort(Operation):
    """Has the data plane open a network's port, anew if it has one."""

    netns: str
    port: PortConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsurePort(Operation):
    """Hangs the port on the bridge and sets it up."""

    netns: str
    link: Link
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTables(Operation):
    """Changes a network's tables in the data plane."""

    update: TableUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureGateway(Operation):
    """Makes the gateway bridge and its rules what they should be."""

    gateway: Gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureNamesLink(Operation):
    """Makes the host's link of the name server what it should be."""

    link: Link
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureVeth(Operation):
    """Connects a sandbox to a bridge, or puts right what connects it."""

    sandbox: Sandbox
    veth: Veth
    faults: tuple[str, ...]

    @property
    def key(self) -> str:
        """An endpoint may have two pairs."""
        return f"EnsureVeth {self.veth.outer_name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveVeth(Operation):
    """Removes a pair by its outer end; `netns` is empty in the host's own namespace."""

    netns: str
    outer_name: str

    @property
    def key(self) -> str:
        """The outer end is all that is known."""
        return f"RemoveVeth {self.outer_name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachPort(Operation):
    """Ends forwarding for a VNI and forgets its tables."""

    vni: int

    @property
    def key(self) -> str:
        """The network may not be known any more."""
        return f"DetachPort {self.vni}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveNamespace(Operation):
    """Takes an overlay namespace away."""

    netns: str

    @property
    def key(self) -> str:
        """A network may have had another namespace before."""
        return f"RemoveNamespace {self.netns}"


NetOp: TypeAlias = (
    EnsureNamespace
    | EnsureBridge
    | EnsurePort
    | EnsureGateway
    | EnsureNamesLink
    | EnsureVeth
    | RemoveVeth
    | RemoveNamespace
)
"""Operations on the kernel."""
TableOp: TypeAlias = AttachPort | UpdateTables | DetachPort
"""Operations on the data plane."""
Op: TypeAlias = NetOp | TableOp

_NEEDS: Mapping[type[Operation], frozenset[type[Operation]]] = {
    EnsureBridge: frozenset({EnsureNamespace}),
    AttachPort: frozenset({EnsureNamespace}),
    EnsurePort: frozenset({EnsureNamespace, EnsureBridge, AttachPort}),
    UpdateTables: frozenset({EnsureNamespace, AttachPort}),
    EnsureVeth: frozenset({EnsureNamespace, EnsureBridge}),
}


def blocked(op: Op, failed: Iterable[Op]) -> bool:
    """Whether an operation has no use because one that it builds on has failed.

    Removals build on nothing: a teardown goes on to its end.
    """
    uplink = isinstance(op, EnsureVeth) and not op.veth.netns
    if uplink:
        return any(isinstance(other, EnsureGateway) for other in failed)
    needs = _NEEDS.get(type(op), frozenset())
    return any(type(other) in needs and other.scope == op.scope for other in failed)


def applied(actual: Actual, op: Op) -> Actual:
    """Gives what is there after an operation has succeeded.

    An adopted namespace is taken to be empty here; the kernel has to be asked.
    """
    match op:
        case AttachPort() | UpdateTables() | DetachPort():
            return replace(actual, tables=_tables_after(actual.tables, op))
        case _:
            return replace(actual, net=_net_after(actual.net, op))


def updated(tables: NetworkTables, update: TableUpdate) -> NetworkTables:
    """Gives a network's tables after a change."""
    removed = set(update.remove)
    fdb = {mac: vtep for mac, vtep in tables.fdb.items() if mac not in removed}
    return replace(
        tables,
        fdb={**fdb, **update.add},
        neighbours=tables.neighbours if update.neighbours is None else update.neighbours,
        flood=tables.flood if update.flood is None else tuple(update.flood),
    )


def _tables_after(tables: Mapping[int, NetworkTables], op: TableOp) -> Mapping[int, NetworkTables]:
    match op:
        case AttachPort(port=port):
            held = tables.get(port.vni, NetworkTables(port))
            return {**tables, port.vni: replace(held, port=port, port_alive=True)}
        case UpdateTables(update=update):
            return {**tables, update.vni: updated(tables[update.vni], update)}
        case DetachPort(vni=vni):
            return _without(tables, vni)


def _net_after(net: Observed, op: NetOp) -> Observed:
    match op:
        case EnsureNamespace() | EnsureBridge() | EnsurePort():
            return _with_links(net, op.netns, _links_of(op))
        case EnsureGateway(gateway=gateway):
            return replace(net, gateway=gateway)
        case EnsureNamesLink(link=link):
            return replace(net, names=link)
        case EnsureVeth(veth=veth):
            return _with_veth(net, veth)
        case RemoveVeth(netns=netns, outer_name=outer_name):
            return _without_veth(net, netns, outer_name)
        case RemoveNamespace(netns=netns):
            gone = net.namespaces.get(netns, {})
            inner = {name: link for name, link in net.inner.items() if name not in gone}
            return replace(net, namespaces=_without(net.namespaces, netns), inner=inner)


def _links_of(op: EnsureNamespace | EnsureBridge | EnsurePort) -> Mapping[str, Link]:
    match op:
        case EnsureNamespace():
            return {}
        case EnsureBridge(link=link):
            return {BRIDGE: link}
        case EnsurePort(link=link):
            return {PORT: link}


def _with_links(net: Observed, netns: str, links: Mapping[str, Link]) -> Observed:
    held = {**net.namespaces.get(netns, {}), **links}
    return replace(net, namespaces={**net.namespaces, netns: held})


def _with_veth(net: Observed, veth: Veth) -> Observed:
    inner = {**net.inner, veth.outer_name: veth.inner}
    if veth.netns:
        net = _with_links(net, veth.netns, {veth.outer_name: veth.outer})
        return replace(net, inner=inner)
    return replace(net, uplinks={**net.uplinks, veth.outer_name: veth.outer}, inner=inner)


def _without_veth(net: Observed, netns: str, outer_name: str) -> Observed:
    inner = _without(net.inner, outer_name)
    if not netns:
        return replace(net, uplinks=_without(net.uplinks, outer_name), inner=inner)
    links = _without(net.namespaces.get(netns, {}), outer_name)
    return replace(net, namespaces={**net.namespaces, netns: links}, inner=inner)


def _without(mapping: Mapping[K, V], key: K) -> dict[K, V]:
    return {held: value for held, value in mapping.items() if held != key}
