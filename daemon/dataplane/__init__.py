"""The data plane as the daemon sees it: Protocol `Dataplane` and its implementations."""

from pyvxlan.daemon.dataplane.protocol import (
    Dataplane,
    NetworkTables,
    PortConfig,
    TableUpdate,
)

__all__ = ["Dataplane", "NetworkTables", "PortConfig", "TableUpdate"]
