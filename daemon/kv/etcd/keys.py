"""Keys and records as etcd holds them: under the prefix of the store's URL, as bytes. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pyvxlan.daemon.kv.store import Item

_FIRST, _AFTER_LAST = b"!", b"\x7f"
"""Every key begins with a printable character; what else lies under the prefix is not shown."""
_SESSION = b"\x01session/"
HEX_DIGITS = "0123456789abcdef"


class Keys:
    """Translates keys.

    Args:
        prefix: Where the store's keys begin, without a slash at either end.
    """

    def __init__(self, prefix: str) -> None:
        self._root = f"{prefix}/".encode()

    def key(self, key: str) -> bytes:
        """The key in etcd."""
        return self._root + key.encode()

    def session(self, session_id: str) -> bytes:
        """A key that lives as long as a session; no list and no watch shows it."""
        return self._root + _SESSION + session_id.encode()

    def below(self, prefix: str) -> tuple[bytes, bytes]:
        """The range of the keys that start with `prefix`: its first key, and the one after it."""
        if not prefix:
            return self._root + _FIRST, self._root + _AFTER_LAST
        start = self.key(prefix)
        return start, start[:-1] + bytes([start[-1] + 1])

    def parts(self, prefix: str) -> list[tuple[bytes, bytes]]:
        """Sixteen ranges that make up `below(prefix)`, even in size if hex digits follow it."""
        start, end = self.below(prefix)
        bounds = [start, *(self.key(prefix + digit) for digit in HEX_DIGITS[1:]), end]
        return list(pairwise(bounds))

    def item(self, record: Any) -> Item:
        """Reads a `KeyValue`, of whatever library; one that was deleted has no value."""
        key = record.key[len(self._root) :].decode(errors="backslashreplace")
        return Item(key, record.value, record.mod_revision)
