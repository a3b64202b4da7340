"""What a program passes wrongly: an exception that names it, and nothing left behind."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_interface

import pytest

import pyvxlan
from pyvxlan import Engine, ForwardingTable, MalformedError, capture_sockets, open_underlay
from tests.servers.process import free_port
from tests.unit.library.frames import DESTINATION, UDP4

VTEP = "198.18.0.2"
PORT = free_port()


@pytest.fixture
def table():
    return ForwardingTable(42)


@pytest.fixture
def engine():
    with Engine(open_underlay("127.0.0.1", PORT, send_sockets=1)) as engine:
        yield engine


def queue() -> int:
    """A descriptor that an engine takes for a queue."""
    read, write = os.pipe()
    os.close(write)
    return read


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("address", [None, 5, 1.5, b"\xc6\x12\x00\x02", (VTEP, 4789)])
def test_what_is_no_address_is_a_type_error_that_shows_it(table, address):
    for call in (
        lambda: pyvxlan.encap_datagram(UDP4, 7, address, VTEP),
        lambda: table.apply({DESTINATION: address}),
        lambda: table.set_flood([address]),
        lambda: table.set_neighbours({address: DESTINATION}),
        lambda: table.ingress(UDP4, address),
        lambda: open_underlay(address, PORT),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert f"IP address {address!r}: give text" in str(caught.value)
    assert table.dump() == ForwardingTable(42).dump()


@pytest.mark.parametrize(
    "address", ["198.18.0.2/24", ip_interface("198.18.0.2/24"), "fe80::2%eth0"]
)
def test_an_address_with_more_than_an_address_is_refused_with_the_remedy(table, address):
    with pytest.raises(ValueError, match="without prefix length or zone") as caught:
        table.set_flood([address])
    assert str(address) in str(caught.value)


@pytest.mark.parametrize("mac", [None, 6, 10**12, True, [2, 66, 10, 0, 0, 3], range(6)])
def test_what_is_no_mac_is_a_type_error_that_shows_it(table, mac):
    for call in (
        lambda: pyvxlan.parse_mac(mac),
        lambda: table.lookup(mac),
        lambda: table.apply(remove=[mac]),
        lambda: table.set_neighbours({"10.0.0.3": mac}),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert f"MAC {mac!r}: give six bytes" in str(caught.value)


def test_a_mac_of_too_many_bytes_is_not_shown_whole():
    with pytest.raises(ValueError, match="1000000 bytes") as caught:
        pyvxlan.parse_mac(bytes(1_000_000))
    assert len(str(caught.value)) < 100


def test_one_where_a_list_is_wanted_is_a_type_error(table, engine):
    for call in (
        lambda: table.set_flood(VTEP),
        lambda: table.apply(remove=DESTINATION),
        lambda: table.apply(remove=pyvxlan.parse_mac(DESTINATION)),
        lambda: table.set_flood(None),
        lambda: Engine(5),
        lambda: engine.attach(7, "5", mtu_bytes=1450),
        lambda: pyvxlan.tap_offloads(0, without="csum"),
    ):
        with pytest.raises(TypeError, match="give a list of"):
            call()


def test_a_list_where_a_mapping_is_wanted_is_a_type_error(table, engine):
    for call in (
        lambda: table.apply([(DESTINATION, VTEP)]),
        lambda: table.apply([]),
        lambda: table.set_neighbours(None),
        lambda: engine.set_tunnels([VTEP]),
    ):
        with pytest.raises(TypeError, match="give a mapping from"):
            call()


@pytest.mark.parametrize("value", ["7", 7.0, None, b"7"])
def test_what_is_no_integer_is_named(engine, value):
    for what, call in {
        "VNI": lambda: pyvxlan.vxlan_header(value),
        "UDP port": lambda: open_underlay("127.0.0.1", value),
        "number of workers": lambda: open_underlay("127.0.0.1", PORT, workers=value),
        "number of send sockets": lambda: open_underlay("127.0.0.1", PORT, send_sockets=value),
        "MTU": lambda: engine.set_tunnels({VTEP: value}),
        "number of a capture": lambda: engine.end_capture(value),
        "descriptor": lambda: pyvxlan.receive_offload(value, on=True),
    }.items():
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == f"{what} {value!r} is no integer"


def test_what_is_no_flag_is_named(engine):
    for what, call in {
        "multicast": lambda: ForwardingTable(7, multicast=1),
        "checksum": lambda: open_underlay("127.0.0.1", PORT, checksum=1),
        "on": lambda: engine.switch_segmentation(on=1),
    }.items():
        with pytest.raises(TypeError, match=f"^{what} 1 is neither True nor False$"):
            call()


def test_a_number_too_long_for_a_message_is_refused_without_it():
    with pytest.raises(ValueError, match=r"VNI of type <class 'int'> is not in 0-16777215"):
        pyvxlan.encap(UDP4, 10**5000)


@pytest.mark.parametrize("interval_s", [-1, 0.0001, 3601, float("nan"), float("inf"), 1e300])
def test_an_interval_that_cannot_be_is_refused_in_seconds(engine, interval_s):
    with pytest.raises(ValueError, match=r"neither 0 nor in 0\.001-3600") as caught:
        engine.set_tunnels({}, interval_s=interval_s)
    assert repr(interval_s) in str(caught.value)


def test_a_short_frame_is_malformed_for_every_way_to_encapsulate():
    for call in (
        lambda: pyvxlan.encap(b"short", 7),
        lambda: pyvxlan.encap_batch([b"short"], 7),
        lambda: pyvxlan.encap_datagram(b"short", 7, "198.18.0.1", VTEP),
    ):
        with pytest.raises(MalformedError, match="14 bytes needed, 5 there"):
            call()
    with pytest.raises(ValueError, match="65536") as caught:
        pyvxlan.encap_datagram(UDP4, 7, "198.18.0.1", VTEP, source_port=65536)
    assert not isinstance(caught.value, MalformedError)


def test_a_vni_like_integer_is_an_integer_also_beside_a_short_frame():
    class Index:
        def __index__(self) -> int:
            return 7

    with pytest.raises(MalformedError):
        pyvxlan.encap(b"short", Index())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        {"vni": -1},
        {"vni": "7"},
        {"mtu_bytes": 67},
        {"mtu_bytes": "1450"},
        {"multicast": 1},
        {"flood_rate": 0},
        {"flood_rate": None},
    ],
)
def test_queues_of_a_network_that_cannot_be_are_closed(engine, bad):
    wanted = {"vni": 7, "mtu_bytes": 1450} | bad
    descriptor = queue()
    with pytest.raises((TypeError, ValueError)):
        engine.attach(wanted.pop("vni"), [descriptor], **wanted)
    assert not is_open(descriptor)
    assert engine.vnis() == []


@pytest.mark.parametrize("bad", [{"workers": 0}, {"workers": 2}, {"workers": "1"}, {"paused": 1}])
def test_sockets_of_an_engine_that_cannot_be_are_closed(bad):
    sockets = open_underlay("127.0.0.1", PORT, send_sockets=1)
    with pytest.raises((TypeError, ValueError)):
        Engine(sockets, **bad)
    assert not any(map(is_open, sockets))


@pytest.mark.parametrize("other", ["one", -1, 2**40])
def test_descriptors_beside_one_that_is_none_are_closed(engine, other):
    descriptor = queue()
    with pytest.raises((TypeError, OSError), match=f"descriptor {other!r}"):
        engine.attach(7, [descriptor, other], mtu_bytes=1450)
    assert not is_open(descriptor)


def test_descriptors_given_twice_are_closed_once(engine):
    descriptor = queue()
    with pytest.raises(ValueError, match=f"descriptor {descriptor} is given twice"):
        engine.attach(7, [descriptor, descriptor], mtu_bytes=1450)
    assert not is_open(descriptor)


def test_a_descriptor_of_another_kind_is_named():
    with open(os.devnull, "rb") as null:
        with pytest.raises(OSError, match=f"descriptor {null.fileno()} as queue of a TAP"):
            pyvxlan.tap_offloads(null.fileno())
        with pytest.raises(OSError, match=f"descriptor {null.fileno()} as receiving socket"):
            pyvxlan.receive_offload(null.fileno(), on=True)


def test_sockets_that_are_no_udp_sockets_make_no_engine():
    sockets = open_underlay("127.0.0.1", PORT, send_sockets=1)
    with (
        socket.create_server(("127.0.0.1", 0)) as stream,
        pytest.raises(ValueError, match="underlay socket 2 is no UDP socket"),
    ):
        Engine([*sockets, os.dup(stream.fileno())])
    assert not any(map(is_open, sockets))


@pytest.mark.parametrize("bad", [{"mac": 5}, {"mac": "x"}, {"snap_bytes": "x"}, {"drops_only": 1}])
def test_the_socket_of_a_capture_that_cannot_be_is_closed(engine, bad):
    ours, theirs = capture_sockets()
    with ours:
        with pytest.raises((TypeError, ValueError)):
            engine.begin_capture(7, theirs.detach(), **bad)
        assert ours.recv(1) == b""


def test_a_capture_needs_a_socket_that_keeps_messages_apart(engine):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with pytest.raises(ValueError, match="SOCK_SEQPACKET"):
            engine.begin_capture(7, theirs.detach())
        assert ours.recv(1) == b""
