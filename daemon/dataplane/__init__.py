"""The data plane as the daemon sees it: Protocol `Dataplane` and its implementations."""

from pyvxlan.daemon.dataplane.protocol import (
    DATAPATHS,
    FORWARDER,
    KERNEL,
    Dataplane,
    NetworkTables,
    PortConfig,
    TableUpdate,
)

__all__ = [
    "DATAPATHS",
    "FORWARDER",
    "KERNEL",
    "Dataplane",
    "NetworkTables",
    "PortConfig",
    "TableUpdate",
]
