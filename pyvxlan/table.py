"""`ForwardingTable`: the tables of one VNI and the decisions made by them, in memory only.

The engine decides by the same code. Useful alone for tests, simulations and other forwarders.

>>> table = ForwardingTable(42)
>>> table.apply({"02:42:0a:00:00:03": "198.18.0.2"})
>>> table.lookup("02:42:0a:00:00:03")
IPv4Address('198.18.0.2')
>>> frame = bytes.fromhex("02420a000003 02420a000002 88b5")
>>> table.egress(frame)
Unicast(vtep=IPv4Address('198.18.0.2'))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from pyvxlan import _dataplane
from pyvxlan.addresses import (
    Address,
    AddressLike,
    MacLike,
    address_text,
    address_texts,
    items,
    parse_address,
    parse_mac,
    parse_macs,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

Mac = TypeVar("Mac", bound=MacLike)
Ip = TypeVar("Ip", bound=AddressLike)

DROP_REASONS: Final[tuple[str, ...]] = tuple(_dataplane.drop_reasons())
"""Every reason for which a frame or datagram can be dropped; docs/dataplane.md explains each."""


@dataclass(frozen=True, slots=True)
class TableDump:
    """What a table holds: FDB from MAC to VTEP, neighbours from overlay address to MAC, VTEPs.

    MACs are six bytes. `port_alive` is False once the TAP of an engine's port was deleted.
    """

    fdb: Mapping[bytes, Address]
    neighbours: Mapping[Address, bytes]
    flood: tuple[Address, ...]
    port_alive: bool = True


@dataclass(frozen=True, slots=True)
class Unicast:
    """Encapsulate the frame and send it to one VTEP."""

    vtep: Address


@dataclass(frozen=True, slots=True)
class Flood:
    """Encapsulate the frame and send a copy to each of these VTEPs."""

    vteps: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """Give this frame back to the container: an ARP reply or a neighbour advertisement."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget the frame and count it under `reason`, one of DROP_REASONS."""

    reason: str


EgressDecision: TypeAlias = Unicast | Flood | Reply | Drop


class ForwardingTable:
    """FDB, neighbours and flood list of one VNI.

    All entries are of remote endpoints. Nothing is learnt from frames. May be shared between
    threads: a change builds the next table and swaps it in.
    """

    __slots__ = ("_table",)

    def __init__(self, vni: int, *, multicast: bool = True) -> None:
        """Makes empty tables; `multicast` False drops broadcast and multicast frames.

        Raises:
            ValueError: `vni` does not fit in 24 bits.
        """
        self._table = _dataplane.ForwardingTable(vni, multicast=multicast)

    def __len__(self) -> int:
        """Number of FDB entries."""
        return len(self._table)

    def __repr__(self) -> str:
        return f"<ForwardingTable vni={self.vni} fdb={len(self)}>"

    @property
    def vni(self) -> int:
        """Number of the overlay network."""
        return self._table.vni

    @property
    def multicast(self) -> bool:
        """Whether broadcast and multicast frames are flooded."""
        return self._table.multicast

    def apply(
        self, add: Mapping[Mac, AddressLike] | None = None, remove: Iterable[MacLike] = ()
    ) -> None:
        """Changes the FDB, all or nothing: removes MACs, then adds or moves MACs to VTEPs.

        Removing a MAC that is not there does nothing.

        Raises:
            ValueError: A MAC or VTEP is invalid, or not unicast; nothing was changed.
        """
        self._table.apply(fdb_entries({} if add is None else add), parse_macs(remove))

    def set_flood(self, vteps: Iterable[AddressLike]) -> None:
        """Replaces the list of VTEPs that get broadcast and multicast frames.

        Raises:
            ValueError: An address is invalid or not unicast; nothing was changed.
        """
        self._table.set_flood(address_texts(vteps))

    def set_neighbours(self, neighbours: Mapping[Ip, MacLike]) -> None:
        """Replaces the table from overlay address to MAC that ARP and NS are answered from.

        Raises:
            ValueError: An address or MAC is invalid; nothing was changed.
        """
        self._table.set_neighbours(neighbour_entries(neighbours))

    def lookup(self, mac: MacLike) -> Address | None:
        """Gives the VTEP behind which a MAC is, or None.

        Raises:
            ValueError: It is no MAC.
        """
        vtep = self._table.lookup(parse_mac(mac))
        return None if vtep is None else parse_address(vtep)

    def neighbour(self, address: AddressLike) -> bytes | None:
        """Gives the MAC of an overlay address, or None.

        Raises:
            ValueError: It is no IP address.
        """
        return self._table.neighbour(address_text(address))

    def is_vtep(self, address: AddressLike) -> bool:
        """Tells whether any FDB entry or the flood list names this VTEP.

        Raises:
            ValueError: It is no IP address.
        """
        return self._table.is_vtep(address_text(address))

    def dump(self) -> TableDump:
        """Gives all entries."""
        return table_dump(*self._table.dump())

    def egress(self, frame: Buffer) -> EgressDecision:
        """Decides what to do with a frame from a container. Any bytes will do."""
        verdict, vteps, reply, reason = self._table.egress(frame)
        match verdict:
            case "unicast":
                return Unicast(parse_address(vteps[0]))
            case "flood":
                return Flood(tuple(parse_address(vtep) for vtep in vteps))
            case "reply":
                return Reply(reply)
            case _:
                return Drop(reason)

    def ingress(self, frame: Buffer, source: AddressLike) -> Drop | None:
        """Decides on a decapsulated frame from the VTEP `source`; None is to deliver it.

        Raises:
            ValueError: `source` is no IP address.
        """
        reason = self._table.ingress(frame, address_text(source))
        return None if reason is None else Drop(reason)


def fdb_entries(entries: Mapping[Mac, AddressLike]) -> list[tuple[bytes, str]]:
    """Gives FDB entries as the extension takes them."""
    pairs = items(entries, "MAC to VTEP")
    return [(parse_mac(mac), address_text(vtep)) for mac, vtep in pairs]


def neighbour_entries(entries: Mapping[Ip, MacLike]) -> list[tuple[str, bytes]]:
    """Gives neighbours as the extension takes them."""
    pairs = items(entries, "address to MAC")
    return [(address_text(address), parse_mac(mac)) for address, mac in pairs]


def table_dump(
    fdb: list[tuple[bytes, str]],
    neighbours: list[tuple[str, bytes]],
    flood: list[str],
    port_alive: bool = True,  # noqa: FBT001, FBT002  # the extension's tuple, spread
) -> TableDump:
    """Makes typed what the extension's `dump` gave."""
    return TableDump(
        {mac: parse_address(vtep) for mac, vtep in fdb},
        {parse_address(address): mac for address, mac in neighbours},
        tuple(parse_address(vtep) for vtep in flood),
        port_alive,
    )
