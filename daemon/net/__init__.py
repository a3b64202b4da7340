"""The host's kernel: namespaces, links, addresses, routes, nftables, sysctls.

The only package that imports pyroute2. See docs/host.md for what is made, and how it is found
again.
"""

from pyvxlan.daemon.net.net import HostRecords, Net
from pyvxlan.daemon.net.survey import Inside, Survey
from pyvxlan.daemon.net.values import (
    BRIDGE,
    GATEWAY_BRIDGE,
    NAMES_LINK,
    OUTER_NAME,
    PORT,
    Attachment,
    Carried,
    Gateway,
    Link,
    Observed,
    Overlay,
    Route,
    Veth,
    Vxlan,
    VxlanState,
    alias_of,
    faults,
)

__all__ = [
    "BRIDGE",
    "GATEWAY_BRIDGE",
    "NAMES_LINK",
    "OUTER_NAME",
    "PORT",
    "Attachment",
    "Carried",
    "Gateway",
    "HostRecords",
    "Inside",
    "Link",
    "Net",
    "Observed",
    "Overlay",
    "Route",
    "Survey",
    "Veth",
    "Vxlan",
    "VxlanState",
    "alias_of",
    "faults",
]
