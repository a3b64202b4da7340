"""The store's schema, version 1: keys, and values as compact JSON (docs/schema.md).

What another host wrote is parsed here, once. A record that does not fit raises `InvalidError`
with the field and its value; whoever reads it then goes on without that record. Keys and values
stand in one module, because they change together, with the version.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import lru_cache
from ipaddress import (
    IPv4Interface,
    IPv6Interface,
    ip_address,
    ip_network,
)
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import quote

from pyvxlan.daemon.errors import InvalidError
from pyvxlan.daemon.model import (
    MTU_MIN_BYTES,
    VNI_MAX,
    VNI_MIN,
    Address,
    Cidr,
    Endpoint,
    Host,
    Interface,
    Network,
    Peer,
    Subnet,
    format_mac,
)

VERSION = 1
META = "meta"
CFG = "cfg"
POOLS = "pools"
GC_LEADER = "gc/leader"
NETWORKS = "net/"
HOSTS = "host/"
ALIVE = "alive/"
OWNED = "own/"
ENDPOINTS = "ep/"
GONE = "gone/"
MOVE_KEEPER = "move/keeper"
"""Bound to the session of whoever moves the cluster to another store."""
READY = "move/ready/"
HEARD = "heard/"

KINDS = frozenset(
    (
        *("meta", "cfg", "pools", "net", "netname", "vni", "host", "vtep"),
        *("gone", "ep", "own", "ip", "name", "mac"),
    )
)
"""First parts of the keys that outlive every session: what a copy of the store must hold."""
BOUND_KINDS = frozenset(("alive", "gc", "heard", "move", "check"))
"""First parts of the keys that live with a session, and mean nothing in a copy."""

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
NETWORK_NAME_MAX = 255
"""Bytes that a network's name may take, as it stands in its key."""
ID = re.compile(r"[0-9a-f]{32}")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

Json: TypeAlias = dict[str, Any]
T = TypeVar("T")


def network_key(network_id: str) -> str:
    """Key of a network's record."""
    return f"{NETWORKS}{network_id}"


def gone_key(network_id: str) -> str:
    """Key that says of a network that it was removed."""
    return f"{GONE}{network_id}"


def network_name_key(name: str) -> str:
    """Key of the claim on a network's name."""
    return f"netname/{_escaped(name)}"


def is_network_name(name: str) -> bool:
    """Whether a network may have a name: one line of text, as Docker allows it, without a slash.

    Docker takes any, and tells it only when it has made the network; those with a slash it can't
    find itself.
    """
    line = name.isprintable() and "/" not in name and not name.isspace()
    return line and 0 < len(_escaped(name)) <= NETWORK_NAME_MAX


def _escaped(name: str) -> str:
    """Writes a name of any text as a part of a key, which "." and ".." are not."""
    return name.replace(".", "%2E") if name in {".", ".."} else quote(name, safe="")


def vni_key(vni: int) -> str:
    """Key of the claim on a VNI."""
    return f"vni/{vni}"


def host_key(host_id: str) -> str:
    """Key of a host's record."""
    return f"{HOSTS}{host_id}"


def vtep_key(address: Address) -> str:
    """Key of the claim on an underlay address."""
    return f"vtep/{address}"


def alive_key(host_id: str) -> str:
    """Key that lives with a host's session; its revision is that host's fencing token."""
    return f"{ALIVE}{host_id}"


def heard_key(host_id: str) -> str:
    """Bound to the session of a host that gets frames from one that has no session any more."""
    return f"{HEARD}{host_id}"


def ready_key(host_id: str) -> str:
    """Key by which a host says whether it can use the store that the cluster is to move to."""
    return f"{READY}{host_id}"


def endpoints_prefix(network_id: str) -> str:
    """Prefix of the records of a network's endpoints."""
    return f"{ENDPOINTS}{network_id}/"


def endpoint_key(network_id: str, endpoint_id: str) -> str:
    """Key of an endpoint's record."""
    return f"ep/{network_id}/{endpoint_id}"


def owned_prefix(host_id: str) -> str:
    """Prefix of the list of a host's endpoints."""
    return f"{OWNED}{host_id}/"


def owned_key(endpoint: Endpoint) -> str:
    """Key that lists an endpoint as its host's, and leads to its record."""
    return f"{OWNED}{endpoint.host_id}/{endpoint.network_id}/{endpoint.id}"


def addresses_prefix(network_id: str) -> str:
    """Prefix of the claims on a network's addresses."""
    return f"ip/{network_id}/"


def address_key(network_id: str, address: Address) -> str:
    """Key of the claim on an overlay address."""
    return f"ip/{network_id}/{address}"


