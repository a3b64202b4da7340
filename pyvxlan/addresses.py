"""MAC addresses, IP addresses and VNIs at the library's edge, where text becomes plain values.

Inside, a MAC is six bytes, a VNI an int, and an IP address the text that the extension takes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

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

    >>> parse_mac("02:42:0A:00:00:02").hex()
    '02420a000002'
    """
    if isinstance(mac, str):
        if _MAC_TEXT.fullmatch(mac) is None:
            raise ValueError(f"MAC {mac!r}: write six bytes in hex, such as 02:42:0a:00:00:02")
        return bytes.fromhex(mac.replace(mac[2], ""))
    value = bytes(mac)
    if len(value) != 6:
        raise ValueError(f"MAC {value.hex(':')!r} has {len(value)} bytes: give six")
    return value


def format_mac(mac: bytes) -> str:
    """Gives six bytes as text.

    >>> format_mac(bytes([2, 0x42, 10, 0, 0, 2]))
    '02:42:0a:00:00:02'
    """
    return mac.hex(":")


def address_text(address: AddressLike) -> str:
    """Gives an address as text for the extension, which checks it."""
    return address if isinstance(address, str) else str(address)


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address:
    """Reads an address that the extension gave. The cache is for VTEPs, of which there are few."""
    return IPv6Address(text) if ":" in text else IPv4Address(text)
