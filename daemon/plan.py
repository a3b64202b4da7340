"""From what this host has to what it should have. Pure.

A plan depends on the two states alone, never on what happened before: applied twice, it does
nothing the second time. A round may be planned from the last reading and what was done since,
which `operations.applied` tells.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvxlan.daemon.dataplane import NetworkTables, TableUpdate
from pyvxlan.daemon.desired import Desired, Tables, WantedNetwork
from pyvxlan.daemon.net import BRIDGE, OUTER_NAME, PORT, Gateway, faults
from pyvxlan.daemon.operations import (
    Actual,
    AttachPort,
    DetachPort,
    EnsureBridge,
    EnsureGateway,
    EnsureNamesLink,
    EnsureNamespace,
    EnsurePort,
    EnsureVeth,
    Op,
    RemoveNamespace,
    RemoveVeth,
    UpdateTables,
)


def plan(desired: Desired, actual: Actual) -> list[Op]:
    """Gives the operations that make `actual` what is desired, in the order to do them.

    Removals come first, since what they remove may hold a name that is wanted elsewhere.
    """
    operations: list[Op] = []
    if not desired.hold:
        operations += _plan_removals(desired, actual)
    if desired.gateway and not _same_gateway(desired.gateway, actual.net.gateway):
        operations.append(EnsureGateway(gateway=desired.gateway))
    if desired.names and (wrong := faults(desired.names, actual.net.names)):
        operations.append(EnsureNamesLink(link=desired.names, faults=wrong))
    for network in desired.networks.values():
        operations += _plan_network(network, actual)
    return operations


def difference(vni: int, wanted: Tables, found: NetworkTables | None) -> TableUpdate | None:
    """Gives the change from one network's tables to the other; None if they are the same."""
    fdb = found.fdb if found else {}
    update = TableUpdate(
        vni,
        add={mac: vtep for mac, vtep in wanted.fdb.items() if fdb.get(mac) != vtep},
        remove=tuple(sorted(fdb.keys() - wanted.fdb.keys())),
        neighbours=(None if found and found.neighbours == wanted.neighbours else wanted.neighbours),
        flood=None if found and tuple(found.flood) == wanted.flood else wanted.flood,
    )
    if not update.add and not update.remove and update.neighbours is None and update.flood is None:
        return None
    return update


def scope_of(network_id: str) -> str:
    """The part of a network's id that names of its namespaces hold."""
    return network_id[:10]


def _plan_removals(desired: Desired, actual: Actual) -> Iterator[Op]:
    wanted = {
        (veth.netns, veth.outer_name)
        for network in desired.networks.values()
        for attachment in network.attachments
        for veth in attachment.veths
    }
    stays = {network.overlay.netns for network in desired.networks.values()}
    vnis = {network.port.vni for network in desired.networks.values()}
    for netns, links in actual.net.namespaces.items():
        scope = netns.partition("-")[2]
        for name in links:
            if OUTER_NAME.fullmatch(name) and (netns, name) not in wanted:
                yield RemoveVeth(scope=scope, netns=netns, outer_name=name)
    for name in actual.net.uplinks:
        if ("", name) not in wanted:
            yield RemoveVeth(netns="", outer_name=name)
    for vni in actual.tables:
        if vni not in vnis:
            yield DetachPort(vni=vni)
    for netns in actual.net.namespaces:
        if netns not in stays:
            yield RemoveNamespace(scope=netns.partition("-")[2], netns=netns)


def _plan_network(wanted: WantedNetwork, actual: Actual) -> Iterator[Op]:
    scope, overlay, port = scope_of(wanted.id), wanted.overlay, wanted.port
    links = actual.net.namespaces.get(overlay.netns)
    tables = actual.tables.get(port.vni)
    if links is None:
        adopt = tables is not None
        yield EnsureNamespace(scope=scope, netns=overlay.netns, vni=port.vni, adopt=adopt)
        if adopt:
            return
        links = {}
    if wrong := faults(overlay.bridge, links.get(BRIDGE)):
        yield EnsureBridge(scope=scope, netns=overlay.netns, link=overlay.bridge, faults=wrong)
    lost = tables is None or tables.port != port or not tables.port_alive
    if lost or PORT not in links:
        yield AttachPort(scope=scope, netns=overlay.netns, port=port)
    if (wrong := faults(overlay.port, links.get(PORT))) or lost:
        yield EnsurePort(scope=scope, netns=overlay.netns, link=overlay.port, faults=wrong)
    if wanted.tables and (update := difference(port.vni, wanted.tables, tables)):
        yield UpdateTables(scope=scope, update=update)
    for attachment in wanted.attachments:
        for veth in attachment.veths:
            outer = links if veth.netns else actual.net.uplinks
            wrong = faults(veth.outer, outer.get(veth.outer_name))
            if not veth.handover:
                wrong += faults(veth.inner, actual.net.inner.get(veth.outer_name))
            if wrong:
                yield EnsureVeth(
                    scope=scope,
                    endpoint_id=attachment.endpoint_id,
                    sandbox=attachment.sandbox,
                    veth=veth,
                    faults=tuple(dict.fromkeys(wrong)),
                )


def _same_gateway(wanted: Gateway, found: Gateway | None) -> bool:
    return (
        found is not None
        and found.ruled
        and found.forwarding
        and not faults(wanted.link, found.link)
    )