def endpoint_name_key(network_id: str, name: str) -> str:
    """Key of the claim on an endpoint's name; names differ by more than case, as in the DNS."""
    return f"name/{network_id}/{name.lower()}"


def mac_key(network_id: str, mac: bytes) -> str:
    """Key of the claim on a MAC address that a user chose."""
    return f"mac/{network_id}/{format_mac(mac)}"


def network_claims(network: Network) -> list[str]:
    """Lists the addresses that a network itself holds: gateways, and what is given to nobody."""
    return [
        address_key(network.id, address)
        for subnet in network.subnets
        for address in (subnet.gateway, *(spared for _, spared in subnet.aux))
    ]


def derived_mac(address: Address) -> bytes:
    """Gives 02:42 followed by the IPv4 address, or by the last four bytes of an IPv6 one."""
    return b"\x02\x42" + address.packed[-4:]


def endpoint_claims(endpoint: Endpoint) -> list[str]:
    """Lists the keys that belong to an endpoint beside its record, each claimed by its id.

    A MAC that follows from the IPv4 address needs no claim of its own: the address covers it.
    """
    claims = [owned_key(endpoint)]
    claims += [address_key(endpoint.network_id, address.ip) for address in endpoint.addresses]
    if endpoint.name:
        claims.append(endpoint_name_key(endpoint.network_id, endpoint.name))
    first = endpoint.addresses[0]
    if first.version == 6 or endpoint.mac != derived_mac(first):
        claims.append(mac_key(endpoint.network_id, endpoint.mac))
    return claims


@dataclass(frozen=True, slots=True)
class Pool:
    """A range that networks get their subnets from: blocks of `size` prefix bits in `base`."""

    base: Cidr
    size: int


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The `cfg` record: what all hosts agree on. `pools` None means each host's own setting."""

    vni: tuple[int, int] = (VNI_MIN, VNI_MAX)
    pools: tuple[Pool, ...] | None = None
    mtu_bytes: int | None = None
    gc_grace_s: float = 600
    session_ttl_s: float = 15


class Phase(Enum):
    """What is being done to a whole store."""

    FILLING = "filling"
    """It is being restored or copied into: nobody may use it yet."""
    MOVING = "moving"
    """Its cluster is about to move: hosts try whether they can use the other store."""
    FROZEN = "frozen"
    """It is being copied: nothing changes while `move/keeper` is there."""
    MOVED = "moved"
    """Its cluster has moved: nothing changes here any more."""


@dataclass(frozen=True, slots=True)
class Transition:
    """Part of `meta` while something is done to the store as a whole."""

    phase: Phase
    id: str
    """Names this one restoration or move."""
    to: str = ""
    """URL of the store that the cluster moves to; empty while `FILLING`."""


@dataclass(frozen=True, slots=True)
class Meta:
    """The `meta` record: which cluster this store belongs to, and who may read it."""

    cluster: str
    min_reader: int = VERSION
    created: str = ""
    transition: Transition | None = None

    @property
    def created_s(self) -> float:
        """When it was made, in seconds since the epoch; 0 if it does not tell."""
        try:
            return datetime.fromisoformat(self.created).timestamp()
        except ValueError:
            return 0.0


@dataclass(frozen=True, slots=True)
class Gone:
    """A `gone/` record: a network that was removed, so that no host takes it for lost."""

    name: str
    at_s: float
    """Seconds since the epoch, by the clock of the host that removed it."""


@dataclass(frozen=True, slots=True)
class PoolUse:
    """The `pools` record: which subnet belongs to which network."""

    used: Mapping[Cidr, str] = field(default_factory=dict)


def emit(value: Mapping[str, object] | str) -> bytes:
    """Writes a value as compact UTF-8 JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def emit_network(network: Network) -> bytes:
    """Writes a `net/` record."""
    return emit(
        {
            "v": VERSION,
            "name": network.name,
            "vni": network.vni,
            "subnets": [
                {"cidr": str(subnet.cidr), "gw": str(subnet.gateway)}
                | ({"range": str(subnet.ip_range)} if subnet.ip_range else {})
                | ({"aux": {name: str(ip) for name, ip in subnet.aux}} if subnet.aux else {})
                for subnet in network.subnets
            ],
            "mtu": network.mtu_bytes,
            "internal": network.internal,
            "mcast": network.multicast,
            "opts": dict(network.options),
            "labels": dict(network.labels),
            "by": network.created_by,
            "created": network.created,
            "state": network.state,
        }
        | ({"attachable": True} if network.attachable else {})
    )


def parse_network(network_id: str, value: bytes) -> Network:
    """Reads a `net/` record."""
    record = _record(value)
    vni = _integer(record, "vni", 1, VNI_MAX)
    subnets = tuple(_subnet(entry) for entry in _objects(record, "subnets"))
    if not subnets:
        raise InvalidError("field subnets is empty")
    return Network(
        id=_id(network_id),
        name=_network_name(record),
        vni=vni,
        subnets=subnets,
        mtu_bytes=_integer(record, "mtu", MTU_MIN_BYTES, 65535),
        internal=_flag(record, "internal", default=False),
        attachable=_flag(record, "attachable", default=False),
        multicast=_flag(record, "mcast", default=True),
        options=_texts(record, "opts"),
        labels=_texts(record, "labels"),
        created_by=_text(record, "by"),
        created=_text(record, "created"),
        state=_state(record),
    )


def with_state(value: bytes, state: Literal["up", "down"]) -> bytes:
    """Rewrites a network's record with another state; fields of newer versions stay."""
    return emit(_record(value) | {"state": state})


