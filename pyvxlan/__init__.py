"""VXLAN (RFC 7348) for Python, forwarded by Rust.

Frames into datagrams and back (`encap`, `decap`), headers as typed values (`parse`), the tables
and decisions of a forwarder (`ForwardingTable`), and the forwarder itself (`Engine`). The daemon
that makes overlay networks of it is `pyvxlan.daemon`; nothing here needs it.
"""

import os
import sys

TYPE_CHECKING = False  # as in `typing`, which takes longer to import than all that is done here
if TYPE_CHECKING:
    from pyvxlan._dataplane import DEFAULT_PORT
    from pyvxlan.addresses import VNI_MAX, Address, AddressLike, MacLike, format_mac, parse_mac
    from pyvxlan.capture import (
        CapturedFrame,
        CaptureMessage,
        DroppedFrame,
        capture_sockets,
        parse_capture,
    )
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
        TunnelStats,
        UnderlayStats,
        VtepStats,
        open_tap,
        open_underlay,
        receive_offload,
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

# Python looks into the current directory first: in a checkout, the installed extension is found.
# (`pkgutil.extend_path` does this, and imports a lot.)
__path__ += [
    path
    for path in (os.path.join(folder, __name__) for folder in sys.path)
    if path not in __path__ and os.path.isdir(path)
]

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_PORT",
    "DROP_REASONS",
    "VNI_MAX",
    "Address",
    "AddressLike",
    "ArpPacket",
    "CaptureMessage",
    "CapturedFrame",
    "Datagram",
    "Drop",
    "DroppedFrame",
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
    "TunnelStats",
    "UdpHeader",
    "UnderlayStats",
    "Unicast",
    "VtepStats",
    "VxlanDatagram",
    "VxlanHeader",
    "VxlanPayload",
    "__version__",
    "capture_sockets",
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
    "parse_capture",
    "parse_datagram",
    "parse_frame",
    "parse_mac",
    "receive_offload",
    "source_port",
    "tap_offloads",
    "vxlan_header",
]


_HOMES = ("addresses", "capture", "codec", "engine", "errors", "headers", "table", "_dataplane")


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used.

    The command line and the forwarder import this package and use none or few of them.
    """
    if name in __all__:
        from importlib import import_module  # noqa: PLC0415

        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
