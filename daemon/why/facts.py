"""What one host says of one endpoint and its way to another: values that cross between daemons.

All are made of text, numbers and tuples, so that `emit` and `parse` are the same for each.
"""

from __future__ import annotations

import builtins
import types
import typing
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, TypeVar

from pyvxlan.daemon.errors import InvalidError

T = TypeVar("T")

ETH, VETH, BRIDGE, PORT = "eth", "veth", "bridge", "vxlan0"
TABLES, UNDERLAY = "tables", "underlay"
"""Stops of a frame on one host: the container's interface, its other end, the bridge, the port to
the tunnels, whatever decides there, the underlay."""
SMALL, FULL = "small", "full"
REQUEST, REPLY = "request", "reply"
UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something at a stop that is not as it should be."""

    stop: str
    what: str
    """One of `net.faults`, or `namespace`, `sandbox`, `fetched`, `way`, `neighbour`."""
    found: str = ""
    wanted: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a table of the data plane has for a key, and what it should have; empty for nothing."""

    key: str
    found: str
    wanted: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the name server inside a container answers for a name; `problem` if it does not."""

    server: str
    name: str
    addresses: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """One side: a host, its endpoint of the two, and what it has for the other one."""

    host: str
    vtep: str
    port: int
    """UDP, of the network's tunnels."""
    datapath: str
    run_dir: str
    netns: str
    """The overlay namespace's file."""
    veth: str
    ifname: str
    sandbox: str
    """The container's namespace's file; empty if the endpoint is not attached here."""
    stale_s: float | None
    """How long the store has not answered this host."""
    stale_cause: str
    knows_peer: bool
    """Whether this host's view of the store has the other endpoint, at the same host."""
    peer_vtep: str
    """Where this host's view of the store has the other host's tunnels end; empty if nowhere."""
    vtep_link: str
    """The link that holds this host's underlay address; empty if none does."""
    addresses: tuple[str, ...]
    """Of this host, each with its link."""
    underlay_mtu: int
    mtu: int
    """The network's."""
    forwarder: str
    """Why the forwarder does not answer; empty if it does."""
    problems: tuple[str, ...]
    """What the reconciler could not do."""
    repair_s: float
    """How often this daemon compares and repairs."""
    faults: tuple[Fault, ...]
    fdb: Entry | None
    """The other endpoint's MAC; None where there is no tunnel between the two."""
    neighbours: tuple[Entry, ...]
    """The other endpoint's addresses."""
    pinged: bool | None
    """Whether the other host answers a ping from this one; None if it was not asked."""
    resolution: Resolution | None


@dataclass(frozen=True, slots=True)
class Seen:
    """A marked frame at a stop."""

    stop: str
    kind: str
    size: str


@dataclass(frozen=True, slots=True)
class Traced:
    """What one host has seen of marked frames."""

    seen: tuple[Seen, ...]
    watched: tuple[str, ...]
    """Stops that could be watched at all."""
    drops: tuple[str, ...]
    """Reasons for which its forwarder has dropped frames between the two meanwhile."""
    problem: str = ""
    """Why the container's kernel did not send."""
    neighbour: str = ""
    """The MAC that it has for the other endpoint; `UNANSWERED` if nobody told it one."""
    path_mtu: int = 0
    """What it takes for the largest packet that gets there; 0 if it did not send."""
    refused: bool = False
    """Whether it kept the answer, which came to its interface, from who had sent."""


def emit(value: Any) -> dict[str, Any]:
    """Gives a value as a JSON document."""
    return asdict(value)


def parse(kind: type[T], document: object) -> T:
    """Reads a value that another daemon has sent; fields that are not known are left out.

    Raises:
        InvalidError: It does not fit.
    """
    try:
        return typing.cast("T", _parse(kind, document))
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidError(f"what a daemon said is not understood: {error!r}") from error


def _parse(kind: Any, value: Any) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        # An older daemon does not send what has come since, and has a default.
        there = [one.name for one in fields(kind) if one.name in value or one.default is MISSING]
        return kind(**{name: _parse(hints[name], value[name]) for name in there})
    arguments = typing.get_args(kind)
    match typing.get_origin(kind):
        case types.UnionType:
            some, _ = arguments  # Of all unions, only `X | None` is used.
            return None if value is None else _parse(some, value)
        case builtins.tuple:
            return tuple(_parse(arguments[0], one) for one in value)
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