def emit_gone(gone: Gone) -> bytes:
    """Writes a `gone/` record."""
    return emit({"v": VERSION, "name": gone.name, "at": round(gone.at_s)})


def parse_gone(network_id: str, value: bytes) -> Gone:
    """Reads a `gone/` record."""
    record = _record(value)
    _id(network_id)
    return Gone(_network_name(record), _integer(record, "at", 0, 2**40))


def emit_endpoint(endpoint: Endpoint) -> bytes:
    """Writes an `ep/` record."""
    record: Json = {"v": VERSION, "host": endpoint.host_id}
    record |= {f"ip{address.version}": str(address) for address in endpoint.addresses}
    record["mac"] = format_mac(endpoint.mac)
    optional: Json = {
        "name": endpoint.name,
        "aliases": list(endpoint.aliases),
        "hostname": endpoint.hostname,
        "cid": endpoint.container_id,
    }
    return emit(record | {key: value for key, value in optional.items() if value})


def parse_endpoint(network_id: str, endpoint_id: str, value: bytes) -> Endpoint:
    """Reads an `ep/` record."""
    record = _record(value)
    addresses: list[Interface] = []
    if "ip4" in record:
        addresses.append(_shared(_converted(record, "ip4", IPv4Interface)))
    if "ip6" in record:
        addresses.append(_shared(_converted(record, "ip6", IPv6Interface)))
    if not addresses:
        raise InvalidError("neither ip4 nor ip6 is there")
    for address in addresses:
        if address.ip.is_multicast or address.ip.is_unspecified or address.ip.is_loopback:
            raise InvalidError(f"address {address} is not a host's")
    return Endpoint(
        id=_id(endpoint_id),
        network_id=_id(network_id),
        host_id=sys.intern(_id(_text(record, "host"))),
        mac=_converted(record, "mac", parse_mac),
        addresses=tuple(addresses),
        name=_name(record, "name") if record.get("name") else "",
        aliases=tuple(_matching("aliases", alias, NAME) for alias in _list(record, "aliases")),
        hostname=_text(record, "hostname"),
        container_id=_text(record, "cid"),
    )


def emit_host(host: Host) -> bytes:
    """Writes a `host/` record."""
    return emit(
        {
            "v": VERSION,
            "name": host.name,
            "vtep": str(host.vtep),
            "port": host.port,
            "ver": host.version,
            "caps": [],
        }
        | (
            {
                "peer": {
                    "port": host.peer.port,
                    "cert": base64.b64encode(host.peer.certificate).decode(),
                }
            }
            if host.peer
            else {}
        )
    )


def parse_host(host_id: str, value: bytes) -> Host:
    """Reads a `host/` record."""
    record = _record(value)
    vtep: Address = _converted(record, "vtep", ip_address)
    if vtep.is_multicast or vtep.is_unspecified:
        raise InvalidError(f"vtep {vtep} is not a host's address")
    return Host(
        id=_id(host_id),
        name=_text(record, "name"),
        vtep=vtep,
        port=_integer(record, "port", 1, 65535),
        version=_text(record, "ver"),
        peer=_peer(record),
    )


def emit_meta(meta: Meta) -> bytes:
    """Writes the `meta` record."""
    return emit(
        {
            "v": VERSION,
            "cluster": meta.cluster,
            "min_reader": meta.min_reader,
            "created": meta.created,
        }
    )


