"""MAC addresses, IP addresses and VNIs at the library's edge, where text becomes plain values.

Inside, a MAC is six bytes, a VNI an int, and an IP address the text that the extension takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias, TypeVar

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

Address: TypeAlias = IPv4Address | IPv6Address
AddressLike: TypeAlias = Address | str
"""An address of `ipaddress`, or its text."""
MacLike: TypeAlias = bytes | bytearray | memoryview | str
"""Six bytes, or text such as `02:42:0a:00:00:02`."""

VNI_MAX: Final = 2**24 - 1

_MAC_TEXT = re.compile(r"[0-9a-fA-F]{2}([:-])[0-9a-fA-F]{2}(?:\1[0-9a-fA-F]{2}){4}")


def parse_mac(mac: MacLike) -> bytes:
    """Gives a MAC as six bytes.

    Text is six pairs of hex digits, all separated by ":" or all by "-".

    Raises:
        ValueError: It is no MAC.
        TypeError: It is neither bytes nor text.

    >>> parse_mac("02:42:0A:00:00:02").hex()
    '02420a000002'
    """
    if isinstance(mac, str):
        if _MAC_TEXT.fullmatch(mac) is None:
            raise ValueError(f"MAC {mac!r}: write six bytes in hex, such as 02:42:0a:00:00:02")
        return bytes.fromhex(mac.replace(mac[2], ""))
    if not isinstance(mac, bytes | bytearray | memoryview):  # `bytes` takes a number for a length
        raise TypeError(f"MAC {mac!r}: give six bytes, or text such as 02:42:0a:00:00:02")
    value = bytes(mac)
    if len(value) != 6:
        raise ValueError(f"MAC {value[:16].hex(':')!r} has {len(value)} bytes: give six")
    return value


def parse_macs(macs: Iterable[MacLike]) -> list[bytes]:
    """Gives each of several MACs as six bytes.

    Raises:
        ValueError: One is no MAC.
        TypeError: It is one MAC, or none of them can be had.
    """
    return [parse_mac(mac) for mac in several(macs, "MACs")]


def format_mac(mac: bytes) -> str:
    """Gives six bytes as text.

    >>> format_mac(bytes([2, 0x42, 10, 0, 0, 2]))
    '02:42:0a:00:00:02'
    """
    return memoryview(mac).hex(":")


def address_text(address: AddressLike) -> str:
    """Gives an address as text for the extension, which checks it.

    Raises:
        TypeError: It is neither text nor an address of `ipaddress`.
    """
    if isinstance(address, str):
        return address
    if not isinstance(address, IPv4Address | IPv6Address):
        raise TypeError(
            f"IP address {address!r}: give text such as 198.18.0.1, or an address of ipaddress"
        )
    return str(address)


def address_texts(addresses: Iterable[AddressLike]) -> list[str]:
    """Gives each of several addresses as text for the extension.

    Raises:
        TypeError: One is no address, it is one only, or none of them can be had.
    """
    return [address_text(address) for address in several(addresses, "addresses")]


def several(values: Iterable[T], what: str) -> Iterable[T]:
    """Refuses text and bytes where a list is wanted: their items are letters and numbers."""
    if isinstance(values, str | bytes | bytearray | memoryview) or not isinstance(values, Iterable):
        raise TypeError(f"{values!r}: give a list of {what}")
    return values


def items(values: Mapping[K, V], what: str) -> Iterable[tuple[K, V]]:
    """Gives the items of a mapping; refuses what is none."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{values!r}: give a mapping from {what}")
    return values.items()


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address:
    """Reads an address that the extension gave. The cache is for VTEPs, of which there are few."""
    return IPv6Address(text) if ":" in text else IPv4Address(text)
