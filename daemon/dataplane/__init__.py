"""The data plane as the daemon sees it: Protocol `Dataplane` and its implementations."""

from pyvxlan.capture import DroppedFrame
from pyvxlan.daemon.dataplane.capture import Capture
from pyvxlan.daemon.dataplane.protocol import (
    DATAPATHS,
    FORWARDER,
    KERNEL,
    Dataplane,
    NetworkTables,
    PortConfig,
    TableUpdate,
)
from pyvxlan.forwarder.protocol import CaptureRequest

__all__ = [
    "DATAPATHS",
    "FORWARDER",
    "KERNEL",
    "Capture",
    "CaptureRequest",
    "Dataplane",
    "DroppedFrame",
    "NetworkTables",
    "PortConfig",
    "TableUpdate",
]