def parse_meta(value: bytes) -> Meta:
    """Reads the `meta` record; refuses one that needs a newer reader than this."""
    try:
        record = _object(value)
        min_reader = _integer(record, "min_reader", 0, 2**31)
        if min_reader <= VERSION:
            return Meta(
                cluster=_id(_text(record, "cluster")),
                min_reader=min_reader,
                created=_text(record, "created"),
                transition=_transition(record),
            )
    except InvalidError as error:
        raise InvalidError(
            f"{error}: correct it, or put a dump back with pyvxlan store restore --replace; if it "
            "is not pyvxlan's, give the store's URL a prefix of its own"
        ) from error
    raise InvalidError(
        f"the store needs a reader of schema {min_reader}, this one knows {VERSION}: upgrade "
        "pyvxlan, or name another store with --store"
    )


def with_transition(value: bytes, transition: Transition | None, *, cluster: str = "") -> bytes:
    """Rewrites the `meta` record with a transition, or without one, and maybe another cluster."""
    record = _object(value)
    record.pop("transition", None)
    if cluster:
        record["cluster"] = cluster
    if transition:
        record["transition"] = {
            "phase": transition.phase.value,
            "id": transition.id,
        } | ({"to": transition.to} if transition.to else {})
    return emit(record)


def emit_pools(pools: PoolUse) -> bytes:
    """Writes the `pools` record."""
    used = {str(cidr): network_id for cidr, network_id in pools.used.items()}
    return emit({"v": VERSION, "used": used})


def parse_pools(value: bytes) -> PoolUse:
    """Reads the `pools` record."""
    used = _texts(_record(value), "used")
    return PoolUse({_convert("used", cidr, ip_network): _id(nid) for cidr, nid in used.items()})


def parse_config(value: bytes) -> ClusterConfig:
    """Reads the `cfg` record; what it leaves out keeps its default."""
    record = _record(value)
    known = ClusterConfig()
    vni = known.vni
    if "vni" in record:
        match record["vni"]:
            case [int(low), int(high)] if 1 <= low <= high <= VNI_MAX:
                vni = (low, high)
            case other:
                raise InvalidError(f"field vni is {other!r}, not [lowest, highest]")
    pools = known.pools
    if "pools" in record:
        pools = tuple(
            parse_pool(f"{_text(entry, 'base')}:{_integer(entry, 'size', 1, 128)}")
            for entry in _objects(record, "pools")
        )
    mtu = _integer(record, "mtu", MTU_MIN_BYTES, 65535) if "mtu" in record else None
    return ClusterConfig(
        vni=vni,
        pools=pools,
        mtu_bytes=mtu,
        gc_grace_s=_seconds(record, "gc_grace_s", known.gc_grace_s),
        session_ttl_s=max(10.0, _seconds(record, "session_ttl_s", known.session_ttl_s)),
    )


def parse_pool(text: str) -> Pool:
    """Reads a pool as it is written in settings: `10.0.0.0/8:24`."""
    base_text, _, size_text = text.rpartition(":")
    try:
        base = ip_network(base_text)
        size = int(size_text)
    except ValueError as error:
        raise InvalidError(
            f"pool {text!r} is not BASE:SIZE such as 10.0.0.0/8:24 ({error})"
        ) from error
    longest = 30 if base.version == 4 else 126
    if not base.prefixlen <= size <= longest:
        raise InvalidError(
            f"pool {text!r}: block size /{size} must be between /{base.prefixlen} and /{longest}"
        )
    return Pool(base, size)


def parse_claim(value: bytes) -> str:
    """Reads a claim's value: the id of whoever holds it."""
    try:
        owner = json.loads(value)
    except ValueError as error:
        raise InvalidError(f"not JSON: {value[:40]!r}") from error
    if not isinstance(owner, str):
        raise InvalidError(f"{owner!r} is not an id")
    return _id(owner)


def parse_mac(text: str) -> bytes:
    """Reads a unicast MAC address, `02:42:0a:00:00:02`; case and `-` do not matter."""
    plain = text.lower().replace("-", ":")
    if not MAC.fullmatch(plain):
        raise InvalidError(f"MAC {text!r} is not six bytes such as 02:42:0a:00:00:02")
    mac = bytes.fromhex(plain.replace(":", ""))
    if mac[0] & 1:
        raise InvalidError(
            f"MAC {text!r} is a multicast address: the first byte must be even, such as 02"
        )
    if not any(mac):
        raise InvalidError(f"MAC {text!r} is all zero: choose one such as 02:42:0a:00:00:02")
    return mac


def _object(value: bytes) -> Json:
    try:
        record = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"not JSON: {value[:40]!r}") from error
    if not isinstance(record, dict):
        raise InvalidError(f"not a JSON object: {value[:40]!r}")
    return record


