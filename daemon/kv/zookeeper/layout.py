"""Where keys lie in ZooKeeper's tree. Pure.

    net          <root>/=net
    net/a        <root>/net/=a
    ep/n/e       <root>/ep/n/=e

A node that holds a value is marked by `=`, any other is a directory: the keys `net` and `net/a` can
both exist, and a value that is bound to a session, which ZooKeeper allows no children, has none.
Every creation of a key raises the version of its top directory (`net`, `ep`), and top directories
are never removed: see `transaction`.
"""

from __future__ import annotations

from dataclasses import dataclass

VALUE = "="
ESCAPE = "%"


@dataclass(frozen=True, slots=True)
class Layout:
    """The tree below one prefix.

    Directories are named as keys are, without a slash at the end; the uppermost is "".
    """

    root: str
    """Absolute path of the uppermost directory."""

    def value(self, key: str) -> str:
        """The path of a key's node."""
        directory, _, leaf = key.rpartition("/")
        return f"{self.directory(directory)}/{VALUE}{leaf}"

    def directory(self, name: str) -> str:
        """The path of a directory's node."""
        return "/".join([self.root, *map(_escaped, name.split("/"))]) if name else self.root

    def top(self, key: str) -> str:
        """The path of the directory that counts the creations of `key`."""
        first, slash, _ = key.partition("/")
        return self.directory(first) if slash else self.root


def directory_of(key: str) -> str:
    """The directory that holds a key or a directory; "" for the uppermost."""
    return key.rpartition("/")[0]


def joined(directory: str, part: str) -> str:
    """The name of `part` in a directory."""
    return f"{directory}/{part}" if directory else part


def parted(child: str) -> tuple[bool, str]:
    """Tells of a node's name whether it holds a value, and its part of the key."""
    return child.startswith(VALUE), child[child.startswith((VALUE, ESCAPE)) :]


def _escaped(part: str) -> str:
    """The name of a directory's node, which must not look like that of a value."""
    return ESCAPE + part if part.startswith((VALUE, ESCAPE)) else part
