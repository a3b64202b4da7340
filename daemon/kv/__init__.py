"""The key-value store behind the overlay's shared state: Protocol `Store` and its backends."""

from pyvxlan.daemon.kv.store import (
    ABSENT,
    PRESENT,
    Change,
    Check,
    Delete,
    Event,
    Item,
    Live,
    Put,
    Removal,
    Session,
    Snapshot,
    Stale,
    Store,
    Write,
)

__all__ = [
    "ABSENT",
    "PRESENT",
    "Change",
    "Check",
    "Delete",
    "Event",
    "Item",
    "Live",
    "Put",
    "Removal",
    "Session",
    "Snapshot",
    "Stale",
    "Store",
    "Write",
]