def newer_version(value: bytes) -> int | None:
    """Gives the version of a record that a newer pyvxlan has written; None of any other value.

    Such a record may be read all the same. If it can't, an upgrade is the remedy, and no hand that
    corrects or removes it.
    """
    with contextlib.suppress(InvalidError):
        version = _record(value)["v"]
        if isinstance(version, int) and version > VERSION:
            return version
    return None


def _record(value: bytes) -> Json:
    record = _object(value)
    _integer(record, "v", 1, 2**31)
    return record


def _convert(name: str, value: object, converter: Callable[[str], T]) -> T:
    if not isinstance(value, str):
        raise InvalidError(f"field {name} is {value!r}, not text")
    try:
        return converter(value)
    except ValueError as error:
        raise InvalidError(f"field {name}: {error}") from error


def _converted(record: Json, name: str, converter: Callable[[str], T]) -> T:
    return _convert(name, record.get(name), converter)


def _shared(address: Interface) -> Interface:
    """Lets all addresses of a subnet share what they say of it: a quarter of an endpoint."""
    address.network = _one(address.network)
    return address


@lru_cache(maxsize=4096)
def _one(cidr: Cidr) -> Cidr:
    return cidr


def _matching(name: str, value: object, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidError(f"field {name} is {value!r}")
    return value


def _id(value: str) -> str:
    return _matching("id", value, ID)


def _name(record: Json, name: str) -> str:
    return _matching(name, record.get(name), NAME)


def _network_name(record: Json) -> str:
    name = _text(record, "name")
    if not is_network_name(name):
        raise InvalidError(f"field name is {name!r}")
    return name


def _text(record: Json, name: str) -> str:
    value = record.get(name, "")
    if not isinstance(value, str):
        raise InvalidError(f"field {name} is {value!r}, not text")
    return value


def _integer(record: Json, name: str, low: int, high: int) -> int:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidError(f"field {name} is {value!r}, not a number from {low} to {high}")
    return value


def _seconds(record: Json, name: str, default: float) -> float:
    value = record.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InvalidError(f"field {name} is {value!r}, not a number of seconds")
    return float(value)


def _flag(record: Json, name: str, *, default: bool) -> bool:
    value = record.get(name, default)
    if not isinstance(value, bool):
        raise InvalidError(f"field {name} is {value!r}, not true or false")
    return value


def _list(record: Json, name: str) -> Sequence[object]:
    value = record.get(name, [])
    if not isinstance(value, list):
        raise InvalidError(f"field {name} is {value!r}, not a list")
    return value


def _objects(record: Json, name: str) -> list[Json]:
    entries = _list(record, name)
    for entry in entries:
        if not isinstance(entry, dict):
            raise InvalidError(f"field {name} holds {entry!r}, not an object")
    return [entry for entry in entries if isinstance(entry, dict)]


def _texts(record: Json, name: str) -> dict[str, str]:
    value = record.get(name, {})
    if not isinstance(value, dict):
        raise InvalidError(f"field {name} is {value!r}, not an object")
    for entry in value.values():
        if not isinstance(entry, str):
            raise InvalidError(f"field {name} holds {entry!r}, not text")
    return dict(value)


def _peer(record: Json) -> Peer | None:
    """Reads where a daemon answers; what can't be read is none, since frames don't need it."""
    match record.get("peer"):
        case {"port": int(port), "cert": str(text)} if 0 < port < 65536:
            with contextlib.suppress(ValueError):
                return Peer(port, base64.b64decode(text, validate=True))
    return None


def _transition(record: Json) -> Transition | None:
    value = record.get("transition")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidError(f"field transition is {value!r}, not an object")
    return Transition(_converted(value, "phase", Phase), _text(value, "id"), _text(value, "to"))


def _state(record: Json) -> Literal["up", "down"]:
    match record.get("state", "up"):
        case "up":
            return "up"
        case "down":
            return "down"
        case other:
            raise InvalidError(f"field state is {other!r}, not up or down")


def _subnet(entry: Json) -> Subnet:
    cidr: Cidr = _converted(entry, "cidr", ip_network)
    gateway: Address = _converted(entry, "gw", ip_address)
    ip_range: Cidr | None = None
    if "range" in entry:
        ip_range = _converted(entry, "range", ip_network)
        if ip_range.version != cidr.version or not ip_range.subnet_of(cidr):  # type: ignore[arg-type]
            raise InvalidError(f"range {ip_range} is not within {cidr}")
    aux = tuple(
        (name, _convert("aux", ip, ip_address)) for name, ip in _texts(entry, "aux").items()
    )
    for what, address in (("gateway", gateway), *aux):
        if address not in cidr:
            raise InvalidError(f"{what} {address} is not within {cidr}")
    return Subnet(cidr, gateway, ip_range, aux)
