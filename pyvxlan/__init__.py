"""VXLAN (RFC 7348) for Python, forwarded by Rust.

Frames into datagrams and back (`encap`, `decap`), headers as typed values (`parse`), the tables
and decisions of a forwarder (`ForwardingTable`), and the forwarder itself (`Engine`). The daemon
that makes overlay networks of it is `pyvxlan.daemon`; nothing here needs it.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)  # in a checkout, the installed extension is found

from pyvxlan._dataplane import DEFAULT_PORT
from pyvxlan.addresses import VNI_MAX, Address, AddressLike, MacLike, format_mac, parse_mac
from pyvxlan.codec import (
    Datagram,
    decap,
    decap_batch,
    decap_datagram,
    encap,
    encap_batch,
    encap_datagram,
    flow_hash,
    source_port,
    vxlan_header,
)
from pyvxlan.engine import (
    Engine,
    Event,
    NetworkStats,
    Stats,
    UnderlayStats,
    open_tap,
    open_underlay,
    tap_offloads,
)
from pyvxlan.errors import (
    ForwarderLostError,
    ForwarderRefusedError,
    MalformedError,
    PyvxlanError,
)
from pyvxlan.headers import (
    ArpPacket,
    EthernetHeader,
    Frame,
    Ipv4Header,
    Ipv6Header,
    TcpHeader,
    UdpHeader,
    VxlanDatagram,
    VxlanHeader,
    VxlanPayload,
    parse,
    parse_datagram,
    parse_frame,
)
from pyvxlan.table import (
    DROP_REASONS,
    Drop,
    EgressDecision,
    Flood,
    ForwardingTable,
    Reply,
    TableDump,
    Unicast,
)

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_PORT",
    "DROP_REASONS",
    "VNI_MAX",
    "Address",
    "AddressLike",
    "ArpPacket",
    "Datagram",
    "Drop",
    "EgressDecision",
    "Engine",
    "EthernetHeader",
    "Event",
    "Flood",
    "ForwarderLostError",
    "ForwarderRefusedError",
    "ForwardingTable",
    "Frame",
    "Ipv4Header",
    "Ipv6Header",
    "MacLike",
    "MalformedError",
    "NetworkStats",
    "PyvxlanError",
    "Reply",
    "Stats",
    "TableDump",
    "TcpHeader",
    "UdpHeader",
    "UnderlayStats",
    "Unicast",
    "VxlanDatagram",
    "VxlanHeader",
    "VxlanPayload",
    "__version__",
    "decap",
    "decap_batch",
    "decap_datagram",
    "encap",
    "encap_batch",
    "encap_datagram",
    "flow_hash",
    "format_mac",
    "open_tap",
    "open_underlay",
    "parse",
    "parse_datagram",
    "parse_frame",
    "parse_mac",
    "source_port",
    "tap_offloads",
    "vxlan_header",
]
